/* Views of tensors, and their text in messages. Contracts in tensor.h. */
#include "llmc/ops/tensor.h"

#include <inttypes.h>
#include <stdio.h>

struct tensor tensor_make(const char *name, enum dtype dtype, void *data, int64_t d0, int64_t d1, int64_t d2,
                          int64_t d3) {
    struct tensor t = {data, name, dtype, 0, {d0, d1, d2, d3}, false};
    while (t.rank < TENSOR_MAX_RANK && t.dim[t.rank] > 0) t.rank++;
    check(t.rank > 0, "tensor %s has no elements", name);
    return t;
}

struct tensor tensor_slice_rows(const struct tensor *t, int64_t first, int64_t count) {
    int64_t cols = tensor_cols(t), rows = tensor_rows(t);
    check(first >= 0 && count > 0 && first + count <= rows, "rows %" PRId64 "..%" PRId64 " are outside %s",
          first, first + count, tensor_text(t));
    void *data = t->data ? (char *)t->data + first * cols * (int64_t)dtype_size(t->dtype) : NULL;
    return tensor_make(t->name, t->dtype, data, count, cols, 0, 0);
}

struct tensor tensor_range(const struct tensor *t, int64_t first, int64_t count) {
    check(t->rank == 0 || (first >= 0 && count >= 0 && first + count <= tensor_count(t)),
          "elements %" PRId64 "..%" PRId64 " are outside %s", first, first + count, tensor_text(t));
    void *data = t->data ? (char *)t->data + first * (int64_t)dtype_size(t->dtype) : NULL;
    return (struct tensor){.data = data, .name = t->name, .dtype = t->dtype, .rank = 1, .dim = {count}};
}

const char *tensor_text(const struct tensor *t) {
    if (!t) return "(none)";
    const char *dims = "";
    for (int i = 0; i < t->rank; i++) dims = temp_printf("%s%s%" PRId64, dims, i ? "," : "", t->dim[i]);
    return temp_printf("%s (%s) %s", t->name ? t->name : "tensor", dims, dtype_name(t->dtype));
}

bool tensor_same_shape(const struct tensor *a, const struct tensor *b) {
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

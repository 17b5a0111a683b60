/* Tests of the op tests: what is wrong must be reported. The right result (the reference, rounded to the dtype)
 * is spoiled in each of the ways below, for every output of every op; inputs are changed; scratch is overrun and
 * read. dev/mutants.sh breaks the kernels themselves. */
#include "test/test.h"

#include "test/ops/cpu_ctx.h"
#include "test/ops/op_harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Does any case of the op fail? */
static bool noticed(enum op_id id, enum dtype dtype, const struct op_target *target, struct error *err) {
    for (size_t i = 0; i < op_tests[id]->case_count; i++) {
        const struct op_case *c = &op_tests[id]->cases[i];
        double worst = 0.0;
        if (c->size == SIZE_LARGE) continue;
        if (op_check(op_tests[id], c, dtype, target, &worst, err) == OP_FAILED) return true;
    }
    return false;
}

/* --- spoiled results --- */

#define SPOILS(X)                                                                                            \
    X(FIRST_ELEMENT, "the first element is off")                                                             \
    X(MIDDLE_ELEMENT, "one element is off")                                                                  \
    X(LAST_ELEMENT, "the last element is off")                                                               \
    X(ONE_NAN, "one element is NaN")                                                                         \
    X(ONE_INFINITY, "one element is infinite")                                                               \
    X(SCALE, "all elements are off by a factor")                                                             \
    X(ROW, "one row is off by a factor")                                                                     \
    X(TAIL_NOT_WRITTEN, "the last elements are as they were")                                                \
    X(ROW_NOT_WRITTEN, "a row in the middle is as it was")                                                   \
    X(NOT_WRITTEN, "nothing was written")                                                                    \
    X(ZERO, "all elements are 0")                                                                            \
    X(ROWS_SHIFTED, "every row has the values of the next")                                                  \
    X(COLUMNS_SHIFTED, "every element has the value of the next")                                            \
    X(ADDED, "the result was added to what was there, or once more")                                         \
    X(OVERWRITTEN, "what was there is not in the sum")                                                       \
    X(PAST_END, "the element after the end was written")                                                     \
    X(BEFORE_START, "the element before the start was written")                                              \
    X(SECOND_RUN, "the second run differs in one bit")
enum spoil {
#define X(name, text) SPOIL_##name,
    SPOILS(X)
#undef X
        SPOIL_COUNT
};
static const char *const spoil_text[] = {
#define X(name, text) text,
    SPOILS(X)
#undef X
};

struct spoiler {
    enum spoil spoil;
    int operand;
    bool applied; /* a bit changed in some case */
};

static float read_at(const struct tensor *t, int64_t i) {
    return t->dtype == DTYPE_BF16 ? f32_from_bf16(((const uint16_t *)t->data)[i]) : f32(t)[i];
}
static void write_at(struct tensor *t, int64_t i, float v) {
    if (t->dtype == DTYPE_BF16)
        ((uint16_t *)t->data)[i] = bf16_from_f32(v);
    else
        f32(t)[i] = v;
}

/* Off by 2^-10 in fp32 and 2^-4 in bf16: small, but more than rounding explains. */
static float spoiled(const struct tensor *t, float v) {
    return v * (t->dtype == DTYPE_BF16 ? 1.0f + 1.0f / 16.0f : 1.0f + 1.0f / 1024.0f);
}
/* One element is off by as much of itself, and of the average, since it may be 0. */
static void spoil_element(struct tensor *t, int64_t i) {
    double average = 0.0;
    for (int64_t k = 0; k < tensor_count(t); k++)
        average += fabs((double)read_at(t, k)) / (double)tensor_count(t);
    float v = read_at(t, i), more = spoiled(t, (float)average) - (float)average;
    write_at(t, i, spoiled(t, v) + (v < 0.0f ? -more : more));
}

static void spoil_elements(struct tensor *t, const float *initial, enum spoil spoil) {
    int64_t n = tensor_count(t), cols = tensor_cols(t), rows = tensor_rows(t), row = rows / 2;
    float first = read_at(t, 0);
    int64_t one = spoil == SPOIL_FIRST_ELEMENT ? 0 : spoil == SPOIL_LAST_ELEMENT ? n - 1 : n / 2;
    switch (spoil) {
    case SPOIL_FIRST_ELEMENT:
    case SPOIL_MIDDLE_ELEMENT:
    case SPOIL_LAST_ELEMENT:
        spoil_element(t, one);
        break;
    case SPOIL_ONE_NAN:
        write_at(t, one, NAN);
        break;
    case SPOIL_ONE_INFINITY:
        write_at(t, one, INFINITY);
        break;
    case SPOIL_SCALE:
        for (int64_t i = 0; i < n; i++) write_at(t, i, spoiled(t, read_at(t, i)));
        break;
    case SPOIL_ROW:
        for (int64_t i = row * cols; i < (row + 1) * cols; i++) write_at(t, i, spoiled(t, read_at(t, i)));
        break;
    case SPOIL_TAIL_NOT_WRITTEN:
        for (int64_t i = (n - 1) / 4 * 4; i < n; i++) write_at(t, i, initial[i]);
        break;
    case SPOIL_ROW_NOT_WRITTEN:
        for (int64_t i = row * cols; i < (row + 1) * cols; i++) write_at(t, i, initial[i]);
        break;
    case SPOIL_NOT_WRITTEN:
        for (int64_t i = 0; i < n; i++) write_at(t, i, initial[i]);
        break;
    case SPOIL_ZERO:
        for (int64_t i = 0; i < n; i++) write_at(t, i, 0.0f);
        break;
    case SPOIL_ROWS_SHIFTED:
        for (int64_t i = 0; i < n - cols; i++) write_at(t, i, read_at(t, i + cols));
        break;
    case SPOIL_COLUMNS_SHIFTED:
        for (int64_t i = 0; i < n - 1; i++) write_at(t, i, read_at(t, i + 1));
        write_at(t, n - 1, first);
        break;
    case SPOIL_ADDED:
        for (int64_t i = 0; i < n; i++) write_at(t, i, read_at(t, i) + initial[i]);
        break;
    case SPOIL_OVERWRITTEN:
        for (int64_t i = 0; i < n; i++) write_at(t, i, read_at(t, i) - initial[i]);
        break;
    case SPOIL_PAST_END:
        write_at(t, n, 0.0f);
        break;
    case SPOIL_BEFORE_START:
        write_at(t, -1, 0.0f);
        break;
    default:
        break;
    }
}

static void spoil_result(void *user, struct op_instance *x, int run) {
    struct spoiler *s = (struct spoiler *)user;
    if (s->operand >= x->count || x->operand[s->operand].role == ROLE_IN) return;
    struct operand *o = &x->operand[s->operand];
    size_t bytes = (size_t)tensor_bytes(&o->target);
    unsigned char *before = (unsigned char *)xmalloc(bytes);
    memcpy(before, o->target.data, bytes);
    if (s->spoil != SPOIL_SECOND_RUN)
        spoil_elements(&o->target, o->initial, s->spoil);
    else if (run == 1)
        ((unsigned char *)o->target.data)[bytes / 2 / 4 * 4] ^= 1;
    if (s->spoil == SPOIL_PAST_END || s->spoil == SPOIL_BEFORE_START ||
        memcmp(before, o->target.data, bytes) != 0)
        s->applied = true;
    free(before);
}

/* Whether operand k is an output in some case of the op. */
static bool is_output(struct ctx *ctx, const struct op_test *op, int k) {
    bool output = false;
    for (size_t i = 0; i < op->case_count && !output; i++) {
        struct op_instance x;
        if (op->cases[i].size == SIZE_LARGE) continue;
        op_instance_create(&x, op, &op->cases[i], DTYPE_F32, ctx);
        output = k < x.count && x.operand[k].role != ROLE_IN;
        op_instance_free(&x);
    }
    return output;
}

/* Starts from the right result (the reference, rounded), so that only the damage can be what is reported. */
static void test_spoiled_results_are_noticed(void **state) {
    int survivors = 0, killed = 0;
    for (int id = 0; id < OP_COUNT; id++)
        for (int operand = 0; operand < OP_MAX_OPERANDS; operand++) {
            if (!is_output(ctx_of(state), op_tests[id], operand)) continue;
            for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++)
                for (int spoil = 0; spoil < SPOIL_COUNT; spoil++) {
                    struct error err;
                    struct spoiler s = {(enum spoil)spoil, operand, false};
                    struct op_target target = {
                        .ctx = ctx_of(state), .perfect = true, .tamper = spoil_result, .user = &s};
                    bool seen = noticed((enum op_id)id, (enum dtype)dtype, &target, &err);
                    killed += seen;
                    if (seen || !s.applied) continue;
                    print_error("%s %s operand %d: %s, and no case notices\n", op_name((enum op_id)id),
                                dtype_name((enum dtype)dtype), operand, spoil_text[spoil]);
                    survivors++;
                }
        }
    print_message("# %d spoiled results were noticed\n", killed);
    assert_int_equal(survivors, 0);
    assert_true(killed > 18 * OP_COUNT);
}

/* An input that comes back changed. */
static void change_input(void *user, struct op_instance *x, int run) {
    struct spoiler *s = (struct spoiler *)user;
    if (s->operand >= x->count || x->operand[s->operand].role != ROLE_IN) return;
    for (int k = 0; k < x->count; k++)
        if (x->operand[k].alias == s->operand) return; /* an output lives there */
    struct tensor *t = &x->operand[s->operand].target;
    ((unsigned char *)t->data)[tensor_bytes(t) - 1] ^= 1;
    s->applied = true;
}

static void test_changed_inputs_are_noticed(void **state) {
    int killed = 0;
    for (int id = 0; id < OP_COUNT; id++)
        for (int operand = 0; operand < OP_MAX_OPERANDS; operand++) {
            struct error err;
            struct spoiler s = {SPOIL_COUNT, operand, false};
            struct op_target target = {
                .ctx = ctx_of(state), .perfect = true, .tamper = change_input, .user = &s};
            bool seen = noticed((enum op_id)id, DTYPE_F32, &target, &err);
            if (seen != s.applied)
                fail_msg("%s: changed operand %d is not noticed", op_name((enum op_id)id), operand);
            killed += seen;
        }
    assert_true(killed > 2 * OP_COUNT);
}

/* --- the harness's own bookkeeping --- */

/* A variant that asks for 64 bytes of scratch and writes one more; one that reads what it has not written. */
static int64_t small_need(struct tensor *out, float value) { return 64; }
static void overruns_scratch(const struct op_env *env, struct tensor *out, float value) {
    for (int64_t i = 0; i < tensor_count(out); i++) write_at(out, i, value);
    ((char *)env->scratch)[64] = 1;
}
static void reads_scratch(const struct op_env *env, struct tensor *out, float value) {
    for (int64_t i = 0; i < tensor_count(out); i++) write_at(out, i, value + 0.0f * *(float *)env->scratch);
}

static void test_misuse_of_scratch_is_noticed(void **state) {
    static const struct fill_variant variants[][2] = {{{"overruns", overruns_scratch, small_need}, {0}},
                                                      {{"reads", reads_scratch, small_need}, {0}}};
    for (size_t i = 0; i < ARRAY_LENGTH(variants); i++) {
        struct ops ops = cpu_ops;
        struct error err;
        struct op_target target = {.ctx = ctx_of(state)};
        ops.fill = variants[i];
        ctx_of(state)->ops = &ops;
        if (!noticed(OP_fill, DTYPE_F32, &target, &err))
            fail_msg("a variant that %s scratch lives", variants[i]->name);
        if (i == 0) assert_non_null(strstr(err.message, "byte 0 after the end of its scratch"));
        ctx_of(state)->ops = &cpu_ops;
    }
}

int main(void) {
#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, open_cpu, close_cpu)
    const struct CMUnitTest tests[] = {
        CPU_TEST(test_spoiled_results_are_noticed),
        CPU_TEST(test_changed_inputs_are_noticed),
        CPU_TEST(test_misuse_of_scratch_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

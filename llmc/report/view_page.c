/* The page is view.html with the data in the place of a mark: facts as JSON, arrays as base64, a third of the
 * size of decimal numbers. */
#include "llmc/report/view_page.h"

#include "llmc/report/page.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t element_count(const struct view_array *a) {
    int64_t n = 1;
    for (int i = 0; i < a->rank; i++) n *= a->dim[i];
    return n;
}

static bool check_finite(const struct view_array *array, int count, struct error *err) {
    for (int k = 0; k < count; k++)
        for (int64_t i = 0; array[k].floats && i < element_count(&array[k]); i++)
            if (!isfinite(array[k].floats[i]))
                return fail(err, "the model's numbers are not finite (%s): its weights are damaged",
                            array[k].name);
    return true;
}

/* --- JSON --- */

static void put_numbers(struct writer *w, const struct view_array *a) {
    char text[32];
    for (int64_t i = 0, n = element_count(a); i < n; i++) {
        const char *comma = i == 0 ? "" : i % 16 ? "," : ",\n";
        int size = a->floats ? snprintf(text, sizeof text, "%s%.9g", comma, (double)a->floats[i])
                             : snprintf(text, sizeof text, "%s%" PRId32, comma, a->integers[i]);
        writer_put(w, text, (size_t)size);
    }
}

bool view_write_json(const char *path, json_t *facts, const struct view_array *array, int count,
                     struct error *err) {
    struct writer w;
    if (!check_finite(array, count, err) || !page_open_output(&w, path, err)) return false;
    char *text = json_dumps(facts, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    check(text != NULL, "the facts cannot be written as JSON");
    writer_put(&w, text, strlen(text) - 1); /* without the last brace */
    free(text);
    writer_printf(&w, ",\n\"arrays\": {");
    for (int k = 0; k < count; k++) {
        const struct view_array *a = &array[k];
        writer_printf(&w, "%s\n\"%s\": {\"about\": \"%s\", \"shape\": [", k ? "," : "", a->name, a->about);
        for (int i = 0; i < a->rank; i++) writer_printf(&w, "%s%" PRId64, i ? ", " : "", a->dim[i]);
        writer_printf(&w, "], \"data\": [\n");
        put_numbers(&w, a);
        writer_printf(&w, "]}");
    }
    writer_printf(&w, "\n}}\n");
    return page_close_output(&w, path, err);
}

/* --- the page --- */

/* The bytes in base64, at `out`; returns its end. */
static char *base64(char *out, const void *data, int64_t bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *p = (const uint8_t *)data;
    for (int64_t i = 0; i < bytes; i += 3, out += 4) {
        int n = (int)min_i64(3, bytes - i);
        uint32_t group =
            (uint32_t)p[i] << 16 | (uint32_t)(n > 1 ? p[i + 1] : 0) << 8 | (n > 2 ? p[i + 2] : 0);
        for (int k = 0; k < 4; k++) out[k] = k > n ? '=' : digits[group >> (18 - 6 * k) & 63];
    }
    return out;
}

/* The parts of an array that the page unpacks one at a time. */
static int64_t part_count(const struct view_array *a) { return a->by_layer ? a->dim[0] : 1; }
static int64_t part_bytes(const struct view_array *a) { return element_count(a) / part_count(a) * 4; }
static const char *part_data(const struct view_array *a, int64_t i) {
    return (a->floats ? (const char *)a->floats : (const char *)a->integers) + i * part_bytes(a);
}
static const char *kind_of(const struct view_array *a) { return a->floats ? "float32" : "int32"; }

static void put_array(struct writer *w, const struct view_array *a) {
    char *text = (char *)xmalloc(4 * (size_t)ceil_div(part_bytes(a), 3) + 1);
    for (int64_t i = 0; i < part_count(a); i++) {
        writer_printf(w, "<script type=\"text/plain\" data-kind=\"%s\" id=\"%s", kind_of(a), a->name);
        writer_printf(w, a->by_layer ? ".%" PRId64 "\">" : "\">", i);
        writer_put(w, text, (size_t)(base64(text, part_data(a, i), part_bytes(a)) - text));
        writer_printf(w, "</script>\n");
    }
    free(text);
}

struct view_data {
    json_t *facts;
    const struct view_array *array;
    int count;
};

static void put_data(struct writer *w, void *user) {
    const struct view_data *d = (const struct view_data *)user;
    page_put_json(w, "facts", d->facts);
    for (int k = 0; k < d->count; k++)
        if (!d->array[k].only_for_json) put_array(w, &d->array[k]);
}

bool view_write_page(const char *path, json_t *facts, const struct view_array *array, int count,
                     struct error *err) {
    struct view_data data = {facts, array, count};
    return check_finite(array, count, err) && page_write(path, "view.html", put_data, &data, err);
}

/* --- for a server --- */

static int64_t answer_size(const struct view_array *array, int count) {
    int64_t size = 0;
    for (int k = 0; k < count; k++)
        size += 100 + (int64_t)strlen(array[k].name) +
                part_count(&array[k]) * (4 + 4 * ceil_div(part_bytes(&array[k]), 3));
    return size;
}

char *view_answer(json_t *facts, const struct view_array *array, int count, double milliseconds,
                  struct error *err) {
    if (!check_finite(array, count, err)) return NULL;
    char *text = json_dumps(facts, JSON_COMPACT | JSON_REAL_PRECISION(9));
    check(text != NULL, "the facts cannot be written as JSON");
    char *answer = (char *)xmalloc(strlen(text) + 200 + (size_t)answer_size(array, count)), *p = answer;
    p += sprintf(p, "{\"milliseconds\":%.3f,\"facts\":%s,\"arrays\":{", milliseconds, text);
    free(text);
    for (int k = 0, first = 1; k < count; k++) {
        const struct view_array *a = &array[k];
        if (a->only_for_json) continue;
        p += sprintf(p, "%s\"%s\":{\"kind\":\"%s\",\"parts\":[", first ? "" : ",", a->name, kind_of(a));
        for (int64_t i = 0; i < part_count(a); i++) {
            p += sprintf(p, i ? ",\"" : "\"");
            p = base64(p, part_data(a, i), part_bytes(a));
            *p++ = '"';
        }
        p += sprintf(p, "]}");
        first = 0;
    }
    sprintf(p, "}}");
    return answer;
}

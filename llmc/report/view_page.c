/* The page is view.html, which the build turns into bytes, with the data in the place of a mark. Facts are
 * JSON in a script element that no browser runs; "<" is escaped in it, so that no text can end the element.
 * Arrays are base64, a third of the size of decimal numbers. */
#include "llmc/report/view_page.h"

#include "llmc/base/file.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The build makes these of view.html. */
extern const unsigned char view_html[];
extern const size_t view_html_size;

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

/* Opens path.tmp; of a pipe or device, itself. */
static bool open_output(struct writer *w, const char *path, struct error *err) {
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) return writer_open(w, path, err);
    char *temporary = xasprintf("%s.tmp", path);
    bool ok = writer_open(w, temporary, err);
    free(temporary);
    return ok;
}

static bool close_output(struct writer *w, const char *path, struct error *err) {
    char *written = xstrdup(w->path);
    bool ok = writer_close(w, err) && (strcmp(written, path) == 0 || rename_synced(written, path, err));
    free(written);
    return ok;
}

static char *facts_text(struct json_t *facts, size_t flags) {
    char *text = json_dumps(facts, flags | JSON_REAL_PRECISION(9));
    check(text != NULL, "the facts of a page cannot be written as JSON");
    return text;
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
    if (!check_finite(array, count, err) || !open_output(&w, path, err)) return false;
    char *text = facts_text(facts, JSON_INDENT(1));
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
    return close_output(&w, path, err);
}

/* --- the page --- */

static void put_base64(struct writer *w, const void *data, int64_t bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *p = (const uint8_t *)data;
    for (int64_t i = 0; i < bytes; i += 3) {
        int n = (int)min_i64(3, bytes - i);
        uint32_t group =
            (uint32_t)p[i] << 16 | (uint32_t)(n > 1 ? p[i + 1] : 0) << 8 | (n > 2 ? p[i + 2] : 0);
        char out[4] = {digits[group >> 18], digits[group >> 12 & 63], digits[group >> 6 & 63],
                       digits[group & 63]};
        for (int k = n + 1; k < 4; k++) out[k] = '=';
        writer_put(w, out, 4);
    }
}

static void put_facts(struct writer *w, json_t *facts) {
    char *text = facts_text(facts, JSON_COMPACT);
    writer_printf(w, "<script type=\"application/json\" id=\"facts\">");
    for (const char *p = text; *p;) {
        size_t plain = strcspn(p, "<");
        writer_put(w, p, plain);
        p += plain;
        if (*p == '<') writer_printf(w, "\\u003c"), p++;
    }
    writer_printf(w, "</script>\n");
    free(text);
}

static void put_array(struct writer *w, const struct view_array *a) {
    int64_t parts = a->by_layer ? a->dim[0] : 1, bytes = element_count(a) / parts * 4;
    const char *data = a->floats ? (const char *)a->floats : (const char *)a->integers;
    for (int64_t i = 0; i < parts; i++) {
        writer_printf(w, "<script type=\"text/plain\" data-kind=\"%s\" id=\"%s",
                      a->floats ? "float32" : "int32", a->name);
        writer_printf(w, a->by_layer ? ".%" PRId64 "\">" : "\">", i);
        put_base64(w, data + i * bytes, bytes);
        writer_printf(w, "</script>\n");
    }
}

bool view_write_page(const char *path, json_t *facts, const struct view_array *array, int count,
                     struct error *err) {
    static const char mark[] = "<!-- DATA -->";
    const char *page = (const char *)view_html;
    const char *at = (const char *)memmem(page, view_html_size, mark, sizeof mark - 1);
    check(at != NULL, "view.html has no %s", mark);
    struct writer w;
    if (!check_finite(array, count, err) || !open_output(&w, path, err)) return false;
    writer_put(&w, page, (size_t)(at - page));
    put_facts(&w, facts);
    for (int k = 0; k < count; k++)
        if (!array[k].only_for_json) put_array(&w, &array[k]);
    at += sizeof mark - 1;
    writer_put(&w, at, view_html_size - (size_t)(at - page));
    return close_output(&w, path, err);
}

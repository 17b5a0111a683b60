/* Split patterns cut text as in Hugging Face's tokenizers, or are refused. dev/reference/split_patterns.py
 * writes the goldens: the sizes of the words of some texts, and a checksum of those of a text that has every
 * code point between others. */
#include "test/test.h"

#include "llmc/base/utf8.h"
#include "llmc/text/code_set.h"
#include "llmc/text/pcre2_class.h"
#include "llmc/text/pretokenize.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static json_t *goldens(void) {
    json_error_t problem;
    json_t *root = json_load_file("test/golden/split_patterns.json", JSON_ALLOW_NUL, &problem);
    if (!root) fail_msg("split_patterns.json:%d: %s", problem.line, problem.text);
    return root;
}

struct words {
    uint32_t *size;
    int64_t count, space;
};

static void add_word(void *arg, const uint8_t *word, int64_t size) {
    struct words *w = (struct words *)arg;
    if (w->count == w->space)
        w->size = (uint32_t *)xrealloc(w->size, (size_t)(w->space = 2 * w->space + 64) * sizeof *w->size);
    w->size[w->count++] = (uint32_t)size;
}

static void cut(const struct pretokenizer *pre, const char *text, size_t size, struct words *w) {
    w->count = 0;
    check(pretokenize(pre, (const uint8_t *)text, (int64_t)size, add_word, w), "PCRE2 gives up");
}

static struct pretokenizer pattern(const char *regex, bool drop_gaps) {
    struct pretokenizer pre = {0};
    struct error err;
    check(pretokenizer_add_pattern(&pre, regex, drop_gaps, &err), "%s: %s", regex, err.message);
    return pre;
}

static bool same_words(const struct words *w, const json_t *want) {
    if ((size_t)w->count != json_array_size(want)) return false;
    for (int64_t i = 0; i < w->count; i++)
        if (w->size[i] != json_integer_value(json_array_get(want, (size_t)i))) return false;
    return true;
}

static void test_texts(void **state) {
    json_t *root = goldens(), *row, *text;
    size_t i, k;
    struct words w = {0};
    json_array_foreach(json_object_get(root, "patterns"), i, row) {
        const char *regex = json_string_value(json_object_get(row, "pattern"));
        struct pretokenizer pre = pattern(regex, false);
        json_array_foreach(json_object_get(root, "texts"), k, text) {
            cut(&pre, json_string_value(text), json_string_length(text), &w);
            if (!same_words(&w, json_array_get(json_object_get(row, "words"), k)))
                fail_msg("%s cuts \"%s\" into other words", regex, json_string_value(text));
        }
        pretokenizer_free(&pre);
    }
    free(w.size);
    json_decref(root);
}

/* Blocks of code points, each in the form that the goldens give. The blocks lie one behind the other. */
static char *every_code_point(const json_t *root, int64_t *start, int *blocks) {
    const char *form = json_string_value(json_object_get(root, "form")), *p;
    const int64_t block = json_integer_value(json_object_get(root, "block"));
    json_t *plane;
    size_t i;
    int64_t in_block = block;
    char *out = (char *)xmalloc((size_t)(4 * strlen(form)) * 200000), *at = out;
    *blocks = 0;
    json_array_foreach(json_object_get(root, "planes"), i, plane) {
        int64_t first, end, step;
        assert_int_equal(json_unpack(plane, "[III]", &first, &end, &step), 0);
        for (int64_t c = first; c < end; c += step) {
            if (c >= 0xd800 && c <= 0xdfff) continue;
            if (in_block == block) start[(*blocks)++] = at - out, in_block = 0;
            for (p = form; *p; p++) {
                if (strncmp(p, "{c}", 3) != 0) {
                    *at++ = *p;
                    continue;
                }
                at += utf8_encode((uint8_t *)at, (uint32_t)c);
                p += 2;
            }
            in_block++;
        }
    }
    start[*blocks] = at - out;
    return out;
}

static void test_every_code_point(void **state) {
    json_t *root = goldens(), *patterns = json_object_get(root, "patterns");
    int64_t start[400];
    int blocks, wrong = 0;
    char *text = every_code_point(root, start, &blocks);
#pragma omp parallel for schedule(dynamic) reduction(+ : wrong)
    for (size_t i = 0; i < json_array_size(patterns); i++) {
        const json_t *row = json_array_get(patterns, i);
        const char *regex = json_string_value(json_object_get(row, "pattern"));
        struct pretokenizer pre = pattern(regex, false);
        struct words w = {0};
        uLong crc = 0;
        for (int b = 0; b < blocks; b++) {
            cut(&pre, text + start[b], (size_t)(start[b + 1] - start[b]), &w);
            crc = crc32(crc, (const Bytef *)w.size, (uInt)(w.count * 4));
        }
        const char *want = json_string_value(json_object_get(row, "crc"));
        if (crc != strtoul(want, NULL, 16)) {
            print_error("%s: checksum %08lx, expected %s\n", regex, crc, want);
            wrong++;
        }
        free(w.size);
        pretokenizer_free(&pre);
    }
    free(text);
    json_decref(root);
    assert_int_equal(wrong, 0);
}

static void test_refused_by_name(void **state) {
    json_t *root = goldens(), *v;
    size_t i;
    struct error err;
    json_array_foreach(json_object_get(root, "refused"), i, v) {
        struct pretokenizer pre = {0};
        const char *regex = json_string_value(v);
        if (pretokenizer_add_pattern(&pre, regex, false, &err)) fail_msg("%s is accepted", regex);
        if (!strstr(err.message, regex)) fail_msg("\"%s\" does not name %s", err.message, regex);
        pretokenizer_free(&pre);
    }
    json_decref(root);
    /* deep, and long */
    static const char *const parts[][2] = {
        {"(", ")"}, {"[", "]"}, {"(?=", ")"}, {"\\w", ""}, {"[^\\s\\p{L}]", ""}};
    for (i = 0; i < ARRAY_LENGTH(parts); i++) {
        char *many = (char *)xcalloc(20000, 16), *at = many;
        for (int side = 0; side < 2; side++)
            for (int k = 0; k < 20000; k++) at = stpcpy(at, parts[i][side]);
        struct pretokenizer pre = {0};
        assert_false(pretokenizer_add_pattern(&pre, many, false, &err));
        pretokenizer_free(&pre);
        free(many);
    }
}

/* A long run must not exhaust PCRE2, in whatever way its class had to be written. */
static void test_long_runs(void **state) {
    enum { SIZE = 3000000 };
    char *text = (char *)xmalloc(SIZE);
    memset(text, 'b', SIZE);
    static const char *const patterns[] = {"\\w+", "[\\p{L}&&[^a]]+", "[^\\s\\p{L}&&[^b]]*", "\\H+|."};
    for (size_t i = 0; i < ARRAY_LENGTH(patterns); i++) {
        struct pretokenizer pre = pattern(patterns[i], false);
        struct words w = {0};
        cut(&pre, text, SIZE, &w);
        free(w.size);
        pretokenizer_free(&pre);
    }
    free(text);
}

/* What lies between the matches is dropped, and an empty match is nothing. */
static void test_only_matches(void **state) {
    struct pretokenizer pre = pattern("(?=g)|[ab]+", true);
    struct words w = {0};
    cut(&pre, "xabgbax", 7, &w);
    assert_int_equal(w.count, 2);
    assert_int_equal(w.size[0], 2);
    assert_int_equal(w.size[1], 2);
    free(w.size);
    pretokenizer_free(&pre);
}

/* The linked PCRE2 may have another version of Unicode. A class of nothing but characters that are of
 * another category there matches them, and in a text without them nothing. */
static void test_characters_of_another_unicode(void **state) {
    const struct code_set *difference = pcre2_unicode_difference();
    if (!difference->count) skip();
    char *regex = NULL, text[8] = "ab";
    size_t size;
    FILE *out = open_memstream(&regex, &size);
    fputc('[', out);
    for (int i = 0; i < difference->count; i += 2)
        fprintf(out, "\\x{%x}-\\x{%x}", (unsigned)difference->bound[i],
                (unsigned)difference->bound[i + 1] - 1);
    fputc(']', out);
    fclose(out);
    struct pretokenizer pre = pattern(regex, false);
    struct words w = {0};
    cut(&pre, text, 2, &w);
    assert_int_equal(w.count, 1);
    int n = utf8_encode((uint8_t *)text + 1, difference->bound[0]);
    text[1 + n] = 'b';
    cut(&pre, text, (size_t)n + 2, &w);
    assert_int_equal(w.count, 3);
    assert_int_equal(w.size[1], n);
    free(w.size);
    free(regex);
    pretokenizer_free(&pre);
}

static void test_sets_of_code_points(void **state) {
    struct code_set a = {0}, b = {0};
    code_set_add(&a, 10, 19);
    code_set_add(&a, 30, 39);
    code_set_add(&a, 5, 12); /* before the end */
    code_set_add(&b, 15, 34);
    code_set_combine(&a, &b, CODE_SET_DIFFERENCE);
    static const uint32_t want[] = {5, 15, 35, 40};
    assert_int_equal(a.count, 4);
    assert_memory_equal(a.bound, want, sizeof want);
    code_set_invert(&a);
    assert_true(code_set_has(&a, 0) && code_set_has(&a, 15) && code_set_has(&a, CODE_POINTS - 1));
    assert_false(code_set_has(&a, 5) || code_set_has(&a, 39));
    code_set_invert(&a);
    assert_memory_equal(a.bound, want, sizeof want);
    code_set_combine(&a, &a, CODE_SET_XOR);
    assert_int_equal(a.count, 0);
    assert_false(code_set_add_named(&a, "Nope", false));
    code_set_free(&a);
    code_set_free(&b);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_every_code_point),
        cmocka_unit_test(test_refused_by_name),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_only_matches),
        cmocka_unit_test(test_characters_of_another_unicode),
        cmocka_unit_test(test_sets_of_code_points),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* `train_gpt view` as a user runs it, on a model that was trained for two steps: the JSON is valid and
 * holds what sample computes; the page has the same numbers, refers to nothing outside, and no text of a
 * prompt becomes markup. */
#include "test/scratch.h"

#include "llmc/base/json_file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

/* --- running the program --- */

static char *run(int wanted_status, const char *fmt, ...) LLMC_PRINTF(2, 3);
static char *run(int wanted_status, const char *fmt, ...) {
    const char *build = getenv("BUILD");
    va_list ap;
    va_start(ap, fmt);
    char *arguments = xvasprintf(fmt, ap);
    va_end(ap);
    char *text = xasprintf("%s/train_gpt %s", build && *build ? build : "build", arguments);
    FILE *f = popen(text, "r");
    assert_non_null(f);
    size_t size = 0, capacity = 1 << 24;
    char *output = (char *)xcalloc(1, capacity);
    for (size_t n; (n = fread(output + size, 1, capacity - 1 - size, f)) > 0;) size += n;
    int status = pclose(f);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != wanted_status)
        fail_msg("%s: status %d, not %d\n%s", text, WEXITSTATUS(status), wanted_status, output);
    free(arguments);
    free(text);
    return output;
}

/* What must not become markup, end a script, or be taken for text: tags, quotes, controls, bytes that are
 * no UTF-8. */
static const char nasty[] =
    "a</script><script>alert(1)</script><!-- \"x\" 'y' & &amp; \\ \x01\x1b[0m\t\n\x7f \xff\xe2\x96 \xf0\x9f\x98\x80"
    " \xe2\x80\xa8 <|endoftext|><img src=x onerror=alert(1)> end";

static int make_model(void **state) {
    if (make_scratch(state)) return -1;
    put_file("nasty.txt", nasty, sizeof nasty - 1);
    free(run(0,
             "--device cpu --stories 200 --steps 2 --layers 2 --heads 2 --channels 32 --context 256 "
             "--vocab-size 400 --batch-size 2 --seq-len 32 --tokens-per-step 64 --out %s 2>&1",
             in_scratch("run")));
    free(run(0, "view --from %s --prompt - --html %s --json %s <%s 2>&1", in_scratch("run"),
             in_scratch("page.html"), in_scratch("page.json"), in_scratch("nasty.txt")));
    return 0;
}

static json_t *load(const char *path) {
    struct error err;
    json_t *root = json_file_load(path, &err);
    if (!root) fail_msg("%s", err.message);
    return root;
}

static int64_t size_of(const json_t *array) {
    int64_t n = 1;
    size_t i;
    json_t *dim;
    json_array_foreach(json_object_get(array, "shape"), i, dim) n *= json_integer_value(dim);
    return n;
}

/* --- JSON --- */

static void test_json(void **state) {
    json_t *root = load(in_scratch("page.json")), *arrays = json_object_get(root, "arrays"), *array;
    int64_t T = (int64_t)json_array_size(json_object_get(root, "tokens"));
    const char *name;
    assert_true(json_object_size(arrays) > 20);
    json_object_foreach(arrays, name, array) {
        assert_true(json_string_length(json_object_get(array, "about")) > 0);
        if ((int64_t)json_array_size(json_object_get(array, "data")) != size_of(array))
            fail_msg("%s: wrong shape", name);
    }
    array = json_object_get(arrays, "attention");
    for (int64_t row = 0, rows = size_of(array) / T; row < rows; row++) {
        double sum = 0.0;
        for (int64_t s = 0; s < T; s++)
            sum += json_number_value(json_array_get(json_object_get(array, "data"), (size_t)(row * T + s)));
        assert_true(fabs(sum - 1.0) < 1e-5);
    }
    json_decref(root);
}

/* A head that is off adds nothing, and a link that is cut has no weight; the others share it. */
static void test_without(void **state) {
    const char *from = in_scratch("run");
    free(run(0, "view --from %s --prompt 'Once upon a time' --json %s --without '%s'", from,
             in_scratch("without.json"), "{\"off\": [[1, 0]], \"cut\": [[3, 1, 0, -1]]}"));
    json_t *root = load(in_scratch("without.json")), *arrays = json_object_get(root, "arrays"),
           *attention = json_object_get(arrays, "attention"),
           *effect = json_object_get(arrays, "head_effect");
    int64_t T = (int64_t)json_array_size(json_object_get(root, "tokens")), NH = 2;
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < NH; h++) {
            size_t at = (size_t)((T + t) * NH + h); /* layer 1 */
            double x = json_number_value(json_array_get(json_object_get(effect, "data"), at));
            assert_true((x == 0.0) == (h == 0));
        }
    for (int64_t h = 0; h < NH; h++) {
        double sum = 0.0;
        for (int64_t s = 0; s <= 3; s++) {
            size_t at = (size_t)((h * T + 3) * T + s); /* layer 0 */
            double x = json_number_value(json_array_get(json_object_get(attention, "data"), at));
            assert_true((x == 0.0) == (s == 1));
            sum += x;
        }
        assert_true(fabs(sum - 1.0) < 1e-5);
    }
    json_decref(root);
    free(run(1, "view --from %s --prompt Once --json - --without '{\"off\": [[2, 0]]}' 2>&1", from));
    free(run(1, "view --from %s --prompt Once --json - --without nonsense 2>&1", from));
    free(run(2, "view --from %s --prompt Once --serve --without '{}' 2>&1", from));
}

/* build/numbers prints what the file says, and refuses what it does not. */
static char *numbers(int wanted_status, const char *arguments) {
    const char *build = getenv("BUILD");
    char *command = xasprintf("%s/numbers %s %s 2>&1", build && *build ? build : "build",
                              in_scratch("page.json"), arguments);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    char *output = (char *)xcalloc(1, 1 << 20);
    output[fread(output, 1, (1 << 20) - 1, f)] = 0;
    int status = pclose(f);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != wanted_status) fail_msg("%s: %s", command, output);
    free(command);
    return output;
}

static void test_numbers(void **state) {
    json_t *root = load(in_scratch("page.json")), *q = json_object_get(json_object_get(root, "arrays"), "q"),
           *data = json_object_get(q, "data");
    int64_t T = (int64_t)json_array_size(json_object_get(root, "tokens")), NH = 2, HS = 16;
    assert_true(size_of(q) == 2 * T * NH * HS);
    char *text = numbers(0, "q 1 : 1 5"), *line = strchr(text, '\n'); /* layer 1, head 1, dimension 5 */
    assert_non_null(line);
    char *end = line;
    for (int64_t t = 0; t < T; t++) {
        double want = json_number_value(json_array_get(data, (size_t)(((T + t) * NH + 1) * HS + 5)));
        double got = strtod(end, &end);
        if (!(fabs(got - want) <= 0.00051)) fail_msg("token %d: %g, not %g", (int)t, got, want);
    }
    free(text);
    text = numbers(0, "");
    assert_non_null(strstr(text, "attention"));
    free(text);
    char *picture = xasprintf("attention 0 1 %s", in_scratch("a.svg"));
    free(numbers(0, picture));
    text = get_text(in_scratch("a.svg"));
    int cells = 0;
    for (const char *p = text; (p = strstr(p, "<rect x=")); p++) cells++;
    assert_int_equal(cells, T * T);
    assert_null(strstr(text, "<script"));
    free(text);
    free(picture);
    static const struct {
        const char *arguments, *said;
    } wrong[] = {{"nothing", "there is no array"},
                 {"q 0", "more indices"},
                 {"q 2 0", "index 2 of q"},
                 {"q 0 x", "index x of q"},
                 {"rstd 0 0", "1 dimensions"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        text = numbers(1, wrong[i].arguments);
        assert_mentions(text, wrong[i].said);
        free(text);
    }
    json_decref(root);
}

/* The tokens as one text, without the <|endoftext|> in front; [e2] is a byte. */
static char *text_of(const json_t *root) {
    json_t *tokens = json_object_get(root, "tokens"), *vocabulary = json_object_get(root, "vocabulary");
    char *text = (char *)xcalloc(1, 1 << 16), *end = text;
    for (size_t t = 1; t < json_array_size(tokens); t++) {
        size_t id = (size_t)json_integer_value(json_array_get(tokens, t));
        for (const char *p = json_string_value(json_array_get(vocabulary, id)); *p;) {
            unsigned byte;
            bool is_byte = sscanf(p, "[%2x]", &byte) == 1 && strlen(p) >= 4 && p[3] == ']';
            *end++ = is_byte ? (char)byte : *p;
            p += is_byte ? 4 : 1;
        }
    }
    return text;
}

static void test_same_text_as_sample(void **state) {
    const char *from = in_scratch("run"),
               *choice = "--temperature 0.7 --top-k 30 --top-p 0.9 --seed 5 --tokens 20";
    char *sampled = run(0, "sample --from %s --prompt 'Once upon' --no-stats %s", from, choice);
    char *json = run(0, "view --from %s --prompt 'Once upon' --json - %s", from, choice);
    put_text("stdout.json", json);
    json_t *root = load(in_scratch("stdout.json"));
    assert_in_range(json_integer_value(json_object_get(root, "prompt_tokens")), 2, 10);
    char *text = text_of(root);
    strcat(text, "\n");
    assert_string_equal(text, sampled);
    json_decref(root);
    free(text);
    free(json);
    free(sampled);
}

/* --- the page --- */

/* The content of the element with this id; the caller frees. */
static char *content(const char *page, const char *id) {
    char *mark = xasprintf(" id=\"%s\">", id);
    const char *from = strstr(page, mark);
    if (!from) fail_msg("the page has no element %s", id);
    from += strlen(mark);
    const char *end = strstr(from, "</script>");
    assert_non_null(end);
    free(mark);
    return xasprintf("%.*s", (int)(end - from), from);
}

static int count_of(const char *text, const char *wanted) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, wanted)); p += strlen(wanted)) n++;
    return n;
}

/* All but the data: its text is base64, and JSON that no browser runs. */
static char *frame_of(const char *page) {
    const char *data = strstr(page, "<script type=\"application/json\""), *script = strstr(page, "<script>");
    assert_non_null(data);
    assert_true(script > data);
    return xasprintf("%.*s%s", (int)(data - page), page, script);
}

static void test_page_is_alone(void **state) {
    char *page = get_text(in_scratch("page.html")), *frame = frame_of(page);
    static const char *const outside[] = {"http:",   "https:",         "src=",    "href=",     "url(",
                                          "@import", "XMLHttpRequest", "import(", "innerHTML", "eval("};
    for (size_t i = 0; i < ARRAY_LENGTH(outside); i++)
        if (strstr(frame, outside[i])) fail_msg("the page has %s", outside[i]);
    assert_non_null(strstr(frame, "default-src 'none'"));
    free(frame);
    free(page);
}

/* No text of the prompt is outside the facts, and in these no "<" is left. */
static void test_page_is_escaped(void **state) {
    char *page = get_text(in_scratch("page.html")), *facts = content(page, "facts"), *frame = frame_of(page);
    json_error_t why;
    assert_null(strchr(facts, '<'));
    assert_null(strstr(page, "alert"));
    assert_null(strstr(page, "<img"));
    assert_int_equal(count_of(page, "<script"), count_of(page, "</script>"));
    assert_int_equal(count_of(frame, "<script"), 6);
    json_t *root = json_loads(facts, JSON_REJECT_DUPLICATES, &why);
    if (!root) fail_msg("the facts are not JSON: %s", why.text);
    json_t *all = load(in_scratch("page.json"));
    json_object_del(all, "arrays");
    assert_true(json_equal(root, all));
    char *text = text_of(root);
    const char *end =
        strstr(text, "</script><script>alert(1)</script><!-- \"x\" 'y' & &amp; \\ \x01\x1b[0m\t\n\x7f \xff");
    assert_true(end == text + 1);
    assert_non_null(strstr(text, "<img src=x onerror=alert(1)> end"));
    json_decref(root);
    json_decref(all);
    free(text);
    free(frame);
    free(facts);
    free(page);
}

/* Base64 to bytes, in place. */
static int64_t decode(char *text) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    int64_t bytes = 0;
    uint32_t held = 0;
    int bits = 0;
    for (const char *p = text; *p && *p != '='; p++) {
        const char *digit = strchr(digits, *p);
        assert_non_null(digit);
        held = held << 6 | (uint32_t)(digit - digits);
        bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        text[bytes++] = (char)(held >> bits & 255);
    }
    return bytes;
}

static void check_part(const char *name, char *base64, const json_t *data, int64_t first, int64_t count,
                       bool integers) {
    if (decode(base64) != 4 * count) fail_msg("%s: %zu characters", name, strlen(base64));
    for (int64_t i = 0; i < count; i++) {
        int32_t n;
        float x;
        memcpy(&n, base64 + 4 * i, 4);
        memcpy(&x, base64 + 4 * i, 4);
        json_t *want = json_array_get(data, (size_t)(first + i));
        bool same = integers ? n == json_integer_value(want) : x == (float)json_number_value(want);
        if (!same) fail_msg("%s[%d] differs between the page and the JSON", name, (int)(first + i));
    }
}

static void test_page_has_the_numbers(void **state) {
    char *page = get_text(in_scratch("page.html"));
    json_t *root = load(in_scratch("page.json")), *array;
    const char *name;
    int in_layers = 0, whole = 0;
    json_object_foreach(json_object_get(root, "arrays"), name, array) {
        if (strcmp(name, "attention") == 0) continue; /* the page computes it from q, k and lse */
        char *single = xasprintf("id=\"%s\">", name);
        int64_t parts =
            strstr(page, single) ? 1 : json_integer_value(json_array_get(json_object_get(array, "shape"), 0));
        parts > 1 ? in_layers++ : whole++;
        for (int64_t i = 0; i < parts; i++) {
            char *id = parts > 1 ? xasprintf("%s.%d", name, (int)i) : xstrdup(name),
                 *text = content(page, id);
            char *kind = xasprintf("data-kind=\"int32\" id=\"%s\"", id);
            check_part(name, text, json_object_get(array, "data"), i * (size_of(array) / parts),
                       size_of(array) / parts, strstr(page, kind) != NULL);
            free(kind);
            free(text);
            free(id);
        }
        free(single);
    }
    assert_true(in_layers > 4 && whole > 10);
    json_decref(root);
    free(page);
}

/* --- wrong use --- */

static void test_refusals(void **state) {
    const char *from = in_scratch("run"), *file = in_scratch("taken.html");
    put_text("taken.html", "mine");
    char *text = run(2, "view --from %s --prompt x --html %s 2>&1", from, file);
    assert_mentions(text, "--overwrite");
    free(text);
    char *kept = get_text(file);
    assert_string_equal(kept, "mine");
    free(kept);
    free(run(0, "view --from %s --prompt x --html %s --overwrite 2>&1", from, file));
    kept = get_text(file);
    assert_non_null(strstr(kept, "<!doctype html>"));
    free(kept);
    static const struct {
        int status;
        const char *arguments, *part;
    } wrong[] = {{2, "--prompt x", "--html FILE or --json FILE"},
                 {2, "--prompt x --html same --json same", "same file"},
                 {1, "--prompt x --tokens 300 --json -", "context"},
                 {2, "--prompt x --html /no/such/directory/page.html", "/no/such/directory/page.html"}};
    for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
        text = run(wrong[i].status, "view --from %s %s 2>&1", from, wrong[i].arguments);
        assert_mentions(text, wrong[i].part);
        free(text);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_without),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_same_text_as_sample),
        cmocka_unit_test(test_page_is_alone),
        cmocka_unit_test(test_page_is_escaped),
        cmocka_unit_test(test_page_has_the_numbers),
        cmocka_unit_test(test_refusals),
    };
    return test_main(argc, argv, tests, make_model, remove_scratch);
}

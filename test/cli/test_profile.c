/* `train_gpt profile` as a user runs it: the table lists every operation of a step once (matmuls once per
 * shape), sorted by the possible gain, and its figures are consistent. The page is tested on invented
 * figures: complete, escaped, nothing outside its pictures. No test depends on speed.
 *     test_profile --page FILE      writes that page, to be looked at */
#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/report/profile_page.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- invented figures: a GPU of 800 TFLOP/s and 4 TB/s --- */

static void add_row(struct profile *p, enum op_id op, int64_t in, int64_t out, double ms, double tflop,
                    double gb) {
    struct profile_row *r = &p->row[p->count++];
    *r = (struct profile_row){.op = op, .shape = {in ? 65536 : 0, in, out}, .variant = "test", .calls = 12};
    if (in)
        snprintf(r->name, sizeof r->name, "%s %d->%d", op_name(op), (int)in, (int)out);
    else
        snprintf(r->name, sizeof r->name, "%s", op_name(op));
    r->seconds = ms * 1e-3;
    r->flops = tflop * 1e12;
    r->bytes = gb * 1e9;
    r->ideal = fmax(r->flops / p->matmul_rate, r->bytes / p->copy_rate);
    p->in_ops += r->seconds;
    p->ideal += r->ideal;
}

static struct profile *invented(void) {
    struct profile *p = (struct profile *)xcalloc(1, sizeof *p);
    p->matmul_rate = 800e12;
    p->copy_rate = 4e12;
    p->tokens = 65536;
    p->model_flops = 52.66e12;
    p->step = 0.1;
    p->spread = 0.0005;
    p->repeats = 7;
    snprintf(p->title, sizeof p->title, "a<b & c>d, B=64, T=1024, bf16");
    p->note = "noted <here>";
    snprintf(p->where, sizeof p->where, "INVENTED FIGURES: a test of the page");
    add_row(p, OP_matmul_backward, 768, 50304, 15.0, 10.1, 20.1);
    add_row(p, OP_matmul_backward, 768, 3072, 12.5, 7.4, 17.2);
    add_row(p, OP_matmul_backward, 3072, 768, 11.5, 7.4, 20.0);
    add_row(p, OP_attn_backward, 0, 0, 11.0, 3.09, 9.7);
    add_row(p, OP_matmul_backward, 768, 2304, 9.0, 5.6, 12.8);
    add_row(p, OP_matmul_forward, 768, 50304, 7.5, 5.07, 6.8);
    add_row(p, OP_matmul_forward, 768, 3072, 5.6, 3.7, 10.9);
    add_row(p, OP_matmul_forward, 3072, 768, 5.2, 3.7, 6.1);
    add_row(p, OP_attn_forward, 0, 0, 4.4, 1.24, 4.8);
    add_row(p, OP_matmul_forward, 768, 2304, 4.2, 2.8, 4.9);
    add_row(p, OP_matmul_backward, 768, 768, 3.5, 1.86, 6.1);
    add_row(p, OP_loss_forward, 0, 0, 3.6, 0.0165, 13.2);
    add_row(p, OP_norm_backward, 0, 0, 3.1, 0.0163, 9.9);
    add_row(p, OP_residual_norm_forward, 0, 0, 2.7, 0.011, 9.7);
    add_row(p, OP_matmul_forward, 768, 768, 1.6, 0.93, 2.4);
    add_row(p, OP_adamw, 0, 0, 0.95, 0.002, 3.5);
    add_row(p, OP_embed_backward, 0, 0, 0.2, 0.0001, 0.26);
    add_row(p, OP_embed_forward, 0, 0, 0.1, 0.00005, 0.18);
    add_row(p, OP_sumsq, 0, 0, 0.09, 0.00025, 0.25);
    add_row(p, OP_fill, 0, 0, 0.01, 0, 0.002);
    return p;
}

static int count_of(const char *text, const char *wanted) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, wanted)); p += strlen(wanted)) n++;
    return n;
}

/* Every number of this attribute lies in [low, high]. */
static void check_range(const char *text, const char *attribute, double low, double high) {
    char key[32];
    int n = 0;
    snprintf(key, sizeof key, " %s='", attribute);
    for (const char *p = text; (p = strstr(p, key)); n++) {
        p += strlen(key);
        double v = strtod(p, NULL);
        if (!(v >= low && v <= high))
            fail_msg("%s='%g' is outside the picture, %g to %g", attribute, v, low, high);
    }
    assert_true(n > 0);
}

static void test_page(void **state) {
    struct error err;
    struct profile *p = invented();
    const char *path = in_scratch("page.html");
    assert_true(profile_write_page(p, path, &err));
    char *text = get_text(path);
    assert_true(strlen(text) < 100000);
    assert_non_null(strstr(text, "<p class='where'>INVENTED FIGURES"));
    assert_non_null(strstr(text, "<title>a&#60;b &#38; c&#62;d, B=64"));
    assert_null(strstr(text, "a<b"));
    assert_non_null(strstr(text, "<p>noted &#60;here&#62;</p>"));
    assert_null(strstr(text, "nan"));
    assert_null(strstr(text, "inf"));
    for (int i = 0; i < p->count; i++) { /* in the table as it is; the arrow is markup */
        char *row = xasprintf("</i>%.*s", (int)strcspn(p->row[i].name, "-"), p->row[i].name);
        assert_non_null(strstr(text, row));
        free(row);
    }
    assert_int_equal(count_of(text, "<circle"), p->count - 1); /* fill computes nothing */
    assert_int_equal(count_of(text, "<svg"), 3);
    assert_int_equal(count_of(text, "</svg>"), 3);
    assert_int_equal(count_of(text, "<tr>"), p->count + 2);
    assert_int_equal(count_of(text, "<title>"), 1 + p->count + (p->count - 10) + (p->count - 1));
    check_range(text, "cx", 96, 976);
    check_range(text, "cy", 16, 464);
    check_range(text, "x", -0.01, 1000);
    check_range(text, "width", -0.01, 1000);
    assert_false(profile_write_page(p, "/no/such/directory/page.html", &err));
    free(text);
    free(p);
}

/* Nothing but one operation, slower or faster than it can be. */
static void test_page_of_little(void **state) {
    struct error err;
    const char *path = in_scratch("little.html");
    const double ms[] = {1e-6, 1e9};
    for (int i = 0; i < 2; i++) {
        struct profile p = {.matmul_rate = 1e12, .copy_rate = 1e11, .step = 1, .tokens = 1, .repeats = 1};
        add_row(&p, OP_act_forward, 0, 0, ms[i], 1e-3, 1e-3);
        assert_true(profile_write_page(&p, path, &err));
        char *text = get_text(path);
        assert_int_equal(count_of(text, "<circle"), 1);
        assert_null(strstr(text, "nan"));
        check_range(text, "cy", 16, 464);
        check_range(text, "width", -0.01, 1000);
        free(text);
    }
}

/* --- the command --- */

static char *profile(const char *arguments, int wanted_status) {
    const char *build = getenv("BUILD");
    char *command = xasprintf("%s/train_gpt profile %s 2>&1", build && *build ? build : "build", arguments);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    char *text = (char *)xcalloc(1, 1 << 16);
    size_t n = fread(text, 1, (1 << 16) - 1, f);
    text[n] = 0;
    int status = pclose(f);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != wanted_status)
        fail_msg("%s: status %d, not %d\n%s", command, WEXITSTATUS(status), wanted_status, text);
    free(command);
    return text;
}

#define SMALL                                                                                                \
    "--device cpu --layers 2 --heads 2 --channels 32 --context 32 --vocab-size 300 --batch-size 2 "          \
    "--seq-len 16 "                                                                                          \
    "--tokens-per-step 64 --repeats 3 "

struct line {
    char name[64];
    double calls, ms, share, gap;
};

/* "matmul_forward 32->96        avx2            4      0.012     1.2 ...": the name has 28 columns. */
static int parse_lines(const char *text, struct line *out) {
    enum { NAME = 28 };
    int count = 0;
    for (const char *p = text; p && *p; p = strchr(p, '\n'), p = p ? p + 1 : NULL) {
        struct line *l = &out[count];
        int end = NAME;
        char variant[32];
        double rates[3];
        if ((int)strcspn(p, "\n") < NAME || p[0] == ' ') continue;
        if (sscanf(p + NAME, "%31s %lf %lf %lf %lf %lf %lf %lf", variant, &l->calls, &l->ms, &l->share,
                   &rates[0], &rates[1], &rates[2], &l->gap) != 8)
            continue;
        while (end > 0 && p[end - 1] == ' ') end--;
        snprintf(l->name, sizeof l->name, "%.*s", end, p);
        count++;
    }
    return count;
}

static void test_command(void **state) {
    const char *page = in_scratch("profile.html");
    char *arguments = xasprintf(SMALL "--html %s", page);
    char *text = profile(arguments, 0);
    struct line line[64];
    double share = 0.0;
    int count = parse_lines(text, line);
    /* two micro-steps of two layers: five shapes of matmul in both directions, and ten other operations */
    static const struct {
        const char *name;
        double calls;
    } wanted[] = {{"matmul_forward 32->96", 4},
                  {"matmul_forward 32->32", 4},
                  {"matmul_forward 32->128", 4},
                  {"matmul_forward 128->32", 4},
                  {"matmul_forward 32->384", 2},
                  {"matmul_backward 32->96", 4},
                  {"matmul_backward 32->32", 4},
                  {"matmul_backward 32->128", 4},
                  {"matmul_backward 128->32", 4},
                  {"matmul_backward 32->384", 2},
                  {"attn_forward", 4},
                  {"attn_backward", 4},
                  {"norm_forward", 2},
                  {"residual_norm_forward", 8},
                  {"norm_backward", 10},
                  {"embed_forward", 2},
                  {"embed_backward", 2},
                  {"loss_forward", 2},
                  {"sum", 2},
                  {"sumsq", 1},
                  {"adamw", 2},
                  {"fill", 3}};
    assert_int_equal(count, ARRAY_LENGTH(wanted));
    for (size_t i = 0; i < ARRAY_LENGTH(wanted); i++) {
        int found = 0;
        for (int k = 0; k < count; k++)
            if (strcmp(line[k].name, wanted[i].name) == 0) {
                found++;
                assert_true(line[k].calls == wanted[i].calls);
            }
        if (found != 1) fail_msg("%d rows of %s in\n%s", found, wanted[i].name, text);
    }
    for (int k = 0; k < count; k++) {
        share += line[k].share;
        assert_true(line[k].ms >= 0.0);
        assert_true(line[k].gap <= line[k].ms);
        if (k > 0) assert_true(line[k].gap <= line[k - 1].gap + 0.001); /* rounded */
    }
    assert_true(fabs(share - 100.0) < 0.05 * count + 0.1);
    assert_int_equal(strncmp(text, "CPU, not a GPU: ", 16), 0);
    assert_non_null(strstr(text, "page written to "));
    char *html = get_text(page);
    assert_non_null(strstr(html, "<p class='where'>CPU, not a GPU: "));
    assert_int_equal(count_of(html, "<tr>"), count + 2);
    free(html);
    free(text);
    text = profile(SMALL "--html /no/such/directory/x.html", 1);
    assert_non_null(strstr(text, "/no/such/directory/x.html"));
    free(text);
    free(arguments);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--page") == 0) {
        struct error err;
        struct profile *p = invented();
        check(profile_write_page(p, argv[2], &err), "%s", err.message);
        free(p);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_page_of_little),
        cmocka_unit_test(test_command),
    };
    return test_main(argc, argv, tests, make_scratch, remove_scratch);
}

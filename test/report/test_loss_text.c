/* A text shaded by its losses: characters that tokens cut, lines, colours, and which terminal gets them. */
#include "test/test.h"

#include "llmc/report/loss_text.h"

#include <math.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct token {
    const char *bytes;
    double loss;
    bool ends;
};

static struct loss_text text_of(const struct token *token, size_t count) {
    struct loss_text t = {0};
    for (size_t i = 0; i < count; i++)
        loss_text_add(&t, token[i].bytes, (int64_t)strlen(token[i].bytes), token[i].loss, token[i].ends);
    return t;
}
#define TEXT_OF(...) text_of((struct token[]){__VA_ARGS__}, ARRAY_LENGTH(((struct token[]){__VA_ARGS__})))

/* What is printed above the scale. Frees the text. */
static const char *printed(struct loss_text t, enum loss_form form, int width) {
    static char out[4096];
    char *all = NULL;
    size_t size;
    FILE *f = open_memstream(&all, &size);
    assert_non_null(f);
    loss_text_print(&t, f, form, width);
    fclose(f);
    char *scale = strstr(all, "\nnats");
    assert_non_null(scale);
    *scale = 0;
    snprintf(out, sizeof out, "%s", all);
    free(all);
    loss_text_free(&t);
    return out;
}

static void assert_pieces(struct loss_text t, const char *expected) {
    char got[512] = "";
    for (int64_t i = 0; i < t.count; i++)
        snprintf(got + strlen(got), 64, "%.*s:%d:%g|", (int)t.pieces[i].size, t.bytes + t.pieces[i].first,
                 (int)t.pieces[i].tokens, t.pieces[i].loss);
    assert_string_equal(got, expected);
    loss_text_free(&t);
}

/* The largest loss counts. */
static void tokens_that_cut_a_character_are_one_piece(void **state) {
    assert_pieces(
        TEXT_OF({"a", 1, false}, {"\xe2", 2, false}, {"\x82", 7, false}, {"\xac", 3, false}, {"b", 4, false}),
        "a:1:1|\xe2\x82\xac:3:7|b:1:4|");
    assert_pieces(TEXT_OF({"x\xf0\x9f", 5, false}, {"\x99\x82y", 1, false}), "x\xf0\x9f\x99\x82y:2:5|");
    assert_pieces(TEXT_OF({"\xc3", NAN, false}, {"\xa9", 2, false}), "\xc3\xa9:2:2|");
    /* whole characters, and bytes that are no UTF-8, stay apart */
    assert_pieces(TEXT_OF({"\xc3\xa9", 1, false}, {"\xa9", 2, false}), "\xc3\xa9:1:1|\xa9:1:2|");
    assert_pieces(TEXT_OF({"\xe2", 1, false}, {"b", 2, false}), "\xe2:1:1|b:1:2|");
    assert_pieces(TEXT_OF({"", 1, false}, {"\xa9", 2, false}), ":1:1|\xa9:1:2|");
}

static void digits_stand_under_the_tokens(void **state) {
    assert_string_equal(
        printed(TEXT_OF({"A", NAN, false}, {" cat", 0.49, false}, {" sat", 0.5, false}, {" on", 1, false},
                        {" it", 2, false}, {" now", 4, false}, {"!", 8, false}),
                LOSS_DIGITS, 40),
        "A cat sat on it now!\n .   1   2  3  4   5\n");
    /* a token goes to the next line as a whole, a longer one than the line is divided */
    assert_string_equal(
        printed(TEXT_OF({"abcdef", 1, false}, {"ghijkl", 2, false}, {"mnopqrstuvwxyz", 4, false}),
                LOSS_DIGITS, 10),
        "abcdef\n2\nghijklmnop\n3     4\nqrstuvwxyz\n");
    /* wide characters have two columns, combining ones none */
    assert_string_equal(printed(TEXT_OF({"\xe6\x97\xa5", 1, false}, {"e\xcc\x81", 2, false}, {"x", 4, false}),
                                LOSS_DIGITS, 10),
                        "\xe6\x97\xa5"
                        "e\xcc\x81x\n2 34\n");
    /* a document ends its line; control characters and stray bytes act on nothing */
    assert_string_equal(printed(TEXT_OF({"a\n", 1, false}, {"\x1b[1m", 2, false}, {"\t\xff", 4, false},
                                        {"<|end|>", 0, true}, {"b", 1, false}),
                                LOSS_DIGITS, 40),
                        "a\xe2\x8f\x8e\n2\n\xe2\x90\x9b[1m\xe2\x87\xa5\\xff<|end|>\n3   4    .\nb\n2\n");
    assert_string_equal(printed(TEXT_OF({"\xe2\x80\xae\x7f", 1, false}), LOSS_DIGITS, 40),
                        "\xef\xbf\xbd\xef\xbf\xbd\n2\n");
}

/* At 2/5 of the way from --low over --mid to --high of page.css: (147,187,229), of 256 colours
 * (135,175,215); at the end (10,44,104) and (0,0,95). */
static void colours_end_with_the_line(void **state) {
    assert_string_equal(
        printed(TEXT_OF({"easy", 0.1, false}, {" ha\nrd", 9, false}, {"!", 1, false}), LOSS_COLOURS_RGB, 40),
        "easy\033[38;2;255;255;255;48;2;10;44;104m ha\xe2\x8f\x8e\033[0m\n"
        "\033[38;2;255;255;255;48;2;10;44;104mrd\033[0m\033[38;2;17;17;17;48;2;147;187;229m!\033[0m\n");
    assert_string_equal(printed(TEXT_OF({"!", 1, false}, {"?", 8, false}), LOSS_COLOURS_256, 40),
                        "\033[38;5;16;48;5;110m!\033[0m\033[38;5;231;48;5;17m?\033[0m\n");
}

static void the_scale_fits_the_width(void **state) {
    char *all = NULL;
    size_t size;
    struct loss_text t = {0};
    FILE *f = open_memstream(&all, &size);
    loss_text_print(&t, f, LOSS_DIGITS, 40);
    fclose(f);
    assert_string_equal(all, "\nnats a token: below 0.5  0.5 to 1  \n              .          1\n"
                             "1 to 2  2 to 4  4 to 8  8 and more\n2       3       4       5\n");
    free(all);
}

/* --- which form --- */

/* What loss_text_form() says with these variables, on a terminal or with its output in a pipe. */
static enum loss_form form_with(bool terminal, const char *term, const char *depth, const char *no_color) {
    int ends[2], master;
    char got = 0;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = terminal ? forkpty(&master, NULL, NULL, NULL) : fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct {
            const char *name, *value;
        } set[] = {{"TERM", term}, {"COLORTERM", depth}, {"NO_COLOR", no_color}};
        for (size_t i = 0; i < ARRAY_LENGTH(set); i++)
            if (set[i].value)
                setenv(set[i].name, set[i].value, 1);
            else
                unsetenv(set[i].name);
        if (!terminal) dup2(ends[1], STDOUT_FILENO);
        got = (char)('0' + loss_text_form());
        _exit(write(ends[1], &got, 1) != 1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &got, 1), 1);
    close(ends[0]);
    if (terminal) close(master);
    waitpid(child, NULL, 0);
    return (enum loss_form)(got - '0');
}

static void colours_only_where_a_terminal_has_them(void **state) {
    assert_int_equal(form_with(true, "xterm-256color", NULL, NULL), LOSS_COLOURS_256);
    assert_int_equal(form_with(true, "xterm-256color", "truecolor", NULL), LOSS_COLOURS_RGB);
    assert_int_equal(form_with(true, "xterm", "24bit", ""), LOSS_COLOURS_RGB);
    assert_int_equal(form_with(true, "xterm-256color", "truecolor", "1"), LOSS_DIGITS);
    assert_int_equal(form_with(true, "xterm", NULL, NULL), LOSS_DIGITS);
    assert_int_equal(form_with(true, "dumb", "truecolor", NULL), LOSS_DIGITS);
    assert_int_equal(form_with(true, NULL, "truecolor", NULL), LOSS_DIGITS);
    assert_int_equal(form_with(false, "xterm-256color", "truecolor", NULL), LOSS_DIGITS);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_that_cut_a_character_are_one_piece),
        cmocka_unit_test(digits_stand_under_the_tokens),
        cmocka_unit_test(colours_end_with_the_line),
        cmocka_unit_test(the_scale_fits_the_width),
        cmocka_unit_test(colours_only_where_a_terminal_has_them),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

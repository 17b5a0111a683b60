/* Evaluation: CSV, task files, scores and losses against a plain forward pass in double, the command.
 *
 * The plain forward pass below is written from the formulas in gpt.h, one position and one number at a
 * time. */
#include "test/scratch.h"

#include "llmc/format/checkpoint.h"
#include "llmc/cli/commands.h"
#include "llmc/corpus/csv.h"
#include "llmc/model/eval.h"
#include "llmc/base/file.h"
#include "llmc/base/rng.h"
#include "llmc/corpus/task_file.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Returns the path. */
static const char *put(const char *name, const char *text) {
    put_text(name, text);
    return in_scratch("%s", name);
}

/* --- CSV --- */

/* Fields between |, records between newlines. */
static void csv_case(const char *data, size_t size, const char *expected) {
    char got[1024] = "";
    size_t n = 0;
    struct csv_reader r;
    struct error err = {""};
    /* Exactly as long as it is, so that a sanitizer sees a read beyond the end. */
    char *exact = xmalloc(size + (size == 0));
    memcpy(exact, data, size);
    csv_open(&r, exact, (int64_t)size, "t.csv");
    int rc;
    while ((rc = csv_next(&r, &err)) > 0) {
        for (int i = 0; i < r.count; i++) {
            assert_int_equal(csv_field(&r, i)[r.length[i]], 0);
            n += (size_t)snprintf(got + n, sizeof got - n, "%s%s", i ? "|" : "", csv_field(&r, i));
        }
        n += (size_t)snprintf(got + n, sizeof got - n, "@%d\n", (int)r.record_line);
    }
    if (rc < 0) snprintf(got + n, sizeof got - n, "!%s", err.message);
    if (expected[0] == '!') /* only the beginning of a message */
        assert_mentions(got, expected + 1);
    else
        assert_string_equal(got, expected);
    csv_close(&r);
    free(exact);
}

static void csv_records(void **state) {
    static const struct {
        const char *data, *expected;
    } cases[] = {
        {"", ""},
        {"a,b,c\n", "a|b|c@1\n"},
        {"a,b,c", "a|b|c@1\n"},
        {"a\r\nb\r\n", "a@1\nb@2\n"},
        {",\n", "|@1\n"},
        {"a,", "a|@1\n"},
        {"\n\n\r\na\n\n", "a@4\n"},
        {"\"\"\n", "@1\n"},
        {"\"a,b\",c\n", "a,b|c@1\n"},
        {"\"a \"\"b\"\" c\"\n", "a \"b\" c@1\n"},
        {"\"\"\"\"\n", "\"@1\n"},
        {"\"x\ny\",2\nz,3\n", "x\ny|2@1\nz|3@3\n"},
        {"\"x\r\ny\"\r\nz", "x\r\ny@1\nz@3\n"},
        {" a , b \n", " a | b @1\n"},
        {"a\rb\n", "a\rb@1\n"},
        {"a\"b,\"c\"\n", "a\"b|c@1\n"},
        {" \"a\",\"b\"c\"d,e\n", " \"a\"|bc\"d|e@1\n"},
        {"\"a\nb\" c\nd", "a\nb c@1\nd@3\n"},
        {"\xEF\xBB\xBF\"q\",r\n", "q|r@1\n"},
        {"a\n\"b\n\nc", "!t.csv:2: the quote that opens here is not closed"},
        {"\"", "!t.csv:1: the quote that opens here is not closed"},
        {"\"a\"\"", "!t.csv:1: the quote that opens here is not closed"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        csv_case(cases[i].data, strlen(cases[i].data), cases[i].expected);
    char *many = xmalloc(CSV_MAX_FIELDS + 1);
    memset(many, ',', CSV_MAX_FIELDS + 1);
    csv_case(many, CSV_MAX_FIELDS, "!more than 4096 fields");
    free(many);
}

/* --- task files --- */

static void assert_question(const struct task_file *f, int64_t i, int64_t line, const char *context,
                            int answer, const char *choices) {
    char joined[256] = "";
    const struct question *q = &f->questions[i];
    for (int k = 0; k < q->count; k++) snprintf(joined + strlen(joined), 64, "[%s]", q->choices[k]);
    assert_string_equal(q->context, context);
    assert_string_equal(joined, choices);
    assert_int_equal(q->answer, answer);
    assert_int_equal(q->line, line);
}

static struct task_file read_task(const char *name, const char *text) {
    struct task_file f;
    struct error err = {""};
    if (!task_file_read(&f, put(name, text), &err)) fail_msg("%s", err.message);
    return f;
}

static void json_lines_in_both_forms(void **state) {
    struct task_file f = read_task(
        "t.jsonl", "\xEF\xBB\xBF{\"ind\": 4, \"ctx\": \"A man\", \"endings\": [\"sits.\", "
                   "\"\\u00e9t\\u00e9\", \" x\"], \"label\": 2}\n"
                   "\r\n"
                   "{\"ctx\": \"\", \"endings\": [\"b\", \"c\"], \"label\": \"1\", \"split\": \"val\"}\r\n"
                   "{\"context\": \"Q:\", \"choices\": [\"yes\", \" no\", \"\\tmaybe\"], \"answer\": 0}\n"
                   "  \n"
                   "{\"context\": \"Q: \", \"choices\": [\"yes\", \"no\"], \"answer\": \"no\"}\n"
                   "{\"answer\": \"1\", \"choices\": [\"2\", \"1\"], \"context\": \"\"}\n"
                   "{\"answer\": \"1\", \"choices\": [\"a\", \"b\"], \"context\": \"c\"}");
    assert_int_equal(f.count, 6);
    assert_question(&f, 0, 1, "A man", 2, "[ sits.][ \xC3\xA9t\xC3\xA9][  x]");
    assert_question(&f, 1, 3, "", 1, "[ b][ c]");
    assert_question(&f, 2, 4, "Q:", 0, "[ yes][ no][\tmaybe]");
    assert_question(&f, 3, 6, "Q: ", 1, "[yes][no]");
    assert_question(&f, 4, 7, "", 1, "[2][1]"); /* the text of a choice comes before an index */
    assert_question(&f, 5, 8, "c", 1, "[ a][ b]");
    task_file_free(&f);
}

/* The texts are those that lm-evaluation-harness makes of the same rows. */
static void arc_piqa_and_winogrande(void **state) {
    struct task_file f = read_task(
        "t.jsonl",
        "{\"id\": \"x\", \"question\": \"Why?\", \"choices\": {\"text\": [\"rain\", \"the sun\", \"ice\"], "
        "\"label\": [\"A\", \"B\", \"C\"]}, \"answerKey\": \"C\"}\n"
        "{\"question\": \"How?\", \"choices\": {\"text\": [\"so\", \"thus\"], \"label\": [\"1\", \"2\"]}, "
        "\"answerKey\": \"1\"}\n"
        "{\"goal\": \"Open a jar\", \"sol1\": \"twist it\", \"sol2\": \"eat it\", \"label\": 0}\n"
        "{\"goal\": \"Dry\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": \"1\"}\n"
        "{\"sentence\": \"The cup did not fit the box as the _ was too big. \", \"option1\": \"cup\", "
        "\"option2\": \"box\", \"answer\": \"1\"}\n"
        "{\"sentence\": \"_'s hat fell.\", \"option1\": \"Ann\", \"option2\": \"Bob\", \"answer\": \"2\"}\n");
    assert_int_equal(f.count, 6);
    assert_question(&f, 0, 1, "Question: Why?\nAnswer:", 2, "[ rain][ the sun][ ice]");
    assert_question(&f, 1, 2, "Question: How?\nAnswer:", 0, "[ so][ thus]");
    assert_question(&f, 2, 3, "Question: Open a jar\nAnswer:", 0, "[ twist it][ eat it]");
    assert_question(&f, 3, 4, "Question: Dry\nAnswer:", 1, "[ a][ b]");
    assert_question(&f, 4, 5, "", 0, "[ was too big.][ was too big.]");
    assert_string_equal(f.questions[4].contexts[0], "The cup did not fit the box as the cup");
    assert_string_equal(f.questions[4].contexts[1], "The cup did not fit the box as the box");
    assert_question(&f, 5, 6, "", 1, "[ 's hat fell.][ 's hat fell.]");
    assert_string_equal(f.questions[5].contexts[1], "Bob");
    task_file_free(&f);
}

/* lm-evaluation-harness splits at the last space, and moves white space at the end of a context to what
 * follows. */
static void lambada(void **state) {
    struct task_file f = read_task("t.jsonl", "{\"text\": \"He ate\\nthe \\\"bread.\\\"\"}\n"
                                              "{\"text\": \"two  spaces\"}\n"
                                              "{\"text\": \"at the end \\n\"}\n");
    assert_int_equal(f.count, 3);
    assert_question(&f, 0, 1, "He ate\nthe", 0, "[ \"bread.\"]");
    assert_question(&f, 1, 2, "two", 0, "[  spaces]");
    assert_question(&f, 2, 3, "at the", 0, "[ end]");
    task_file_free(&f);
}

static void mmlu_csv(void **state) {
    struct task_file f =
        read_task("world_religions_test.CSV",
                  "\"Two\nlines, \"\"quoted\"\"\",one,\"2,0\",three,four,C\r\nWhy?,a,b,c,d,A\n");
    assert_int_equal(f.count, 2);
    assert_question(
        &f, 0, 1,
        "The following are multiple choice questions (with answers) about world religions.\n\nTwo\nlines, "
        "\"quoted\"\nA. one\nB. 2,0\nC. three\nD. four\nAnswer:",
        2, "[ A][ B][ C][ D]");
    assert_question(
        &f, 1, 3,
        "The following are multiple choice questions (with answers) about world religions.\n\nWhy?\nA. a\nB. "
        "b\nC. c\nD. d\nAnswer:",
        0, "[ A][ B][ C][ D]");
    task_file_free(&f);
    f = read_task("maths.csv", "question,A,B,C,D,answer\nWhy?,a,b,c,d,D\n");
    assert_int_equal(f.count, 1);
    assert_true(strstr(f.questions[0].context, "about maths.\n") != NULL);
    assert_int_equal(f.questions[0].answer, 3);
    task_file_free(&f);
}

/* As they lie on the web: stray quotes, headers of several kinds, JSON. All give the same question. */
static void mmlu_as_published(void **state) {
    static const struct {
        const char *name, *text, *subject, *question;
        int answer;
    } cases[] = {
        {"law_val.csv", "Stray \"quote?\",one,\"two\",three,four,B\n", "law", "Stray \"quote?\"", 1},
        {"law_val.csv", "\"Is it\"? ,one,two,three,four,c\n", "law", "Is it? ", 2},
        {"law.csv", "question,choice0,choice1,choice2,choice3,answer\nWhy?,one,two,three,four, 2 \n", "law",
         "Why?", 2},
        {"x.csv",
         ",question,subject,choice_a,choice_b,choice_c,choice_d,answer\n7,Why?,world_law,one,two,three,four,D\n",
         "world law", "Why?", 3},
        {"x.csv", "question,subject,choices,answer\nWhy?,law,\"['one' \"\"two\"\"\n 'three' 'four']\",1\n",
         "law", "Why?", 1},
        {"x.csv", "Question,Choices,Answer\nWhy?,\"['one', 'two', 'three', 'four']\",0\n", "x", "Why?", 0},
        {"x.jsonl",
         "{\"question\":\"Why?\",\"subject\":\"law\",\"choices\":[\"one\",\"two\",\"three\",\"four\"],"
         "\"answer\":2}\n",
         "law", "Why?", 2},
        {"law_test.jsonl",
         "{\"question\":\"Why?\",\"choices\":[\"one\",\"two\",\"three\",\"four\"],\"answer\":\"D\"}", "law",
         "Why?", 3},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct task_file f = read_task(cases[i].name, cases[i].text);
        assert_int_equal(f.count, 1);
        char *context =
            xasprintf("The following are multiple choice questions (with answers) about %s.\n\n%s\nA. one\n"
                      "B. two\nC. three\nD. four\nAnswer:",
                      cases[i].subject, cases[i].question);
        assert_question(&f, 0, f.questions[0].line, context, cases[i].answer, "[ A][ B][ C][ D]");
        free(context);
        task_file_free(&f);
    }
}

static void quotes_in_a_list_of_choices(void **state) {
    struct task_file f =
        read_task("x.csv", "question,choices,answer\nWhy?,\"['it\\'s', 'a\\\\nb\\nc', \"\"d'\"\"]\",2\n");
    assert_int_equal(f.count, 1);
    assert_mentions(f.questions[0].context, "\nA. it's\nB. a\\nb\nc\nC. d'\nAnswer:");
    task_file_free(&f);
}

static void bad_task_files_are_refused(void **state) {
    static const struct {
        const char *name, *text, *expected;
    } cases[] = {
        {"a.jsonl", "", "a.jsonl: holds no question"},
        {"a.csv", "question,A,B,C,D,answer\n", "a.csv: holds no question"},
        {"a.jsonl", "\n\n{\"ctx\": \"a\",", "a.jsonl:3: not JSON, at byte "},
        {"a.jsonl", "{\"ctx\":\"a\",\"ctx\":\"b\"}", "a.jsonl:1: not JSON"},
        {"a.jsonl", "[1]", "a.jsonl:1: expected an object with \"ctx\", \"endings\", \"label\""},
        {"a.jsonl", "{\"question\": \"a\"}", "\"choices\" is missing, expected an array"},
        {"a.jsonl", "{\"ctx\": 3}", "a.jsonl:1: \"ctx\" is an integer, expected a string"},
        {"a.jsonl", "{\"ctx\": \"a\"}", "\"endings\" is missing, expected an array of 2 to 64 strings"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"b\"]}", "fewer than 2 elements"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"b\", 7]}",
         "\"endings\"[1] is an integer, expected a string"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"\", \"b\"]}", "\"endings\"[0] is an empty string"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"]}", "\"label\" is missing, expected 0 to 1"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": 2}",
         "\"label\" is 2, expected 0 to 1"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": -1}",
         "\"label\" is -1, expected 0 to 1"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": \"\"}",
         "\"label\" is \"\", expected 0 to 1"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": \"b\"}",
         "\"label\" is \"b\", expected 0 to 1"},
        {"a.jsonl", "{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": 0.0}", "\"label\" is a number"},
        {"a.jsonl", "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": \"d\"}",
         "\"answer\" is \"d\", expected 0 to 1 or the text of a choice"},
        {"a.jsonl", "{\"goal\": \"a\", \"sol1\": \"b\"}", "\"sol2\" is missing, expected a string"},
        {"a.jsonl", "{\"goal\": \"a\", \"sol1\": \"b\", \"sol2\": \"c\", \"label\": -1}",
         "\"label\" is not 0 or 1; the test sets are published without answers"},
        {"a.jsonl", "{\"sentence\": \"a b\", \"option1\": \"c\", \"option2\": \"d\", \"answer\": \"1\"}",
         "\"sentence\" has no \"_\" with something behind it"},
        {"a.jsonl", "{\"sentence\": \"a _ b\", \"option1\": \"c\", \"option2\": \"d\", \"answer\": \"\"}",
         "\"answer\" is not 1 or 2"},
        {"a.jsonl",
         "{\"question\": \"a\", \"choices\": {\"text\": [\"b\", \"c\"], \"label\": [\"A\", \"B\"]}, "
         "\"answerKey\": \"C\"}",
         "a.jsonl:1: \"answerKey\" is \"C\", which is no label"},
        {"a.jsonl", "{\"question\": \"a\", \"choices\": [\"b\", \"c\"], \"answerKey\": \"A\"}",
         "\"choices\" is not {\"text\": [...], \"label\": [...]}"},
        {"a.csv", "q,a,b,c,d\n", "a.csv:1: 5 columns, expected 6: question, A, B, C, D, answer"},
        {"a.csv", "q,a,b,c,d,A\nq,a,b,c,d,A,x\n", "a.csv:2: 7 columns, expected 6"},
        {"a.csv", "q,a,b,c,d,E\n", "a.csv:1: the answer in column 6 is \"E\", expected A to D, or 0 to 3"},
        {"a.csv", "q,a,b,c,d,AB\n", "the answer in column 6 is \"AB\""},
        {"a.csv", "q,a,b,c,d,A\nquestion,A,B,C,D,answer\n", "a.csv:2: the answer in column 6 is \"answer\""},
        {"a.jsonl", "{\"txt\": \"a\"}", "found an object without \"ctx\", \"question\" and \"context\""},
        {"a.jsonl", "{\"text\": \"word \"}", "a.jsonl:1: \"text\" has no space with a word on either side"},
        {"a.jsonl", "{\"text\": \" \"}", "\"text\" has no space with a word on either side"},
        {"a.jsonl", "{\"text\": 3}", "\"text\" is an integer, expected a string"},
        {"a.jsonl", "{\"text\": \"a b\"}\n{\"ctx\": \"a\", \"endings\": [\"b\", \"c\"], \"label\": 1}",
         "a.jsonl:2: HellaSwag in a file of LAMBADA: put them into files of their own"},
        {"a.jsonl", "{\"question\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": \"C\"}",
         "\"answer\" is \"C\", expected 0 to 1 or a letter"},
        {"a.csv", "question,answer\nq,a\n", "a.csv:1: 2 columns, expected 6"},
        {"a.csv", "question,subject,choices,answer\nq,s,\"['a' 'b\",1\n",
         "\"choices\" is \"['a' 'b\", expected a list"},
        {"a.csv", "question,choices,answer\nq,['a'],0\n", "a.csv:2: \"choices\" is"},
        {"a.csv", "question,answer,choice0,choice1\nq,2,a,b\n",
         "column 2 is \"2\", expected A to B, or 0 to 1"},
        {"a.csv", "question,choice0,choice1,answer\nq,a,b,c,1\n",
         "a.csv:2: 5 columns, expected 4 as in the header"},
        {"a.csv", "q,a,\"b,c,d,A\n", "a.csv:1: the quote that opens here is not closed"},
    };
    struct task_file f;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct error err = {""};
        const char *path = put(cases[i].name, cases[i].text);
        if (task_file_read(&f, path, &err)) fail_msg("accepted: %s", cases[i].text);
        assert_mentions(err.message, cases[i].expected);
        assert_null(f.questions);
    }
    struct error err = {""};
    put_file("a.csv", "q\0,a,b,c,d,A\n", 13);
    assert_false(task_file_read(&f, in_scratch("a.csv"), &err));
    assert_mentions(err.message, "a.csv:1: column 1 holds a NUL byte");
    assert_false(task_file_read(&f, in_scratch("absent.jsonl"), &err));
    assert_mentions(err.message, "absent.jsonl: cannot open");
}

/* --- the plain forward pass --- */

enum { V = 257, T_MAX = 24, CHANNELS = 12, HEADS = 3, LAYERS = 2, HEAD_SIZE = CHANNELS / HEADS };

static float weight(const struct gpt *g, enum param_id id, int64_t layer, int64_t i) {
    return ((const float *)gpt_param(g, id, layer).data)[i];
}

static void plain_norm(const struct gpt *g, enum param_id w, enum param_id b, int layer, double *out,
                       const double *x) {
    double mean = 0, variance = 0;
    for (int c = 0; c < CHANNELS; c++) mean += x[c] / CHANNELS;
    for (int c = 0; c < CHANNELS; c++) variance += (x[c] - mean) * (x[c] - mean) / CHANNELS;
    for (int c = 0; c < CHANNELS; c++)
        out[c] = (x[c] - mean) / sqrt(variance + 1e-5) * (double)weight(g, w, layer, c) +
                 (double)weight(g, b, layer, c);
}

static void plain_linear(const struct gpt *g, enum param_id w, enum param_id b, int layer, double *out, int n,
                         const double *x, int m) {
    for (int o = 0; o < n; o++) {
        out[o] = (double)weight(g, b, layer, o);
        for (int c = 0; c < m; c++) out[o] += (double)weight(g, w, layer, o * m + c) * x[c];
    }
}

/* Log-probability of ids[i + 1] after ids[0..i], into out[i], and the most probable token there, into best[i]
 * (best may be NULL); count - 1 numbers. */
static void plain_predictions(const struct gpt *g, double *out, uint32_t *best, const uint32_t *ids,
                              int count) {
    static double x[T_MAX][CHANNELS], qkv[T_MAX][3 * CHANNELS];
    double n[CHANNELS], a[CHANNELS], wide[4 * CHANNELS], logits[V];
    int T = count - 1;
    assert_true(T <= T_MAX);
    for (int t = 0; t < T; t++)
        for (int c = 0; c < CHANNELS; c++)
            x[t][c] = (double)weight(g, P_WTE, 0, ids[t] * CHANNELS + c) +
                      (double)weight(g, P_WPE, 0, t * CHANNELS + c);
    for (int l = 0; l < LAYERS; l++) {
        for (int t = 0; t < T; t++) {
            plain_norm(g, P_LN1_W, P_LN1_B, l, n, x[t]);
            plain_linear(g, P_QKV_W, P_QKV_B, l, qkv[t], 3 * CHANNELS, n, CHANNELS);
        }
        for (int t = 0; t < T; t++) {
            for (int h = 0; h < HEADS; h++) {
                double p[T_MAX], sum = 0, *q = qkv[t] + h * HEAD_SIZE;
                for (int s = 0; s <= t; s++) {
                    double dot = 0;
                    for (int c = 0; c < HEAD_SIZE; c++) dot += q[c] * qkv[s][CHANNELS + h * HEAD_SIZE + c];
                    sum += p[s] = exp(dot / sqrt(HEAD_SIZE));
                }
                for (int c = 0; c < HEAD_SIZE; c++) {
                    a[h * HEAD_SIZE + c] = 0;
                    for (int s = 0; s <= t; s++)
                        a[h * HEAD_SIZE + c] += p[s] / sum * qkv[s][2 * CHANNELS + h * HEAD_SIZE + c];
                }
            }
            plain_linear(g, P_PROJ_W, P_PROJ_B, l, n, CHANNELS, a, CHANNELS);
            for (int c = 0; c < CHANNELS; c++) x[t][c] += n[c];
        }
        for (int t = 0; t < T; t++) {
            plain_norm(g, P_LN2_W, P_LN2_B, l, n, x[t]);
            plain_linear(g, P_FC_W, P_FC_B, l, wide, 4 * CHANNELS, n, CHANNELS);
            for (int c = 0; c < 4 * CHANNELS; c++) {
                double u = wide[c];
                wide[c] = 0.5 * u * (1 + tanh(sqrt(2 / M_PI) * (u + 0.044715 * u * u * u)));
            }
            plain_linear(g, P_FCPROJ_W, P_FCPROJ_B, l, n, CHANNELS, wide, 4 * CHANNELS);
            for (int c = 0; c < CHANNELS; c++) x[t][c] += n[c];
        }
    }
    for (int t = 0; t < T; t++) {
        double sum = 0;
        plain_norm(g, P_LNF_W, P_LNF_B, 0, n, x[t]);
        for (int v = 0; v < V; v++) {
            logits[v] = 0;
            for (int c = 0; c < CHANNELS; c++)
                logits[v] += (double)weight(g, P_WTE, 0, v * CHANNELS + c) * n[c];
            sum += exp(logits[v]);
        }
        out[t] = logits[ids[t + 1]] - log(sum);
        for (uint32_t v = best ? (uint32_t)(best[t] = 0) : V; v < V; v++)
            if (logits[v] > logits[best[t]]) best[t] = v;
    }
}

static void plain_log_probabilities(const struct gpt *g, double *out, const uint32_t *ids, int count) {
    plain_predictions(g, out, NULL, ids, count);
}

/* --- a small model --- */

struct model {
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
};

/* Weights large enough that every part of the network matters. */
static void model_open(struct model *m, int64_t B, int64_t T) {
    struct gpt_config config = GPT2_CONFIG("small", T_MAX, V, LAYERS, HEADS, CHANNELS);
    struct gpt_options options = {.B = B, .T = T, .head_chunks = B > 2 ? 3 : 1, .dtype = DTYPE_F32};
    m->device = device_open_cpu();
    ctx_init(&m->ctx, m->device, m->device->ops, false);
    gpt_create(&m->gpt, &m->ctx, &config, &options);
    gpt_init_weights(&m->gpt, 3);
    float *p = (float *)m->gpt.params.data;
    for (int64_t i = 0; i < m->gpt.layout.total; i++)
        if (p[i] != 0.0f || i >= m->gpt.layout.matrices)
            p[i] += (float)(0.8 * rng_uniform(5, RNG_TEST, (uint64_t)i) - 0.4);
}

static void model_close(struct model *m) {
    ctx_free(&m->ctx);
    m->device->close(m->device);
}

/* --- multiple choice --- */

/* Written by hand: what has to come out of encoding with bytes and T inputs. */
struct expected_row {
    const char *context, *choice; /* as joined */
};

static const char tasks[] =
    "{\"ctx\": \"The cat\", \"endings\": [\"sat down\", \"is\", \"a\\u00e9\\u00e9\\u00e9\\u00e9\"], "
    "\"label\": 1}\n"
    "{\"context\": \"\", \"choices\": [\"x\", \"yy\"], \"answer\": 1}\n"
    "{\"context\": \"0123456789abcdefghijkl\", \"choices\": [\"m\", \"nopq\"], \"answer\": 0}\n"
    "{\"context\": \"c \", \"choices\": [\"this choice is longer than all that fits\", \"z\"], \"answer\": "
    "1}\n";
static const struct expected_row rows[] = {{"The cat", " sat down"},
                                           {"The cat", " is"},
                                           {"The cat", " a\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9"},
                                           {NULL, "x"},
                                           {NULL, "yy"},
                                           {"0123456789abcdefghijkl", " m"},
                                           {"0123456789abcdefghijkl", " nopq"},
                                           {"c ", "this choice is longer than all that fits"},
                                           {"c ", "z"}};

static double plain_score(const struct gpt *g, const struct expected_row *row, int T, int *scored) {
    uint32_t ids[256];
    double p[256], sum = 0;
    int n = 0, choice = (int)strlen(row->choice);
    if (!row->context) ids[n++] = 256;
    for (const char *c = row->context ? row->context : ""; *c; c++) ids[n++] = (unsigned char)*c;
    for (const char *c = row->choice; *c; c++) ids[n++] = (unsigned char)*c;
    int first = n > T + 1 ? n - (T + 1) : 0;
    plain_log_probabilities(g, p, ids + first, n - first);
    *scored = choice > T ? T : choice;
    for (int i = 0; i < *scored; i++) sum += p[n - first - 2 - i];
    return sum;
}

struct seen {
    int rows;
    double score[32];
    int tokens[32];
};

static void see(void *user, const struct eval_answer *a) {
    static const int counts[] = {3, 2, 2, 2}, answers[] = {1, 1, 0, 1};
    struct seen *s = user;
    assert_int_equal(a->count, counts[a->question]);
    assert_int_equal(a->answer, answers[a->question]);
    for (int k = 0; k < a->count; k++) {
        s->score[s->rows] = a->score[k];
        s->tokens[s->rows++] = a->tokens[k];
    }
}

static struct eval_task *open_task(const char *path, const struct tokenizer *t, int64_t T) {
    struct error err = {""};
    struct eval_task *task = eval_task_open(path, t, T, NULL, &err);
    if (!task) fail_msg("%s", err.message);
    return task;
}

static bool wins(const double *score, const double *length, int count, int answer) {
    for (int k = 0; k < count; k++)
        if (k != answer && !(score[answer] / length[answer] > score[k] / length[k])) return false;
    return true;
}

static void scores_equal_the_plain_computation(void **state) {
    struct tokenizer *t = tokenizer_bytes();
    const char *path = put("own.jsonl", tasks);
    struct eval_task *task = open_task(path, t, 20);
    assert_string_equal(eval_task_name(task), "own.jsonl");
    assert_int_equal(eval_task_questions(task), 4);
    assert_int_equal(eval_task_cut(task), 2);
    assert_int_equal(eval_task_longest(task), 20);
    for (int64_t B = 1; B <= 10; B += 3) {
        struct model m;
        struct seen seen = {0};
        struct eval_answers answers = {see, &seen};
        model_open(&m, B, B == 1 ? 20 : 22); /* more room than needed changes nothing */
        struct eval_result r = eval_task_run(task, &m.gpt, &answers, NULL);
        assert_int_equal(seen.rows, ARRAY_LENGTH(rows));
        double score[16], one[16], tokens[16], characters[16] = {8, 2, 5, 1, 2, 1, 4, 40, 1};
        for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
            int scored;
            score[i] = plain_score(&m.gpt, &rows[i], 20, &scored);
            one[i] = 1;
            tokens[i] = scored;
            assert_int_equal(seen.tokens[i], scored);
            if (!(fabs(seen.score[i] - score[i]) <= 1e-5 * fabs(score[i])))
                fail_msg("row %zu, B %d: score %.9g, expected %.9g", i, (int)B, seen.score[i], score[i]);
        }
        static const int first[] = {0, 3, 5, 7}, count[] = {3, 2, 2, 2}, right[] = {1, 1, 0, 1};
        double shares[3] = {0};
        for (int q = 0; q < 4; q++) {
            shares[0] += wins(score + first[q], one, count[q], right[q]) / 4.0;
            shares[1] += wins(score + first[q], tokens + first[q], count[q], right[q]) / 4.0;
            shares[2] += wins(score + first[q], characters + first[q], count[q], right[q]) / 4.0;
        }
        assert_int_equal(r.questions, 4);
        assert_float_equal(r.accuracy, shares[0], 1e-12);
        assert_float_equal(r.per_token, shares[1], 1e-12);
        assert_float_equal(r.per_character, shares[2], 1e-12);
        assert_float_equal(r.chance, (1.0 / 3 + 3 * 0.5) / 4, 1e-12);
        /* The golden question: the three ways of counting do not agree on these weights. */
        assert_true(shares[0] != shares[1] && shares[1] != shares[2] && shares[0] != shares[2]);
        model_close(&m);
    }
    eval_task_free(task);
    tokenizer_free(t);
}

static void nan_never_wins_and_the_first_of_equals_does(void **state) {
    struct tokenizer *t = tokenizer_bytes();
    static const char text[] = "{\"context\": \"a\", \"choices\": [\"b\", \"b\"], \"answer\": 0}\n"
                               "{\"context\": \"a\", \"choices\": [\"b\", \"b\", \"b\"], \"answer\": 1}\n";
    struct eval_task *task = open_task(put("equal.jsonl", text), t, 8);
    struct model m;
    model_open(&m, 2, 8);
    struct eval_result r = eval_task_run(task, &m.gpt, NULL, NULL);
    assert_float_equal(r.accuracy, 0.5, 0);
    assert_float_equal(r.per_character, 0.5, 0);
    struct tensor w = gpt_param(&m.gpt, P_LNF_W, 0);
    ((float *)w.data)[0] = NAN;
    r = eval_task_run(task, &m.gpt, NULL, NULL);
    assert_float_equal(r.accuracy, 0, 0);
    model_close(&m);
    eval_task_free(task);
    tokenizer_free(t);
}

/* --- examples --- */

struct drawn {
    const double *score; /* (6) of a question with each order of its examples */
    int times[6];
};

static void see_draw(void *user, const struct eval_answer *a) {
    struct drawn *d = user;
    int order = 0;
    while (order < 6 && !(fabs(a->score[0] - d->score[order]) <= 1e-5 * fabs(d->score[order]))) order++;
    if (order == 6)
        fail_msg("question %d: no order of the examples has score %g", (int)a->question, a->score[0]);
    d->times[order]++;
}

/* The same question many times, with two examples drawn from three and from the question itself, which is
 * none of its own: each ordered pair comes about as often as the others. */
static void examples_are_drawn_without_replacement(void **state) {
    enum { TIMES = 120 };
    static const char *const example[] = {"p 1\n\n", "q 2\n\n", "r 3\n\n"};
    char text[TIMES * 64] = "";
    double score[6];
    struct error err = {""};
    struct tokenizer *t = tokenizer_bytes();
    struct model m;
    for (int i = 0; i < TIMES; i++)
        strcat(text, "{\"context\": \"z\", \"choices\": [\"y\", \"x\"], \"answer\": 0}\n");
    put_text("same.jsonl", text);
    put_text("examples.jsonl", "{\"context\": \"p\", \"choices\": [\"1\", \"0\"], \"answer\": 0}\n"
                               "{\"context\": \"z\", \"choices\": [\"y\", \"x\"], \"answer\": 0}\n"
                               "{\"context\": \"q\", \"choices\": [\"0\", \"2\"], \"answer\": 1}\n"
                               "{\"context\": \"r\", \"choices\": [\"3\", \"0\"], \"answer\": 0}\n");
    model_open(&m, 7, T_MAX);
    for (int i = 0; i < 6; i++) {
        static const int first[] = {0, 0, 1, 1, 2, 2}, second[] = {1, 2, 0, 2, 0, 1};
        int scored;
        struct expected_row row = {temp_printf("%s%sz", example[first[i]], example[second[i]]), " y"};
        score[i] = plain_score(&m.gpt, &row, T_MAX, &scored);
    }
    for (uint64_t seed = 1; seed <= 2; seed++) {
        struct eval_shots shots = {.count = 2, .order = SHOTS_RANDOM, .seed = seed};
        struct drawn drawn = {.score = score};
        struct eval_answers answers = {see_draw, &drawn};
        assert_true(eval_shots_open(&shots, in_scratch("examples.jsonl"), &err));
        struct eval_task *task = eval_task_open(in_scratch("same.jsonl"), t, T_MAX, &shots, &err);
        if (!task) fail_msg("%s", err.message);
        eval_task_run(task, &m.gpt, &answers, NULL);
        for (int i = 0; i < 6; i++)
            assert_in_range(drawn.times[i], TIMES / 6 - 12, TIMES / 6 + 12); /* 3 sigma */
        eval_task_free(task);
        eval_shots_free(&shots);
    }
    model_close(&m);
    tokenizer_free(t);
}

/* --- completions --- */

enum { TEXTS = 60, CONTEXTS = 12 }; /* contexts of 1 to 12 bytes, then " x" */

/* What the plain computation makes of text i. */
struct completed {
    bool right;
    double score;
};

static void see_completion(void *user, const struct eval_answer *a) {
    const struct completed *expected = (const struct completed *)user + a->question;
    assert_true(a->completion && a->count == 1 && a->answer == 0 && a->tokens[0] == 2);
    assert_float_equal(a->score[0], expected->score, 1e-5 * fabs(expected->score));
    assert_int_equal(a->right, expected->right);
}

/* The model prefers " " and "x", but which of them follows from the context: some texts are right, some wrong
 * at the first token of their last word " x", some at the second. */
static void completions_equal_the_plain_computation(void **state) {
    static char text[TEXTS][CONTEXTS + 3], file[TEXTS * 40];
    struct completed expected[TEXTS];
    struct tokenizer *t = tokenizer_bytes();
    struct model m;
    int kinds[4] = {0}, right = 0;
    double sum = 0;
    for (int i = 0; i < TEXTS; i++) {
        for (int k = 0; k <= i % CONTEXTS; k++)
            text[i][k] = (char)('a' + rng_philox(9, RNG_TEST, (uint64_t)(i * 99 + k)).v[0] % 26);
        strcat(text[i], " x");
        sprintf(file + strlen(file), "{\"text\": \"%s\"}\n", text[i]);
    }
    struct eval_task *task = open_task(put("lambada.jsonl", file), t, 20);
    assert_true(eval_task_completes(task));
    model_open(&m, 5, CONTEXTS + 1);
    float *bias = (float *)gpt_param(&m.gpt, P_LNF_B, 0).data,
          *wte = (float *)gpt_param(&m.gpt, P_WTE, 0).data, *space = wte + ' ' * CHANNELS,
          *x = wte + 'x' * CHANNELS;
    for (int64_t c = 0; c < CHANNELS; c++) bias[c] += (space[c] *= 2.0f) + (x[c] *= 2.0f);
    for (int i = 0; i < TEXTS; i++) {
        uint32_t ids[CONTEXTS + 2], best[CONTEXTS + 2];
        double p[CONTEXTS + 2];
        int n = (int)strlen(text[i]);
        for (int k = 0; k < n; k++) ids[k] = (unsigned char)text[i][k];
        plain_predictions(&m.gpt, p, best, ids, n);
        bool first = best[n - 3] == ' ', second = best[n - 2] == 'x';
        expected[i] = (struct completed){first && second, p[n - 3] + p[n - 2]};
        kinds[2 * first + second]++;
        right += expected[i].right;
        sum += expected[i].score;
    }
    assert_true(kinds[1] > 0 && kinds[2] > 0 && kinds[3] > 0);
    struct eval_answers answers = {see_completion, expected};
    struct eval_result r = eval_task_run(task, &m.gpt, &answers, NULL);
    assert_true(r.completions && r.questions == TEXTS);
    assert_float_equal(r.accuracy, (double)right / TEXTS, 1e-12);
    assert_float_equal(r.perplexity, exp(-sum / TEXTS), 1e-4 * exp(-sum / TEXTS));
    model_close(&m);
    eval_task_free(task);
    tokenizer_free(t);
}

/* --- loss --- */

static void losses_equal_the_plain_computation(void **state) {
    enum { N = 103, T = 16, B = 3 };
    struct model m;
    struct error err;
    struct tokenizer *t = tokenizer_bytes();
    uint32_t *ids = xmalloc(N * sizeof *ids);
    double p[T], sum = 0;
    int64_t targets = 0, bytes = 0;
    for (uint32_t i = 0; i < N; i++) ids[i] = i % 29 == 0 ? 256 : rng_philox(1, RNG_TEST, i).v[0] % 256;
    model_open(&m, B, T);
    for (int first = 0; first + 1 < N; first += T) {
        int count = (int)min_i64(T + 1, N - first);
        plain_log_probabilities(&m.gpt, p, ids + first, count);
        for (int i = 0; i + 1 < count; i++) {
            sum -= p[i];
            targets++;
            bytes += ids[first + i + 1] != 256;
        }
    }
    struct dataset *d = dataset_from_tokens("test", ids, N, V);
    struct loader_options o = {.B = B, .T = T, .order = SAMPLES_DOCUMENTS, .world = 1, .end_of_text = -1};
    struct dataloader *l = dataloader_open(d, &o, &err);
    assert_non_null(l);
    int64_t batches = dataloader_samples(l) / B;
    assert_int_equal(batches, 3); /* 6 windows of 16 and one of 6 targets, in threes */
    for (int with = 0; with < 2; with++) {
        struct eval_loss r = eval_loss(&m.gpt, l, batches, with ? t : NULL, NULL, NULL);
        assert_int_equal(r.targets, targets);
        assert_int_equal(r.bytes, with ? bytes : 0);
        assert_float_equal(r.loss, sum / (double)targets, 1e-5);
        assert_float_equal(r.perplexity, exp(sum / (double)targets), 1e-3);
        if (with)
            assert_float_equal(r.bits_per_byte, sum / log(2) / (double)bytes, 1e-5);
        else
            assert_true(isnan(r.bits_per_byte));
    }
    dataloader_close(l);
    dataset_free(d);
    model_close(&m);
    tokenizer_free(t);
}

/* --- the command --- */

/* Runs this program as `eval ...` (OpenMP's threads do not survive a fork alone); returns the status, and
 * stdout and stderr in `out`. */
static int run_eval(char out[8192], int argc, const char *const *argv) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        char *args[16] = {(char *)(uintptr_t) "eval"};
        for (int i = 0; i < argc && i < 14; i++) args[i + 1] = (char *)(uintptr_t)argv[i];
        execv("/proc/self/exe", args);
        _exit(99);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got; (got = read(ends[0], out + n, 8191 - n)) > 0;) n += (size_t)got;
    out[n] = 0;
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#define RUN(...) run_eval(out, ARRAY_LENGTH(((const char *[]){__VA_ARGS__})), (const char *[]){__VA_ARGS__})

static void the_command(void **state) {
    struct model m;
    struct optimizer opt;
    struct error err = {""};
    struct tokenizer *t = tokenizer_bytes();
    struct train_state train = {.step = 7, .best_val_loss = NAN};
    char out[8192];
    const char *run = in_scratch("run"), *path = in_scratch("some.txt");
    assert_true(make_directories(run, &err));
    model_open(&m, 1, T_MAX);
    optimizer_create(&opt, &m.gpt, (struct optimizer_options){0});
    struct zero zero = {.gpt = &m.gpt, .optimizer = &opt};
    if (!checkpoint_save(run, &zero, t, &train, &err)) fail_msg("%s", err.message);
    model_close(&m);
    put_text("own.jsonl", tasks);
    put_text("maths_test.csv", "Why?,a,b,c,d,D\n");
    put_text("some.txt", "A text of some words.\n<|endoftext|>\nAnother one.");
    char *list = xasprintf("%s,,%s", in_scratch("*.csv"), in_scratch("own.jsonl"));

    assert_int_equal(
        RUN("--from", run, "--tasks", list, "--details", in_scratch("details"), "--seq-len", "20"), 0);
    assert_mentions(out,
                    "warning: 3 of 5 questions are longer than 20 tokens: their beginnings are left out");
    assert_mentions(out, "\nown.jsonl              4 ");
    assert_mentions(out, "\nmaths_test.csv         1 ");
    assert_mentions(out, "\nall questions          5 ");
    struct mapped_file f;
    assert_true(file_map(&f, in_scratch("details"), &err));
    static const char begins[] = "{\"task\":\"maths_test.csv\",\"question\":0,\"answer\":3,\"scores\":[-";
    assert_true(f.size > (int64_t)sizeof begins && memcmp(f.data, begins, sizeof begins - 1) == 0);
    file_unmap(&f);

    assert_int_equal(RUN("--from", run, "--text", path), 0);
    assert_mentions(out, "some.txt: loss ");
    assert_mentions(out, " nats per token over 35 tokens, perplexity "); /* 21 + 12 bytes, two ends */
    assert_mentions(out, " bits per byte\n");

    assert_int_equal(RUN("--from", run), 2);
    assert_mentions(out, "error: nothing to evaluate on: give --data, --text, --chat, --tasks or --pairs");
    assert_int_equal(RUN("--from", run, "--text", path, "--data", path), 2);
    assert_mentions(out, "--data, --text and --chat exclude each other");
    assert_int_equal(RUN("--from", run, "--tasks", "/nonexistent/*.csv"), 1);
    assert_mentions(out, "error: --tasks: no file is named /nonexistent/*.csv");
    assert_int_equal(RUN("--from", run, "--tasks", path), 1);
    assert_mentions(out, "some.txt:1: not JSON");
    assert_int_equal(RUN("--from", run, "--text", path, "--seq-len", "25"), 1);
    assert_mentions(out, "--seq-len 25 is longer than the model's context of 24");
    assert_int_equal(RUN("--from", run, "--data", path), 1);
    assert_mentions(out, "some.txt");
    assert_int_equal(RUN("--from", scratch_directory(), "--tasks", list), 1);
    tokenizer_free(t);
    free(list);
}

int main(int argc, char **argv) {
    if (argc > 0 && strcmp(argv[0], "eval") == 0) return cmd_eval(argc - 1, argv + 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(csv_records),
        SCRATCH_TEST(json_lines_in_both_forms),
        SCRATCH_TEST(arc_piqa_and_winogrande),
        SCRATCH_TEST(lambada),
        SCRATCH_TEST(mmlu_csv),
        SCRATCH_TEST(mmlu_as_published),
        SCRATCH_TEST(quotes_in_a_list_of_choices),
        SCRATCH_TEST(bad_task_files_are_refused),
        SCRATCH_TEST(scores_equal_the_plain_computation),
        SCRATCH_TEST(nan_never_wins_and_the_first_of_equals_does),
        SCRATCH_TEST(examples_are_drawn_without_replacement),
        SCRATCH_TEST(completions_equal_the_plain_computation),
        cmocka_unit_test(losses_equal_the_plain_computation),
        SCRATCH_TEST(the_command),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* Task files: CSV records, every published form of the questions, and what is refused. */
#include "test/scratch.h"

#include "llmc/corpus/csv.h"
#include "llmc/corpus/task_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    if (!task_file_read(&f, put_text(name, text), &err)) fail_msg("%s", err.message);
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
        const char *path = put_text(cases[i].name, cases[i].text);
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

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(csv_records),
        SCRATCH_TEST(json_lines_in_both_forms),
        SCRATCH_TEST(arc_piqa_and_winogrande),
        SCRATCH_TEST(lambada),
        SCRATCH_TEST(mmlu_csv),
        SCRATCH_TEST(mmlu_as_published),
        SCRATCH_TEST(quotes_in_a_list_of_choices),
        SCRATCH_TEST(bad_task_files_are_refused),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* Reads multiple-choice questions: JSON lines in two forms, told apart by their members, and MMLU's CSV.
 * Any line that has neither form is an error, because a skipped question would change the score. */
#include "llmc/corpus/task_file.h"

#include "llmc/corpus/csv.h"
#include "llmc/base/file.h"
#include "llmc/base/options_value.h"

#include <ctype.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* --- questions --- */

static struct question *add_question(struct task_file *f, int64_t line) {
    if (f->count == f->capacity) {
        f->capacity = max_i64(256, 2 * f->capacity);
        f->questions = (struct question *)xrealloc(f->questions, (size_t)f->capacity * sizeof *f->questions);
    }
    struct question *q = &f->questions[f->count++];
    *q = (struct question){.line = line};
    return q;
}

static void add_choice(struct question *q, char *text) {
    q->choices = (char **)xrealloc(q->choices, (size_t)(q->count + 1) * sizeof *q->choices);
    q->choices[q->count++] = text;
}

void task_file_free(struct task_file *f) {
    for (int64_t i = 0; i < f->count; i++) {
        for (int k = 0; k < f->questions[i].count; k++) free(f->questions[i].choices[k]);
        free(f->questions[i].choices);
        free(f->questions[i].context);
    }
    free(f->questions);
    memset(f, 0, sizeof *f);
}

/* --- JSON lines --- */

/* Where a message points: "tasks.jsonl:12". */
struct place {
    const char *path;
    int64_t line;
};

struct members {
    const char *context, *choices, *answer;
};
static const struct members hellaswag = {"ctx", "endings", "label"},
                            generic = {"context", "choices", "answer"};

static const char *json_kind(const json_t *v) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return v ? names[json_typeof(v)] : "missing";
}

static bool add_json_choices(struct question *q, const json_t *list, const struct members *m,
                             const struct place *at, struct error *err) {
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n < 2 || n > TASK_MAX_CHOICES)
        return fail(err, "%s:%" PRId64 ": \"%s\" is %s%s, expected an array of 2 to %d strings", at->path,
                    at->line, m->choices, json_kind(list),
                    json_is_array(list) ? n < 2 ? " of fewer than 2 elements" : " of too many elements" : "",
                    TASK_MAX_CHOICES);
    size_t end = strlen(q->context);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        const char *text = json_string_value(v);
        if (!text || !*text)
            return fail(err, "%s:%" PRId64 ": \"%s\"[%zu] is %s, expected a string that is not empty",
                        at->path, at->line, m->choices, i, text ? "an empty string" : json_kind(v));
        bool apart =
            end == 0 || isspace((unsigned char)q->context[end - 1]) || isspace((unsigned char)text[0]);
        add_choice(q, xasprintf("%s%s", m == &generic && apart ? "" : " ", text));
    }
    return true;
}

/* An index from 0, as an integer or in a string; in the generic form also the text of a choice. */
static bool find_answer(struct question *q, const json_t *answer, const json_t *list, const struct members *m,
                        const struct place *at, struct error *err) {
    const char *text = json_string_value(answer);
    json_int_t index = json_is_integer(answer) ? json_integer_value(answer) : -1;
    for (int i = 0; text && m == &generic && i < q->count; i++)
        if (strcmp(text, json_string_value(json_array_get(list, (size_t)i))) == 0) index = i;
    if (text && index < 0 && isdigit((unsigned char)*text) && strspn(text, "0123456789") == strlen(text) &&
        strlen(text) < 4)
        index = atoi(text);
    if (index >= 0 && index < q->count) {
        q->answer = (int)index;
        return true;
    }
    char found[48];
    if (json_is_integer(answer))
        snprintf(found, sizeof found, "%" JSON_INTEGER_FORMAT, json_integer_value(answer));
    else
        snprintf(found, sizeof found, text ? "\"%.40s\"" : "%s",
                 text ? option_show(text).text : json_kind(answer));
    return fail(err, "%s:%" PRId64 ": \"%s\" is %s, expected 0 to %d%s", at->path, at->line, m->answer, found,
                q->count - 1, m == &generic ? " or the text of a choice" : "");
}

static bool add_json_question(struct task_file *f, const json_t *object, const struct place *at,
                              struct error *err) {
    const struct members *m = json_object_get(object, hellaswag.context) ? &hellaswag : &generic;
    const json_t *context = json_object_get(object, m->context);
    if (!json_is_object(object) || !context)
        return fail(err,
                    "%s:%" PRId64
                    ": expected an object with \"ctx\", \"endings\", \"label\" (HellaSwag) or with "
                    "\"context\", \"choices\", \"answer\"; found %s without \"ctx\" and \"context\"",
                    at->path, at->line, json_kind(object));
    if (!json_is_string(context))
        return fail(err, "%s:%" PRId64 ": \"%s\" is %s, expected a string", at->path, at->line, m->context,
                    json_kind(context));
    struct question *q = add_question(f, at->line);
    q->context = xstrdup(json_string_value(context));
    const json_t *list = json_object_get(object, m->choices);
    return add_json_choices(q, list, m, at, err) &&
           find_answer(q, json_object_get(object, m->answer), list, m, at, err);
}

static bool is_blank(const char *s, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        if (!strchr(" \t\r", s[i]) || !s[i]) return false;
    return true;
}

static bool read_json_lines(struct task_file *f, const char *text, int64_t size, const char *path,
                            struct error *err) {
    struct place at = {path, 0};
    int64_t begin = size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    for (int64_t end; begin < size; begin = end + 1) {
        const char *newline = memchr(text + begin, '\n', (size_t)(size - begin));
        end = newline ? newline - text : size;
        at.line++;
        if (is_blank(text + begin, end - begin)) continue;
        json_error_t why;
        json_t *object = json_loadb(text + begin, (size_t)(end - begin), JSON_REJECT_DUPLICATES, &why);
        if (!object)
            return fail(err, "%s:%" PRId64 ": not JSON, at byte %d of the line: %s", path, at.line,
                        why.position, why.text);
        bool ok = add_json_question(f, object, &at, err);
        json_decref(object);
        if (!ok) return false;
    }
    return true;
}

/* --- CSV --- */

enum { MMLU_COLUMNS = 6, MMLU_CHOICES = 4 };

/* "data/test/world_religions_test.csv" -> "world religions". The caller frees. */
static char *subject_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *name = xstrdup(slash ? slash + 1 : path);
    name[strlen(name) - strlen(".csv")] = '\0';
    static const char *const parts[] = {"_test", "_dev", "_val"};
    for (size_t i = 0; i < ARRAY_LENGTH(parts); i++) {
        size_t n = strlen(name), m = strlen(parts[i]);
        if (n > m && strcmp(name + n - m, parts[i]) == 0) {
            name[n - m] = '\0';
            break;
        }
    }
    for (char *p = name; *p; p++)
        if (*p == '_') *p = ' ';
    return name;
}

static bool is_header(const struct csv_reader *r) {
    return r->count == MMLU_COLUMNS && strcasecmp(csv_field(r, 0), "question") == 0 &&
           strcasecmp(csv_field(r, MMLU_COLUMNS - 1), "answer") == 0;
}

static bool add_mmlu_question(struct task_file *f, const struct csv_reader *r, const char *subject,
                              struct error *err) {
    if (r->count != MMLU_COLUMNS)
        return fail(err, "%s:%" PRId64 ": %d columns, expected 6: question, A, B, C, D, answer", r->path,
                    r->record_line, r->count);
    for (int i = 0; i < r->count; i++)
        if (r->length[i] != (int64_t)strlen(csv_field(r, i)))
            return fail(err, "%s:%" PRId64 ": column %d holds a NUL byte", r->path, r->record_line, i + 1);
    const char *answer = csv_field(r, MMLU_COLUMNS - 1);
    if (r->length[MMLU_COLUMNS - 1] != 1 || *answer < 'A' || *answer > 'D')
        return fail(err, "%s:%" PRId64 ": the answer in column 6 is \"%.40s\", expected A, B, C or D",
                    r->path, r->record_line, option_show(answer).text);
    struct question *q = add_question(f, r->record_line);
    q->context = xasprintf(
        "The following are multiple choice questions (with answers) about %s.\n\n%s\nA. %s\nB. %s\nC. %s\nD. "
        "%s\nAnswer:",
        subject, csv_field(r, 0), csv_field(r, 1), csv_field(r, 2), csv_field(r, 3), csv_field(r, 4));
    for (int i = 0; i < MMLU_CHOICES; i++) add_choice(q, xasprintf(" %c", 'A' + i));
    q->answer = *answer - 'A';
    return true;
}

static bool read_csv(struct task_file *f, const char *text, int64_t size, const char *path,
                     struct error *err) {
    struct csv_reader r;
    char *subject = subject_of(path);
    csv_open(&r, text, size, path);
    int got;
    bool first = true, ok = true;
    while (ok && (got = csv_next(&r, err)) != 0) {
        ok = got > 0 && ((first && is_header(&r)) || add_mmlu_question(f, &r, subject, err));
        first = false;
    }
    csv_close(&r);
    free(subject);
    return ok;
}

/* --- files --- */

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcasecmp(s + n - m, end) == 0;
}

bool task_file_read(struct task_file *f, const char *path, struct error *err) {
    struct mapped_file m;
    memset(f, 0, sizeof *f);
    if (!file_map(&m, path, err)) return false;
    const char *text = m.data ? (const char *)m.data : "";
    bool ok = ends_with(path, ".csv") ? read_csv(f, text, m.size, path, err)
                                      : read_json_lines(f, text, m.size, path, err);
    if (ok && f->count == 0) ok = fail(err, "%s: holds no question", path);
    file_unmap(&m);
    if (!ok) task_file_free(f);
    return ok;
}

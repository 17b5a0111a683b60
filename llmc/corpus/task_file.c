/* Reads questions: JSON lines, whose forms are told apart by their members, and MMLU's CSV. A line of no
 * known form is an error, because a skipped question would change the score. */
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
        for (int k = 0; k < f->questions[i].count; k++) {
            free(f->questions[i].choices[k]);
            if (f->questions[i].contexts) free(f->questions[i].contexts[k]);
        }
        free(f->questions[i].contexts);
        free(f->questions[i].choices);
        free(f->questions[i].context);
    }
    free(f->questions);
    memset(f, 0, sizeof *f);
}

/* --- MMLU --- */

enum { MMLU_CHOICES = 26 }; /* they have letters */

/* "data/test/world_religions_test.csv" -> "world religions". The caller frees. */
static char *subject_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *name = xstrdup(slash ? slash + 1 : path);
    char *dot = strrchr(name, '.');
    if (dot) *dot = '\0';
    static const char *const parts[] = {"_test", "_dev", "_val"};
    for (size_t i = 0; i < ARRAY_LENGTH(parts); i++) {
        size_t n = strlen(name), m = strlen(parts[i]);
        if (n > m && strcmp(name + n - m, parts[i]) == 0) {
            name[n - m] = '\0';
            break;
        }
    }
    return name;
}

/* "2", or if it may be a letter "C", of n choices as an index; -1 if it is neither. */
static int index_of(const char *answer, int n, bool letter) {
    int index = -1;
    answer += strspn(answer, " ");
    size_t digits = strspn(answer, "0123456789"), length = digits ? digits : *answer != 0;
    if (answer[length + strspn(answer + length, " ")]) return -1; /* further text */
    if (digits && digits < 4)
        index = atoi(answer);
    else if (letter && isalpha((unsigned char)*answer))
        index = toupper((unsigned char)*answer) - 'A';
    return index < n ? index : -1;
}

/* The question as Hendrycks et al. put it to a model. Replaces what is in `q`. */
static void set_mmlu_question(struct question *q, const char *subject, const char *question,
                              const char *const *choice, int n, int answer) {
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    check(out, "out of host memory");
    fputs("The following are multiple choice questions (with answers) about ", out);
    for (const char *p = subject; *p; p++) fputc(*p == '_' ? ' ' : *p, out);
    fputs(".\n\n", out);
    q->heading = ftell(out);
    fprintf(out, "%s\n", question);
    for (int i = 0; i < n; i++) fprintf(out, "%c. %s\n", 'A' + i, choice[i]);
    fputs("Answer:", out);
    fclose(out);
    free(q->context);
    q->context = text;
    for (int i = 0; i < q->count; i++) free(q->choices[i]);
    q->count = 0;
    for (int i = 0; i < n; i++) add_choice(q, xasprintf(" %c", 'A' + i));
    q->answer = answer;
    q->form = "MMLU";
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
static const struct members hellaswag = {"ctx", "endings", "label"}, mmlu = {"question", "choices", "answer"},
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
    if (text && index < 0) index = index_of(text, q->count, m == &mmlu);
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
                q->count - 1,
                m == &generic ? " or the text of a choice"
                : m == &mmlu  ? " or a letter"
                              : "");
}

/* --- ARC, PIQA, WinoGrande --- */

static const char *text_member(const json_t *object, const char *name, const struct place *at,
                               struct error *err) {
    const json_t *v = json_object_get(object, name);
    const char *text = json_string_value(v);
    if (!text || !*text)
        fail(err, "%s:%" PRId64 ": \"%s\" is %s, expected a string that is not empty", at->path, at->line,
             name, text ? "an empty string" : json_kind(v));
    return text && *text ? text : NULL;
}

static bool add_arc(struct task_file *f, const json_t *object, const struct place *at, struct error *err) {
    const json_t *choices = json_object_get(object, "choices"), *text = json_object_get(choices, "text"),
                 *label = json_object_get(choices, "label");
    const char *question = text_member(object, "question", at, err);
    const char *key = question ? text_member(object, "answerKey", at, err) : NULL;
    size_t n = json_array_size(text);
    if (!question || !key) return false;
    if (n < 2 || n > TASK_MAX_CHOICES || json_array_size(label) != n)
        return fail(err,
                    "%s:%" PRId64 ": \"choices\" is not {\"text\": [...], \"label\": [...]} of 2 to %d each",
                    at->path, at->line, TASK_MAX_CHOICES);
    struct question *q = add_question(f, at->line);
    q->form = "ARC";
    q->context = xasprintf("Question: %s\nAnswer:", question);
    q->answer = -1;
    for (size_t i = 0; i < n; i++) {
        const char *choice = json_string_value(json_array_get(text, i));
        const char *name = json_string_value(json_array_get(label, i));
        if (!choice || !*choice || !name)
            return fail(err, "%s:%" PRId64 ": choice %zu has no text or no label", at->path, at->line, i + 1);
        add_choice(q, xasprintf(" %s", choice));
        if (strcmp(name, key) == 0) q->answer = (int)i;
    }
    return q->answer >= 0 || fail(err, "%s:%" PRId64 ": \"answerKey\" is \"%.40s\", which is no label",
                                  at->path, at->line, option_show(key).text);
}

/* Of two choices, numbered from `first`. */
static bool set_answer_of_two(struct question *q, const json_t *answer, const char *name, int first,
                              const struct place *at, struct error *err) {
    const char *text = json_string_value(answer);
    json_int_t index = json_is_integer(answer)       ? json_integer_value(answer)
                       : text && text[0] && !text[1] ? text[0] - '0'
                                                     : -1;
    q->answer = (int)(index - first);
    return index == first || index == first + 1 ||
           fail(err,
                "%s:%" PRId64
                ": \"%s\" is not %d or %d; the test sets are published without answers, use the "
                "validation set",
                at->path, at->line, name, first, first + 1);
}

static bool add_piqa(struct task_file *f, const json_t *object, const struct place *at, struct error *err) {
    const char *goal = text_member(object, "goal", at, err), *sol[2];
    if (!goal || !(sol[0] = text_member(object, "sol1", at, err)) ||
        !(sol[1] = text_member(object, "sol2", at, err)))
        return false;
    struct question *q = add_question(f, at->line);
    q->form = "PIQA";
    q->context = xasprintf("Question: %s\nAnswer:", goal);
    for (int k = 0; k < 2; k++) add_choice(q, xasprintf(" %s", sol[k]));
    return set_answer_of_two(q, json_object_get(object, "label"), "label", 0, at, err);
}

static bool add_winogrande(struct task_file *f, const json_t *object, const struct place *at,
                           struct error *err) {
    const char *sentence = text_member(object, "sentence", at, err), *option[2];
    if (!sentence || !(option[0] = text_member(object, "option1", at, err)) ||
        !(option[1] = text_member(object, "option2", at, err)))
        return false;
    const char *blank = strchr(sentence, '_'), *rest = blank ? blank + 1 + strspn(blank + 1, " ") : "";
    size_t size = strlen(rest);
    while (size && isspace((unsigned char)rest[size - 1])) size--;
    if (!size)
        return fail(err, "%s:%" PRId64 ": \"sentence\" has no \"_\" with something behind it", at->path,
                    at->line);
    struct question *q = add_question(f, at->line);
    q->form = "WinoGrande";
    q->context = xstrdup("");
    q->contexts = (char **)xcalloc(2, sizeof *q->contexts);
    for (int k = 0; k < 2; k++) {
        q->contexts[k] = xasprintf("%.*s%s", (int)(blank - sentence), sentence, option[k]);
        add_choice(q, xasprintf(" %.*s", (int)size, rest));
    }
    return set_answer_of_two(q, json_object_get(object, "answer"), "answer", 1, at, err);
}

/* --- LAMBADA --- */

static bool add_lambada(struct task_file *f, const json_t *object, const struct place *at,
                        struct error *err) {
    const char *text = text_member(object, "text", at, err);
    if (!text) return false;
    size_t end = strlen(text);
    while (end && isspace((unsigned char)text[end - 1])) end--;
    size_t context = end;
    while (context && text[context - 1] != ' ') context--;
    while (context && isspace((unsigned char)text[context - 1])) context--;
    if (!context)
        return fail(err, "%s:%" PRId64 ": \"text\" has no space with a word on either side (LAMBADA)",
                    at->path, at->line);
    struct question *q = add_question(f, at->line);
    q->form = "LAMBADA";
    q->context = xasprintf("%.*s", (int)context, text);
    add_choice(q, xasprintf("%.*s", (int)(end - context), text + context));
    return true;
}

/* --- all forms --- */

static bool add_json_question(struct task_file *f, const json_t *object, const struct place *at,
                              struct error *err) {
    if (json_object_get(object, "goal")) return add_piqa(f, object, at, err);
    if (json_object_get(object, "sentence")) return add_winogrande(f, object, at, err);
    if (json_object_get(object, "answerKey")) return add_arc(f, object, at, err);
    if (json_object_get(object, "text")) return add_lambada(f, object, at, err);
    const struct members *m = json_object_get(object, hellaswag.context) ? &hellaswag
                              : json_object_get(object, "context") || !json_object_get(object, "question")
                                  ? &generic
                                  : &mmlu;
    const json_t *context = json_object_get(object, m->context);
    if (!json_is_object(object) || !context)
        return fail(
            err,
            "%s:%" PRId64
            ": expected an object with \"ctx\", \"endings\", \"label\" (HellaSwag), with \"question\", "
            "\"choices\", \"answer\" (MMLU), of ARC (\"answerKey\"), PIQA (\"goal\"), WinoGrande "
            "(\"sentence\") or LAMBADA (\"text\"), or with \"context\", \"choices\", \"answer\"; found %s "
            "without \"ctx\", \"question\" and \"context\"",
            at->path, at->line, json_kind(object));
    if (!json_is_string(context))
        return fail(err, "%s:%" PRId64 ": \"%s\" is %s, expected a string", at->path, at->line, m->context,
                    json_kind(context));
    struct question *q = add_question(f, at->line);
    q->context = xstrdup(json_string_value(context));
    q->form = m == &hellaswag ? "HellaSwag" : "context and choices";
    const json_t *list = json_object_get(object, m->choices);
    if (!add_json_choices(q, list, m, at, err) ||
        !find_answer(q, json_object_get(object, m->answer), list, m, at, err))
        return false;
    if (m != &mmlu) return true;
    if (q->count > MMLU_CHOICES)
        return fail(err, "%s:%" PRId64 ": \"choices\" has more than %d elements, one a letter", at->path,
                    at->line, MMLU_CHOICES);
    const char *choice[MMLU_CHOICES], *subject = json_string_value(json_object_get(object, "subject"));
    for (int i = 0; i < q->count; i++) choice[i] = json_string_value(json_array_get(list, (size_t)i));
    char *from_name = subject_of(at->path);
    set_mmlu_question(q, subject ? subject : from_name, json_string_value(context), choice, q->count,
                      q->answer);
    free(from_name);
    return true;
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
        const struct question *one = f->questions, *other = &f->questions[f->count - 1];
        if ((one->count == 1) != (other->count == 1))
            return fail(err, "%s:%" PRId64 ": %s in a file of %s: put them into files of their own", path,
                        at.line, other->form, one->form);
    }
    return true;
}

/* --- MMLU's CSV --- */

/* Where a record has what. */
struct columns {
    int count, question, answer, subject, list; /* -1: in no column */
    int choices, choice[MMLU_CHOICES];
};

/* Of a header: "choice0", "choice_1", "option_a", "A". */
static bool names_choice(const char *name) {
    if (!strncasecmp(name, "choice", 6) || !strncasecmp(name, "option", 6)) name += 6;
    if (*name == '_') name++;
    return isalnum((unsigned char)*name) && !name[1];
}

/* False if the record is no header: then the columns are those of a file without one. */
static bool read_header(const struct csv_reader *r, struct columns *c) {
    *c = (struct columns){r->count, -1, -1, -1, -1};
    for (int i = 0; i < r->count; i++) {
        const char *name = csv_field(r, i);
        if (!strcasecmp(name, "question")) c->question = i;
        if (!strcasecmp(name, "answer")) c->answer = i;
        if (!strcasecmp(name, "subject")) c->subject = i;
        if (!strcasecmp(name, "choices"))
            c->list = i;
        else if (names_choice(name) && c->choices < MMLU_CHOICES)
            c->choice[c->choices++] = i;
    }
    if (c->question >= 0 && c->answer >= 0 && (c->list >= 0 || c->choices > 1)) return true;
    *c = (struct columns){6, 0, 5, -1, -1, 4, {1, 2, 3, 4}};
    return false;
}

/* Reads a list of strings as Python, NumPy or JSON write it, ['a' "b's", 'c'], and returns their number; -1
 * if it is none. Cuts them out of `text` itself. */
static int cut_list(char *text, char **item) {
    char *p = text + strspn(text, " \n"), *out = text;
    int n = 0;
    if (*p++ != '[') return -1;
    for (;;) {
        p += strspn(p, " ,\r\n\t");
        if (*p == ']') return p[1 + strspn(p + 1, " \n")] ? -1 : n;
        char quote = *p++;
        if ((quote != '\'' && quote != '"') || n == MMLU_CHOICES) return -1;
        for (item[n++] = out; *p != quote; p++) {
            bool escaped = *p == '\\';
            p += escaped;
            if (!*p) return -1;
            *out++ = escaped && *p == 'n' ? '\n' : escaped && *p == 't' ? '\t' : *p;
        }
        p++;
        *out++ = 0;
    }
}

static bool add_csv_question(struct task_file *f, const struct csv_reader *r, const struct columns *c,
                             const char *subject, struct error *err) {
    struct place at = {r->path, r->record_line};
    if (r->count != c->count)
        return fail(err, "%s:%" PRId64 ": %d columns, expected %d%s", at.path, at.line, r->count, c->count,
                    c->subject < 0 && c->choices == 4 ? ": question, A, B, C, D, answer"
                                                      : " as in the header");
    for (int i = 0; i < r->count; i++)
        if (r->length[i] != (int64_t)strlen(csv_field(r, i)))
            return fail(err, "%s:%" PRId64 ": column %d holds a NUL byte", at.path, at.line, i + 1);
    const char *choice[MMLU_CHOICES];
    char *list = c->list < 0 ? NULL : xstrdup(csv_field(r, c->list));
    int n = list ? cut_list(list, (char **)choice) : c->choices;
    for (int i = 0; !list && i < n; i++) choice[i] = csv_field(r, c->choice[i]);
    bool ok = n >= 2 || fail(err, "%s:%" PRId64 ": \"choices\" is \"%.60s\", expected a list like ['a', 'b']",
                             at.path, at.line, option_show(csv_field(r, c->list)).text);
    if (ok) {
        const char *answer = csv_field(r, c->answer);
        int index = index_of(answer, n, true);
        if (index < 0)
            ok = fail(err,
                      "%s:%" PRId64 ": the answer in column %d is \"%.40s\", expected A to %c, or 0 to %d",
                      at.path, at.line, c->answer + 1, option_show(answer).text, 'A' + n - 1, n - 1);
        else
            set_mmlu_question(add_question(f, at.line), c->subject < 0 ? subject : csv_field(r, c->subject),
                              csv_field(r, c->question), choice, n, index);
    }
    free(list);
    return ok;
}

static bool read_csv(struct task_file *f, const char *text, int64_t size, const char *path,
                     struct error *err) {
    struct csv_reader r;
    struct columns columns = {0};
    char *subject = subject_of(path);
    csv_open(&r, text, size, path);
    int got;
    bool first = true, ok = true;
    while (ok && (got = csv_next(&r, err)) != 0) {
        bool header = got > 0 && first && read_header(&r, &columns);
        ok = got > 0 && (header || add_csv_question(f, &r, &columns, subject, err));
        first = false;
    }
    csv_close(&r);
    free(subject);
    return ok;
}

/* --- files --- */

bool task_file_read(struct task_file *f, const char *path, struct error *err) {
    struct mapped_file m;
    memset(f, 0, sizeof *f);
    if (!file_map(&m, path, err)) return false;
    const char *text = m.data ? (const char *)m.data : "", *dot = strrchr(path, '.');
    bool ok = dot && strcasecmp(dot, ".csv") == 0 ? read_csv(f, text, m.size, path, err)
                                                  : read_json_lines(f, text, m.size, path, err);
    if (ok && f->count == 0) ok = fail(err, "%s: holds no question", path);
    file_unmap(&m);
    if (!ok) task_file_free(f);
    return ok;
}

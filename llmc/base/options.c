/* Command-line options from a table (options.h). A value can come from the defaults, from a stored run,
 * from a configuration file or from the command line; each struct option_state remembers the source, and a
 * value replaces only one from an earlier source in this list. options_value.c converts single values,
 * options_text.c prints. */
#include "llmc/base/options_value.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* --- storing values --- */

static void *field_of(const struct options *o, const struct option_state *state) {
    return (char *)o->config + state->offset;
}

static void set_value(struct options *o, struct option_state *state, union option_value v,
                      enum option_source source) {
    if (state->row->type == OPTION_TEXT) {
        bool further = state->row->flags & OPTION_REPEATED && state->source == source && state->owned && v.s;
        char *copy = further ? xasprintf("%s%c%s", state->owned, OPTION_SEPARATOR, v.s)
                     : v.s   ? xstrdup(v.s)
                             : NULL;
        free(state->owned);
        v.s = state->owned = copy;
    }
    option_value_store(state->row, field_of(o, state), &v);
    state->source = source;
    if (source >= OPTION_FROM_FILE) state->given = !option_value_is_auto(state->row, &v);
}

static struct option_state *find_state(const struct options *o, const char *name, size_t length) {
    for (int i = 0; i < o->count; i++) {
        const char *candidate = o->state[i].row->name;
        if (strlen(candidate) == length && memcmp(candidate, name, length) == 0) return &o->state[i];
    }
    return NULL;
}

static struct option_state *must_find(const struct options *o, const char *name) {
    struct option_state *state = find_state(o, name, strlen(name));
    check(state, "no option --%s in the table of \"%s\"", name, o->command->usage);
    return state;
}

enum option_source options_source(const struct options *o, const char *name) {
    return must_find(o, name)->source;
}
bool options_given(const struct options *o, const char *name) { return must_find(o, name)->given; }

char *options_value(const struct options *o, const char *name) {
    const struct option_state *state = must_find(o, name);
    union option_value v;
    option_value_load(state->row, field_of(o, state), &v);
    return option_value_to_text(state->row, &v);
}

void options_copy(struct options *to, const struct options *from, const char *name) {
    const struct option_state *source = must_find(from, name);
    union option_value v;
    option_value_load(source->row, field_of(from, source), &v);
    set_value(to, must_find(to, name), v, source->source);
}

/* --- the table --- */

static bool check_row(const struct option_row *row, struct error *err) {
    size_t length = row->name ? strlen(row->name) : 0;
    if (length == 0 || length > WORD_MAX ||
        strspn(row->name, "abcdefghijklmnopqrstuvwxyz0123456789-") != length || row->name[0] == '-')
        return fail(err, "option table: malformed name \"%s\"", row->name ? row->name : "(null)");
    if (!row->help || !row->help[0]) return fail(err, "option table: --%s has no help", row->name);
    if (row->type == OPTION_WORD && (!row->words || !row->words[0]))
        return fail(err, "option table: --%s has no words", row->name);
    if (row->type != OPTION_FLAG && row->type != OPTION_WORD && !row->placeholder)
        return fail(err, "option table: --%s has no placeholder", row->name);
    if (!row->initial)
        return row->type == OPTION_TEXT || row->type == OPTION_TIME ||
               fail(err, "option table: --%s has no default", row->name);
    char label[160];
    snprintf(label, sizeof label, "option table: default of --%s, %s", row->name,
             option_show(row->initial).text);
    union option_value v;
    return option_value_from_text(row, row->initial, &v, label, err);
}

static bool same_option(const struct option_row *a, const struct option_row *b) {
    if (strcmp(a->name, b->name) == 0) return true;
    if (option_negatable(a) && strncmp(b->name, "no-", 3) == 0) return strcmp(a->name, b->name + 3) == 0;
    if (option_negatable(b) && strncmp(a->name, "no-", 3) == 0) return strcmp(b->name, a->name + 3) == 0;
    return false;
}

static int row_count(const struct option_command *command) {
    size_t n = 0;
    for (size_t g = 0; g < command->group_count; g++) n += command->groups[g].count;
    return (int)n;
}

static const struct option_row *group_row(const struct option_group *group, size_t i) {
    size_t stride = group->stride ? group->stride : sizeof(struct option_row);
    return (const struct option_row *)(const void *)((const char *)group->rows + i * stride);
}

static const struct option_row *row_at(const struct option_command *command, int index, size_t *base) {
    size_t i = (size_t)index, g = 0;
    while (i >= command->groups[g].count) i -= command->groups[g++].count;
    *base = command->groups[g].base;
    return group_row(&command->groups[g], i);
}

bool options_check(const struct option_command *command, struct error *err) {
    int n = row_count(command);
    size_t base;
    for (int i = 0; i < n; i++) {
        const struct option_row *row = row_at(command, i, &base);
        if (!check_row(row, err)) return false;
        if (strcmp(row->name, "help") == 0 || strcmp(row->name, "config") == 0 ||
            strcmp(row->name, "version") == 0)
            return fail(err, "option table: --%s is built in", row->name);
        for (int j = 0; j < i; j++) {
            const struct option_row *other = row_at(command, j, &base);
            if (same_option(row, other))
                return fail(err, "option table: --%s and --%s clash", other->name, row->name);
        }
    }
    return true;
}

void options_init(struct options *o, const struct option_command *command, void *config) {
    struct error err;
    check(options_check(command, &err), "%s", err.message);
    memset(o, 0, sizeof *o);
    o->command = command;
    o->config = config;
    o->count = row_count(command);
    o->state = (struct option_state *)xcalloc((size_t)o->count + 1, sizeof *o->state);
    for (int i = 0; i < o->count; i++) {
        size_t base;
        const struct option_row *row = row_at(command, i, &base);
        o->state[i].row = row;
        o->state[i].offset = base + row->offset;
        union option_value v = {0};
        if (row->initial)
            check(option_value_from_text(row, row->initial, &v, row->name, &err), "%s", err.message);
        set_value(o, &o->state[i], v, OPTION_FROM_DEFAULT);
    }
}

void options_free(struct options *o) {
    for (int i = 0; i < o->count; i++) free(o->state[i].owned);
    free(o->state);
    free(o->positional);
    memset(o, 0, sizeof *o);
}

/* --- the command line --- */

/* What nanoGPT, llm.c, Hugging Face and others call an option of ours. */
static const struct {
    const char *theirs, *ours;
} synonyms[] = {
    {"adam-beta1", "beta1"},
    {"adam-beta2", "beta2"},
    {"adam-epsilon", "eps"},
    {"block-size", "seq-len"},
    {"ckpt", "from"},
    {"clip-grad", "grad-clip"},
    {"d-model", "channels"},
    {"dataset", "data"},
    {"depth", "layers"},
    {"embed-dim", "channels"},
    {"eval-interval", "val-every"},
    {"eval-iters", "val-batches"},
    {"eval-steps", "val-every"},
    {"grad-accum-steps", "tokens-per-step"},
    {"gradient-accumulation-steps", "tokens-per-step"},
    {"gradient-checkpointing", "recompute"},
    {"hidden-size", "channels"},
    {"init-from", "model"},
    {"input-bin", "data"},
    {"input-val-bin", "val"},
    {"learning-rate-decay-frac", "final-lr-fraction"},
    {"lr", "learning-rate"},
    {"lr-scheduler", "schedule"},
    {"lr-scheduler-type", "schedule"},
    {"max-grad-norm", "grad-clip"},
    {"max-iters", "steps"},
    {"max-length", "seq-len"},
    {"max-new-tokens", "tokens"},
    {"max-position-embeddings", "context"},
    {"max-seq-len", "seq-len"},
    {"max-seq-length", "seq-len"},
    {"max-steps", "steps"},
    {"micro-batch-size", "batch-size"},
    {"min-lr", "final-lr-fraction"},
    {"model-name-or-path", "model"},
    {"n-embd", "channels"},
    {"n-embed", "channels"},
    {"n-head", "heads"},
    {"n-heads", "heads"},
    {"n-kv-heads", "kv-heads"},
    {"n-layer", "layers"},
    {"n-layers", "layers"},
    {"nproc-per-node", "gpus"},
    {"num", "count"},
    {"num-attention-heads", "heads"},
    {"num-epochs", "epochs"},
    {"num-heads", "heads"},
    {"num-hidden-layers", "layers"},
    {"num-iterations", "steps"},
    {"num-key-value-heads", "kv-heads"},
    {"num-layers", "layers"},
    {"num-return-sequences", "count"},
    {"num-samples", "count"},
    {"num-train-epochs", "epochs"},
    {"out-dir", "out"},
    {"output-dir", "out"},
    {"per-device-train-batch-size", "batch-size"},
    {"resume-from-checkpoint", "resume"},
    {"save-interval", "save-every"},
    {"save-steps", "save-every"},
    {"save-total-limit", "keep"},
    {"seq-length", "seq-len"},
    {"sequence-length", "seq-len"},
    {"start", "prompt"},
    {"total-batch-size", "tokens-per-step"},
    {"train-files", "data"},
    {"val-loss-every", "val-every"},
    {"warmup-iters", "warmup"},
    {"warmup-steps", "warmup"},
    {"wd", "weight-decay"},
    {"zero-stage", "zero"},
};

/* The option that another program calls `name`, if this command has it; else NULL. Their words are joined
 * by '_' or '-', ours by '-'. */
static const char *known_elsewhere(const struct options *o, const char *name) {
    char ours[WORD_MAX + 1];
    snprintf(ours, sizeof ours, "%s", name);
    for (char *c = ours; *c; c++)
        if (*c == '_') *c = '-';
    if (find_state(o, ours, strlen(ours))) return find_state(o, ours, strlen(ours))->row->name;
    for (size_t i = 0; i < ARRAY_LENGTH(synonyms); i++)
        if (strcmp(ours, synonyms[i].theirs) == 0 &&
            find_state(o, synonyms[i].ours, strlen(synonyms[i].ours)))
            return synonyms[i].ours;
    return NULL;
}

/* "<where><name>: unknown option; did you mean <dashes><nearest>?" */
static bool fail_unknown(const struct options *o, const char *where, const char *name, const char *dashes,
                         struct error *err) {
    int n = 0;
    const char **names = (const char **)xmalloc((2 * (size_t)o->count + 2) * sizeof *names);
    char **negated = (char **)xcalloc((size_t)o->count + 1, sizeof *negated);
    for (int i = 0; i < o->count; i++) {
        const struct option_row *row = o->state[i].row;
        names[n++] = row->name;
        /* Compared only with names that begin with "no", or --no-graph would suggest --on-graph. */
        if (*dashes && option_negatable(row) && strncmp(name, "no", 2) == 0)
            names[n++] = negated[i] = xasprintf("no-%s", row->name);
    }
    if (*dashes) {
        names[n++] = "help";
        names[n++] = "config";
    }
    const char *meant = known_elsewhere(o, name);
    int near = meant ? -1 : nearest_word(name, names, n);
    if (near >= 0) meant = names[near];
    if (meant)
        fail(err, "%s%s: unknown option; did you mean %s%s?", where, option_show(name).text, dashes, meant);
    else
        fail(err, "%s%s: unknown option; --help lists all", where, option_show(name).text);
    for (int i = 0; i < o->count; i++) free(negated[i]);
    free(negated);
    free(names);
    return false;
}

/* The first text that must be given and is missing: `export RUN FILE` means `export --from RUN --to FILE`. */
static struct option_state *missing_text(const struct options *o) {
    for (int i = 0; i < o->count; i++) {
        struct option_state *s = &o->state[i];
        if ((s->row->flags & OPTION_REQUIRED) && s->row->type == OPTION_TEXT &&
            s->source != OPTION_FROM_COMMAND)
            return s;
    }
    return NULL;
}

static bool add_positional(struct options *o, const char *text, struct error *err) {
    struct option_state *required = o->command->positional ? NULL : missing_text(o);
    if (required && *text) {
        set_value(o, required, (union option_value){.s = text}, OPTION_FROM_COMMAND);
        return true;
    }
    if (!o->command->positional || o->positional_count >= o->command->positional_max) {
        bool option = find_state(o, text, strlen(text)) != NULL;
        if (o->command->positional)
            return fail(err, "%s: unexpected argument; at most %d %s", option_show(text).text,
                        o->command->positional_max, o->command->positional);
        return fail(err, "%s: unexpected argument%s%s%s", option_show(text).text,
                    option ? "; did you mean --" : "", option ? text : "", option ? "?" : "");
    }
    size_t bytes = ((size_t)o->positional_count + 1) * sizeof *o->positional;
    o->positional = (const char **)xrealloc(o->positional, bytes);
    o->positional[o->positional_count++] = text;
    return true;
}

/* Sets *value to the text after '=' or to the next argument. A next argument like "--option" means that the
 * value was forgotten; "-5" and "-" are values. */
static bool take_value(const char *name, const char *inline_value, int argc, char **argv, int *i,
                       const char **value, struct error *err) {
    *value = inline_value;
    if (inline_value) return true;
    if (*i + 1 >= argc) return fail(err, "--%s: missing value", name);
    const char *next = argv[*i + 1];
    if (next[0] == '-' && next[1] == '-' && next[2])
        return fail(err, "--%s: missing value (%s is the next option; --%s=VALUE takes any value)", name,
                    option_show(next).text, name);
    *value = next;
    ++*i;
    return true;
}

static bool parse_option(struct options *o, int argc, char **argv, int *i, struct error *err) {
    const char *text = argv[*i] + 2;
    size_t length = strcspn(text, "=");
    const char *value = text[length] ? text + length + 1 : NULL;
    char name[WORD_MAX + 1], label[WORD_MAX + 128];
    snprintf(name, sizeof name, "%.*s", (int)(length < WORD_MAX ? length : WORD_MAX), text);
    if (length == 0) return fail(err, "%s: unknown option; --help lists all", option_show(argv[*i]).text);
    if (strcmp(name, "config") == 0) {
        if (o->config_path) return fail(err, "--config: given more than once");
        if (!take_value(name, value, argc, argv, i, &o->config_path, err)) return false;
        return o->config_path[0] || fail(err, "--config: empty value");
    }
    struct option_state *state = find_state(o, text, length);
    bool negated = false;
    if (!state && length > 3 && strncmp(text, "no-", 3) == 0) {
        state = find_state(o, text + 3, length - 3);
        negated = state != NULL;
        if (state && !option_negatable(state->row))
            return fail(err, "--%s: unknown option; --%s takes a value and has no --no- form", name,
                        state->row->name);
    }
    if (!state) return fail_unknown(o, "--", name, "--", err);
    if (state->source == OPTION_FROM_COMMAND && !(state->row->flags & OPTION_REPEATED))
        return fail(err, "--%s: given more than once", state->row->name);
    if (negated && value) return fail(err, "--%s: takes no value", name);
    if (option_negatable(state->row) && !value)
        value = state->row->type == OPTION_FLAG ? (negated ? "false" : "true") : (negated ? "off" : "on");
    const char *next = *i + 1 < argc ? argv[*i + 1] : "--x";
    bool bare = (state->row->flags & OPTION_BARE) && !value && strncmp(next, "--", 2) == 0;
    if (!bare && !take_value(name, value, argc, argv, i, &value, err)) return false;
    if (bare) value = "";
    snprintf(label, sizeof label, "--%s%s%s", name, *value ? " " : "", option_show(value).text);
    union option_value v;
    if (!option_value_from_text(state->row, value, &v, label, err)) return false;
    set_value(o, state, v, OPTION_FROM_COMMAND);
    return true;
}

bool options_parse(struct options *o, int argc, char **argv, struct error *err) {
    bool options_ended = false;
    for (int i = 0; i < argc; i++) {
        const char *text = argv[i];
        if (options_ended || text[0] != '-' || !text[1]) {
            if (!add_positional(o, text, err)) return false;
        } else if (strcmp(text, "--") == 0) {
            options_ended = true;
        } else if (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0) {
            return o->help = true;
        } else if (text[1] != '-') {
            bool option = find_state(o, text + 1, strlen(text + 1)) != NULL;
            return fail(err, "%s: unknown option; options begin with two dashes%s%s%s",
                        option_show(text).text, option ? ": did you mean -" : "", option ? text : "",
                        option ? "?" : "");
        } else if (!parse_option(o, argc, argv, &i, err)) {
            return false;
        }
    }
    if (o->config_path && !options_load(o, o->config_path, err)) return false;
    for (int i = 0; i < o->count; i++) {
        const struct option_state *state = &o->state[i];
        if ((state->row->flags & OPTION_REQUIRED) && !state->given)
            return fail(err, "--%s: required, but not given", state->row->name);
    }
    if (o->positional_count < o->command->positional_min)
        return fail(err, "%s: at least %d expected, found %d", o->command->positional,
                    o->command->positional_min, o->positional_count);
    return true;
}

/* --- configuration files and stored runs --- */

static bool take_json(struct options *o, const char *where, const char *name, const json_t *v,
                      enum option_source source, struct error *err) {
    struct option_state *state = find_state(o, name, strlen(name));
    char label[512];
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    snprintf(label, sizeof label, "%.255s: %s %s", where, name, text ? option_show(text).text : "");
    free(text);
    union option_value value;
    bool list = (state->row->flags & OPTION_REPEATED) && json_is_array(v), later = state->source < source;
    for (size_t i = 0; i < (list ? json_array_size(v) : 1); i++) {
        const json_t *item = list ? json_array_get(v, i) : v;
        if (!option_value_from_json(state->row, item, &value, label, err)) return false;
        if (later) set_value(o, state, value, source);
    }
    return true;
}

static json_t *read_object(const char *path, struct error *err) {
    struct stat st;
    FILE *file = fopen(path, "rb");
    if (!file) {
        fail(err, "%s: %s", path, strerror(errno));
        return NULL;
    }
    if (fstat(fileno(file), &st) == 0 && S_ISDIR(st.st_mode)) {
        fclose(file);
        fail(err, "%s: is a directory; expected a JSON file with options", path);
        return NULL;
    }
    json_error_t problem;
    json_t *object = json_loadf(file, JSON_REJECT_DUPLICATES, &problem);
    fclose(file);
    if (!object) {
        fail(err, "%s:%d:%d: not JSON: %s", path, problem.line, problem.column, problem.text);
    } else if (!json_is_object(object)) {
        fail(err, "%s: expected a JSON object such as {\"batch-size\": 8}, found %s", path,
             option_json_kind(object));
        json_decref(object);
        object = NULL;
    }
    return object;
}

bool options_load(struct options *o, const char *path, struct error *err) {
    json_t *object = read_object(path, err);
    if (!object) return false;
    char *where = xasprintf("%s: ", path);
    const char *name;
    json_t *v;
    bool ok = true;
    json_object_foreach(object, name, v) {
        if (!find_state(o, name, strlen(name)))
            ok = fail_unknown(o, where, name, "", err);
        else
            ok = take_json(o, path, name, v, OPTION_FROM_FILE, err);
        if (!ok) break;
    }
    free(where);
    json_decref(object);
    return ok;
}

json_t *options_export(const struct options *o) {
    json_t *values = json_object(), *given = json_array();
    for (int i = 0; i < o->count; i++) {
        const struct option_row *row = o->state[i].row;
        if (row->flags & OPTION_THIS_RUN) continue;
        union option_value value;
        option_value_load(row, field_of(o, &o->state[i]), &value);
        json_t *v = option_value_to_json(row, &value);
        check(v, "--%s: its value cannot be stored as JSON (is it UTF-8?)", row->name);
        json_object_set_new(values, row->name, v);
        if (o->state[i].given) json_array_append_new(given, json_string(row->name));
    }
    json_t *stored = json_object();
    json_object_set_new(stored, "values", values);
    json_object_set_new(stored, "explicit", given);
    return stored;
}

static bool listed(const json_t *names, const char *name) {
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *candidate = json_string_value(json_array_get(names, i));
        if (candidate && strcmp(candidate, name) == 0) return true;
    }
    return false;
}

bool options_import(struct options *o, const json_t *stored, const char *where, struct error *err) {
    json_t *values = json_object_get(stored, "values");
    const json_t *given = json_object_get(stored, "explicit");
    if (!json_is_object(values) || !json_is_array(given))
        return fail(err, "%s: expected stored options {\"values\": {...}, \"explicit\": [...]}", where);
    const char *name;
    json_t *v;
    json_object_foreach(values, name, v) {
        struct option_state *state = find_state(o, name, strlen(name));
        if (!state && listed(given, name))
            return fail(err, "%s: the stored run was given --%s, which this version does not have", where,
                        option_show(name).text);
        if (!state || (state->row->flags & OPTION_THIS_RUN)) continue;
        bool not_finite = state->row->type == OPTION_REAL && json_is_null(v);
        if (!not_finite && !take_json(o, where, name, v, OPTION_FROM_STORED, err)) return false;
        if (state->source <= OPTION_FROM_STORED) state->given = listed(given, name);
    }
    return true;
}

/* Tokenizers against Hugging Face's. dev/reference/tokenizer_oracle.py writes the goldens: tokenizer.txt is
 * the text on which tokenizer.json was trained there; tokenizer_cases.json has texts with their ids under
 * many configurations, and checksums of the ids of texts too large to store. */
#include "test/text/tokenizer.h"

#include "llmc/base/rng.h"
#include "llmc/base/utf8.h"
#include "llmc/text/bpe_train.h"

#include <zlib.h>

/* --- configurations --- */

/* The trained tokenizer with the parts of one configuration in place of its own. */
static struct tokenizer *configured(const json_t *base, const json_t *parts) {
    json_t *root = json_deep_copy(base);
    static const char *const keys[] = {"pre_tokenizer", "normalizer", "added_tokens"};
    for (size_t i = 0; i < ARRAY_LENGTH(keys); i++) {
        json_t *part = json_object_get(parts, keys[i]);
        json_object_set_new(root, keys[i], part ? json_incref(part) : i == 2 ? json_array() : json_null());
    }
    json_object_set_new(json_object_get(root, "model"), "ignore_merges",
                        json_boolean(json_is_true(json_object_get(parts, "ignore_merges"))));
    write_json("configured.json", root);
    json_decref(root);
    return load("configured.json");
}

struct goldens {
    json_t *base, *cases;
    const char *names[32];
    struct tokenizer *tokenizers[32];
    int count;
};

static void goldens_open(struct goldens *g) {
    memset(g, 0, sizeof *g);
    g->base = read_json("test/golden/tokenizer.json");
    g->cases = read_json("test/golden/tokenizer_cases.json");
    const char *name;
    json_t *parts;
    json_object_foreach(json_object_get(g->cases, "configs"), name, parts) {
        g->names[g->count] = name;
        g->tokenizers[g->count++] = configured(g->base, parts);
    }
    assert_true(g->count >= 15);
}

static struct tokenizer *config_named(const struct goldens *g, const char *name) {
    for (int i = 0; i < g->count; i++)
        if (strcmp(g->names[i], name) == 0) return g->tokenizers[i];
    fail_msg("no configuration %s", name);
    return NULL;
}

static void goldens_close(struct goldens *g) {
    for (int i = 0; i < g->count; i++) tokenizer_free(g->tokenizers[i]);
    json_decref(g->base);
    json_decref(g->cases);
}

/* --- golden cases --- */

static char *from_hex(const char *hex, int64_t *size) {
    *size = (int64_t)strlen(hex) / 2;
    char *bytes = (char *)xmalloc((size_t)*size + 1);
    for (int64_t i = 0; i < *size; i++) {
        unsigned byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        bytes[i] = (char)byte;
    }
    return bytes;
}

static void assert_ids(const struct token_buffer *got, const json_t *want, const char *config,
                       const char *hex) {
    bool same = (size_t)got->count == json_array_size(want);
    for (int64_t i = 0; same && i < got->count; i++)
        same = got->ids[i] == (uint32_t)json_integer_value(json_array_get(want, (size_t)i));
    if (same) return;
    char *text = json_dumps(want, JSON_COMPACT);
    for (int64_t i = 0; i < got->count; i++) fprintf(stderr, "%u ", got->ids[i]);
    fail_msg("%s, bytes %.80s: the ids above, not %.200s", config, hex, text);
}

static const json_t *ids_of(const json_t *table, const char *config) {
    const json_t *own = json_object_get(table, config), *same = json_object_get(table, "same");
    if (own) return own;
    for (size_t i = 0; i < json_array_size(same); i++)
        if (strcmp(json_string_value(json_array_get(same, i)), config) == 0) {
            const char *name;
            json_t *ids;
            json_object_foreach((json_t *)(uintptr_t)table, name,
                                ids) if (strcmp(name, "same") != 0) return ids;
        }
    return NULL;
}

static void check_case(const struct goldens *g, const json_t *c) {
    const char *hex = json_string_value(json_object_get(c, "hex"));
    int64_t size;
    char *text = from_hex(hex, &size);
    for (int i = 0; i < g->count; i++) {
        const json_t *want = ids_of(json_object_get(c, "ids"), g->names[i]);
        const json_t *plain = json_object_get(json_object_get(c, "plain"), g->names[i]);
        if (!want) continue;
        struct token_buffer b = {0};
        assert_true(tokenizer_encode_special(g->tokenizers[i], text, size, &b) == b.count);
        assert_ids(&b, want, g->names[i], hex);
        b.count = 0;
        tokenizer_encode(g->tokenizers[i], text, size, &b);
        assert_ids(&b, plain ? plain : want, g->names[i], hex);
        token_buffer_free(&b);
    }
    free(text);
}

static void test_golden_cases(void **state) {
    struct goldens g;
    goldens_open(&g);
    size_t i;
    json_t *c;
    json_array_foreach(json_object_get(g.cases, "cases"), i, c) check_case(&g, c);
    assert_true(i > 100);
    goldens_close(&g);
}

/* --- large golden cases --- */

/* CRC-32 over a separator and the ids as little-endian 32-bit numbers. */
static uint32_t hash_ids(uint32_t state, const struct token_buffer *b) {
    static const uint8_t separator = 0xff;
    state = (uint32_t)crc32(state, &separator, 1);
    return (uint32_t)crc32(state, (const Bytef *)b->ids, (uInt)(b->count * (int64_t)sizeof *b->ids));
}

struct text {
    char *bytes;
    int64_t size, capacity;
};
static void append(struct text *t, const char *bytes, size_t size) {
    if (t->size + (int64_t)size > t->capacity) {
        t->capacity = 2 * (t->size + (int64_t)size);
        t->bytes = (char *)xrealloc(t->bytes, (size_t)t->capacity);
    }
    memcpy(t->bytes + t->size, bytes, size);
    t->size += (int64_t)size;
}

static uint32_t encode_and_hash(uint32_t state, const struct tokenizer *t, const struct text *text,
                                struct token_buffer *b) {
    b->count = 0;
    assert_true(tokenizer_encode_special(t, text->bytes, text->size, b) >= 0);
    return hash_ids(state, b);
}

/* All sequences of `length` parts of an alphabet. */
static uint32_t hash_products(const struct tokenizer *t, const json_t *alphabet, int length) {
    size_t n = json_array_size(alphabet), total = 1;
    for (int i = 0; i < length; i++) total *= n;
    struct token_buffer b = {0};
    struct text text = {(char *)xmalloc(1), 0, 1};
    uint32_t state = 0;
    for (size_t k = 0; k < total; k++) {
        text.size = 0;
        for (size_t place = total / n; place > 0; place /= n) { /* the last part varies fastest */
            const json_t *part = json_array_get(alphabet, k / place % n);
            append(&text, json_string_value(part), json_string_length(part));
        }
        state = encode_and_hash(state, t, &text, &b);
    }
    token_buffer_free(&b);
    free(text.bytes);
    return state;
}

static uint32_t hash_run(const struct tokenizer *t, const json_t *part, int64_t times) {
    struct token_buffer b = {0};
    struct text text = {(char *)xmalloc(1), 0, 1};
    for (int64_t i = 0; i < times; i++) append(&text, json_string_value(part), json_string_length(part));
    uint32_t state = encode_and_hash(0, t, &text, &b);
    token_buffer_free(&b);
    free(text.bytes);
    return state;
}

/* A block of code points, each in the place of "{c}" in a form. */
static uint32_t hash_codes(const struct tokenizer *t, const char *form, uint32_t first, uint32_t block) {
    struct token_buffer b = {0};
    struct text text = {(char *)xmalloc(1), 0, 1};
    for (uint32_t c = first; c < first + block; c++) {
        if (c >= 0xd800 && c < 0xe000) continue;
        uint8_t code[4];
        size_t size = (size_t)utf8_encode(code, c);
        for (const char *p = form; *p;) {
            const char *mark = strstr(p, "{c}");
            append(&text, p, mark ? (size_t)(mark - p) : strlen(p));
            if (!mark) break;
            append(&text, (const char *)code, size);
            p = mark + 3;
        }
    }
    uint32_t state = encode_and_hash(0, t, &text, &b);
    token_buffer_free(&b);
    free(text.bytes);
    return state;
}

static uint32_t hash_value(const json_t *hex) { return (uint32_t)strtoul(json_string_value(hex), NULL, 16); }

static void check_codes(const struct tokenizer *t, const char *config, const json_t *c) {
    const char *form = json_string_value(json_object_get(c, "codes"));
    uint32_t block = (uint32_t)json_integer_value(json_object_get(c, "block")), first = 0;
    size_t i;
    json_t *run;
    json_array_foreach(json_object_get(c, "hashes"), i, run) {
        uint32_t want = hash_value(json_array_get(run, 0));
        for (json_int_t k = json_integer_value(json_array_get(run, 1)); k > 0; k--, first += block)
            if (hash_codes(t, form, first, block) != want)
                fail_msg("%s: code points U+%04X to U+%04X have other tokens", config, first,
                         first + block - 1);
    }
    assert_int_equal(first, 0x110000);
}

static void test_large_golden_cases(void **state) {
    struct goldens g;
    goldens_open(&g);
    size_t i;
    json_t *c;
    json_array_foreach(json_object_get(g.cases, "big"), i, c) {
        const char *config = json_string_value(json_object_get(c, "config"));
        const struct tokenizer *t = config_named(&g, config);
        json_t *alphabet = json_object_get(c, "alphabet"), *part = json_object_get(c, "repeat");
        if (!alphabet && !part) {
            check_codes(t, config, c);
            continue;
        }
        uint32_t hash =
            alphabet ? hash_products(t, alphabet, (int)json_integer_value(json_object_get(c, "length")))
                     : hash_run(t, part, json_integer_value(json_object_get(c, "times")));
        if (hash != hash_value(json_object_get(c, "hash")))
            fail_msg("%s: %s have other tokens", config, alphabet ? "products" : json_string_value(part));
    }
    assert_true(i > 50);
    goldens_close(&g);
}

/* --- training --- */

static char *read_golden_text(int64_t *size) {
    struct mapped_file f;
    struct error err;
    if (!file_map(&f, "test/golden/tokenizer.txt", &err)) fail_msg("%s", err.message);
    char *text = (char *)xmalloc((size_t)f.size);
    memcpy(text, f.data, (size_t)f.size);
    *size = f.size;
    file_unmap(&f);
    return text;
}

/* "left right" of a merge, which may also be spelled ["left", "right"]. */
static char *merge_text(const json_t *m) {
    if (json_is_string(m)) return xstrdup(json_string_value(m));
    return xasprintf("%s %s", json_string_value(json_array_get(m, 0)),
                     json_string_value(json_array_get(m, 1)));
}

/* The same merges in the same order as Hugging Face's trainer. */
static void test_training_equals_hugging_face(void **state) {
    int64_t size;
    struct error err;
    char *text = read_golden_text(&size);
    const char *path = in_scratch("trained.json");
    json_t *base = read_json("test/golden/tokenizer.json"), *model = json_object_get(base, "model");
    int count = (int)json_object_size(json_object_get(model, "vocab"));
    struct tokenizer *t = tokenizer_train(&(struct text_span){text, size}, 1, count + 1, 2, &err);
    if (!t) fail_msg("%s", err.message);
    assert_int_equal(tokenizer_vocab_size(t), count + 1);
    assert_int_equal(tokenizer_end_of_text(t), count); /* theirs has none, ours has it last */
    assert_true(tokenizer_save(t, path, &err));
    json_t *saved = read_json(path), *theirs = json_object_get(model, "merges");
    json_t *ours = json_object_get(json_object_get(saved, "model"), "merges");
    assert_int_equal(json_array_size(ours), json_array_size(theirs));
    for (size_t i = 0; i < json_array_size(theirs); i++) {
        char *got = merge_text(json_array_get(ours, i)), *want = merge_text(json_array_get(theirs, i));
        if (strcmp(got, want) != 0) fail_msg("merge %zu: %s, not %s", i, got, want);
        free(got);
        free(want);
    }
    json_decref(saved);
    json_decref(base);
    tokenizer_free(t);
    free(text);
}

static void test_training_does_not_depend_on_threads(void **state) {
    int64_t size;
    struct error err;
    char *text = read_golden_text(&size);
    struct text_span docs[40];
    for (int i = 0; i < 40; i++)
        docs[i] = (struct text_span){text + size * i / 40, size * (i + 1) / 40 - size * i / 40};
    uint64_t hash = 0;
    for (int threads = 1; threads <= 7; threads += 2) {
        struct tokenizer *t = tokenizer_train(docs, 40, 700, threads, &err);
        assert_non_null(t);
        if (threads == 1) hash = tokenizer_hash(t);
        assert_true(tokenizer_hash(t) == hash);
        tokenizer_free(t);
    }
    /* in parts it is the same */
    struct bpe_trainer *b = bpe_trainer_new();
    for (int i = 0; i < 40; i++) bpe_trainer_add(b, &docs[i], 1, 2);
    struct tokenizer *t = bpe_trainer_finish(b, 700, &err);
    assert_true(t && tokenizer_hash(t) == hash);
    bpe_trainer_free(b);
    tokenizer_free(t);
    /* few distinct words give fewer tokens than asked; vocabulary sizes that are impossible */
    t = tokenizer_train(&(struct text_span){"ab ab ab", 8}, 1, 5000, 1, &err);
    assert_true(t && tokenizer_vocab_size(t) > 257 && tokenizer_vocab_size(t) < 262);
    tokenizer_free(t);
    assert_null(tokenizer_train(docs, 40, 256, 1, &err));
    free(text);
}

/* --- round trips --- */

static void assert_round_trip(const struct tokenizer *t, const char *text, int64_t size,
                              struct token_buffer *b) {
    b->count = 0;
    char *back = (char *)xmalloc((size_t)size + 1);
    assert_true(tokenizer_encode(t, text, size, b) == b->count);
    assert_int_equal(tokenizer_decode(t, b->ids, b->count, back, size), size);
    assert_memory_equal(back, text, size);
    free(back);
}

static void test_any_bytes_come_back(void **state) {
    struct tokenizer *bytes = tokenizer_bytes();
    struct goldens g;
    goldens_open(&g);
    static const char *const names[] = {"gpt2", "llama3", "qwen2", "cl100k", "o200k", "digit", "whole"};
    struct token_buffer b = {0};
    char text[300];
    for (int round = 0; round < 3000; round++) {
        int64_t size = (int64_t)(rng_uniform(1, RNG_TEST, (uint64_t)round * 1000) * 300);
        int range = round % 3 == 0   ? 256
                    : round % 3 == 1 ? 128
                                     : 40; /* anything; ASCII; mostly white space */
        for (int64_t i = 0; i < size; i++)
            text[i] = (char)(int)(rng_uniform(1, RNG_TEST, (uint64_t)(round * 1000 + 1 + i)) * range);
        const char *name = names[round % (int)ARRAY_LENGTH(names)];
        b.count = 0;
        token_buffer_free(&b); /* its cache belongs to one tokenizer at a time */
        memset(&b, 0, sizeof b);
        assert_round_trip(config_named(&g, name), text, size, &b);
        assert_round_trip(bytes, text, size, &b);
        assert_int_equal(b.count, size);
    }
    token_buffer_free(&b);
    goldens_close(&g);
    tokenizer_free(bytes);
}

static void test_ids_outside_the_vocabulary(void **state) {
    struct tokenizer *t = tokenizer_bytes();
    uint32_t ids[] = {65, 257};
    int size;
    char out[8];
    assert_int_equal(tokenizer_decode(t, ids, 1, out, 8), 1);
    assert_int_equal(tokenizer_decode(t, ids, 2, out, 8), -1);
    assert_null(tokenizer_token_bytes(t, -1, &size));
    assert_null(tokenizer_token_bytes(t, 257, &size));
    assert_int_equal(tokenizer_end_of_text(t), 256);
    tokenizer_free(t);
}

/* --- saving --- */

static void test_saved_and_loaded_is_the_same(void **state) {
    struct goldens g;
    struct error err;
    goldens_open(&g);
    int64_t size;
    char *text = read_golden_text(&size);
    const char *path = in_scratch("saved.json");
    for (int i = 0; i < g.count; i++) {
        struct token_buffer a = {0}, b = {0};
        if (!tokenizer_save(g.tokenizers[i], path, &err)) fail_msg("%s", err.message);
        struct tokenizer *again = load("saved.json");
        if (tokenizer_hash(again) != tokenizer_hash(g.tokenizers[i]))
            fail_msg("%s: another hash", g.names[i]);
        tokenizer_encode_special(g.tokenizers[i], text, size, &a);
        tokenizer_encode_special(again, text, size, &b);
        assert_int_equal(a.count, b.count);
        assert_memory_equal(a.ids, b.ids, (size_t)a.count * sizeof *a.ids);
        for (int k = 0; k < i; k++) /* every other configuration cuts or joins differently */
            if (tokenizer_hash(g.tokenizers[k]) == tokenizer_hash(g.tokenizers[i]) &&
                strcmp(g.names[i], "cl100k") != 0)
                fail_msg("%s and %s have the same hash", g.names[k], g.names[i]);
        token_buffer_free(&a);
        token_buffer_free(&b);
        tokenizer_free(again);
    }
    free(text);
    goldens_close(&g);
}

/* vocab.bpe and encoder.json, the form in which GPT-2's tokenizer was published. */
static void test_published_files(void **state) {
    json_t *base = read_json("test/golden/tokenizer.json"), *model = json_object_get(base, "model");
    json_t *vocab = json_deep_copy(json_object_get(model, "vocab"));
    json_object_set_new(vocab, "<|endoftext|>", json_integer((json_int_t)json_object_size(vocab)));
    struct text merges = {(char *)xmalloc(1), 0, 1};
    append(&merges, "#version: 0.2\n", 14);
    size_t i;
    json_t *m;
    json_array_foreach(json_object_get(model, "merges"), i, m) {
        char *line = merge_text(m);
        append(&merges, line, strlen(line));
        append(&merges, "\n", 1);
        free(line);
    }
    static const char *const pairs[][2] = {{"vocab.bpe", "encoder.json"}, {"merges.txt", "vocab.json"}};
    for (size_t p = 0; p < ARRAY_LENGTH(pairs); p++) {
        struct error err;
        const char *folder = in_scratch("published%zu", p);
        assert_true(make_directories(folder, &err));
        char *name = xasprintf("published%zu/%s", p, pairs[p][0]);
        put_file(name, merges.bytes, (size_t)merges.size);
        free(name);
        name = xasprintf("published%zu/%s", p, pairs[p][1]);
        write_json(name, vocab);
        struct tokenizer *t = tokenizer_load(folder, &err);
        if (!t) fail_msg("%s", err.message);
        struct token_buffer b = {0};
        int64_t size;
        char *text = read_golden_text(&size);
        assert_round_trip(t, text, size, &b);
        assert_int_equal(tokenizer_end_of_text(t), tokenizer_vocab_size(t) - 1);
        assert_true(b.count < size / 2);
        free(text);
        free(name);
        token_buffer_free(&b);
        tokenizer_free(t);
    }
    free(merges.bytes);
    json_decref(vocab);
    json_decref(base);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_cases),
        cmocka_unit_test(test_large_golden_cases),
        cmocka_unit_test(test_training_equals_hugging_face),
        cmocka_unit_test(test_training_does_not_depend_on_threads),
        cmocka_unit_test(test_any_bytes_come_back),
        cmocka_unit_test(test_ids_outside_the_vocabulary),
        cmocka_unit_test(test_saved_and_loaded_is_the_same),
        cmocka_unit_test(test_published_files),
    };
    return test_main(argc, argv, tests, make_scratch, remove_scratch);
}

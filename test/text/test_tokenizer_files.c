/* The files of a tokenizer: added tokens that stand beside tokenizer.json, and files that are refused. */
#include "test/text/tokenizer.h"

/* --- added tokens beside the tokenizer --- */

/* How many tokens `text` has, and how many of them are `id`. */
static int64_t count_id(const struct tokenizer *t, const char *text, uint32_t id, bool special) {
    struct token_buffer b = {0};
    int64_t found = 0;
    (special ? tokenizer_encode_special : tokenizer_encode)(t, text, (int64_t)strlen(text), &b);
    for (int64_t i = 0; i < b.count; i++) found += b.ids[i] == id;
    token_buffer_free(&b);
    return found;
}

/* transformers gives the same ids for these directories: each with a tokenizer of n tokens, the last
 * <|endoftext|>. */
static void test_added_tokens_beside(void **state) {
    static const char pairs[] = "{\"<u>\": %d, \"<sp>\": %d, \"New York\": %d}";
    static const char decoder[] =
        "{\"eos_token\": \"<|endoftext|>\", \"added_tokens_decoder\": {"
        "\"%d\": {\"content\": \"<u>\", \"special\": false, \"normalized\": false, \"rstrip\": true},"
        "\"%d\": {\"content\": \"<sp>\", \"special\": true, \"normalized\": false, \"lstrip\": true},"
        "\"%d\": {\"content\": \"New York\", \"special\": false, \"normalized\": true}}}";
    static const char roles[] = "{\"additional_special_tokens\": [{\"content\": \"<sp>\"}]}";
    json_t *root = read_json("test/golden/tokenizer.json"), *model = json_object_get(root, "model");
    json_t *vocab = json_object_get(model, "vocab");
    int n = (int)json_object_size(vocab) + 1;
    json_object_set_new(vocab, "<|endoftext|>", json_integer(n - 1));
    json_object_set_new(
        root, "added_tokens",
        json_pack("[{s:i, s:s, s:b}]", "id", n - 1, "content", "<|endoftext|>", "special", 1));
    for (int form = 0; form < 4; form++) {
        bool pair = form & 1, old = form & 2;
        char *name = xasprintf("beside%d", form), *dir = xstrdup(in_scratch("%s", name)),
             *added = xasprintf(old ? pairs : decoder, n, n + 1, n + 2);
        struct error err = {""};
        assert_true(make_directories(dir, &err));
        write_json(in_scratch("%s/%s", name, pair ? "vocab.json" : "tokenizer.json"), pair ? vocab : root);
        if (pair) put_text(in_scratch("%s/merges.txt", name), "#version: 0.2\n");
        put_text(in_scratch("%s/%s", name, old ? "added_tokens.json" : "tokenizer_config.json"), added);
        if (old) put_text(in_scratch("%s/special_tokens_map.json", name), roles);
        struct tokenizer *t = tokenizer_load(dir, &err);
        if (!t) fail_msg("%s", err.message);
        assert_int_equal(tokenizer_vocab_size(t), n + 3);
        assert_int_equal(tokenizer_end_of_text(t), n - 1);
        assert_int_equal(tokenizer_token_kind(t, n), TOKEN_KIND_ADDED);
        assert_int_equal(tokenizer_token_kind(t, n + 1), TOKEN_KIND_SPECIAL);
        assert_int_equal(count_id(t, "in New York <u>", (uint32_t)n, false), 1);
        assert_int_equal(count_id(t, "in New York <u>", (uint32_t)n + 2, false), 1);
        assert_int_equal(count_id(t, "a <sp>", (uint32_t)n + 1, false), 0);
        assert_int_equal(count_id(t, "a <sp>", (uint32_t)n + 1, true), 1);
        uint32_t space = 220; /* taken along by a token that strips */
        assert_int_equal(count_id(t, "<sp> <u> <sp>", space, true), old ? 2 : 1);
        tokenizer_free(t);
        const char *broken[] = {"{\"<u>\": \"one\"}", "[]", "{"};
        for (size_t i = 0; i < ARRAY_LENGTH(broken); i++) {
            put_text(in_scratch("%s/added_tokens.json", name), broken[i]);
            assert_null(tokenizer_load(dir, &err));
            assert_mentions(err.message, "added_tokens.json");
        }
        put_text(in_scratch("%s/added_tokens.json", name), "{\"<hole>\": 4000}");
        assert_null(tokenizer_load(dir, &err));
        assert_mentions(err.message, "\"<hole>\" has the id 4000");
        free(added);
        free(dir);
        free(name);
    }
    json_decref(root);
}

/* --- malformed files --- */

static void refuse(const char *name, const char *reason) {
    struct error err;
    const char *path = in_scratch("%s", name);
    struct tokenizer *t = tokenizer_load(path, &err);
    if (t) fail_msg("%s was accepted; it should be refused: %s", name, reason);
    if (!strstr(err.message, reason) || !strstr(err.message, scratch_directory()))
        fail_msg("refused with \"%s\", which does not name the file and \"%s\"", err.message, reason);
}

/* Changes one part of the good file; `path` is "model/type". */
static void refuse_changed(const char *path, json_t *value, const char *reason) {
    json_t *root = read_json("test/golden/tokenizer.json"), *at = root;
    const char *slash;
    for (; (slash = strchr(path, '/')) != NULL; path = slash + 1) {
        char key[64];
        snprintf(key, sizeof key, "%.*s", (int)(slash - path), path);
        at = json_object_get(at, key);
    }
    if (value)
        json_object_set_new(at, path, value);
    else
        json_object_del(at, path);
    write_json("changed.json", root);
    json_decref(root);
    refuse("changed.json", reason);
}

static json_t *split_on(const char *regex, const char *behavior) {
    return json_pack("{s:s,s:{s:s},s:s}", "type", "Split", "pattern", "Regex", regex, "behavior", behavior);
}

static void test_malformed_files(void **state) {
    put_file("empty.json", "", 0);
    refuse("empty.json", "JSON");
    put_file("garbage.json", "\x80\x81{{{", 5);
    refuse("garbage.json", "JSON");
    put_file("list.json", "[1, 2]", 6);
    put_text("x.tiktoken", "IQ== 0\nIg== 1\n");
    refuse("x.tiktoken", "is tiktoken's list of tokens");
    put_text("renamed.json", "IQ== 0\nIg== 1\n");
    refuse("renamed.json", "is tiktoken's list of tokens");
    put_file("gpt2_tokenizer.bin", "\xc8\xd7\x34\x01\0\0\0\0", 8);
    refuse("gpt2_tokenizer.bin", "is llm.c's table of tokens");
    refuse("list.json", "");
    refuse("missing.json", "");
    refuse_changed("model", NULL, "model");
    refuse_changed("model/type", json_string("Unigram"), "Unigram");
    refuse_changed("model/vocab", NULL, "vocab");
    refuse_changed("model/merges", NULL, "merges");
    refuse_changed("model/vocab/zzzz", json_integer(3), "have the same id 3");
    refuse_changed("model/vocab/zzzz", json_integer(999999999), "without holes");
    refuse_changed("model/vocab/zzzz", json_integer(1073), "without holes");
    refuse_changed("model/vocab/zzzz", json_integer(-1), "-1");
    refuse_changed("model/vocab/zzzz", json_string("x"), "no integer");
    refuse_changed("model/vocab/", json_integer(1071), "without a name");
    refuse_changed("model/vocab/a b", json_integer(1071), "not a byte-level vocabulary");
    refuse_changed("model/vocab/\u2581the", json_integer(1071), "not a byte-level vocabulary");
    refuse_changed("model/vocab/!", NULL, "without holes");
    refuse_changed("model/dropout", json_real(0.1), "dropout");
    refuse_changed("model/end_of_word_suffix", json_string("</w>"), "end_of_word_suffix");
    refuse_changed("model/ignore_merges", json_integer(1), "ignore_merges");
    refuse_changed("model/merges", json_pack("[s]", "zq xj"), "not in the vocabulary");
    refuse_changed("model/merges", json_pack("[[s,s]]", "a", "\u00e9\u00e9"), "not in the vocabulary");
    refuse_changed("model/merges", json_pack("[[s,s]]", "!", "\""), "their union is not in the vocabulary");
    refuse_changed("model/merges", json_pack("[s]", "nospace"), "one space");
    refuse_changed("model/merges", json_pack("[s]", "a b c"), "one space");
    refuse_changed("model/merges", json_pack("[[s]]", "a"), "expected");
    refuse_changed("model/merges", json_pack("[i]", 5), "expected");
    refuse_changed("model/merges", json_pack("{}"), "merges");
    refuse_changed("pre_tokenizer", json_null(), "without ByteLevel");
    refuse_changed("pre_tokenizer", json_pack("{s:s}", "type", "BertPreTokenizer"), "BertPreTokenizer");
    refuse_changed("pre_tokenizer", json_pack("{s:s}", "type", "ByteLevel"), "add_prefix_space");
    refuse_changed("pre_tokenizer",
                   json_pack("{s:s,s:[{s:s,s:b},{s:s}]}", "type", "Sequence", "pretokenizers", "type",
                             "ByteLevel", "add_prefix_space", 0, "type", "Digits"),
                   "must be the last");
    refuse_changed("pre_tokenizer", split_on("[", "Isolated"), "not understood");
    refuse_changed("pre_tokenizer", split_on("x", "MergedWithPrevious"), "MergedWithPrevious");
    refuse_changed("normalizer", json_pack("{s:s}", "type", "Lowercase"), "Lowercase");
    refuse_changed("decoder", json_pack("{s:s}", "type", "Metaspace"), "Metaspace");
    refuse_changed("added_tokens", json_pack("[{s:i,s:s}]", "id", -4, "content", "x y"), "-4");
    refuse_changed("added_tokens", json_pack("[{s:i,s:s}]", "id", 4, "content", "x y"),
                   "which is that of token");
    refuse_changed("added_tokens", json_pack("[{s:i,s:s}]", "id", 7, "content", "!"), "has the id 7, but 0");
    refuse_changed(
        "added_tokens",
        json_pack("[{s:i,s:s},{s:i,s:s}]", "id", 1071, "content", "x y", "id", 1072, "content", "x y"),
        "listed twice");
    refuse_changed("added_tokens", json_pack("[{s:i,s:s}]", "id", 1071, "content", ""), "not empty");
    refuse_changed("added_tokens",
                   json_pack("[{s:i,s:s,s:b}]", "id", 1071, "content", "x y", "single_word", 1),
                   "single_word");
    refuse_changed("added_tokens", json_pack("{}"), "added_tokens");
    static const char twice[] = "{\"model\": {\"vocab\": {\"a\": 0, \"a\": 1}}}";
    put_file("twice.json", twice, strlen(twice));
    refuse("twice.json", "duplicate");
    /* cut off anywhere it is not JSON, or misses something */
    struct mapped_file f;
    struct error err;
    assert_true(file_map(&f, "test/golden/tokenizer.json", &err));
    for (int64_t size = 1; size < f.size - 2; size += f.size / 23) {
        put_file("cut.json", (const char *)f.data, (size_t)size);
        refuse("cut.json", "");
    }
    file_unmap(&f);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_added_tokens_beside),
        cmocka_unit_test(test_malformed_files),
    };
    return test_main(argc, argv, tests, make_scratch, remove_scratch);
}

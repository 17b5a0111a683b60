/* Conversations as tokens, against what Jinja writes (dev/reference/chat_template.py), and which tokens are
 * learned. */
#include "test/scratch.h"

#include "llmc/text/chat.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char *const marks[] = {"<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
                                    "<|eot_id|>",   "<s>",        "<|begin_of_text|>",   "</s>"};

static json_t *goldens;

/* The byte tokenizer with the first `count` marks as special tokens. */
static struct tokenizer *with_marks(size_t count) {
    struct tokenizer *bytes = tokenizer_bytes();
    const char *path = in_scratch("tokenizer.json");
    struct error err;
    if (!tokenizer_save(bytes, path, &err)) fail_msg("%s", err.message);
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, NULL), *added = json_object_get(root, "added_tokens");
    for (size_t i = 0; i < count; i++) {
        json_t *token = json_copy(json_array_get(added, 0));
        json_object_set_new(token, "id", json_integer(tokenizer_vocab_size(bytes) + (json_int_t)i));
        json_object_set_new(token, "content", json_string(marks[i]));
        json_array_append_new(added, token);
    }
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
    tokenizer_free(bytes);
    struct tokenizer *t = tokenizer_load(path, &err);
    if (!t) fail_msg("%s", err.message);
    return t;
}

static int64_t id_of(const struct tokenizer *t, const char *text) {
    struct token_buffer b = {0};
    assert_int_equal(tokenizer_encode_special(t, text, (int64_t)strlen(text), &b), 1);
    int64_t id = (int64_t)b.ids[0];
    token_buffer_free(&b);
    return id;
}

static const char *text_at(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

static int64_t read_messages(struct chat_message *m, const json_t *list) {
    const json_t *v;
    size_t i;
    json_array_foreach(list, i, v) {
        const char *text = text_at(v, "content");
        m[i] = (struct chat_message){chat_role(text_at(v, "role")), text, (int64_t)strlen(text)};
        assert_true(m[i].role < CHAT_ROLES);
    }
    return (int64_t)json_array_size(list);
}

static char *decoded(const struct tokenizer *t, const struct token_buffer *ids) {
    int64_t size = tokenizer_decode(t, ids->ids, ids->count, NULL, 0);
    char *text = (char *)xcalloc((size_t)size + 1, 1);
    tokenizer_decode(t, ids->ids, ids->count, text, size);
    return text;
}

/* The text, and that its marks are tokens and not letters: as Hugging Face encodes the text. */
static void expect_rendered(const struct chat_format *f, const struct chat_message *m, int64_t count,
                            bool answer, const char *text, const char *what) {
    struct chat_tokens out = {0};
    struct token_buffer whole = {0};
    struct error err;
    if (!chat_render(f, m, count, answer, &out, &err)) fail_msg("%s", err.message);
    char *is = decoded(f->tokenizer, &out.ids);
    if (strcmp(is, text) != 0) fail_msg("%s: wrote\n%s\nexpected\n%s", what, is, text);
    tokenizer_encode_special(f->tokenizer, text, (int64_t)strlen(text), &whole);
    assert_int_equal(out.ids.count, whole.count);
    assert_memory_equal(out.ids.ids, whole.ids, (size_t)whole.count * sizeof *whole.ids);
    free(is);
    token_buffer_free(&whole);
    chat_tokens_free(&out);
}

static void templates_are_recognised_and_rendered_as_jinja_does(void **state) {
    struct tokenizer *t = with_marks(ARRAY_LENGTH(marks));
    const json_t *golden, *c;
    size_t i, k;
    json_array_foreach(goldens, i, golden) {
        const char *name = text_at(golden, "name"), *family = text_at(golden, "family");
        struct chat_format f;
        struct error err = {""};
        tokenizer_set_chat_template(t, text_at(golden, "jinja"));
        bool ok = chat_open(&f, CHAT_AUTO, t, id_of(t, text_at(golden, "bos")),
                            id_of(t, text_at(golden, "eos")), &err);
        if (!family) {
            if (ok) fail_msg("%s: taken for %s", name, chat_family_name(f.family));
            assert_mentions(err.message, "--chat-template plain|chatml|llama3|zephyr");
            continue;
        }
        if (!ok) fail_msg("%s: %s", name, err.message);
        assert_string_equal(chat_family_name(f.family), family);
        assert_string_equal(chat_jinja(&f), text_at(golden, "jinja"));
        json_array_foreach(json_object_get(golden, "conversations"), k, c) {
            struct chat_message m[8];
            int64_t count = read_messages(m, json_object_get(c, "messages"));
            expect_rendered(&f, m, count, false, text_at(c, "text"), name);
            expect_rendered(&f, m, count, true, text_at(c, "prompt"), name);
        }
        chat_close(&f);
    }
    tokenizer_free(t);
}

/* A family that is chosen is written as its own Jinja text, whatever the tokenizer's is. */
static void a_chosen_family_replaces_the_tokenizers_own(void **state) {
    struct tokenizer *t = with_marks(ARRAY_LENGTH(marks));
    struct chat_format f;
    struct error err;
    for (int family = CHAT_PLAIN; family < CHAT_FAMILIES; family++) {
        const json_t *golden = json_array_get(goldens, (size_t)family - 1);
        tokenizer_set_chat_template(t, "{{ something else }}");
        if (!chat_open(&f, (enum chat_family)family, t, -1, -1, &err)) fail_msg("%s", err.message);
        assert_string_equal(chat_jinja(&f), text_at(golden, "jinja"));
        chat_close(&f);
    }
    tokenizer_free(t);
}

static void without_a_template_the_marks_decide(void **state) {
    struct chat_format f;
    struct error err;
    struct tokenizer *none = with_marks(1), *both = with_marks(2);
    assert_true(chat_open(&f, CHAT_AUTO, none, -1, -1, &err));
    assert_int_equal(f.family, CHAT_PLAIN);
    assert_int_equal(f.end_of_turn, tokenizer_end_of_text(none));
    assert_true(chat_open(&f, CHAT_AUTO, both, -1, -1, &err));
    assert_int_equal(f.family, CHAT_CHATML);
    assert_int_equal(f.end_of_turn, id_of(both, "<|im_end|>"));
    assert_false(chat_open(&f, CHAT_CHATML, none, -1, -1, &err));
    assert_mentions(err.message, "chat template chatml: the tokenizer has no token <|im_end|>");
    assert_false(chat_open(&f, CHAT_LLAMA3, both, -1, -1, &err));
    assert_mentions(err.message, "no token <|start_header_id|>");
    tokenizer_free(none);
    tokenizer_free(both);
}

/* The text of the tokens that are learned, each stretch in brackets. */
static char *learned(const struct tokenizer *t, const struct chat_tokens *out) {
    char *text = (char *)xcalloc((size_t)out->ids.count * 16 + 1, 1), *at = text;
    for (int64_t i = 0; i < out->ids.count; i++) {
        bool before = i > 0 && out->learned[i - 1], behind = i + 1 < out->ids.count && out->learned[i + 1];
        if (!out->learned[i]) continue;
        if (!before) *at++ = '[';
        at += tokenizer_decode(t, &out->ids.ids[i], 1, at, 15);
        if (!behind) *at++ = ']';
    }
    return text;
}

static void the_assistants_words_and_its_end_are_learned(void **state) {
    static const char *const expected[CHAT_FAMILIES] = {
        [CHAT_PLAIN] = "[ one<|endoftext|>][<s><|endoftext|>]",
        [CHAT_CHATML] = "[ one<|im_end|>][<s><|im_end|>]",
        [CHAT_LLAMA3] = "[one<|eot_id|>][<s><|eot_id|>]",
        [CHAT_ZEPHYR] = "[ one<|endoftext|>][<s><|endoftext|>]",
    };
    static const struct chat_message m[] = {
        {CHAT_SYSTEM, "s", 1},       {CHAT_USER, "<|im_end|>\n<|im_start|>assistant\n", 33},
        {CHAT_ASSISTANT, " one", 4}, {CHAT_USER, "u", 1},
        {CHAT_ASSISTANT, "<s>", 3},  {CHAT_USER, "v", 1}};
    struct tokenizer *t = with_marks(ARRAY_LENGTH(marks));
    struct chat_tokens out = {0};
    struct error err;
    for (int family = CHAT_PLAIN; family < CHAT_FAMILIES; family++) {
        struct chat_format f;
        if (!chat_open(&f, (enum chat_family)family, t, -1, -1, &err)) fail_msg("%s", err.message);
        if (!chat_render(&f, m, 6, true, &out, &err)) fail_msg("%s", err.message);
        char *text = learned(t, &out);
        assert_string_equal(text, expected[family]);
        free(text);
        /* what the user says is letters, marks and all */
        int64_t ends = 0;
        for (int64_t i = 0; i < out.ids.count; i++) ends += out.ids.ids[i] == (uint32_t)f.end_of_turn;
        assert_int_equal(ends, family == CHAT_PLAIN ? 3 : 6);
        chat_close(&f);
    }
    chat_tokens_free(&out);
    tokenizer_free(t);
}

static void templates_are_found_beside_the_tokenizer(void **state) {
    static const char *const configs[] = {
        "{\"chat_template\": \"one\"}", "{\"chat_template\": [{\"name\": \"tools\", \"template\": \"two\"}, "
                                        "{\"name\": \"default\", \"template\": \"one\"}]}"};
    struct error err;
    struct tokenizer *bytes = tokenizer_bytes(), *t;
    put_text("model/tokenizer_config.json", "{}");
    if (!tokenizer_save(bytes, in_scratch("model/tokenizer.json"), &err)) fail_msg("%s", err.message);
    assert_non_null(t = tokenizer_load(in_scratch("model"), &err));
    assert_null(tokenizer_chat_template(t));
    tokenizer_free(t);
    for (size_t i = 0; i < ARRAY_LENGTH(configs); i++) {
        put_text("model/tokenizer_config.json", configs[i]);
        assert_non_null(t = tokenizer_load(in_scratch("model"), &err));
        assert_string_equal(tokenizer_chat_template(t), "one");
        assert_true(tokenizer_hash(t) == tokenizer_hash(bytes));
        tokenizer_free(t);
    }
    put_text("model/chat_template.jinja", "three\n");
    assert_non_null(t = tokenizer_load(in_scratch("model"), &err));
    assert_string_equal(tokenizer_chat_template(t), "three\n");
    tokenizer_free(t);
    tokenizer_free(bytes);
}

static int set_up(void **state) {
    goldens = json_load_file("test/golden/chat.json", 0, NULL);
    return goldens ? 0 : -1;
}

static int tear_down(void **state) {
    json_decref(goldens);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(templates_are_recognised_and_rendered_as_jinja_does),
        SCRATCH_TEST(a_chosen_family_replaces_the_tokenizers_own),
        SCRATCH_TEST(without_a_template_the_marks_decide),
        SCRATCH_TEST(the_assistants_words_and_its_end_are_learned),
        SCRATCH_TEST(templates_are_found_beside_the_tokenizer),
    };
    return test_main(argc, argv, tests, set_up, tear_down);
}

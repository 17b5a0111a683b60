/* GGUF files: keys, tensors and tokenizer, as a model to load. */
#include "test/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/format/import_gguf.h"
#include "test/fuzz/model.h"

FUZZ_TARGET(gguf) {
    struct error err;
    struct model_file m;
    const char *path = fuzz_file("model.gguf", data, size);
    if (size < 4 || memcmp(data, "GGUF", 4) != 0) return 0;
    struct gguf_file g;
    if (gguf_open(&g, path, &err)) {
        tokenizer_free(gguf_tokenizer(&g, &err));
        gguf_close(&g);
    }
    if (!model_file_open(&m, path, &err)) return 0;
    if (read_all_weights(&m, &err)) fuzz_accept();
    model_file_close(&m);
    return 0;
}

/* --- a file --- */

struct bytes {
    uint8_t data[8192];
    size_t size;
};

static void put(struct bytes *b, uint64_t value, size_t bytes) {
    check(b->size + bytes <= sizeof b->data, "the seed is too long");
    memcpy(b->data + b->size, &value, bytes);
    b->size += bytes;
}
static void put_string(struct bytes *b, const char *text) {
    put(b, strlen(text), 8);
    for (; *text; text++) put(b, (uint8_t)*text, 1);
}
static void put_key(struct bytes *b, const char *key, enum gguf_type type) {
    put_string(b, key);
    put(b, type, 4);
}
static void put_number(struct bytes *b, const char *key, uint32_t value) {
    put_key(b, key, GGUF_U32);
    put(b, value, 4);
}
static void put_text(struct bytes *b, const char *key, const char *text) {
    put_key(b, key, GGUF_STRING);
    put_string(b, text);
}
static void put_texts(struct bytes *b, const char *key, const char *const *texts, uint64_t count) {
    put_key(b, key, GGUF_ARRAY);
    put(b, GGUF_STRING, 4);
    put(b, count, 8);
    for (uint64_t i = 0; i < count; i++) put_string(b, texts[i]);
}

/* All tensors of the tiny model, one behind the other. */
static void put_tensors(struct bytes *b, const struct gpt_config *c, enum ggml_type type) {
    uint64_t offset = 0;
    for (int id = 0; id < PARAM_ROWS; id++) {
        struct piece piece[MOST_PIECES];
        if (!format_pieces(piece, FORMAT_GGUF_GPT2, c, (enum param_id)id)) continue;
        put_string(b, piece_name(piece, 0));
        put(b, piece[0].vector ? 1 : 2, 4);
        if (!piece[0].vector) put(b, (uint64_t)piece[0].cols, 8);
        put(b, (uint64_t)piece[0].rows, 8);
        put(b, type, 4);
        put(b, offset, 8);
        offset = (uint64_t)round_up((int64_t)offset + piece[0].rows * piece[0].cols * 4, GGUF_ALIGNMENT);
    }
    while (b->size % GGUF_ALIGNMENT) put(b, 0, 1);
    for (uint64_t i = 0; i < offset; i += 8) put(b, 0, 8);
}

FUZZ_SEEDS(gguf) {
    const struct gpt_config config = TINY_CONFIG;
    static const char *const tokens[] = {"a", "b", "ab"}, *const merges[] = {"a b"};
    for (int half = 0; half < 2; half++) {
        struct bytes b = {.size = 0};
        put(&b, 0x46554747, 4);
        put(&b, GGUF_VERSION, 4);
        put(&b, (uint64_t)format_tensor_count(FORMAT_GGUF_GPT2, &config), 8);
        put(&b, 12, 8);
        put_text(&b, "general.architecture", "gpt2");
        put_text(&b, "general.name", "tiny");
        put_number(&b, "gpt2.context_length", (uint32_t)config.context);
        put_number(&b, "gpt2.embedding_length", (uint32_t)config.channels);
        put_number(&b, "gpt2.feed_forward_length", (uint32_t)config.ff);
        put_number(&b, "gpt2.block_count", (uint32_t)config.layers);
        put_number(&b, "gpt2.attention.head_count", (uint32_t)config.heads);
        put_key(&b, "gpt2.attention.layer_norm_epsilon", GGUF_F32);
        put(&b, 0x3727c5ac, 4); /* 1e-5 */
        put_text(&b, "tokenizer.ggml.model", "gpt2");
        put_text(&b, "tokenizer.ggml.pre", half ? "qwen2" : "gpt-2");
        put_texts(&b, "tokenizer.ggml.tokens", tokens, 3);
        put_texts(&b, "tokenizer.ggml.merges", merges, 1);
        put_tensors(&b, &config, half ? GGML_F16 : GGML_F32);
        add(user, b.data, b.size);
    }
}

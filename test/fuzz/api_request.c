/* Requests in OpenAI's shape, as `serve` reads them. */
#include "test/fuzz/fuzz.h"

#include "llmc/cli/serve_api.h"

#include <stdlib.h>
#include <string.h>

static void take(const struct api *api, bool chat, const uint8_t *data, size_t size) {
    struct api_request q = {0};
    struct api_error e = {0};
    if (api_take(&q, api, chat, (const char *)data, size, &e)) {
        check(q.prompt_count >= 1 && q.prompts[0].count >= 1 && q.tokens >= 1,
              "a request without prompt or length");
        fuzz_accept();
    } else {
        check(e.err.message[0], "a refusal without a reason");
        free(api_error_text(400, e.err.message, e.param, e.code));
    }
    api_request_free(&q);
}

FUZZ_TARGET(api_request) {
    struct error err;
    struct text_model m = {
        .config = GPT2_CONFIG("small", 64, 257, 2, 2, 16), .tokenizer = tokenizer_bytes(), .V = 257};
    struct sampling_config sampling = {.temperature = 0.8, .top_p = 1.0, .repetition_penalty = 1.0};
    struct chat_format chat;
    check(chat_open(&chat, CHAT_PLAIN, m.tokenizer, -1, -1, &err), "%s", err.message);
    struct api api = {.m = &m, .chat = &chat, .name = "small", .sampling = &sampling, .most_tokens = 64};
    take(&api, false, data, size);
    take(&api, true, data, size);
    chat_close(&chat);
    tokenizer_free(m.tokenizer);
    return 0;
}

FUZZ_SEEDS(api_request) {
    static const char *const texts[] = {
        "{\"model\":\"x\",\"prompt\":\"Once\",\"max_tokens\":5,\"temperature\":0.5,\"top_p\":0.9,\"n\":2,\"seed\":3,"
        "\"stop\":[\"a\",\"\\n\"],\"logprobs\":2,\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
        "{\"prompt\":[\"a\",[1,2],\"b\"],\"top_k\":3,\"min_p\":0.1,\"repetition_penalty\":1.2,\"stop\":\"x\"}",
        "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\","
        "\"text\":\"hi\"}]}],\"max_completion_tokens\":4,\"logprobs\":true,\"top_logprobs\":2,"
        "\"response_format\":{\"type\":\"text\"}}"};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) add(user, texts[i], strlen(texts[i]));
}

/* `train_gpt serve` as clients use it: answers are those of `sample`, alone and at the same time, whole
 * and as streams; what is wrong is said in OpenAI's shape; clients that hang up leave their places to
 * others. */
#include "test/program.h"
#include "test/server.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Without the least probable tokens, which are parts of characters: the two write those differently. */
#define SAMPLE "$T sample --from run --threads 1 --device cpu --no-stats --min-p 0.1 "
#define SERVE  "serve --from %s/run --threads 1 --device cpu --port 0 --min-p 0.1 "

static int make_run(void **state) {
    if (make_scratch(state) != 0) return -1;
    expect_command(
        0, "",
        "$T --stories 300 --layers 1 --channels 32 --heads 2 --context 64 --threads 1 --device cpu "
        "--batch-size 4 --steps 60 --out run");
    return 0;
}

static void serve(const char *options) {
    char *command = xasprintf(SERVE "%s", scratch_directory(), options);
    start_server(command);
    free(command);
}

static int end_server(void **state) {
    kill_server();
    return 0;
}

/* --- asking --- */

static int begin_post(const char *path, const char *body) {
    int fd = connect_server();
    char *text = xasprintf("POST %s HTTP/1.0\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n%s", path,
                           strlen(body), body);
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
    free(text);
    return fd;
}

/* What comes until the server closes; the caller frees. */
static char *rest_of(int fd) {
    size_t size = 0, capacity = 1 << 22;
    char *answer = (char *)xcalloc(1, capacity);
    for (ssize_t n; (n = recv(fd, answer + size, capacity - 1 - size, 0)) > 0;) size += (size_t)n;
    close(fd);
    return answer;
}

static json_t *body_json(char *answer) {
    char *body = strstr(answer, "\r\n\r\n");
    json_error_t why;
    assert_non_null(body);
    json_t *root = json_loads(body + 4, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (!root) fail_msg("%s: %s", why.text, answer);
    free(answer);
    return root;
}

static const char *string_at(const json_t *root, const char *key) {
    const char *text = json_string_value(json_object_get(root, key));
    if (!text) fail_msg("no \"%s\"", key);
    return text;
}
static json_t *choice_of(const json_t *root, size_t i) {
    json_t *choice = json_array_get(json_object_get(root, "choices"), i);
    assert_int_equal(json_integer_value(json_object_get(choice, "index")), i);
    return choice;
}

/* What `sample --json` says. */
static json_t *sampled(const char *options) {
    struct ran r = run_command(SAMPLE "--json %s", options);
    if (r.status != 0) fail_msg("%s: %s", options, r.err);
    json_t *root = json_loads(r.out, 0, NULL);
    assert_non_null(root);
    return root;
}

static void assert_text(const json_t *choice, const char *options) {
    json_t *expected = sampled(options);
    assert_string_equal(string_at(choice, "text"), string_at(expected, "text"));
    assert_string_equal(string_at(choice, "finish_reason"), string_at(expected, "finish_reason"));
    json_decref(expected);
}

/* --- answers --- */

static void test_models(void **state) {
    serve("--name my-model");
    json_t *root = get("/v1/models"), *one = get("/v1/models/my-model");
    assert_string_equal(string_at(root, "object"), "list");
    assert_string_equal(string_at(json_array_get(json_object_get(root, "data"), 0), "id"), "my-model");
    assert_string_equal(string_at(one, "object"), "model");
    json_decref(root);
    json_decref(one);
    assert_int_equal(status_of("GET /v1/models/other", "localhost", ""), 404);
    stop_server();
}

static void test_answers_are_those_of_sample(void **state) {
    serve("");
    json_t *root =
        post("/v1/completions",
             "{\"model\":\"x\",\"prompt\":\"Once upon\",\"max_tokens\":30,\"temperature\":0.9,\"seed\":5,"
             "\"top_p\":0.95,\"top_k\":40,\"min_p\":0.1,\"repetition_penalty\":1.1,\"n\":2,\"logprobs\":3}",
             NULL);
#define HOW "--tokens 30 --temperature 0.9 --top-p 0.95 --top-k 40 --repetition-penalty 1.1 "
    assert_text(choice_of(root, 0), "--prompt 'Once upon' --seed 5 " HOW);
    assert_text(choice_of(root, 1), "--prompt 'Once upon' --seed 6 " HOW);
    json_t *expected = sampled("--prompt 'Once upon' --seed 6 --top-logprobs 3 " HOW), *list, *item;
    list = json_object_get(json_object_get(choice_of(root, 1), "logprobs"), "token_logprobs");
    assert_true(json_equal(list, json_object_get(expected, "logprobs")));
    size_t i;
    double offset = 0;
    json_array_foreach(json_object_get(json_object_get(choice_of(root, 1), "logprobs"), "text_offset"), i,
                       item) {
        assert_true(json_number_value(item) >= offset);
        offset = json_number_value(item);
    }
    const json_t *usage = json_object_get(root, "usage");
    size_t made = json_array_size(list) +
                  json_array_size(json_object_get(json_object_get(choice_of(root, 0), "logprobs"), "tokens"));
    assert_true(json_integer_value(json_object_get(usage, "completion_tokens")) >= (json_int_t)made);
    assert_true(json_integer_value(json_object_get(usage, "prompt_tokens")) >= 2);
    json_decref(expected);
    json_decref(root);

    root = post("/v1/completions",
                "{\"prompt\":[\"Once\",\"The\"],\"temperature\":0,\"max_tokens\":64,\"stop\":[\".\",\"zz\"]}",
                NULL);
    assert_text(choice_of(root, 0), "--prompt Once --temperature 0 --tokens 64 --stop .");
    assert_text(choice_of(root, 1), "--prompt The --temperature 0 --tokens 64 --stop .");
    json_decref(root);
    /* token ids are taken as they are, and the default length is OpenAI's */
    root = post("/v1/completions", "{\"prompt\":[1,2,3],\"temperature\":0,\"logprobs\":0}", NULL);
    json_t *tokens = json_object_get(json_object_get(choice_of(root, 0), "logprobs"), "tokens");
    assert_true(json_array_size(tokens) <= 16 && json_array_size(tokens) > 0);
    json_decref(root);
    stop_server();
}

static void test_chat_answers_are_those_of_sample(void **state) {
    json_t *root, *expected, *list, *item;
    size_t i;
    serve("");
    root =
        post("/v1/chat/completions",
             "{\"messages\":[{\"role\":\"system\",\"content\":\"Be kind.\"},{\"role\":\"user\",\"content\":"
             "[{\"type\":\"text\",\"text\":\"Hello\"},{\"type\":\"text\",\"text\":\" there\"}]}],\"seed\":3,"
             "\"max_completion_tokens\":20,\"logprobs\":true,\"top_logprobs\":2}",
             NULL);
    expected = sampled("--chat 'Hello there' --system 'Be kind.' --seed 3 --tokens 20 --top-logprobs 2");
    json_t *message = json_object_get(choice_of(root, 0), "message");
    assert_string_equal(string_at(message, "role"), "assistant");
    assert_string_equal(string_at(message, "content"), string_at(expected, "text"));
    list = json_object_get(json_object_get(choice_of(root, 0), "logprobs"), "content");
    assert_int_equal(json_array_size(list), json_array_size(json_object_get(expected, "logprobs")));
    json_array_foreach(list, i, item) {
        assert_true(json_equal(json_object_get(item, "logprob"),
                               json_array_get(json_object_get(expected, "logprobs"), i)));
        assert_int_equal(json_array_size(json_object_get(item, "top_logprobs")), 2);
    }
    json_decref(expected);
    json_decref(root);
    stop_server();
}

/* The events of a stream: their texts joined, and the last finish_reason. *events receives how many. */
static char *joined_stream(char *answer, bool chat, const char **reason, int *events) {
    char *text = xstrdup(""), *body = strstr(answer, "\r\n\r\n");
    assert_non_null(body);
    assert_non_null(strstr(answer, "text/event-stream"));
    if (!strstr(body, "data: [DONE]\n\n")) fail_msg("the stream has no end: %s", answer);
    *events = 0;
    *reason = "";
    for (char *at = body + 4, *end; strncmp(at, "data: [DONE]", 12) != 0; at = end + 2, ++*events) {
        assert_memory_equal(at, "data: ", 6);
        end = strstr(at, "\n\n");
        json_t *root = json_loadb(at + 6, (size_t)(end - at - 6), 0, NULL);
        assert_non_null(root);
        json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
        const json_t *from = chat ? json_object_get(choice, "delta") : choice;
        const char *more = json_string_value(json_object_get(from, chat ? "content" : "text"));
        const char *ended = json_string_value(json_object_get(choice, "finish_reason"));
        if (ended) *reason = strcmp(ended, "stop") == 0 ? "stop" : "length";
        char *longer = xasprintf("%s%s", text, more ? more : "");
        free(text);
        text = longer;
        json_decref(root);
    }
    free(answer);
    return text;
}

static void test_streams(void **state) {
    const char *reason;
    int events;
    serve("");
    char *text =
        joined_stream(rest_of(begin_post("/v1/completions", "{\"prompt\":\"Once\",\"seed\":2,\"stream\":true,"
                                                            "\"max_tokens\":40,\"stop\":\"zzz\"}")),
                      false, &reason, &events);
    json_t *expected = sampled("--prompt Once --seed 2 --tokens 40");
    assert_string_equal(text, string_at(expected, "text"));
    assert_string_equal(reason, string_at(expected, "finish_reason"));
    assert_true(events > 3);
    json_decref(expected);
    free(text);
    text =
        joined_stream(rest_of(begin_post(
                          "/v1/chat/completions",
                          "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"seed\":4,\"stream\":true,"
                          "\"max_tokens\":20,\"stream_options\":{\"include_usage\":true}}")),
                      true, &reason, &events);
    expected = sampled("--chat Hi --seed 4 --tokens 20");
    assert_string_equal(text, string_at(expected, "text"));
    json_decref(expected);
    free(text);
    stop_server();
}

/* Requests at the same time, more than are computed at a time, do not change each other's answers. */
static void test_at_the_same_time(void **state) {
    enum { CLIENTS = 7 };
    int fd[CLIENTS];
    serve("--batch-size 3");
    for (int i = 0; i < CLIENTS; i++) {
        char *body = xasprintf("{\"prompt\":\"%.*s\",\"seed\":%d,\"max_tokens\":%d}", 2 * i + 1,
                               "Once upon a time", i, 10 + 7 * i);
        fd[i] = begin_post("/v1/completions", body);
        free(body);
    }
    for (int i = CLIENTS - 1; i >= 0; i--) {
        json_t *root = body_json(rest_of(fd[i]));
        char *options =
            xasprintf("--prompt '%.*s' --seed %d --tokens %d", 2 * i + 1, "Once upon a time", i, 10 + 7 * i);
        assert_text(choice_of(root, 0), options);
        free(options);
        json_decref(root);
    }
    stop_server();
}

/* A request for many texts lets others through: each gets its turn. The many take so long that a busy machine
 * does not delay the one behind them; what they become is not waited for. */
static void test_turns(void **state) {
    serve("--batch-size 1 --tokens 1M");
    int many =
        begin_post("/v1/completions", "{\"prompt\":\"Once\",\"n\":64,\"max_tokens\":3000,\"temperature\":3,"
                                      "\"min_p\":0,\"logit_bias\":{}}");
    usleep(50000);
    json_t *root = post("/v1/completions", "{\"prompt\":\"Once\",\"seed\":1,\"max_tokens\":5}", NULL);
    char byte;
    assert_int_equal(recv(many, &byte, 1, MSG_DONTWAIT), -1); /* not yet */
    assert_text(choice_of(root, 0), "--prompt Once --seed 1 --tokens 5");
    json_decref(root);
    close(many);
    stop_server();
}

/* --- what is wrong --- */

static void assert_refused(const char *path, const char *body, const char *param, const char *says) {
    int status;
    json_t *root = post(path, body, &status);
    const json_t *error = json_object_get(root, "error");
    if (status != 400) fail_msg("%s: status %d", body, status);
    if (!strstr(string_at(error, "message"), says)) fail_msg("%s: %s", body, string_at(error, "message"));
    assert_string_equal(string_at(error, "type"), "invalid_request_error");
    if (param)
        assert_string_equal(string_at(error, "param"), param);
    else
        assert_true(json_is_null(json_object_get(error, "param")));
    json_decref(root);
}

static const struct {
    const char *body, *param, *says;
} wrong[] = {
    {"", NULL, "no JSON"},
    {"{\"prompt\":", NULL, "no JSON"},
    {"[]", NULL, "must be a JSON object"},
    {"{\"model\":1}", "model", "must be a text"},
    {"{\"prompt\":{}}", "prompt", "must be a text"},
    {"{\"prompt\":[]}", "prompt", "no prompt"},
    {"{\"prompt\":[[]]}", "prompt", "no prompt"},
    {"{\"prompt\":[1,\"a\"]}", "prompt", "must be integers"},
    {"{\"prompt\":[99999999]}", "prompt", "must be integers"},
    {"{\"prompt\":[-1]}", "prompt", "must be integers"},
    {"{\"prompt\":\"a\\u0000b\"}", "prompt", "without the character 0"},
    {"{\"max_tokens\":0}", "max_tokens", "from 1 to 64"},
    {"{\"max_tokens\":65}", "max_tokens", "from 1 to 64"},
    {"{\"max_tokens\":\"5\"}", "max_tokens", "must be an integer"},
    {"{\"max_tokens\":1e3}", "max_tokens", "must be an integer"},
    {"{\"temperature\":-1}", "temperature", "must be a number"},
    {"{\"temperature\":\"hot\"}", "temperature", "must be a number"},
    {"{\"top_p\":0}", "top_p", "must be a number"},
    {"{\"seed\":1.5}", "seed", "must be an integer"},
    {"{\"n\":65}", "n", "from 1 to 64"},
    {"{\"n\":40,\"prompt\":[\"a\",\"b\"]}", "n", "at most 64 texts"},
    {"{\"stream\":1}", "stream", "must be true or false"},
    {"{\"stream_options\":3}", "stream_options", "must be an object"},
    {"{\"stop\":\"\"}", "stop", "none of them empty"},
    {"{\"stop\":[1]}", "stop", "must be a text"},
    {"{\"logprobs\":true}", "logprobs", "must be an integer"},
    {"{\"echo\":true}", "echo", "not supported"},
    {"{\"frequency_penalty\":0.5}", "frequency_penalty", "not supported"},
    {"{\"logit_bias\":{\"5\":1}}", "logit_bias", "not supported"},
};
static const char *const chats[][3] = {
    {"{}", "messages", "must be a list"},
    {"{\"messages\":[]}", "messages", "must be a list"},
    {"{\"messages\":[1]}", "messages", "role must be"},
    {"{\"messages\":[{\"role\":\"robot\",\"content\":\"a\"}]}", "messages", "role must be"},
    {"{\"messages\":[{\"role\":\"user\"}]}", "messages", "content must be"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", "messages",
     "content must be"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]}", "messages", "the character 0"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\\u0000b\"}]}]}",
     "messages", "the character 0"},
    {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tools\":[{}]}", "tools", "not supported"},
};

static void test_wrong_requests(void **state) {
    serve("");
    for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++)
        assert_refused("/v1/completions", wrong[i].body, wrong[i].param, wrong[i].says);
    for (size_t i = 0; i < ARRAY_LENGTH(chats); i++)
        assert_refused("/v1/chat/completions", chats[i][0], chats[i][1], chats[i][2]);
    /* long prompts: beyond the context, and beyond what is read at all */
    for (int64_t size = 1000; size <= 2000000; size *= 2000) {
        char *body = (char *)xmalloc((size_t)size + 32), *end = body + sprintf(body, "{\"prompt\":\"");
        memset(end, 'a', (size_t)size);
        strcpy(end + size, "\"}");
        int status;
        json_t *root = post("/v1/completions", body, &status);
        assert_int_equal(status, size < 1000000 ? 400 : 413);
        json_t *error = json_object_get(root, "error");
        if (status == 400) assert_string_equal(string_at(error, "code"), "context_length_exceeded");
        assert_non_null(string_at(error, "message"));
        json_decref(root);
        free(body);
    }
    /* some 300 KB of depth */
    char *deep = (char *)xcalloc(1, 300001);
    memset(deep, '[', 300000);
    assert_refused("/v1/completions", deep, NULL, "no JSON");
    free(deep);
    char *answer = send_text("GET /nothing HTTP/1.0\r\nHost: localhost\r\n\r\n");
    assert_non_null(strstr(answer, " 404 "));
    json_decref(body_json(answer));
    answer = send_text("GET /v1/completions HTTP/1.0\r\nHost: localhost\r\n\r\n");
    assert_non_null(strstr(answer, " 405 "));
    json_decref(body_json(answer));
    stop_server();
}

static void test_strangers(void **state) {
    serve("--token");
    const char *key = strstr(server.url, "API key ");
    assert_non_null(key);
    assert_int_equal(status_of("GET /v1/models", "localhost", ""), 401);
    assert_int_equal(status_of("GET /v1/models", "localhost", "Authorization: Bearer 123\r\n"), 401);
    assert_int_equal(status_of("GET /v1/models", "evil.example", ""), 403);
    assert_int_equal(status_of("GET /v1/models", "localhost", "Origin: http://evil.example\r\n"), 403);
    char *header = xasprintf("Authorization: Bearer %s\r\n", key + strlen("API key "));
    assert_int_equal(status_of("GET /v1/models", "localhost", header), 200);
    free(header);
    stop_server();
}

/* A place that is taken by an endless text is free again when its client has hung up: while it is written,
 * while it waits, whole or as a stream. */
static void test_clients_that_vanish(void **state) {
    serve("--batch-size 1 --tokens 100M");
    for (int stream = 0; stream < 2; stream++) {
        char *body = xasprintf(
            "{\"prompt\":\"Once\",\"max_tokens\":100000000,\"temperature\":5,\"stop\":\"%s\",\"stream\":%s}",
            "never said", stream ? "true" : "false");
        int fd[3];
        for (int i = 0; i < 3; i++) fd[i] = begin_post("/v1/completions", body);
        usleep(200000);
        for (int i = 0; i < 3; i++) close(fd[i]);
        json_t *root = post("/v1/completions", "{\"prompt\":\"Once\",\"seed\":9,\"max_tokens\":12}", NULL);
        assert_text(choice_of(root, 0), "--prompt Once --seed 9 --tokens 12");
        json_decref(root);
        free(body);
    }
    /* and the server ends at once, whatever is being written */
    int fd =
        begin_post("/v1/completions", "{\"prompt\":\"Once\",\"max_tokens\":100000000,\"temperature\":5}");
    usleep(200000);
    stop_server();
    close(fd);
}

int main(int argc, char **argv) {
#define SERVED(f) cmocka_unit_test_teardown(f, end_server)
    const struct CMUnitTest tests[] = {
        SERVED(test_models),
        SERVED(test_answers_are_those_of_sample),
        SERVED(test_chat_answers_are_those_of_sample),
        SERVED(test_streams),
        SERVED(test_at_the_same_time),
        SERVED(test_turns),
        SERVED(test_wrong_requests),
        SERVED(test_strangers),
        SERVED(test_clients_that_vanish),
    };
    return test_main(argc, argv, tests, make_run, remove_scratch);
}

/* Training on conversations, from the command line to an answer. */
#include "test/program.h"

#include "llmc/base/json_file.h"
#include "llmc/corpus/chat_file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHAPE "--layers 1 --channels 32 --heads 2 --threads 1 --device cpu "
#define CHAT  "--chat chat.jsonl --tokenizer bytes "

/* Animals and what they say: every answer follows from its question. */
static int set_up(void **state) {
    static const char *const animals[][2] = {
        {"cat", "meow"}, {"dog", "woof"}, {"cow", "moo"}, {"pig", "oink"}};
    if (make_scratch(state) != 0) return -1;
    FILE *f = fopen(in_scratch("chat.jsonl"), "w");
    for (int i = 0; i < 64; i++) {
        fprintf(f, "{\"messages\": [%s{\"role\": \"user\", \"content\": \"%s?%d\"}, ",
                i % 3 ? "" : "{\"role\": \"system\", \"content\": \"short\"}, ", animals[i % 4][0],
                i / 4 % 4);
        fprintf(f, "{\"role\": \"assistant\", \"content\": \"%s\"}]}\n", animals[i % 4][1]);
    }
    fclose(f);
    return 0;
}

static void a_model_learns_to_answer(void **state) {
    expect_command(0, "by the template plain",
                   "$T --out run " SHAPE CHAT "--steps 120 --sample-every 60 --learning-rate 8e-3");
    expect_command(0, "", "$T sample --from run --chat 'dog?1' --temperature 0 --no-stats >dog");
    char *answer = get_text("dog");
    assert_string_equal(answer, "woof\n");
    free(answer);
    expect_command(0, "",
                   "echo 'cow?2' | $T sample --from run --chat - --system short --temperature 0 "
                   "--no-stats >cow");
    answer = get_text("cow");
    assert_string_equal(answer, "moo\n");
    free(answer);
    /* the template goes with the model, and from there into the next one */
    expect_command(0, "", "grep -q Assistant run/step-00000120/tokenizer_config.json");
    expect_command(0, "-> ", "$T --out again --model run --chat chat.jsonl --steps 1 --device cpu");
    expect_command(0, "",
                   "cmp run/step-00000120/tokenizer_config.json again/step-00000001/tokenizer_config.json");
    expect_command(0, "",
                   "$T export --from run --to run/x.gguf && grep -aq tokenizer.chat_template run/x.gguf");
    /* the command that is printed at the end */
    expect_command(0, "",
                   "$T --resume --out run | sed -n 's/^sample  *//p' | grep -e --chat >hint && sh hint");
}

static void conversations_are_packed(void **state) {
    expect_command(0, "conversations in ", "$T --out packed " SHAPE CHAT "--steps 2 --samples packed");
    expect_command(1, "--samples apart: packed/step-00000002 is at a place in its data",
                   "$T --resume --out packed --samples apart --steps 3");
    expect_command(0, "weights", "$T --resume --out packed --no-document-mask --steps 3");
}

static void interrupted_is_uninterrupted(void **state) {
#define RUN SHAPE CHAT "--batch-size 2 --tokens-per-step 256 --seq-len 32 --val-every 5 "
    expect_command(0, "", "$T --out whole " RUN "--steps 20");
    expect_command(0, "", "$T --out parts " RUN "--steps 11 --schedule constant --warmup 2");
    expect_command(0, "", "$T --out whole2 " RUN "--steps 20 --schedule constant --warmup 2");
    expect_command(0, "", "$T --resume --out parts --steps 20");
    expect_command(0, "", "cmp parts/step-00000020/model.safetensors whole2/step-00000020/model.safetensors");
    expect_command(1, "--samples documents: parts/step",
                   "$T --resume --out parts --samples documents --steps 30");
    expect_command(1, "the training data is not what the run was started on",
                   "sed 's/woof/Woof/' chat.jsonl >other.jsonl; $T --resume --out parts --chat other.jsonl "
                   "--steps 30");
    expect_command(1, "--text chat.jsonl: parts/step-00000020 is of a run that trains on --chat chat.jsonl",
                   "$T --resume --out parts --text chat.jsonl --steps 30");
    /* the samples of a step, and so the loss, do not depend on the number of processes */
    expect_command(0, "", "$T --out two " RUN "--steps 20 --ranks 2");
    expect_command(
        0, "",
        "for r in whole two; do sed -n 's/.*\"loss\":\\([0-9.]*\\).*/\\1/p' $r/log.jsonl | "
        "awk '{printf \"%%.4f\\n\", $1}' >$r.loss; done; test -s two.loss && cmp whole.loss two.loss");
}

static double last_number(const char *path, const char *key) {
    struct error err;
    json_t *root = json_file_load(in_scratch("%s", path), &err), *list;
    if (!root) fail_msg("%s", err.message);
    list = json_object_get(root, key);
    double value = json_is_array(list) ? json_number_value(json_array_get(list, json_array_size(list) - 1))
                                       : json_number_value(list);
    json_decref(root);
    return value;
}

/* What eval says: of the answers every byte and the token that ends them is a target, and only the bytes are
 * text. Returns the loss. */
static double loss_of_answers(const char *summary, int64_t answers, int64_t bytes) {
    struct error err;
    json_t *root = json_file_load(in_scratch("%s", summary), &err), *loss = json_object_get(root, "loss");
    assert_non_null(root);
    double nats = json_number_value(json_object_get(loss, "loss"));
    int64_t tokens = json_integer_value(json_object_get(loss, "tokens"));
    assert_int_equal(tokens, bytes + answers);
    assert_float_equal(json_number_value(json_object_get(loss, "bits_per_byte")),
                       nats * (double)tokens / log(2) / (double)bytes, 1e-9);
    json_decref(root);
    return nats;
}

/* The validation set of a run in a file of its own has the loss that the run logs. */
static void eval_has_the_loss_of_validation(void **state) {
    struct chat_file f;
    struct error err;
    int64_t answers = 0, bytes = 0;
    expect_command(0, "bits per byte",
                   "$T --out counted " SHAPE CHAT "--steps 4 --val-every 4 --validation-fraction 0.2");
    assert_true(chat_file_read(&f, in_scratch("chat.jsonl"), &err));
    bool *validation = chat_file_split(&f, 0.2, &err);
    FILE *out = fopen(in_scratch("val.jsonl"), "w");
    char *text = get_text("chat.jsonl"), *line = text;
    assert_non_null(validation);
    for (int64_t i = 0; i < f.count; i++) {
        char *end = strchr(line, '\n') + 1;
        const struct conversation *c = &f.conversations[i];
        if (validation[i]) fwrite(line, 1, (size_t)(end - line), out);
        if (validation[i]) answers++, bytes += c->messages[c->count - 1].size;
        line = end;
    }
    fclose(out);
    free(text);
    free(validation);
    chat_file_free(&f);
    expect_command(0, "conversations by the template plain",
                   "$T eval --from counted --chat val.jsonl --device cpu --threads 1 --json e.json");
    expect_command(
        0, "",
        "sed -n 's/.*\"val_loss\":\\([0-9.]*\\).*/{\"val_loss\": \\1}/p' counted/log.jsonl | tail -1 >v.json");
    assert_float_equal(loss_of_answers("e.json", answers, bytes), last_number("v.json", "val_loss"), 1e-5);
    expect_command(0, "lose their ends; ",
                   "$T eval --from counted --chat val.jsonl --device cpu --seq-len 26");
    expect_command(0, "--show has no effect",
                   "$T eval --from counted --chat val.jsonl --device cpu --batches 1 --show");
    expect_command(1, "bad.jsonl:1: not JSON",
                   "echo '{' >bad.jsonl; $T eval --from counted --chat bad.jsonl");
    expect_command(1, "no token <|im_start|>",
                   "$T eval --from counted --chat val.jsonl --chat-template chatml");
}

/* A tokenizer with the marks of ChatML: its template is taken, and the model is said to end with
 * <|im_end|>. */
static void marks_of_the_tokenizer_are_used(void **state) {
    expect_command(0, "", "$T --out bytes --tokenizer bytes --stories 100 --steps 1 " SHAPE);
    expect_command(0, "", "mkdir marked && cp bytes/step-00000001/tokenizer.json marked/");
    expect_command(
        0, "",
        "printf '{\"added_tokens_decoder\": {\"257\": {\"content\": \"<|im_start|>\", \"special\": true}, "
        "\"258\": {\"content\": \"<|im_end|>\", \"special\": true}}}' >marked/tokenizer_config.json");
    expect_command(0, "by the template chatml",
                   "$T --out chatml --chat chat.jsonl --tokenizer marked --steps 2 " SHAPE);
    assert_true(last_number("chatml/step-00000002/config.json", "eos_token_id") == 258);
    assert_true(last_number("chatml/step-00000002/generation_config.json", "eos_token_id") == 258);
    expect_command(0, "64 conversations by the template chatml",
                   "$T eval --from chatml --chat chat.jsonl --device cpu --json m.json");
    loss_of_answers("m.json", 64, 16 * (4 + 4 + 3 + 4));
    expect_command(
        0, "by the template plain",
        "$T --out plain --chat chat.jsonl --tokenizer marked --chat-template plain --steps 2 " SHAPE);
    assert_true(last_number("plain/step-00000002/config.json", "eos_token_id") == 256);
    expect_command(1, "no token <|start_header_id|>",
                   "$T --out none --chat chat.jsonl --tokenizer marked --chat-template llama3 " SHAPE);
}

/* "User:\ncat?1\n\nAssistant:\n" and what begins it are 25 tokens, the system's words before it 15 more. */
static void what_does_not_fit_is_said(void **state) {
    expect_command(
        0,
        "64 conversations for training are longer than --seq-len 26 and lose their ends; 22 of them "
        "lose all that the assistant says, and are left out",
        "rm -rf run; $T --out run " SHAPE CHAT "--seq-len 26 --steps 1 --validation-fraction 0");
    expect_command(1, "use longer sequences",
                   "rm -rf run; $T --out run " SHAPE CHAT "--seq-len 24 --steps 1 --validation-fraction 0");
}

static void wrong_input_is_refused(void **state) {
    static const struct {
        const char *command, *message;
    } cases[] = {
        {"$T --chat chat.jsonl " SHAPE, "--chat chat.jsonl: there is no tokenizer"},
        {"$T --text chat.jsonl " CHAT, "--chat and --text exclude each other"},
        {"$T --samples windows " CHAT SHAPE, "--samples windows: samples of --chat are not cut"},
        {"$T --samples apart --stories 100 " SHAPE, "--samples apart: only --chat and --pairs"},
        {"$T --ranks 2 --chat - --tokenizer bytes " SHAPE "<chat.jsonl", "--chat -: each of the 2 processes"},
        {"echo '{' >bad.jsonl; $T --chat bad.jsonl --tokenizer bytes " SHAPE, "bad.jsonl:1: not JSON"},
        {"$T sample --from run --chat hi --prompt ho", "--chat and --prompt exclude each other"},
        {"$T sample --from run --system hi", "--system is for --chat"},
        {"$T sample --from run --chat-template plain", "--chat-template is for --chat"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        expect_command(1, cases[i].message, "%s", cases[i].command);
    expect_command(0, "--chat-template has no effect",
                   "rm -rf run; $T --out run --stories 100 --chat-template plain --steps 1 " SHAPE);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_learns_to_answer),        cmocka_unit_test(interrupted_is_uninterrupted),
        cmocka_unit_test(conversations_are_packed),        cmocka_unit_test(eval_has_the_loss_of_validation),
        cmocka_unit_test(marks_of_the_tokenizer_are_used), cmocka_unit_test(what_does_not_fit_is_said),
        cmocka_unit_test(wrong_input_is_refused)};
    return test_main(argc, argv, tests, set_up, remove_scratch);
}

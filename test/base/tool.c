#include "test/base/tool.h"

#include "test/test.h"

#include <math.h>
#include <string.h>

#define C struct config
static const struct option_row training[] = {
    OPT_INT(C, batch, "batch-size", "4", 1, 65536, "B", "sequences in one micro-batch", 0),
    OPT_INT(C, seed, "seed", "1", -INFINITY, INFINITY, "N", "seed of every random number", 0),
    OPT_SIZE(C, tokens, "tokens-per-step", "64k", 0, INFINITY, "N", "tokens in one optimizer step", 0),
    OPT_REAL(C, lr, "learning-rate", "3e-4", 0, 1, "X", "peak learning rate", OPTION_ABOVE_MIN),
    OPT_REAL(C, beta, "beta2", "0.95", 0, 1, "X", "decay of the second moment", OPTION_BELOW_MAX),
    OPT_REAL(
        C, decay, "weight-decay", "0.1", 0, INFINITY, "X",
        "decoupled weight decay, applied to matrices only and never to biases or to the gains of a layernorm",
        0),
    OPT_WORD(C, shape, "schedule", "cosine", "cosine|linear|constant", NULL, "shape of the learning rate", 0),
};
static const struct option_row running[] = {
    OPT_FLAG(C, graph, "graph", "true", "capture a step in a graph", 0),
    OPT_FLAG(C, resume, "resume", "false", "go on with a run", OPTION_THIS_RUN),
    OPT_TEXT(C, out, "out", "runs/with/a/rather/long/default", "DIR", "where the run is stored", 0),
    OPT_TEXT(C, prompt, "prompt", NULL, "TEXT", "what samples begin with", OPTION_MAY_BE_EMPTY),
};
static const struct option_group groups[] = {{"Training", training, ARRAY_LENGTH(training)},
                                             {"Run", running, ARRAY_LENGTH(running)}};
const struct option_command tool = {"tool [options]", "Trains a model.", groups, 2, NULL, 0, 0};
const struct option_command tool_files = {"tool INPUT...", NULL, groups, 2, "INPUT", 1, 2};

bool tool_parse(struct options *o, struct config *c, struct error *err, const struct option_command *command,
                const char *const *args) {
    int n = 0;
    while (args[n]) n++;
    memset(c, 0xa5, sizeof *c);
    err->message[0] = '\0';
    options_init(o, command, c);
    return options_parse(o, n, (char **)(uintptr_t)args, err);
}

void expect_ok(struct options *o, struct config *c, const char *const *args) {
    struct error err;
    if (!tool_parse(o, c, &err, &tool, args)) fail_msg("refused: %s", err.message);
}
void expect_error(const char *message, const char *const *args) {
    struct options o;
    struct config c;
    struct error err;
    if (tool_parse(&o, &c, &err, &tool, args)) fail_msg("accepted, expected: %s", message);
    assert_string_equal(err.message, message);
    options_free(&o);
}

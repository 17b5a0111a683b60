/* The options of an imaginary program, for the tests of options. */
#ifndef LLMC_TEST_TOOL_H
#define LLMC_TEST_TOOL_H

#include "llmc/base/options.h"

enum shape { SHAPE_COSINE, SHAPE_LINEAR, SHAPE_CONSTANT };
struct config {
    int64_t batch, seed, tokens;
    double lr, beta, decay;
    bool graph, resume;
    const char *out, *prompt;
    enum shape shape;
};

extern const struct option_command tool, tool_files; /* the second takes files */

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

bool tool_parse(struct options *o, struct config *c, struct error *err, const struct option_command *command,
                const char *const *args);
void expect_ok(struct options *o, struct config *c, const char *const *args);
void expect_error(const char *message, const char *const *args);

#endif

/* Shared by the tests of tokenizers: JSON files in the scratch directory, and loading from it. */
#ifndef LLMC_TEST_TOKENIZER_H
#define LLMC_TEST_TOKENIZER_H

#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/text/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNUSED __attribute__((unused)) /* not every test program needs everything */

UNUSED static json_t *read_json(const char *path) {
    json_error_t problem;
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &problem);
    if (!root) fail_msg("%s:%d: %s", path, problem.line, problem.text);
    return root;
}

UNUSED static void write_json(const char *name, const json_t *root) {
    char *text = json_dumps(root, JSON_COMPACT);
    put_file(name, text, strlen(text));
    free(text);
}

UNUSED static struct tokenizer *load(const char *name) {
    struct error err;
    const char *path = in_scratch("%s", name);
    struct tokenizer *t = tokenizer_load(path, &err);
    if (!t) fail_msg("%s", err.message);
    return t;
}

#endif

/* Fuzzing every parser of untrusted input. test/fuzz/NAME.c holds one target: FUZZ_TARGET(NAME), which
 * passes bytes to a parser, and FUZZ_SEEDS(NAME), which makes the initial inputs. `make fuzz` builds each
 * with libFuzzer (LIBFUZZER is defined and the target is LLVMFuzzerTestOneInput); test/fuzz/test_fuzz.c
 * links all of them and runs a short fixed sequence of mutations.
 *
 * A parser may refuse its input, but must not crash, leak, run forever or end the process. */
#ifndef LLMC_FUZZ_H
#define LLMC_FUZZ_H

#include "llmc/base/base.h"

/* Called for each seed. */
typedef void fuzz_seed_fn(void *user, const void *data, size_t size);

#define FUZZ_TARGETS(X)                                                                                      \
    X(shard)                                                                                                 \
    X(safetensors)                                                                                           \
    X(safetensors_index)                                                                                     \
    X(gguf)                                                                                                  \
    X(llmc_bin)                                                                                              \
    X(model_config)                                                                                          \
    X(trainer)                                                                                               \
    X(split_pattern)                                                                                         \
    X(tokenizer_json)                                                                                        \
    X(tokenizer_gpt2)                                                                                        \
    X(chat_file)                                                                                             \
    X(pair_file)                                                                                             \
    X(task_json)                                                                                             \
    X(task_csv)                                                                                              \
    X(options)                                                                                               \
    X(log)                                                                                                   \
    X(history)                                                                                               \
    X(http_site)                                                                                             \
    X(api_request)                                                                                           \
    X(text_source)                                                                                           \
    X(content)                                                                                               \
    X(shard_set)

#define FUZZ_DECLARE(name)                                                                                   \
    int fuzz_##name(const uint8_t *data, size_t size);                                                       \
    void fuzz_seeds_##name(fuzz_seed_fn *add, void *user);
FUZZ_TARGETS(FUZZ_DECLARE)
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#ifdef LIBFUZZER
#define FUZZ_TARGET(name) int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
#else
#define FUZZ_TARGET(name) int fuzz_##name(const uint8_t *data, size_t size)
#endif
#define FUZZ_SEEDS(name) void fuzz_seeds_##name(fuzz_seed_fn *add, void *user)

/* Writes SCRATCH/name and returns its path, in one of a few buffers used in turn. SCRATCH is a directory of
 * this process that is removed at exit. */
const char *fuzz_file(const char *name, const void *data, size_t size);
const char *fuzz_path(const char *name);
/* Adds the content of SCRATCH/name as a seed. */
void fuzz_seed_file(fuzz_seed_fn *add, void *user, const char *name);

/* Reports that the parser accepted an input: seeds that are never accepted would test little. */
void fuzz_accept(void);
int64_t fuzz_accepted(void);

/* Programs are linked with -Wl,--wrap=file_map,--wrap=file_unmap: mapped files become copies of exactly
 * their size, because a read past the end of a mapping is noticed only at the next page. */

#endif

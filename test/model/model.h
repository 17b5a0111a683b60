/* A model on the CPU, for tests. */
#ifndef LLMC_TEST_MODEL_H
#define LLMC_TEST_MODEL_H

#include "llmc/model/gpt.h"

struct model {
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
};

/* In fp32, with the initial weights of this seed. */
void model_open(struct model *m, const struct gpt_config *config, struct gpt_options options, uint64_t seed);
/* Only the device and the context; the caller creates `gpt`. */
void model_open_empty(struct model *m);
void model_close(struct model *m);

#endif

/* How many sequences a process computes at a time, where --batch-size leaves that open.
 *
 * What a model learns must not depend on the memory of a GPU. So the tokens of a step come first, and their
 * default is the same on every device. The batch size is then a divisor of a step's sequences on each
 * process. The gradients of a step's batches add up, so another batch size changes a result by rounding only.
 *
 * On a GPU it is the largest that needs no more than nine tenths of the free memory and has no more tokens
 * than keep a GPU busy; all processes take the smallest of their choices. On the CPU, where a batch saves
 * nothing from some hundred tokens on, it is at most the usual one. A resumed run keeps the batch size that
 * it had, and so its bits, as long as that divides a step and fits. */
#ifndef LLMC_RUN_BATCH_H
#define LLMC_RUN_BATCH_H

#include "llmc/run/config.h"

/* Bytes that a process needs for training with this batch size, by a plan. */
int64_t run_planned_bytes(const struct run_config *c, const struct gpt_config *model, struct device *device,
                          int64_t batch_size);

/* More sequences no device takes at a time: a grid of CUDA has at most 65535 rows, and the kernels of
 * attention have one for each head of each sequence. */
int64_t run_batch_limit(const struct gpt_config *model, const struct device *device);

struct batch_choice {
    int64_t size;
    int64_t sequences;         /* of a step, on each process */
    int64_t too_large;         /* the next larger size, which ... */
    int64_t needed, available; /* ... needs more bytes than are available; 0: memory was no limit */
    bool kept;                 /* it is the size before */
};

/* For a configuration that is complete but for the batch size. `before`: the size that the run has had; 0: it
 * begins. `most`: larger ones have no use. If not even the smallest fits, that is the choice. */
struct batch_choice run_choose_batch(const struct run_config *c, const struct gpt_config *model,
                                     struct device *device, int64_t before, int64_t most);
/* "16 of a step's 64 sequences at a time: the largest batch that fits (32 need ...)", by temp_printf. */
const char *run_batch_text(const struct batch_choice *b);

#endif

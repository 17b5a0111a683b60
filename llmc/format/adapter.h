/* Adapters (model/lora.h) on disk, in the format of the PEFT library, which loads them as they are:
 *
 *   adapter_config.json          rank, alpha, which layers
 *   adapter_model.safetensors    base_model.model.LAYER.lora_A.weight (r,cols) and ...lora_B.weight (rows,r)
 *
 * The second one also says which model they adapt, by a hash of its weights in __metadata__ ("base_hash").
 * PEFT writes no such hash; then only names and shapes are compared. A model with its adapter is read as if
 * its weights were W + scale * B A: struct weights (model_file.h) has a place for one. */
#ifndef LLMC_FORMAT_ADAPTER_H
#define LLMC_FORMAT_ADAPTER_H

#include "llmc/format/names.h"
#include "llmc/model/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

struct weights;

/* Whether the directory holds an adapter. */
bool adapter_is_one(const char *dir);
/* The directory to read from: `path` itself, or the newest checkpoint of a run that trained adapters. NULL
 * with the reason; the caller frees. */
char *adapter_find(const char *path, struct error *err);

/* Where the tokenizer is: in the adapter's directory if one is there, which also has the chat template that
 * it was trained with, else in the model's. `adapter` may be NULL. */
const char *adapter_tokenizer_directory(const char *adapter, const char *model);

/* --- reading --- */

struct adapter;
/* The adapter in `dir`, for the model whose weights these are. Refuses that of another model, tensors that
 * are none of its layers' adapters, and what is no LoRA alone (DoRA, trained biases, ranks that differ). */
struct adapter *adapter_open(const char *dir, const struct weights *base, struct error *err);
void adapter_close(struct adapter *a); /* NULL is fine */
/* Adds scale * B A to rows [first, first+count) of a parameter. Uses all cores. */
void adapter_add(const struct adapter *a, float *rows, enum param_id id, int64_t layer, int64_t first,
                 int64_t count);

/* --- training --- */

/* Writes both files, and the moments as optimizer.safetensors ("exp_avg." before the names, fp32). The values
 * are those of the master weights, if there are any. */
bool adapter_save(const char *dir, struct gpt *gpt, const struct optimizer *opt, struct error *err);
/* Reads what adapter_save() wrote for the same layers, rank, alpha and model. */
bool adapter_load(struct gpt *gpt, struct optimizer *opt, const char *dir, struct error *err);

#ifdef __cplusplus
}
#endif
#endif

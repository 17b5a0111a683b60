/* Exports a model: to GGUF for llama.cpp, or to a Hugging Face directory without the state of the training.
 *
 * `from` is anything that checkpoint_config accepts (a checkpoint, a Hugging Face directory, an llm.c
 * file); with an adapter (adapter.h; or NULL), which is merged into its weights. The target appears under
 * its name only when it is complete and on the disk. */
#ifndef LLMC_EXPORT_H
#define LLMC_EXPORT_H

#include "llmc/format/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

enum export_type { EXPORT_F32, EXPORT_F16, EXPORT_BF16, EXPORT_Q8_0 };
#define EXPORT_TYPE_WORDS "f32|f16|bf16|q8_0"
const char *export_type_name(enum export_type type);

/* GGUF version 3, architecture "gpt2", "llama", "qwen2" or "qwen3", tokenizer included (which is why `from`
 * must have one, of a kind that llama.cpp knows). Matrices are stored in `type`; vectors and position
 * embeddings in f32, as llama.cpp's own converter has it. q8_0: blocks of 32 values share one fp16 scale, so
 * n_embd must be a multiple of 32. A tied head of architecture "gpt2" is stored again as output.weight, since
 * llama.cpp before 2025 asks for it. Warns where llama.cpp makes other tokens of a text. Replaces a
 * file. */
bool export_gguf(const char *from, const char *adapter, const char *to, enum export_type type,
                 struct error *err);

/* config.json, generation_config.json, model.safetensors and, if `from` has a tokenizer, tokenizer.json and
 * tokenizer_config.json; all tensors in `type`, which q8_0 cannot be. `to` must not exist, or be an empty
 * directory, or with `overwrite` an exported model and nothing else, which is then replaced. */
bool export_huggingface(const char *from, const char *adapter, const char *to, enum export_type type,
                        bool overwrite, struct error *err);

/* 32 values to the 34 bytes of a q8_0 block: fp16 scale d = max|x| / 127, then x/d rounded to the nearest
 * integer, halves away from zero. False if a value is not finite or the scale exceeds fp16. */
bool q8_0_block(uint8_t *out, const float *values);

#ifdef __cplusplus
}
#endif
#endif

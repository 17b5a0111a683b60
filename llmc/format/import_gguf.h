/* What the keys of a GGUF file say: the configuration of its model, and its tokenizer. The tensors are read
 * by model_file.h, which takes such a file in place of a directory. */
#ifndef LLMC_IMPORT_GGUF_H
#define LLMC_IMPORT_GGUF_H

#include "llmc/format/gguf.h"
#include "llmc/model/config.h"
#include "llmc/text/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The configuration and the architecture of the model. Fails on an architecture that the engine does not
 * compute, and on a key of the architecture that is not known here, because it may change what the model
 * computes. */
bool gguf_config(struct gpt_config *config, enum gpt_format *format, const struct gguf_file *g,
                 struct error *err);

/* Byte-level BPE ("gpt2") that cuts words like GPT-2, Llama 3 or Qwen 2. NULL with err->message "" if the
 * file has no tokenizer, with the reason if it has another one. */
struct tokenizer *gguf_tokenizer(const struct gguf_file *g, struct error *err);

#ifdef __cplusplus
}
#endif
#endif

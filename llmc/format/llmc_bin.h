/* llm.c's model files (gpt2_124M.bin, gpt2_124M_bf16.bin) as a start for training and for export. */
#ifndef LLMC_FORMAT_LLMC_BIN_H
#define LLMC_FORMAT_LLMC_BIN_H

#include "llmc/format/model_file.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether the file begins with the magic number 20240326. */
bool llmc_bin_is_one(const char *path);
/* As model_file_open, for such a file, of version 3 (fp32) or 5 (bf16). */
bool llmc_bin_open(struct model_file *m, const char *path, struct error *err);

#ifdef __cplusplus
}
#endif
#endif

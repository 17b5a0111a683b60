/* JSON files, read and written as a whole. */
#ifndef LLMC_JSON_FILE_H
#define LLMC_JSON_FILE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

/* Parses a file; duplicate keys are errors. NULL with line, byte and reason in err. The caller owns the
 * reference. */
struct json_t *json_file_load(const char *path, struct error *err);

/* Writes an object or array and flushes it to the disk: indented by 2, real numbers with 15 digits (1e-05,
 * not 1.0000000000000001e-05). Takes over the reference to `root`. */
bool json_file_write(const char *path, struct json_t *root, struct error *err);

#ifdef __cplusplus
}
#endif
#endif

/* Event files of TensorBoard: scalars and texts by step, in a format that its readers have not changed since
 * 2015. A file is a row of records (length, checksum, data, checksum; checksums are CRC-32C, masked), each a
 * protobuf message tensorflow.Event (tensorflow/core/util/event.proto, summary.proto). */
#ifndef LLMC_EVENT_FILE_H
#define LLMC_EVENT_FILE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whether event_file_open() gives files such names: "events.out.tfevents.1700000000.llmc.1". */
bool event_file_name(const char *name);

struct event_file;
/* A new file in the directory. TensorBoard reads all files there together; after a resume, events of steps
 * above `resumed_step` in older files no longer count. 0: nothing is resumed. */
struct event_file *event_file_open(const char *directory, int64_t resumed_step, struct error *err);
/* Adds a scalar or a text (Markdown, for TensorBoard) under a tag. They are in the file after a second at
 * most, if another event follows, or when it is flushed. A failure to write is a warning, once. */
void event_scalar(struct event_file *f, int64_t step, const char *tag, double value);
void event_text(struct event_file *f, int64_t step, const char *tag, const char *text);
/* Whether nobody has deleted or moved it. */
bool event_file_is_there(const struct event_file *f);
void event_file_flush(struct event_file *f);
void event_file_close(struct event_file *f); /* NULL: nothing */

#ifdef __cplusplus
}
#endif
#endif

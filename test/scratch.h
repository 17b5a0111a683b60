/* A directory for each test, removed afterwards with everything in it; files in it; what messages must
 * mention. */
#ifndef LLMC_TEST_SCRATCH_H
#define LLMC_TEST_SCRATCH_H

#include "test/test.h"

/* Set-up and tear-down of a test or of a group, for cmocka. The directory lies in $TMPDIR, else in /tmp. */
int make_scratch(void **state);
int remove_scratch(void **state);
#define SCRATCH_TEST(f) cmocka_unit_test_setup_teardown(f, make_scratch, remove_scratch)

/* A file, or a directory with everything in it. Nothing in the product can do this. */
bool remove_tree(const char *path);

const char *scratch_directory(void);
/* The path of a file in it; valid until the directory is removed. */
const char *in_scratch(const char *fmt, ...) LLMC_PRINTF(1, 2);

/* Files, in the scratch directory unless `path` is absolute. Directories on the way are made; nothing is
 * flushed to the disk. */
void put_file(const char *path, const void *data, size_t size);
/* Returns the absolute path. */
const char *put_text(const char *path, const char *text);
/* The content with a 0 behind it; the caller frees. `size` may be NULL. */
char *get_file(const char *path, size_t *size);
/* The same for text, which has no other 0. */
char *get_text(const char *path);

void assert_mentions(const char *message, const char *part);

#endif

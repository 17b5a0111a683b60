/* What the program was built from. The Makefile links train_gpt and the programs of data/ with the texts of
 * the checkout; programs without them, such as tests, have those of build.c. */
#ifndef LLMC_BUILD_H
#define LLMC_BUILD_H

extern const char build_version[]; /* "1.0" */
extern const char build_commit[];  /* "32fc345", "32fc345-dirty" with changes, "unknown" outside git */
extern const char build_flags[];   /* of the compiler: "-O3" */

#endif

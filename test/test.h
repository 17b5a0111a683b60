/* Opens every test file. base.h comes first: cmocka has a macro fail() where base.h declares a function. */
#ifndef LLMC_TEST_H
#define LLMC_TEST_H

#include "llmc/base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* Runs the tests of a program and returns its exit status.
 *     test_NAME [--list | --reverse | --shuffle SEED] [TEST]...
 * TEST is the name of a test, with or without its "test_", or a pattern ("norm*"); without one all are
 * run. */
#define test_main(argc, argv, tests, setup, teardown)                                                        \
    test_main_of(argc, argv, tests, sizeof(tests) / sizeof *(tests), setup, teardown)
#undef cmocka_run_group_tests /* leaves the command line out */
int test_main_of(int argc, char **argv, const struct CMUnitTest *tests, size_t count, CMFixtureFunction setup,
                 CMFixtureFunction teardown);

#endif

/* Opens every test file. base.h comes first: cmocka has a macro fail() where base.h declares a function. */
#ifndef LLMC_TEST_H
#define LLMC_TEST_H

#include "llmc/base/base.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#endif

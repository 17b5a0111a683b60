/* The texts of build.h in a program that is linked without those of its checkout. */
#include "llmc/base/build.h"

const char build_version[] = "without a version";
const char build_commit[] = "unknown";
const char build_flags[] = "unknown flags";

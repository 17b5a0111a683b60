/* --version, and which page --page asks for: see about.h. */
#include "llmc/cli/about.h"

#include "llmc/base/build.h"
#include "llmc/ops/device.h"
#include "llmc/ops/ops.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <cblas.h>
#include <errno.h>
#include <gnu/libc-version.h>
#include <jansson.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

/* The names of the instruction sets for which there are CPU operations. */
#define X(isa)           " " #isa
#define INSTRUCTION_SETS LLMC_CPU_ISAS(X)

static void print_version(void) {
    char pcre2[64] = "";
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    unsigned xxh = XXH_versionNumber();
    printf("%s %s, commit %s\n", program_invocation_short_name, build_version, build_commit);
    printf("compiler    " COMPILER ", %s\n", build_flags);
    printf("processor   operations for" INSTRUCTION_SETS ", in use: %s; OpenBLAS in use: %s\n",
           cpu_ops()->adamw[0].name, openblas_get_corename());
    printf("back ends   %s%s\n", device_backends(), device_backend_versions());
    printf(
        "libraries   %s, jansson %s, PCRE2 %.*s, utf8proc %s, xxHash %u.%u.%u, zlib %s, zstd %s, glibc %s\n",
        openblas_get_config(), jansson_version_str(), (int)strcspn(pcre2, " "), pcre2, utf8proc_version(),
        xxh / 10000, xxh / 100 % 100, xxh % 100, zlibVersion(), ZSTD_versionString(), gnu_get_libc_version());
}

int about_program(const struct about *about, int argc, char **argv) {
    static const struct {
        const char *form;
        void (*write)(const struct about *about, const char *program);
    } pages[] = {{"man", about_man}, {"bash", about_bash}, {"zsh", about_zsh}};
    bool written = argc == 2 && strcmp(argv[1], "--version") == 0;
    if (written) print_version();
    for (size_t i = 0; i < ARRAY_LENGTH(pages) && argc == 3 && strcmp(argv[1], "--page") == 0; i++) {
        if (strcmp(argv[2], pages[i].form) != 0) continue;
        pages[i].write(about, program_invocation_short_name);
        written = true;
    }
    if (!written) return -1;
    check(fflush(stdout) == 0 && !ferror(stdout), "standard output cannot be written: %s", strerror(errno));
    return 0;
}

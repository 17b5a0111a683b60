/* The CPU's op table, joined at run time from those of the instruction sets that the processor has. One
 * program then runs on every processor of an architecture, at the speed of the newest. */
#include "llmc/ops/ops.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the compiler was allowed to use in llmc/cpu: see CPU_FLAGS_ in the Makefile. */
#if defined(__x86_64__)
static bool processor_has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
}
static bool processor_has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#if defined(__aarch64__)
static bool processor_has_neon(void) { return true; }
#else
static bool processor_has_plain(void) { return true; }
#endif

#define X(isa) extern const struct ops cpu_ops_##isa;
LLMC_CPU_ISAS(X)
#undef X

static const struct isa {
    const char *name;
    const struct ops *ops;
    bool (*processor_has)(void);
} isas[] = {
#define X(isa) {#isa, &cpu_ops_##isa, processor_has_##isa},
    LLMC_CPU_ISAS(X)
#undef X
};
enum { ISAS = sizeof isas / sizeof isas[0], MAX_VARIANTS = 2 * ISAS + 1 /* of an op, and the end */ };

/* The joined table. */
static struct ops joined = {.backend = "cpu", .bf16_weights = true};
#define X(op) static struct op##_variant joined_##op[MAX_VARIANTS];
LLMC_OPS(X)
#undef X

static void append(const struct ops *ops) {
#define X(op)                                                                                                \
    {                                                                                                        \
        int to = 0;                                                                                          \
        while (joined_##op[to].name) to++;                                                                   \
        for (const struct op##_variant *from = ops->op; from->name; from++, to++) {                          \
            check(to < MAX_VARIANTS - 1, #op " has more variants than its table of the CPU holds");          \
            joined_##op[to] = *from;                                                                         \
        }                                                                                                    \
        joined.op = joined_##op;                                                                             \
    }
    LLMC_OPS(X)
#undef X
}

/* The NAME of "cpu:NAME" in LLMC_VARIANT, and its length; NULL if there is none. */
static const char *forced_isa(size_t *length) {
    const char *p = getenv("LLMC_VARIANT");
    for (; p && *p; p += strcspn(p, ","), p += *p == ',')
        if (strncmp(p, "cpu:", 4) == 0) {
            *length = strcspn(p + 4, ",");
            return p + 4;
        }
    return NULL;
}

static void join(void) {
    size_t length = 0;
    const char *forced = forced_isa(&length);
    char usable[64] = "";
    for (int i = 0; i < ISAS; i++) {
        if (!isas[i].processor_has()) continue;
        snprintf(usable + strlen(usable), sizeof usable - strlen(usable), "%s%s", *usable ? ", " : "",
                 isas[i].name);
        if (!forced || (strlen(isas[i].name) == length && strncmp(forced, isas[i].name, length) == 0))
            append(isas[i].ops);
    }
    check(joined.adamw, "LLMC_VARIANT=cpu:%.*s: this processor and this program have %s", (int)length, forced,
          usable);
}

const struct ops *cpu_ops(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, join);
    return &joined;
}

#include "test/sim/options.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <unistd.h>

namespace sim {

static uint64_t number(const char *name, uint64_t fallback) {
    const char *text = getenv(name);
    if (!text) return fallback;
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    if (end != text && *end == 0) return value;
    fprintf(stderr, "SIM ERROR: %s=%s is not a number\n", name, text);
    _exit(99);
}

static sim::order order_from_environment() {
    const char *text = getenv("SIM_ORDER");
    if (!text || strcmp(text, "forward") == 0) return order::forward;
    if (strcmp(text, "reverse") == 0) return order::reverse;
    if (strcmp(text, "random") == 0) return order::random;
    fprintf(stderr, "SIM ERROR: SIM_ORDER=%s should be forward, reverse or random\n", text);
    _exit(99);
}

/* runtime.cpp simulates the faults, and reads the variable each time. */
static void check_fault() {
    const char *text = getenv("SIM_FAULT");
    if (!text) return;
    for (const char *fault : {"no-driver", "no-device", "old-driver", "old-device", "other-device"})
        if (strcmp(text, fault) == 0) return;
    fprintf(
        stderr,
        "SIM ERROR: SIM_FAULT=%s should be no-driver, no-device, old-driver, old-device or other-device\n",
        text);
    _exit(99);
}

const options &knobs() {
    static const options o = [] {
        options k;
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);
        check_fault();
        k.order = order_from_environment();
        k.seed = number("SIM_SEED", 1);
        /* One worker under ThreadSanitizer: it reports a race from the order of accesses, and needs no luck
         * for that. */
        k.workers = SIM_TSAN ? 1 : (int)number("SIM_WORKERS", cpus < 1 ? 1 : cpus > 8 ? 8 : (uint64_t)cpus);
        k.strict = number("SIM_STRICT", 1) != 0;
        k.lazy = number("SIM_LAZY", 0) != 0;
        k.protect = number("SIM_PROTECT", 0) != 0;
        k.gpus = (int)number("SIM_GPUS", 1);
        k.memory_bytes = (size_t)number("SIM_MEM_MB", 4096) << 20;
        k.stack_bytes = (size_t)number("SIM_STACK_KB", SIM_ASAN ? 512 : 128) << 10;
        k.timeout = (unsigned)number("SIM_TIMEOUT", 0);
        return k;
    }();
    return o;
}

}  // namespace sim

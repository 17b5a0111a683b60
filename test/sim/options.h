/* The knobs: environment variables, read once. README.md lists them for users. */
#ifndef SIM_OPTIONS_H
#define SIM_OPTIONS_H

#include <cstddef>
#include <cstdint>

#ifndef SIM_ASAN
#define SIM_ASAN 0
#endif
#ifndef SIM_TSAN
#define SIM_TSAN 0
#endif

namespace sim {

enum class order { forward, reverse, random };

struct options {
    sim::order order;    /* SIM_ORDER=forward|reverse|random: which thread runs next */
    uint64_t seed;       /* SIM_SEED: of the random order and of lazy streams */
    int workers;         /* SIM_WORKERS: host threads that run blocks */
    bool strict;         /* SIM_STRICT=0: threads may exit before a barrier, as hardware allows */
    bool lazy;           /* SIM_LAZY=1: streams do nothing until a synchronisation needs it */
    bool protect;        /* SIM_PROTECT=1: host code cannot touch device memory */
    int gpus;            /* SIM_GPUS: how many devices there are */
    size_t memory_bytes; /* SIM_MEM_MB: size of the device's memory */
    size_t stack_bytes;  /* SIM_STACK_KB: of a CUDA thread */
    unsigned timeout;    /* SIM_TIMEOUT: seconds after which the process ends, naming the kernel; 0: never */
};
const options &knobs();

}  // namespace sim

#endif

/* The simulated device, as kernels see it: CUDA's keywords, types, built-in variables and functions for a
 * host compiler. The Makefile includes it first in every file, in place of nvcc's built-ins. README.md
 * beside this file explains the design.
 *
 * NVIDIA's own headers supply the types, the prototypes of the runtime API and the bf16 arithmetic: they
 * compile with a host compiler once the keywords below are defined before them. */
#ifndef SIM_H
#define SIM_H

#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)

#define CUDA_NO_HALF
#include <cuda_runtime.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

/* The built-in variables. Thread-local to the worker that runs the block; the scheduler sets them at every
 * switch between CUDA threads. */
inline thread_local uint3 threadIdx;
inline thread_local uint3 blockIdx;
inline thread_local dim3 blockDim;
inline thread_local dim3 gridDim;
constexpr int warpSize = 32;

/* Default arguments that give a function the source position of its call. */
#define SIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
/* For code that moves data between CUDA threads on behalf of the hardware: it is no access of the
 * kernel. */
#define SIM_NO_SANITIZE __attribute__((no_sanitize("address", "thread", "undefined")))

#include "test/sim/execution.h"
#include "test/sim/intrinsics.h"

#endif

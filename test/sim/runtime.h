/* Shared by the parts of the simulated runtime API: memory.cpp, stream.cpp, runtime.cpp, blas.cpp. */
#ifndef SIM_RUNTIME_H
#define SIM_RUNTIME_H

#include "test/sim/sim.h"

#include "test/sim/options.h"

#include <mutex>

namespace sim {

/* The API may be called from several host threads. */
std::recursive_mutex &api_mutex();
#define SIM_API_LOCK std::lock_guard<std::recursive_mutex> api_lock(sim::api_mutex())

/* Remembers an error for cudaGetLastError and returns it. */
cudaError_t report(cudaError_t error);
/* Installs the signal handlers and the timeout; the first API call does it. */
void initialize();

/* --- memory.cpp --- */

/* Fails unless the range lies in one live allocation. */
void check_device_range(const void *p, size_t bytes, const char *what);
bool is_pinned(const void *p);
/* While an object of this type exists, the host may access device memory (SIM_PROTECT=1). */
struct device_access {
    device_access();
    ~device_access();
    bool was_open;
};

/* --- stream.cpp --- */

void drain_all();
/* The number of work items queued on a stream so far, and a way to run them up to such a number, as a GPU
 * does on its own. */
uint64_t stream_position(cudaStream_t s);
void stream_advance(cudaStream_t s, uint64_t position);
/* Fails, naming the call, if a stream is being captured: such calls break the capture on a GPU. */
void forbid_in_capture(const char *call);

}  // namespace sim

#endif

/* The rest of the runtime API: the device and its properties, kernel attributes, launch checks, errors.
 * SIM_FAULT=no-driver|no-device|old-driver|old-device|other-device simulates a machine on which nothing can
 * run. */
#include "test/sim/runtime.h"

namespace sim {

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int current_device; /* all devices share the memory of memory.cpp */

cudaError_t report(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

static bool fault(const char *name) {
    const char *wanted = getenv("SIM_FAULT");
    return wanted && strcmp(wanted, name) == 0;
}

/* Compute capability: SIM_ARCH, unless the fault is that it is too low. Not among the knobs, since one
 * process may open several devices. */
static int arch() {
    const char *wanted = getenv("SIM_ARCH");
    return fault("old-device") ? 70 : wanted ? atoi(wanted) : 90;
}

enum { MULTIPROCESSORS = 4, SHARED_DEFAULT = 48 << 10, SHARED_OPTIN = 227 << 10 };

/* launch() raises a kernel's limit of dynamic shared memory itself, so only the hardware's own limits are
 * left to check. */
void check_launch(const launch_info &l) {
    uint64_t threads = (uint64_t)l.block.x * l.block.y * l.block.z;
    if (threads == 0 || threads > 1024 || l.block.x > 1024 || l.block.y > 1024 || l.block.z > 64)
        bug("launch at %s:%d: a block cannot be (%u,%u,%u)", l.file, l.line, l.block.x, l.block.y, l.block.z);
    if (!l.grid.x || !l.grid.y || !l.grid.z || l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535)
        bug("launch at %s:%d: a grid cannot be (%u,%u,%u)", l.file, l.line, l.grid.x, l.grid.y, l.grid.z);
    if (l.shared_bytes > SHARED_OPTIN)
        bug("launch at %s:%d: %zu bytes of dynamic shared memory are more than a block's %d", l.file, l.line,
            l.shared_bytes, SHARED_OPTIN);
}

}  // namespace sim

using namespace sim;

extern "C" {

/* --- the device --- */

cudaError_t cudaGetDeviceCount(int *n) {
    *n = 0;
    if (fault("no-driver")) return report(cudaErrorInsufficientDriver);
    if (fault("old-driver")) return report(cudaErrorInsufficientDriver);
    if (fault("no-device")) return report(cudaErrorNoDevice);
    *n = knobs().gpus;
    return *n > 0 ? cudaSuccess : report(cudaErrorNoDevice);
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = fault("no-driver") ? 0 : fault("old-driver") ? 11040 : CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
    initialize();
    if (index < 0 || index >= knobs().gpus) return report(cudaErrorInvalidDevice);
    current_device = index;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *index) {
    *index = current_device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "simulated device");
    p->uuid.bytes[15] = (char)index;
    p->major = arch() / 10;
    p->minor = arch() % 10;
    p->totalGlobalMem = knobs().memory_bytes;
    p->multiProcessorCount = MULTIPROCESSORS;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = SHARED_OPTIN;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
        *value = MULTIPROCESSORS;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = arch() / 10;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = arch() % 10;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = SHARED_OPTIN;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = 2048;
        break;
    case cudaDevAttrL2CacheSize:
        *value = 1 << 20;
        break;
    default:
        bug("cudaDeviceGetAttribute(%d) is not simulated", (int)attribute);
    }
    return cudaSuccess;
}

/* --- kernels --- */

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    return fault("other-device") ? report(cudaErrorNoKernelImageForDevice) : cudaSuccess;
}

/* --- errors --- */

cudaError_t cudaGetLastError(void) {
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
};
const char *cudaGetErrorString(cudaError_t e) {
    for (auto &t : error_texts)
        if (t.error == e) return t.text;
    return "error";
}
const char *cudaGetErrorName(cudaError_t e) {
    for (auto &t : error_texts)
        if (t.error == e) return t.name;
    return "cudaError";
}
}

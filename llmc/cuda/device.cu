/* An NVIDIA GPU as a struct device. Each function is a few calls of the CUDA runtime. A failed call ends
 * the program, except where the caller can react: no memory, no usable GPU. */
#include "llmc/cuda/cublaslt.cuh"

#include "llmc/base/rng.h"
#include "llmc/ops/device.h"
#include "llmc/ops/ops.h"

#include <cstdlib>
#include <nvtx3/nvToolsExt.h>

/* The current device belongs to the host thread, and any thread may call. */
static void use(const struct device *d) { cuda_check(cudaSetDevice(d->index)); }

/* --- memory --- */

static void *gpu_alloc(struct device *d, size_t bytes) {
    use(d);
    void *p = nullptr;
    cudaError_t e = cudaMalloc(&p, bytes);
    if (e == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* clears the error, which a later launch would report */
        return nullptr;
    }
    cuda_check(e);
    return p;
}
static void gpu_free(struct device *d, void *p) {
    use(d);
    cuda_check(cudaFree(p));
}
static void *gpu_alloc_host(struct device *d, size_t bytes) {
    use(d);
    void *p = nullptr;
    cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocDefault);
    check(e == cudaSuccess, "cannot get %s of page-locked host memory: %s. `ulimit -l` may be too low",
          human_bytes((double)bytes), cudaGetErrorString(e));
    return p;
}
static void gpu_free_host(struct device *d, void *p) {
    use(d);
    cuda_check(cudaFreeHost(p));
}
static void gpu_memory_info(struct device *d, int64_t *free_bytes, int64_t *total_bytes) {
    use(d);
    size_t available, total;
    cuda_check(cudaMemGetInfo(&available, &total));
    *free_bytes = (int64_t)available;
    *total_bytes = (int64_t)total;
}

/* --- copies --- */

static void gpu_upload(struct device *d, void *dst, const void *src, size_t bytes, void *stream) {
    use(d);
    cuda_check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream));
}
static void gpu_download(struct device *d, void *dst, const void *src, size_t bytes, void *stream) {
    use(d);
    cuda_check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, (cudaStream_t)stream));
}
static void gpu_copy(struct device *d, void *dst, const void *src, size_t bytes, void *stream) {
    use(d);
    cuda_check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, (cudaStream_t)stream));
}
static void gpu_synchronize(struct device *d, void *stream) {
    use(d);
    cuda_check(cudaStreamSynchronize((cudaStream_t)stream));
}

/* --- events --- */

static void *gpu_event_new(struct device *d) {
    use(d);
    cudaEvent_t event;
    cuda_check(cudaEventCreate(&event));
    return event;
}
static void gpu_event_record(struct device *d, void *event, void *stream) {
    use(d);
    cuda_check(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream));
}
static void gpu_event_wait(struct device *d, void *event) {
    use(d);
    cuda_check(cudaEventSynchronize((cudaEvent_t)event));
}
static double gpu_event_seconds(struct device *d, void *first, void *second) {
    use(d);
    float milliseconds;
    cuda_check(cudaEventElapsedTime(&milliseconds, (cudaEvent_t)first, (cudaEvent_t)second));
    return milliseconds * 1e-3;
}
static void gpu_event_free(struct device *d, void *event) {
    use(d);
    cuda_check(cudaEventDestroy((cudaEvent_t)event));
}

/* --- further streams --- */

static void *gpu_stream_new(struct device *d) {
    use(d);
    int least, greatest; /* the highest priority is the smallest number */
    cudaStream_t stream;
    cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    cuda_check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest));
    return stream;
}
static void gpu_stream_free(struct device *d, void *stream) {
    use(d);
    cuda_check(cudaStreamDestroy((cudaStream_t)stream));
}
static void gpu_stream_wait_event(struct device *d, void *stream, void *event) {
    use(d);
    cuda_check(cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0));
}

/* --- graphs --- */

/* The capture restricts this thread's calls alone, since another thread may prefetch data meanwhile. */
static void gpu_capture_begin(struct device *d, void *stream) {
    use(d);
    cuda_check(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal));
}
static void *gpu_capture_end(struct device *d, void *stream) {
    use(d);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cuda_check(cudaStreamEndCapture((cudaStream_t)stream, &graph));
    cuda_check(cudaGraphInstantiate(&executable, graph, 0));
    cuda_check(cudaGraphDestroy(graph));
    return executable;
}
static void gpu_graph_launch(struct device *d, void *graph, void *stream) {
    use(d);
    cuda_check(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream));
}
static void gpu_graph_free(struct device *d, void *graph) {
    use(d);
    cuda_check(cudaGraphExecDestroy((cudaGraphExec_t)graph));
}

/* --- ranges --- */

/* NVTX is a header that loads the profiler's library if a profiler started the process. Otherwise a call
 * tests a pointer. */
static void gpu_range_push(struct device *, const char *name) { nvtxRangePushA(name); }
static void gpu_range_pop(struct device *) { nvtxRangePop(); }

/* --- measuring --- */

/* One allocation for `n` buffers of `bytes`; if memory is short, halves `bytes` until it fits. */
static char *alloc_at_most(struct device *d, int n, size_t *bytes) {
    for (; *bytes >= 4096; *bytes /= 2)
        if (void *p = gpu_alloc(d, (size_t)n * *bytes)) return (char *)p;
    return nullptr;
}

/* Fills a buffer with normal numbers. Arithmetic on zeros switches few transistors: a GPU at its power limit
 * is a tenth faster on them than on data. */
static void fill_random(struct device *d, void *p, size_t bytes, uint64_t seed) {
    struct op_env env = {};
    env.stream = d->stream;
    struct tensor t = tensor_make("random", DTYPE_BF16, p, (int64_t)(bytes / sizeof(bf16)), 0, 0, 0);
    cuda_ops.randn->run(&env, &t, 0.0f, 1.0f, seed, RNG_TEST);
}

/* Measures a product of 8192^3 (1.4 ms on an H100), less on small GPUs, and a copy of 512 MiB, much more
 * than any cache, each for a fifth of a second, in which the clock settles. The simulated device, which has
 * few multiprocessors, is not kept busy for so long. A rate for which there is no memory is 0. */
static void gpu_measure(struct device *d, double *matmul_flops, double *copy_bytes) {
    use(d);
    enum { RUNS = 6 };
    cudaStream_t stream = (cudaStream_t)d->stream;
    int multiprocessors;
    cuda_check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, d->index));
    bool small = multiprocessors < 16;
    double least = small ? 0.0 : 0.2;
    int64_t n = small ? 256 : multiprocessors < 64 ? 4096 : 8192;
    *matmul_flops = *copy_bytes = 0.0;
    size_t bytes = (size_t)(n * n) * sizeof(bf16);
    if (char *p = alloc_at_most(d, 3, &bytes)) {
        while ((size_t)(n * n) * sizeof(bf16) > bytes) n /= 2;
        void *workspace = gpu_alloc(d, (size_t)lt_workspace(n, n));
        fill_random(d, p, 2 * bytes, 1);
        lt_product product = {DTYPE_BF16, true, false, n, n, n, CUBLASLT_EPILOGUE_DEFAULT, false};
        lt_operands operands = {p, p + bytes, p + 2 * bytes, nullptr, nullptr};
        if (workspace) {
            double seconds = fastest_run(stream, RUNS, least, [&] {
                return lt_run((struct cublaslt *)d->state, product, operands, workspace, stream);
            });
            *matmul_flops = 2.0 * (double)n * (double)n * (double)n / seconds;
            gpu_free(d, workspace);
        }
        gpu_free(d, p);
    }
    bytes = small ? (size_t)1 << 20 : (size_t)512 << 20;
    if (char *p = alloc_at_most(d, 2, &bytes)) {
        fill_random(d, p + bytes, bytes, 2);
        double seconds =
            fastest_run(stream, RUNS, least, [&] { return gpu_copy(d, p, p + bytes, bytes, stream), true; });
        *copy_bytes = 2.0 * (double)bytes / seconds;
        gpu_free(d, p);
    }
}

/* --- opening --- */

static __global__ void probe_kernel() {}

static struct device *refuse(struct error *err, int index, const char *reason) {
    fail(err, "--device cuda:%d: %s; --device cpu works everywhere", index, reason);
    return nullptr;
}

/* Is there a GPU that this program can use? If not, `reason` says why. */
static bool usable(int index, cudaDeviceProp *properties, char *reason, size_t size) {
    int count = 0, driver = 0, runtime = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (e == cudaErrorInsufficientDriver && driver == 0) {
        snprintf(reason, size, "no NVIDIA driver is loaded on this machine");
    } else if (e == cudaErrorInsufficientDriver) {
        snprintf(reason, size,
                 "the NVIDIA driver supports CUDA up to %d.%d, and this program was built with CUDA %d.%d; "
                 "update the driver or build with an older toolkit (make CUDA_HOME=...)",
                 driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    } else if (e == cudaErrorNoDevice || (e == cudaSuccess && count == 0)) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        snprintf(reason, size, "the NVIDIA driver finds no GPU%s%s",
                 visible ? "; CUDA_VISIBLE_DEVICES is " : "",
                 visible && !*visible ? "empty"
                 : visible            ? visible
                                      : "");
    } else if (e != cudaSuccess) {
        snprintf(reason, size, "CUDA does not start: %s", cudaGetErrorString(e));
    } else if (index >= count) {
        snprintf(reason, size, "this machine has %d GPU%s; the first is cuda:0", count,
                 count == 1 ? "" : "s");
    } else if ((e = cudaSetDevice(index)) != cudaSuccess ||
               (e = cudaGetDeviceProperties(properties, index)) != cudaSuccess) {
        snprintf(reason, size, "the GPU does not start: %s", cudaGetErrorString(e));
    } else if (properties->major < 8) {
        snprintf(
            reason, size,
            "%s has compute capability %d.%d and is too old; bf16 and asynchronous copies need 8.0 (Ampere)",
            properties->name, properties->major, properties->minor);
    } else {
        cudaFuncAttributes attributes;
        e = cudaFuncGetAttributes(&attributes, (const void *)probe_kernel);
        if (e == cudaSuccess) return true;
        snprintf(reason, size,
                 "this program was built for another GPU architecture than %s, which has compute capability "
                 "%d.%d; build with make CUDA=1 CUDA_ARCH=%d%d%s (%s)",
                 properties->name, properties->major, properties->minor, properties->major, properties->minor,
                 properties->major == 9 ? "a" : "", cudaGetErrorString(e));
    }
    cudaGetLastError();
    return false;
}

extern "C" const char *device_backends(void) { return "cpu, cuda"; }

#define QUOTE(x)  #x
#define STRING(x) QUOTE(x)
/* nvcc's list of the architectures that it compiles for: 900 for sm_90. */
#ifdef __CUDA_ARCH_LIST__
#define ARCHITECTURES STRING((__CUDA_ARCH_LIST__))
#else
#define ARCHITECTURES "(simulated)"
#endif

extern "C" const char *device_backend_versions(void) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    size_t library = cublasLtGetVersion();
    return temp_printf(
        " (CUDA %d.%d for architectures %s, cuBLASLt %zu.%zu.%zu, driver %s)", runtime / 1000,
        runtime % 1000 / 10, ARCHITECTURES, library / 10000, library / 100 % 100, library % 100,
        driver ? temp_printf("for CUDA up to %d.%d", driver / 1000, driver % 1000 / 10) : "not loaded");
}

extern "C" bool device_present_cuda(void) {
    int count = 0, driver = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    cudaGetLastError();
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0 && e != cudaErrorNoDevice &&
           (e != cudaSuccess || count > 0);
}

extern "C" int device_count_cuda(struct error *err) {
    cudaDeviceProp properties;
    char reason[512];
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return count;
    cudaGetLastError();
    /* for the reason */
    if (!usable(0, &properties, reason, sizeof reason)) fail(err, "%s", reason);
    return 0;
}

/* As nvidia-smi -L and CUDA_VISIBLE_DEVICES write it. */
static void format_uuid(char *out, size_t size, const cudaUUID_t *uuid) {
    const unsigned char *b = (const unsigned char *)uuid->bytes;
    snprintf(out, size, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
             b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

static void gpu_close(struct device *d) {
    use(d);
    lt_close((struct cublaslt *)d->state);
    cuda_check(cudaStreamDestroy((cudaStream_t)d->stream));
    free(d);
}

extern "C" struct device *device_open_cuda(int index, const struct device_options *options,
                                           struct error *err) {
    static const struct device_options defaults = {};
    if (!options) options = &defaults;
    cudaDeviceProp properties;
    char reason[512];
    if (!usable(index, &properties, reason, sizeof reason)) return refuse(err, index, reason);
    struct device *d = (struct device *)xcalloc(1, sizeof *d);
    cudaStream_t stream;
    cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    d->backend = "cuda";
    snprintf(d->short_name, sizeof d->short_name, "cuda:%d", index);
    d->ops = &cuda_ops;
    d->index = index;
    d->arch = 10 * properties.major + properties.minor;
    snprintf(d->name, sizeof d->name, "%.127s", properties.name);
    format_uuid(d->id, sizeof d->id, &properties.uuid);
    d->dtype = DTYPE_BF16;
    d->state = lt_open(properties.name, options->tf32, options->tune_file, options->tune_flops);
    d->stream = stream;
    d->alloc = gpu_alloc;
    d->free = gpu_free;
    d->alloc_host = gpu_alloc_host;
    d->free_host = gpu_free_host;
    d->upload = gpu_upload;
    d->download = gpu_download;
    d->copy = gpu_copy;
    d->synchronize = gpu_synchronize;
    d->event_new = gpu_event_new;
    d->event_record = gpu_event_record;
    d->event_wait = gpu_event_wait;
    d->event_seconds = gpu_event_seconds;
    d->event_free = gpu_event_free;
    d->stream_new = gpu_stream_new;
    d->stream_free = gpu_stream_free;
    d->stream_wait_event = gpu_stream_wait_event;
    d->capture_begin = gpu_capture_begin;
    d->capture_end = gpu_capture_end;
    d->graph_launch = gpu_graph_launch;
    d->graph_free = gpu_graph_free;
    d->range_push = gpu_range_push;
    d->range_pop = gpu_range_pop;
    d->memory_info = gpu_memory_info;
    d->measure = gpu_measure;
    d->close = gpu_close;
    return d;
}

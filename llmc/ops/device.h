/* A device: where tensors live and operations run. This is what the engine asks of one besides the
 * operations: memory, copies, streams, events, and how fast it is. device_cpu.c and cuda/device.cu each
 * fill one struct.
 *
 * The engine decides by the properties in the struct, never by the name of a back end. */
#ifndef LLMC_DEVICE_H
#define LLMC_DEVICE_H

#include "llmc/ops/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ops;

struct device {
    /* For messages. */
    const char *backend; /* "cpu" or "cuda" */
    char short_name[24]; /* as --device takes it: "cpu", "cuda:3" */
    char name[128];      /* "AMD EPYC, 2 threads", "NVIDIA H200" */

    const struct ops *ops; /* the back end's op table */
    int index;             /* of the GPU in this machine; 0 for the CPU */
    char id[48];      /* UUID of the GPU as nvidia-smi -L prints it, "GPU-5fd4f087-..."; "" for the CPU */
    int arch;         /* compute capability of the GPU, 90 for 9.0; 0: not an NVIDIA GPU */
    enum dtype dtype; /* the default for weights and activations; its ops take this type and fp32 */
    bool unified; /* its memory is the host's: the host may touch tensors, all processes share what is free */
    bool synchronous; /* its work is done when a call returns */
    void *state;      /* back-end private; op_env.state for every op */
    void *stream;     /* the stream that a context uses by default; NULL on the CPU */

    /* Device memory, aligned to 256 bytes and uninitialised; NULL if there is not enough. */
    void *(*alloc)(struct device *d, size_t bytes);
    void (*free)(struct device *d, void *p);
    /* Host memory that is copied while the host goes on (page-locked on a GPU). Never NULL. */
    void *(*alloc_host)(struct device *d, size_t bytes);
    void (*free_host)(struct device *d, void *p);

    /* Copies in stream order. The host must not touch its buffer before synchronize(); but upload() has
     * read memory that is not from alloc_host() when it returns. */
    void (*upload)(struct device *d, void *dst, const void *src, size_t bytes, void *stream);
    void (*download)(struct device *d, void *dst, const void *src, size_t bytes, void *stream);
    void (*copy)(struct device *d, void *dst, const void *src, size_t bytes, void *stream);
    void (*synchronize)(struct device *d, void *stream);

    /* An event marks a place in a stream: event_record() puts it there, event_wait() makes the host wait
     * until the stream has reached it. event_seconds() is the time between two events that have been
     * reached. */
    void *(*event_new)(struct device *d);
    void (*event_record)(struct device *d, void *event, void *stream);
    void (*event_wait)(struct device *d, void *event);
    double (*event_seconds)(struct device *d, void *first, void *second);
    void (*event_free)(struct device *d, void *event);

    /* Further streams, which run concurrently with `stream` at a higher priority. stream_wait_event() makes
     * later work on `stream` wait for the event as last recorded; the host does not wait. On the CPU
     * stream_new() returns NULL, and the others do nothing. */
    void *(*stream_new)(struct device *d);
    void (*stream_free)(struct device *d, void *stream);
    void (*stream_wait_event)(struct device *d, void *stream, void *event);

    /* Work that is put on a stream between capture_begin() and capture_end() is recorded as a graph instead
     * of run; graph_launch() runs all of it with one call. NULL if the device has no graphs. */
    void (*capture_begin)(struct device *d, void *stream);
    void *(*capture_end)(struct device *d, void *stream);
    void (*graph_launch)(struct device *d, void *graph, void *stream);
    void (*graph_free)(struct device *d, void *graph);

    /* Named ranges around the calls between push and pop, for profilers (Nsight Systems, Nsight Compute);
     * they nest. NULL on devices without such a profiler. */
    void (*range_push)(struct device *d, const char *name);
    void (*range_pop)(struct device *d);

    /* Sets the number of CPU threads for the operations that follow, unless n is 0, and returns the number
     * before. NULL on a GPU. */
    int64_t (*use_threads)(struct device *d, int64_t n);

    void (*memory_info)(struct device *d, int64_t *free_bytes, int64_t *total_bytes);
    /* Measures, on random numbers and in less than a second: the matmul rate in FLOP/s (fp32 on the CPU,
     * bf16 on a GPU), and the copy rate in bytes/s, read plus written. */
    void (*measure)(struct device *d, double *matmul_flops, double *copy_bytes);
    void (*close)(struct device *d);
};

/* All zero: the defaults. */
struct device_options {
    int64_t threads;       /* OpenMP threads of this process; 0: OMP_NUM_THREADS, or processors_allowed() */
    bool tf32;             /* a GPU multiplies fp32 matrices on tensor cores, with 10-bit mantissas */
    const char *tune_file; /* a GPU times the matmul algorithms, and fused epilogues against passes of their
                              own, once for each kind of product, and keeps the fastest in this file;
                              NULL: it takes the library's first proposal */
    double tune_flops;     /* products of fewer FLOPs are not timed */
};

/* `name`: "cpu", "cuda", "cuda:N", or "auto", which is the first GPU if it is usable, else the CPU (with a
 * warning if there is a GPU that is not). `options` may be NULL. Returns NULL with the reason on failure. */
struct device *device_open(const char *name, const struct device_options *options, struct error *err);

/* The back ends that this program was linked with: "cpu" or "cpu, cuda". */
const char *device_backends(void);
/* What the CUDA back end was built with and finds, by temp_printf: " (CUDA 13.0 for sm_90, cuBLASLt 13.0.0,
 * driver for CUDA 13.0)"; "" without it. */
const char *device_backend_versions(void);

struct device *device_open_cpu(void);
/* Returns NULL with the reason: no driver, no GPU, none with this index, one too old for this build, or a
 * program built without CUDA. `threads` is device_open's. */
struct device *device_open_cuda(int index, const struct device_options *options, struct error *err);
/* Whether the machine has an NVIDIA GPU, usable by this program or not. */
bool device_present_cuda(void);
/* The number of GPUs that device_open_cuda can open; 0 with the reason. Takes no memory on them. */
int device_count_cuda(struct error *err);

#ifdef __cplusplus
}
#endif
#endif

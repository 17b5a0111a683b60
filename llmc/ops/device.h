/* What the engine asks of a device besides the operations: memory, copies, a queue, and how fast it is.
 * One struct of function pointers per back end; device_cpu.c and cuda/device.cu fill it. */
#ifndef LLMC_DEVICE_H
#define LLMC_DEVICE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ops;

struct device {
    const char *backend;   /* "cpu" or "cuda" */
    const struct ops *ops; /* the back end's op table */
    int index;             /* which one, where there are several */
    char id[48];           /* of this very GPU in the world: "GPU-5fd4f087-..."; "" for a CPU */
    int arch;              /* compute capability of a GPU, 90 for 9.0; 0 on the CPU */
    char name[128];        /* for people: "AMD EPYC, 2 threads", "NVIDIA H200" */
    bool unified;          /* device memory can be read and written by the host */
    void *state;           /* back-end private; op_env.state for every op */
    void *stream;          /* the queue that a context uses unless told otherwise; NULL on the CPU */

    /* 256-byte aligned device memory; NULL when there is not enough. Contents are undefined. */
    void *(*alloc)(struct device *d, size_t bytes);
    void (*free)(struct device *d, void *p);
    /* Host memory that copies can overlap with (page-locked on a GPU). Never NULL. */
    void *(*alloc_host)(struct device *d, size_t bytes);
    void (*free_host)(struct device *d, void *p);

    /* Copies in stream order. The host buffer may be reused after synchronize(), or, for upload() from memory
     * that is not from alloc_host(), on return. */
    void (*upload)(struct device *d, void *dst, const void *src, size_t bytes, void *stream);
    void (*download)(struct device *d, void *dst, const void *src, size_t bytes, void *stream);
    void (*copy)(struct device *d, void *dst, const void *src, size_t bytes, void *stream);
    void (*synchronize)(struct device *d, void *stream);

    /* Marks in a stream: record() puts one there, the host waits until the stream has passed it. Two marks
     * also measure: seconds() from one to the other, both passed. */
    void *(*event_new)(struct device *d);
    void (*event_record)(struct device *d, void *event, void *stream);
    void (*event_wait)(struct device *d, void *event);
    double (*event_seconds)(struct device *d, void *first, void *second);
    void (*event_free)(struct device *d, void *event);

    /* Further queues, which run beside `stream` and before it where both have work that waits for room.
     * stream_wait_event(): what is put on `stream` from now on runs after what the event marked when this was
     * called; the host goes on. The CPU has none: new() returns NULL, the others do nothing. */
    void *(*stream_new)(struct device *d);
    void (*stream_free)(struct device *d, void *stream);
    void (*stream_wait_event)(struct device *d, void *stream, void *event);

    /* Between begin and end, what is put on the stream is recorded instead of run; launch() then runs all of
     * it with one call. NULL where the device has nothing like it. */
    void (*capture_begin)(struct device *d, void *stream);
    void *(*capture_end)(struct device *d, void *stream);
    void (*graph_launch)(struct device *d, void *graph, void *stream);
    void (*graph_free)(struct device *d, void *graph);

    /* What a profiler (Nsight Systems, Nsight Compute) shows around the work that is put on a queue between
     * the two; nested. NULL where nothing listens. */
    void (*range_push)(struct device *d, const char *name);
    void (*range_pop)(struct device *d);

    void (*memory_info)(struct device *d, int64_t *free_bytes, int64_t *total_bytes);
    /* Measures, in about a tenth of a second: matmul rate in FLOP/s (fp32 on the CPU, bf16 on a GPU) and copy
     * bandwidth in bytes/s, read plus written. */
    void (*measure)(struct device *d, double *matmul_flops, double *copy_bytes);
    void (*close)(struct device *d);
};

/* "cpu", "cuda", "cuda:N", or "auto": the first GPU if there is a usable one, else the CPU, with a warning if
 * there is a GPU all the same. NULL with the reason. */
struct device *device_open(const char *name, struct error *err);

struct device *device_open_cpu(void);
/* NULL with the reason: no driver, no device, none with this index, too old for this build, or built without
 * CUDA. */
struct device *device_open_cuda(int index, struct error *err);
/* Is there an NVIDIA GPU, whether this program can use it or not? */
bool device_present_cuda(void);
/* How many GPUs device_open_cuda can choose from; 0 with the reason. Takes no memory on them. */
int device_count_cuda(struct error *err);

#ifdef __cplusplus
}
#endif
#endif

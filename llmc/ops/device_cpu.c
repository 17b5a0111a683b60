/* The CPU as a device. Work is done when the call returns: streams and events have nothing to order. */
#include "llmc/ops/device.h"

#include "llmc/ops/ops.h"

#include <cblas.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void *cpu_alloc(struct device *d, size_t bytes) {
    /* Large buffers use huge pages, also for their ends: with 4 KiB pages the optimizer, which streams four
     * buffers of the size of the model, spends a tenth of its time in TLB misses, and GELU of 3 MB that are in
     * no cache takes twice as long. */
    size_t huge = (size_t)2 << 20, align = bytes >= huge / 8 ? huge : 256;
    size_t whole = (size_t)round_up((int64_t)bytes, (int64_t)align);
    void *p = NULL;
    if (posix_memalign(&p, align, whole) != 0) return NULL;
    if (align == huge) madvise(p, whole, MADV_HUGEPAGE);
    return p;
}

static void cpu_free(struct device *d, void *p) { free(p); }

static void *cpu_alloc_host(struct device *d, size_t bytes) { return xmalloc(bytes); }

static void cpu_copy(struct device *d, void *dst, const void *src, size_t bytes, void *stream) {
    memcpy(dst, src, bytes);
}

static void cpu_synchronize(struct device *d, void *stream) {}

/* An event is the time at which it was recorded. */
static void *cpu_event_new(struct device *d) { return xcalloc(1, sizeof(double)); }
static void cpu_event_record(struct device *d, void *event, void *stream) {
    *(double *)event = now_seconds();
}
static void cpu_event_wait(struct device *d, void *event) {}
static double cpu_event_seconds(struct device *d, void *first, void *second) {
    return *(double *)second - *(double *)first;
}
static void *cpu_stream_new(struct device *d) { return NULL; }
static void cpu_stream_free(struct device *d, void *stream) {}
static void cpu_stream_wait_event(struct device *d, void *stream, void *event) {}

static int64_t cpu_use_threads(struct device *d, int64_t n) {
    int before = omp_get_max_threads();
    if (n > 0) omp_set_num_threads((int)n);
    return before;
}

static void cpu_memory_info(struct device *d, int64_t *free_bytes, int64_t *total_bytes) {
    int64_t page = sysconf(_SC_PAGESIZE);
    *total_bytes = sysconf(_SC_PHYS_PAGES) * page;
    *free_bytes = sysconf(_SC_AVPHYS_PAGES) * page;
    /* MemAvailable also counts the page cache that the kernel would give up. */
    FILE *f = fopen("/proc/meminfo", "r");
    char line[128];
    long long kib;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) *free_bytes = (int64_t)kib * 1024;
    if (f) fclose(f);
}

/* Operations call BLAS from their own threads, each for itself. An OpenBLAS that uses OpenMP notices this;
 * other builds would start threads within threads, unless they are told to use one. */
static void use_blas_threads(int count) {
    if (openblas_get_parallel() != OPENBLAS_OPENMP) openblas_set_num_threads(count);
}

/* The fastest of several short runs, so that other load on the machine lowers the result least. */
static void cpu_measure(struct device *d, double *matmul_flops, double *copy_bytes) {
    enum { N = 1024, REPEATS = 5 };
    size_t words = (size_t)16 << 20;
    /* cpu_alloc, because with 4 KiB pages the copy is slower than the ops that are compared with it */
    float *a = (float *)cpu_alloc(d, words * sizeof *a), *b = (float *)cpu_alloc(d, words * sizeof *b);
    check(a && b, "no memory to measure the copy rate with");
#pragma omp parallel for
    for (size_t i = 0; i < words; i++) a[i] = b[i] = 1.0f / (float)(1 + i % 7);
    *matmul_flops = *copy_bytes = 0.0;
    use_blas_threads(omp_get_max_threads());
    for (int r = 0; r < REPEATS; r++) {
        double t0 = now_seconds();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, N, N, N, 1.0f, a, N, a + N * N, N, 0.0f, b, N);
        double rate = 2.0 * N * N * N / (now_seconds() - t0);
        if (rate > *matmul_flops) *matmul_flops = rate;
    }
    use_blas_threads(1);
    for (int r = 0; r < REPEATS; r++) {
        /* in place, as the optimizer works: a line that is only written is first read all the same, so that
         * a plain copy would take a third of its time for bytes that nobody counts */
        double t0 = now_seconds();
#pragma omp parallel for simd schedule(static)
        for (size_t i = 0; i < words; i++) b[i] += a[i];
        double rate = 3.0 * (double)(words * sizeof *a) / (now_seconds() - t0);
        if (rate > *copy_bytes) *copy_bytes = rate;
    }
    free(a);
    free(b);
}

static void cpu_close(struct device *d) { free(d); }

struct device *device_open_cpu(void) {
    struct device *d = (struct device *)xcalloc(1, sizeof *d);
    *d = (struct device){.backend = "cpu",
                         .short_name = "cpu",
                         .ops = cpu_ops(),
                         .dtype = DTYPE_F32,
                         .unified = true,
                         .synchronous = true,
                         .alloc = cpu_alloc,
                         .free = cpu_free,
                         .alloc_host = cpu_alloc_host,
                         .free_host = cpu_free,
                         .upload = cpu_copy,
                         .download = cpu_copy,
                         .copy = cpu_copy,
                         .synchronize = cpu_synchronize,
                         .event_new = cpu_event_new,
                         .event_record = cpu_event_record,
                         .event_wait = cpu_event_wait,
                         .event_seconds = cpu_event_seconds,
                         .event_free = cpu_free,
                         .stream_new = cpu_stream_new,
                         .stream_free = cpu_stream_free,
                         .stream_wait_event = cpu_stream_wait_event,
                         .use_threads = cpu_use_threads,
                         .memory_info = cpu_memory_info,
                         .measure = cpu_measure,
                         .close = cpu_close};
    char model[96] = "CPU", line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %95[^\n]", model) == 1) break;
    if (f) fclose(f);
    use_blas_threads(1);
    snprintf(d->name, sizeof d->name, "%s, %d thread%s, %s", model, omp_get_max_threads(),
             omp_get_max_threads() == 1 ? "" : "s", d->ops->adamw[0].name);
    return d;
}

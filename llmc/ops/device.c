/* Opens a device by name. */
#include "llmc/ops/device.h"

#include "llmc/base/file.h"
#include "llmc/ops/processors.h"

#include <ctype.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* --threads, else OMP_NUM_THREADS, else the processors that this process may keep busy. */
static void choose_threads(int threads) {
    int allowed = processors_allowed();
    if (threads > allowed)
        warn("--threads %d: this process may use %d processor%s; more threads make it slower", threads,
             allowed, allowed == 1 ? "" : "s");
    if (threads)
        omp_set_num_threads(threads);
    else if (!getenv("OMP_NUM_THREADS") && omp_get_max_threads() > allowed)
        omp_set_num_threads(allowed);
}

/* The back end appends to the tune file, lines of "<machine>|<product> <hexadecimal> <microseconds>". A file
 * that begins otherwise is somebody's. */
static bool check_tune_file(const char *path, struct error *err) {
    struct mapped_file f;
    if (!path || !path_exists(path)) return true;
    if (!file_map(&f, path, err)) return false;
    const uint8_t *space = f.size ? (const uint8_t *)memchr(f.data, ' ', (size_t)min_i64(f.size, 512)) : NULL;
    bool good = f.size == 0 || (space && memchr(f.data, '|', (size_t)(space - f.data)) &&
                                f.data + f.size - space > 2 && isxdigit(space[1]) && isxdigit(space[2]));
    file_unmap(&f);
    return good ||
           fail(
               err,
               "--autotune %s: is a file of something else, and nothing is appended to it: give another name",
               path);
}

struct device *device_open(const char *name, const struct device_options *options, struct error *err) {
    if (options && !check_tune_file(options->tune_file, err)) return NULL;
    choose_threads(options ? (int)options->threads : 0);
    if (strcmp(name, "cpu") == 0) return device_open_cpu();
    if (strcmp(name, "auto") == 0) {
        struct device *gpu = device_open_cuda(0, options, err);
        if (!gpu && device_present_cuda()) warn("there is a GPU, but the CPU is used: %s", err->message);
        return gpu ? gpu : device_open_cpu();
    }
    if (strcmp(name, "cuda") == 0) return device_open_cuda(0, options, err);
    char *end = NULL;
    long index = strncmp(name, "cuda:", 5) == 0 ? strtol(name + 5, &end, 10) : -1;
    if (!end || end == name + 5 || *end || index < 0 || index > 1023) {
        fail(err, "--device %s: not a device; cpu, cuda, cuda:N (N counts from 0) or auto", name);
        return NULL;
    }
    return device_open_cuda((int)index, options, err);
}

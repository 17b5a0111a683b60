/* The CUDA back end of a program that is linked without llmc/cuda (see llmc/cuda/cuda.mk). */
#include "llmc/ops/device.h"

#include <unistd.h>

const char *device_backends(void) { return "cpu"; }
const char *device_backend_versions(void) { return ""; }

struct device *device_open_cuda(int index, const struct device_options *options, struct error *err) {
    fail(err,
         "--device cuda:%d: this program was built without CUDA; `make CUDA=1` builds it with (nvcc must be "
         "installed), --device cpu works everywhere",
         index);
    return NULL;
}

/* The driver creates this file. */
bool device_present_cuda(void) { return access("/dev/nvidiactl", F_OK) == 0; }

int device_count_cuda(struct error *err) {
    fail(err, "this program was built without CUDA; `make CUDA=1` builds it with (nvcc must be installed)");
    return 0;
}

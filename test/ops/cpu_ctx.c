/* Opens a context of the CPU device for a test, and closes it. */
#include "test/ops/cpu_ctx.h"

#include <stdlib.h>

int open_cpu(void **state) {
    struct ctx *ctx = (struct ctx *)xcalloc(1, sizeof *ctx);
    ctx_init(ctx, device_open_cpu(), cpu_ops(), false);
    *state = ctx;
    return 0;
}

int close_cpu(void **state) {
    struct ctx *ctx = ctx_of(state);
    struct device *device = ctx->device;
    ctx_free(ctx);
    device->close(device);
    free(ctx);
    return 0;
}

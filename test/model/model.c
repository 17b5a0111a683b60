#include "test/model/model.h"

void model_open_empty(struct model *m) {
    m->device = device_open_cpu();
    ctx_init(&m->ctx, m->device, m->device->ops, false);
}

void model_open(struct model *m, const struct gpt_config *config, struct gpt_options options, uint64_t seed) {
    options.dtype = DTYPE_F32;
    model_open_empty(m);
    gpt_create(&m->gpt, &m->ctx, config, &options);
    gpt_init_weights(&m->gpt, seed);
}

void model_close(struct model *m) {
    ctx_free(&m->ctx);
    m->device->close(m->device);
}

/* The lowest validation loss of a run: see best.h. */
#include "llmc/run/best.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int64_t count_of(const json_t *best, const char *key, int64_t none) {
    const json_t *v = json_object_get(best, key);
    return json_is_integer(v) ? json_integer_value(v) : none;
}

/* Older checkpoints have no such object. */
void run_best_load(struct run *r, bool same_validation) {
    const json_t *all = json_object_get(r->state.extra, "best"), *best = same_validation ? all : NULL;
    if (!best) r->state.best_val_loss = (double)NAN;
    r->best = (struct run_best){.step = count_of(best, "step", -1),
                                .kept = count_of(all, "kept", -1),
                                .validated = count_of(best, "validated", -1),
                                .since = count_of(best, "since", 0)};
}

json_t *run_best_json(const struct run *r) {
    return json_pack("{s:I, s:I, s:I, s:I}", "step", (json_int_t)r->best.step, "kept",
                     (json_int_t)r->best.kept, "validated", (json_int_t)r->best.validated, "since",
                     (json_int_t)r->best.since);
}

void run_best_update(struct run *r) {
    struct run_best *b = &r->best;
    double best = r->state.best_val_loss;
    if (b->validated == r->state.step) return;
    b->validated = r->state.step;
    b->since++;
    if (!isfinite(r->val_loss) || r->val_loss >= best) return;
    r->state.best_val_loss = r->val_loss;
    b->step = r->state.step;
    b->since = 0;
}

bool run_best_is_here(const struct run *r) { return r->config.keep_best && r->best.step == r->state.step; }

static bool link_to_checkpoint(const struct run *r, struct error *err) {
    char *path = xasprintf("%s/best", r->out), *temporary = xasprintf("%s.tmp", path);
    const char *target = temp_printf("step-%08" PRId64, r->best.step);
    (void)unlink(temporary);
    bool ok = (symlink(target, temporary) == 0 && rename(temporary, path) == 0) ||
              fail(err, "%s: cannot be made a link to %s: %s", path, target, strerror(errno));
    free(temporary);
    free(path);
    return ok;
}

void run_best_link(struct run *r) {
    struct error err;
    r->best.kept = r->best.step;
    if (!is_rank_0(r)) return;
    if (!link_to_checkpoint(r, &err) || !checkpoint_prune(r->out, r->config.keep, r->best.kept, &err))
        warn("--keep-best: %s", err.message);
}

bool run_best_is_old(const struct run *r) {
    return r->config.early_stop > 0 && r->best.since >= r->config.early_stop;
}

/* Training steps in flight: see pipeline.h. */
#include "llmc/run/pipeline.h"

#include "llmc/run/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct step_in_flight *step_at(struct pipeline *p, int64_t step) {
    return &p->step[step % STEPS_IN_FLIGHT];
}

/* The event before step n is also the one behind step n - 1. */
static void *mark_before(struct pipeline *p, int64_t step) { return p->mark[step % (STEPS_IN_FLIGHT + 1)]; }

static int64_t micro_batch_size(const struct pipeline *p) {
    return p->run->config.batch_size * p->run->config.seq_len;
}

void pipeline_open(struct pipeline *p, struct run *run) {
    struct device *d = run->device;
    *p = (struct pipeline){.run = run, .first = run->state.step, .read = run->state.step};
    p->micro_steps = run->config.tokens_per_step / (micro_batch_size(p) * run->comm->world);
    p->parts = run_masks_documents(&run->config) ? 4 : 2;
    for (int i = 0; i < STEPS_IN_FLIGHT; i++) {
        size_t values = (size_t)(p->micro_steps * p->parts * micro_batch_size(p));
        p->step[i].batch = (int32_t *)d->alloc_host(d, values * sizeof(int32_t));
        p->step[i].numbers = (float *)d->alloc_host(d, STEP_NUMBERS * sizeof(float));
    }
    for (size_t i = 0; i < ARRAY_LENGTH(p->mark); i++) p->mark[i] = d->event_new(d);
    p->first_sample = (int64_t *)xcalloc((size_t)p->micro_steps, sizeof *p->first_sample);
    pipeline_restart_clock(p);
}

void pipeline_close(struct pipeline *p) {
    struct device *d = p->run->device;
    for (int i = 0; i < STEPS_IN_FLIGHT; i++) {
        d->free_host(d, p->step[i].batch);
        d->free_host(d, p->step[i].numbers);
    }
    free(p->first_sample);
    for (size_t i = 0; i < ARRAY_LENGTH(p->mark); i++) d->event_free(d, p->mark[i]);
    for (int first = 0; first < 2; first++)
        if (p->micro_step[first].graph) d->graph_free(d, p->micro_step[first].graph);
}

/* Windows have the same number of targets on every rank; documents do not. */
static int64_t targets_on_all_ranks(const struct run *r, int64_t targets) {
    int64_t world = r->group->world, sum = 0;
    if (r->config.samples == SAMPLES_CHOICE_WINDOWS) return targets * world;
    int64_t *all = (int64_t *)xmalloc((size_t)world * sizeof *all);
    group_exchange(r->group, all, &targets, sizeof targets);
    for (int64_t i = 0; i < world; i++) sum += all[i];
    free(all);
    return sum;
}

int64_t pipeline_next_batch(struct pipeline *p) {
    struct run *r = p->run;
    int64_t step = r->state.step, size = micro_batch_size(p), targets_in_step = 0;
    /* libraries set themselves up in the first step, which can take longer than ranks may be silent */
    if (step == p->first) p->setup = rank_busy_begin(r->group, "the first step", step + 1);
    ctx_range_push(&r->ctx, "step");
    group_progress(r->group, "step", step + 1);
    rank_timing_step(&r->timing, (int)(step % STEPS_IN_FLIGHT));
    /* the step that used this buffer before has been read, so its copies to the device are done */
    int32_t *batch = step_at(p, step)->batch;
    for (int64_t i = 0; i < p->micro_steps; i++) {
        const int32_t *tokens, *targets;
        int64_t valid;
        p->first_sample[i] = dataloader_first_sample(r->train);
        dataloader_next(r->train, &tokens, &targets, &valid);
        const int32_t *first = dataloader_first_of_document(r->train);
        int32_t *to = batch + p->parts * i * size;
        memcpy(to, tokens, (size_t)size * sizeof *to);
        memcpy(to + size, targets, (size_t)size * sizeof *to);
        if (p->parts > 2) {
            memcpy(to + 2 * size, first, (size_t)size * sizeof *to);
            gpt_position_ids(to + 3 * size, first, size, r->config.seq_len);
        }
        targets_in_step += valid;
    }
    return max_i64(1, targets_on_all_ranks(r, targets_in_step));
}

/* The first call runs as it is, because libraries set themselves up in it. The second one is recorded. */
static void run_or_launch(struct pipeline *p, bool first, bool last) {
    struct run *r = p->run;
    struct device *d = r->device;
    struct recorded *record = &p->micro_step[first];
    bool can_record = r->config.graph && d->capture_begin && !zero_communicates(&r->zero, last);
    if (!can_record || record->calls++ == 0) {
        zero_micro_step(&r->zero, first, last);
        return;
    }
    if (!record->graph) {
        r->ctx.recorded = true;
        d->capture_begin(d, r->ctx.stream);
        zero_micro_step(&r->zero, first, last);
        record->graph = d->capture_end(d, r->ctx.stream);
    }
    d->graph_launch(d, record->graph, r->ctx.stream);
}

/* By its place in the order of all samples, whichever process computes it. */
static void number_samples(struct pipeline *p, int64_t i) {
    struct gpt *g = &p->run->gpt;
    int32_t *numbers = (int32_t *)xmalloc((size_t)g->options.B * sizeof *numbers);
    for (int64_t b = 0; b < g->options.B; b++) numbers[b] = (int32_t)(p->first_sample[i] + b);
    gpt_set_samples(g, numbers);
    free(numbers);
}

void pipeline_micro_step(struct pipeline *p, int64_t i) {
    struct run *r = p->run;
    int64_t size = micro_batch_size(p);
    const int32_t *tokens = step_at(p, r->state.step)->batch + p->parts * i * size, *targets = tokens + size;
    gpt_set_batch(&r->gpt, tokens, targets);
    if (p->parts > 2) gpt_set_documents(&r->gpt, targets + size, targets + 2 * size);
    number_samples(p, i);
    ctx_range_push(&r->ctx, "micro-step");
    run_or_launch(p, i == 0, i == p->micro_steps - 1);
    ctx_range_pop(&r->ctx);
}

void pipeline_end_step(struct pipeline *p, double lr, const struct guard_limits *limits) {
    struct run *r = p->run;
    struct device *d = r->device;
    struct step_in_flight *s = step_at(p, r->state.step);
    d->download(d, s->numbers, r->gpt.numbers.data, STEP_NUMBERS * sizeof(float), r->ctx.stream);
    d->event_record(d, mark_before(p, r->state.step + 1), r->ctx.stream);
    s->lr = lr;
    s->limits = *limits;
    s->epoch = (double)dataloader_position(r->train) / (double)dataloader_samples(r->train);
    ctx_range_pop(&r->ctx);
    rank_busy_end(p->setup);
    p->setup = NULL;
}

bool pipeline_read(struct pipeline *p, int64_t in_flight, struct log_step *step,
                   struct guard_limits *limits) {
    struct run *r = p->run;
    struct device *d = r->device;
    if (d->synchronous) in_flight = 0;
    if (r->state.step - p->read <= in_flight) return false;
    struct step_in_flight *s = step_at(p, p->read);
    void *before = mark_before(p, p->read), *behind = mark_before(p, p->read + 1);
    group_waiting(r->group, "step", p->read + 1);
    d->event_wait(d, behind);
    group_progress(r->group, "step", p->read + 1);
    double sumsq = (double)s->numbers[r->config.skip_outliers > 0.0 ? STEP_SEEN : STEP_SUMSQ];
    *limits = s->limits;
    *step = (struct log_step){.step = p->read + 1,
                              .epoch = s->epoch,
                              .loss = (double)s->numbers[STEP_LOSS],
                              .lr = s->lr,
                              .grad_norm = sqrt(sumsq),
                              .skipped = !isfinite(s->numbers[STEP_SUMSQ]),
                              .seconds = d->event_seconds(d, before, behind)};
    rank_timing_step_done(&r->timing, (int)(p->read % STEPS_IN_FLIGHT), step->seconds);
    p->read++;
    return true;
}

void pipeline_rewind(struct pipeline *p) {
    p->read = p->run->state.step;
    pipeline_restart_clock(p);
}

void pipeline_restart_clock(struct pipeline *p) {
    struct device *d = p->run->device;
    d->event_record(d, mark_before(p, p->run->state.step), p->run->ctx.stream);
    d->event_wait(d, mark_before(p, p->run->state.step));
}

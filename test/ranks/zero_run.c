#include "test/ranks/zero_run.h"

#include "llmc/model/generate.h"
#include "test/ranks/poison_comm.h"
#include "test/ranks/ranks.h"
#include "test/test.h"

#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* --- one rank --- */

/* Micro-batch `index` of a step over all ranks; the last target of each is ignored. */
static void batch(const struct zero_run *r, int64_t step, int64_t index, int32_t *tokens, int32_t *targets) {
    uint64_t x = (uint64_t)(step * 1000 + index) * 0x9e3779b97f4a7c15u + 12345;
    for (int64_t i = 0; i < r->B * r->T; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        tokens[i] = (int32_t)((x >> 33) % (uint64_t)r->config->vocab_size);
        x = x * 6364136223846793005u + 1442695040888963407u;
        targets[i] = (int32_t)((x >> 33) % (uint64_t)r->config->vocab_size);
    }
    targets[r->B * r->T - 1] = -1;
}

/* Stands between the model and its hooks: sees that the next block is on its way before this one is
 * computed, and can spoil one element of a gradient just before the block is reported. */
struct observer {
    struct gpt_hooks hooks;
    struct gpt *gpt;
    const struct comm *comm; /* NULL: not one that can be asked */
    int64_t held[2];         /* blocks that the slots hold, or will */
    bool spoil;
};

static void observe_needed(void *arg, int64_t layer, int64_t next) {
    struct observer *o = (struct observer *)arg;
    if (o->hooks.layer_needed) o->hooks.layer_needed(o->hooks.arg, layer, next);
    if (!o->gpt->options.param_slots || !o->comm) return;
    const struct gpt_params *p = &o->gpt->layout;
    o->held[layer % 2] = layer;
    if (next < 0 || o->held[next % 2] == next) return;
    struct tensor slot = gpt_param_range(o->gpt, p->blocks + next * p->block, p->block);
    check(poison_comm_newest(o->comm) == slot.data,
          "block %" PRId64 " is not on its way while block %" PRId64 " is computed", next, layer);
    o->held[next % 2] = next;
}
static void observe_grads_needed(void *arg, int64_t layer) {
    struct observer *o = (struct observer *)arg;
    if (o->hooks.layer_grads_needed) o->hooks.layer_grads_needed(o->hooks.arg, layer);
}
static void observe_ready(void *arg, int64_t layer) {
    struct observer *o = (struct observer *)arg;
    struct tensor dw = gpt_grad(o->gpt, P_FCPROJ_W, layer);
    if (o->spoil && layer == 0) f32(&dw)[tensor_count(&dw) - 1] = NAN;
    if (o->hooks.layer_ready) o->hooks.layer_ready(o->hooks.arg, layer);
}

/* What a step starts: no gather of a block that a slot still holds, no reduction before the last micro-step
 * where gradients are whole. After it, at level 3, block 0 is on its way. */
static int64_t collectives_of_step(const struct zero_run *r) {
    int64_t L = r->config->layers, A = r->accumulation;
    int64_t M = r->optimizer == OPTIMIZER_MUON ? 2 * L : 0; /* to each block's owner and back */
    switch (r->level) {
    case ZERO_NONE:
        return L + 2 + 1;
    case ZERO_OPTIMIZER:
        return L + 2 + 1 + M + L + 2;
    case ZERO_GRADIENTS:
        return A * L + 2 + 1 + M + L + 2;
    default:
        return A * L + 2 + 1 + M + 2 + L + max_i64(0, L - 2) * (2 * A - 1);
    }
}

/* What no rank may read before it was written or gathered. */
static void poison_slots(struct zero *z) {
    struct gpt *g = z->gpt;
    int64_t blocks = min_i64(2, g->config.layers) * g->layout.block;
    for (int k = 0; k < 2; k++) {
        if (!(k ? g->options.grad_slots : g->options.param_slots)) continue;
        struct tensor t =
            k ? gpt_grad_range(g, g->layout.blocks, blocks) : gpt_param_range(g, g->layout.blocks, blocks);
        poison(&t);
    }
    struct zero_range range;
    int64_t next = g->layout.blocks, count = g->layout.matrices - g->layout.blocks;
    while (z->level >= ZERO_GRADIENTS && zero_stored(z, ZERO_GRADS, g->layout.blocks, count, &next, &range))
        poison(&range.here);
}

/* In pieces that are parts of tensors or reach over several. */
static void copy_stored(struct zero *z, enum zero_what what, float *values, bool write, int *owners) {
    int64_t total = z->gpt->layout.total, step = what == ZERO_M ? 97 : 1999;
    struct zero_range r;
    for (int64_t first = 0, next = 0; first < total; first += step, next = first)
        while (zero_stored(z, what, first, min_i64(step, total - first), &next, &r)) {
            check(r.first >= first && r.count > 0 && r.count == tensor_count(&r.here),
                  "a range that is none");
            if (write) memcpy(r.here.data, values + r.first, (size_t)r.count * sizeof *values);
            for (int64_t i = 0; i < r.count; i++) {
                check(write || f32(&r.here)[i] == values[r.first + i], "stored and whole differ at %" PRId64,
                      r.first + i);
                if (owners) owners[r.first + i]++; /* ranks have their turns */
            }
        }
}

static void copy_whole(struct zero *z, enum zero_what what, float *out) {
    for (int64_t i = 0; i < zero_bucket_count(&z->gpt->config); i++) {
        struct zero_bucket b = zero_bucket(&z->gpt->layout, &z->gpt->config, i);
        if (!zero_keeps(z, what, i)) {
            memset(out + b.first, 0, (size_t)(b.end - b.first) * sizeof *out);
            continue;
        }
        struct tensor t = zero_whole(z, what, i);
        check(tensor_count(&t) == b.end - b.first, "zero_whole: not the whole bucket");
        memcpy(out + b.first, t.data, (size_t)tensor_bytes(&t));
    }
}

/* With documents, the second one of each sequence begins elsewhere. */
static void set_batch(struct gpt *g, const struct zero_run *r, const int32_t *tokens,
                      const int32_t *targets) {
    int32_t *first = (int32_t *)xcalloc((size_t)(r->B * r->T), sizeof *first);
    gpt_set_batch(g, tokens, targets);
    for (int64_t b = 0; b < r->B; b++) {
        int32_t begins = 1 + tokens[b * r->T] % ((int32_t)r->T - 1);
        for (int64_t t = begins; t < r->T; t++) first[b * r->T + t] = begins;
    }
    gpt_set_documents(g, first, NULL);
    free(first);
}

static float validate(struct gpt *g, const struct zero_run *r, int32_t *tokens, int32_t *targets) {
    batch(r, 77, 0, tokens, targets);
    set_batch(g, r, tokens, targets);
    gpt_forward(g, 0, r->T);
    gpt_loss(g);
    return f32(&g->numbers)[STEP_LOSS];
}

static bool note_token(void *user, int64_t token, const float *logits) {
    int64_t **next = (int64_t **)user;
    *(*next)++ = token;
    return true;
}

static void generate_some(struct gpt *generator, int64_t *out) {
    struct sampler_options options = {.temperature = 1.0, .top_p = 1.0, .seed = 3};
    struct sampler *s = sampler_new(&options, generator->config.vocab_size);
    uint32_t prompt[] = {1, 2, 3};
    check(generate(generator, s, prompt, 3, ZERO_TOKENS, note_token, &out) == ZERO_TOKENS,
          "not all tokens were made");
    sampler_free(s);
}

static void train(struct zero *z, struct observer *o, const struct zero_run *r, struct zero_result *out,
                  struct gpt *generator) {
    int64_t n = r->B * r->T, world = z->comm->world, rank = z->comm->rank;
    int64_t started = o->comm ? poison_comm_started(o->comm) : 0;
    int32_t *tokens = (int32_t *)xmalloc((size_t)n * 8), *targets = tokens + n;
    float *numbers = f32(&z->gpt->numbers);
    for (int64_t step = r->first_step; step < r->first_step + r->steps; step++) {
        o->spoil = r->nan_step && step == r->nan_step && rank == r->nan_rank;
        gpt_set_loss_scale(z->gpt, 1.0f / (float)((n - 1) * world * r->accumulation));
        for (int64_t i = 0; i < r->accumulation; i++) {
            batch(r, step, i * world + rank, tokens, targets);
            set_batch(z->gpt, r, tokens, targets);
            zero_micro_step(z, i == 0, i == r->accumulation - 1);
        }
        struct update_args args = {.lr = ZERO_LEARNING_RATE,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.95f,
                                   .eps = 3e-2f, /* rounding stays rounding: no division by tiny roots */
                                   .weight_decay = 0.1f,
                                   .max_norm = step % 2 ? 0.1f : 1e9f,
                                   .step = step + 1,
                                   .momentum = 0.9f,
                                   .muon_lr = ZERO_LEARNING_RATE,
                                   .embedding_lr = 0.5f * ZERO_LEARNING_RATE,
                                   .no_embedding_decay = true};
        zero_update(z, &args);
        o->held[0] = 0;
        o->held[1] = -1;
        out->loss[step] = numbers[STEP_LOSS];
        out->norm[step] = sqrtf(numbers[STEP_SUMSQ]);
        if (r->look && step == 2) {
            out->validation = validate(z->gpt, r, tokens, targets);
            generate_some(generator, out->generated);
        }
    }
    free(tokens);
    if (!o->comm || r->look) return;
    int64_t want = r->steps * collectives_of_step(r) + (r->level == ZERO_PARAMETERS);
    check(poison_comm_started(o->comm) - started == want, "%" PRId64 " collectives, not %" PRId64,
          poison_comm_started(o->comm) - started, want);
}

/* What the plan of this run says. */
static struct ctx plan_of(const struct zero_run *r, struct device *device,
                          const struct gpt_options *options) {
    struct ctx plan;
    struct gpt gpt;
    struct optimizer opt;
    struct zero z;
    struct comm *idle = comm_open_plan(r->world, r->team);
    ctx_init(&plan, device, cpu_ops(), true);
    gpt_create(&gpt, &plan, r->config, options);
    zero_create(&z, &gpt, &opt, idle, r->level, (struct optimizer_options){.kind = r->optimizer});
    gpt_init_weights(&gpt, 1);
    zero_micro_step(&z, true, true);
    struct update_args args = {.step = 1};
    zero_update(&z, &args);
    zero_free(&z);
    idle->close(idle);
    return plan;
}

/* All ranks begin with the parameters of rank 0, or with stored ones, whatever was there before. */
static void begin(struct zero *z, const struct zero_run *r) {
    struct gpt *g = z->gpt;
    gpt_init_weights(g, z->comm->rank == 0 ? 1 : 2);
    zero_parameters_changed(z);
    if (r->from) {
        int32_t *tokens = (int32_t *)xmalloc((size_t)(r->B * r->T) * 8);
        validate(g, r, tokens, tokens + r->B * r->T);
        free(tokens);
        copy_stored(z, ZERO_PARAMS, r->from->params, true, NULL);
        copy_stored(z, ZERO_M, r->from->m, true, NULL);
        copy_stored(z, ZERO_V, r->from->v, true, NULL);
        zero_parameters_changed(z);
    }
    poison_slots(z);
}

/* One rank after the other: all have the same values, and together store each. */
static void compare_ranks(struct zero *z, const struct zero_result *mine, struct zero_result *out) {
    size_t total = (size_t)z->gpt->layout.total, bytes = total * sizeof(float);
    float *whole = (float *)xmalloc(3 * bytes);
    copy_whole(z, ZERO_PARAMS, whole);
    copy_whole(z, ZERO_M, whole + total);
    copy_whole(z, ZERO_V, whole + 2 * total);
    for (int64_t turn = 0; turn < z->comm->world; turn++, group_barrier(z->comm->group)) {
        if (z->comm->rank != turn) continue;
        if (turn == 0) memcpy(out->params, whole, 3 * bytes); /* m and v come after */
        check(memcmp(whole, out->params, 3 * bytes) == 0, "rank %" PRId64 " has other values", turn);
        check(memcmp(mine->loss, out->loss, sizeof out->loss) == 0 &&
                  memcmp(mine->norm, out->norm, sizeof out->norm) == 0 &&
                  memcmp(mine->generated, out->generated, sizeof out->generated) == 0,
              "rank %" PRId64 " has seen other numbers", turn);
        copy_stored(z, ZERO_PARAMS, whole, false, NULL);
        copy_stored(z, ZERO_M, whole + total, false, out->owners);
    }
    free(whole);
}

static void run_rank(const struct zero_run *r, struct comm *comm, struct device *device,
                     struct zero_result *out) {
    omp_set_num_threads(1);
    struct ctx ctx, plan;
    struct gpt gpt, generator;
    struct optimizer opt;
    struct zero z;
    struct gpt_options options = {.B = r->B,
                                  .T = r->T,
                                  .train = true,
                                  .documents = r->documents,
                                  .recompute = r->recompute,
                                  .init_std = 0.1f};
    zero_gpt_options(&options, r->level, r->world);
    plan = plan_of(r, device, &options);
    ctx_init(&ctx, device, cpu_ops(), false);
    gpt_create(&gpt, &ctx, r->config, &options);
    poison(&gpt.params);
    zero_create(&z, &gpt, &opt, comm, r->level, (struct optimizer_options){.kind = r->optimizer});
    int64_t kinds[] = {MEM_PARAMETERS, MEM_GRADIENTS, MEM_OPTIMIZER, MEM_ACTIVATIONS};
    for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++)
        /* rank 0 is planned, the others may have smaller parts */
        check(ctx.memory[kinds[i]] <= plan.memory[kinds[i]] &&
                  (comm->part > 0 || ctx.memory[kinds[i]] == plan.memory[kinds[i]]),
              "%s: planned %" PRId64 ", taken %" PRId64, memory_kind_name((enum memory_kind)kinds[i]),
              plan.memory[kinds[i]], ctx.memory[kinds[i]]);
    begin(&z, r);
    struct observer o = {.hooks = gpt.hooks, .gpt = &gpt, .held = {-1, -1}};
    if (r->world > 1 && !r->direct) o.comm = comm;
    gpt.hooks = (struct gpt_hooks){&o, observe_needed, observe_grads_needed, observe_ready, NULL};
    generator_create(&generator, &ctx, r->config, DTYPE_F32, &gpt, 0, 0);
    struct zero_result mine = *out, *result = comm->rank == 0 ? out : &mine;
    train(&z, &o, r, result, &generator);
    compare_ranks(&z, result, out);
    check(ctx.memory[MEM_SCRATCH] <= plan.memory[MEM_SCRATCH], "more scratch than planned");
    zero_free(&z);
    ctx_free(&ctx);
    ctx_free(&plan);
}

/* --- all ranks --- */

void zero_run_free(struct zero_result *r, const struct gpt_config *config) {
    struct gpt_params layout;
    gpt_params_layout(&layout, config);
    munmap(r, sizeof *r + (size_t)layout.total * 4 * sizeof(float));
}

struct job {
    const struct zero_run *run;
    struct zero_result *result;
};

static int run_in_process(const struct ranks *r, int64_t rank) {
    const struct job *job = (const struct job *)r->arg;
    struct error err;
    struct group *g = ranks_open(r);
    struct device *device = device_open_cpu();
    struct comm *comm = comm_open(g, device, job->run->team, &err);
    check(comm, "%s", err.message);
    if (g->world > 1 && !job->run->direct) comm = poison_comm_open(comm);
    run_rank(job->run, comm, device, job->result);
    comm->close(comm);
    group_close(g);
    device->close(device);
    return 0;
}

struct zero_result *zero_run(const struct zero_run *r) {
    struct gpt_params layout;
    gpt_params_layout(&layout, r->config);
    size_t total = (size_t)layout.total;
    struct zero_result *out =
        (struct zero_result *)mmap(NULL, sizeof *out + total * 4 * sizeof(float), PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(out != MAP_FAILED);
    out->params = (float *)(out + 1);
    out->m = out->params + total;
    out->v = out->m + total;
    out->owners = (int *)(out->v + total);
    struct job job = {r, out};
    struct ranks ranks;
    ranks_init(&ranks, r->world, 30.0);
    ranks.arg = &job;
    ranks_start(&ranks, run_in_process);
    ranks_finish(&ranks, 60.0);
    ranks_expect_all(&ranks, 0, NULL);
    ranks_free(&ranks);
    int64_t teams = r->team ? r->world / r->team : 1;
    for (size_t i = 0; i < total; i++)
        assert_int_equal(out->owners[i], r->level == ZERO_NONE ? r->world : teams);
    return out;
}

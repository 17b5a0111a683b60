/* ZeRO as hooks of the model and steps around it. Each bucket has a ticket for the running collective on
 * its parameters and one for its gradients; whoever touches the bucket next waits for the ticket first.
 * Which collectives start depends only on the sequence of calls, so all ranks start the same ones in the
 * same order. */
#include "llmc/ranks/zero.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 2, NONE = -1 };

struct zero_state {
    int64_t buckets;
    struct optimizer_piece *parts;           /* (buckets) this rank's part of each; may be empty */
    int64_t *param_ticket, *grad_ticket;     /* (buckets) the running collective, or NONE */
    struct tensor param_shards, grad_shards; /* (L * part of a block) at level 3; from level 2 on */
    struct tensor norms;                     /* (buckets) fp32: squared norm of each part's gradient */
    struct tensor transit;                   /* (a block) Muon: another rank's block on its way */
    int64_t in_param_slot[SLOTS];            /* the block whose parameters are or will be in it */
    int64_t in_grad_slot[SLOTS];             /* the block whose gradients are summed in it */
    bool first, reduce;                      /* of the micro-step that runs */
};

/* --- buckets and their tensors --- */

int64_t zero_bucket_count(const struct gpt_config *config) { return config->layers + 2; }

struct zero_bucket zero_bucket(const struct gpt_params *p, const struct gpt_config *config, int64_t i) {
    int64_t L = config->layers, first = p->blocks + (i - 1) * p->block;
    check(i >= 0 && i <= L + 1, "zero_bucket: no bucket %" PRId64 " of %" PRId64, i, L + 2);
    if (i == 0) return (struct zero_bucket){0, p->blocks, -1, GROUP_EMBEDDINGS};
    if (i == L + 1) return (struct zero_bucket){p->matrices, p->total, -1, GROUP_VECTORS};
    return (struct zero_bucket){first, first + p->block, i - 1, GROUP_BLOCKS};
}

static struct zero_bucket bucket_of(const struct zero *z, int64_t i) {
    return zero_bucket(&z->gpt->layout, &z->gpt->config, i);
}

static int64_t bucket_at(const struct gpt *g, int64_t element) {
    const struct gpt_params *p = &g->layout;
    if (element < p->blocks) return 0;
    return element < p->matrices ? 1 + (element - p->blocks) / p->block : g->config.layers + 1;
}

/* The whole bucket in the model's buffer, which may be a slot. */
static struct tensor params_of(const struct zero *z, int64_t i) {
    struct zero_bucket b = bucket_of(z, i);
    return gpt_param_range(z->gpt, b.first, b.end - b.first);
}
static struct tensor grads_of(const struct zero *z, int64_t i) {
    struct zero_bucket b = bucket_of(z, i);
    return gpt_grad_range(z->gpt, b.first, b.end - b.first);
}

/* This rank's part of a tensor of a bucket's size. */
static struct tensor own(const struct zero *z, const struct tensor *bucket) {
    struct comm_part part = comm_part(tensor_count(bucket), z->comm->parts, z->comm->part);
    return tensor_range(bucket, part.first, part.count);
}

/* What all teams have and must be added once is added by the first. */
static bool in_first_team(const struct zero *z) { return z->comm->rank < z->comm->parts; }

static void copy(const struct zero *z, const struct tensor *to, const struct tensor *from) {
    struct ctx *ctx = z->gpt->ctx;
    if (ctx->plan || tensor_bytes(from) == 0) return;
    ctx->device->copy(ctx->device, to->data, from->data, (size_t)tensor_bytes(from), ctx->stream);
}

static void await(struct zero *z, int64_t *ticket) {
    if (*ticket == NONE) return;
    z->comm->wait(z->comm, *ticket, z->gpt->ctx->stream);
    *ticket = NONE;
}

/* Whether the model is frozen, and adapters are trained in its place. */
static bool frozen(const struct zero *z) { return z->gpt->options.lora.rank > 0; }

/* --- gathering parameters --- */

/* Level 3: starts to gather the block into its slot, unless it is there. The block that was in the slot
 * is no longer needed: kernels that read it are on the stream, which the collective waits for. */
static void gather_block(struct zero *z, int64_t l) {
    struct zero_state *s = z->state;
    if (s->in_param_slot[l % SLOTS] == l) return;
    struct tensor slot = params_of(z, l + 1), part = own(z, &slot);
    copy(z, &part, &s->parts[l + 1].param);
    s->param_ticket[l + 1] = z->comm->all_gather(z->comm, &slot, z->gpt->ctx->stream);
    s->in_param_slot[l % SLOTS] = l;
}

static void layer_needed(void *arg, int64_t layer, int64_t next) {
    struct zero *z = (struct zero *)arg;
    if (z->level == ZERO_PARAMETERS) {
        gather_block(z, layer);
        if (next >= 0) gather_block(z, next);
    }
    await(z, &z->state->param_ticket[layer + 1]);
}

/* Level 3: every rank has just initialised the block in its slot; rank 0's values count. */
static void layer_written(void *arg, int64_t layer) {
    struct zero *z = (struct zero *)arg;
    struct tensor slot = params_of(z, layer + 1), part = own(z, &slot);
    int64_t ticket = z->comm->broadcast(z->comm, &slot, 0, z->gpt->ctx->stream);
    await(z, &ticket);
    copy(z, &z->state->parts[layer + 1].param, &part);
    z->state->in_param_slot[layer % SLOTS] = NONE;
}

static void forget_slots(struct zero *z) {
    for (int i = 0; i < SLOTS; i++) z->state->in_param_slot[i] = NONE;
}

/* After an update. Forward needs the embeddings and vectors at once, so wait for these. The blocks
 * follow in the order of their use. */
static void gather_all(struct zero *z) {
    struct zero_state *s = z->state;
    int64_t last = s->buckets - 1;
    for (int64_t k = 0; k < s->buckets; k++) {
        int64_t i = k == 0 ? 0 : k == 1 ? last : k - 1;
        if (z->level == ZERO_PARAMETERS && k > 1) break;
        struct tensor bucket = params_of(z, i);
        s->param_ticket[i] = z->comm->all_gather(z->comm, &bucket, z->gpt->ctx->stream);
    }
    if (z->level == ZERO_PARAMETERS) {
        forget_slots(z);
        gather_block(z, 0);
    }
    await(z, &s->param_ticket[0]);
    await(z, &s->param_ticket[last]);
}

/* --- reducing gradients --- */

/* reduce_scatter leaves garbage in the parts of other ranks, including the alignment gaps between tensors,
 * which no kernel writes but sumsq reads: clear the gaps. */
static void clear_gaps(struct zero *z, int64_t i) {
    const struct gpt *g = z->gpt;
    struct zero_bucket b = bucket_of(z, i);
    for (int id = 0; id < PARAM_ROWS; id++) {
        const struct param_row *row = &gpt_param_rows[id];
        if (row->cols == DIM_NONE || row->per_layer != (b.layer >= 0) ||
            !gpt_param_copies(&g->config, (enum param_id)id))
            continue;
        int64_t n = gpt_dim_size(&g->config, row->rows) * gpt_dim_size(&g->config, row->cols);
        int64_t first = g->layout.offset[id] + max_i64(0, b.layer) * g->layout.stride[id];
        if (round_up(n, 128) == n) continue;
        struct tensor gap = gpt_grad_range(g, first + n, round_up(n, 128) - n);
        fill(g->ctx, &gap, 0.0f);
    }
}

/* Levels 2 and 3: copies the sum from the slot to this rank's shard of the block. */
static void empty_grad_slot(struct zero *z, int64_t slot) {
    struct zero_state *s = z->state;
    int64_t l = s->in_grad_slot[slot];
    if (l == NONE) return;
    await(z, &s->grad_ticket[l + 1]);
    struct tensor all = grads_of(z, l + 1), part = own(z, &all);
    copy(z, &s->parts[l + 1].grad, &part);
    s->in_grad_slot[slot] = NONE;
}

static void layer_grads_needed(void *arg, int64_t layer) {
    struct zero *z = (struct zero *)arg;
    struct zero_state *s = z->state;
    if (z->level >= ZERO_GRADIENTS) empty_grad_slot(z, layer % SLOTS);
    if (s->first) {
        clear_gaps(z, layer + 1);
    } else if (z->level >= ZERO_GRADIENTS) {
        /* backward adds to the slot: begin with the sum so far, on one rank that stores it */
        struct tensor slot = grads_of(z, layer + 1), part = own(z, &slot);
        fill(z->gpt->ctx, &slot, 0.0f);
        if (in_first_team(z)) copy(z, &part, &s->parts[layer + 1].grad);
    }
}

static void reduce(struct zero *z, int64_t i) {
    struct tensor bucket = grads_of(z, i);
    struct comm *c = z->comm;
    void *stream = z->gpt->ctx->stream;
    z->state->grad_ticket[i] =
        z->level == ZERO_NONE ? c->all_reduce(c, &bucket, stream) : c->reduce_scatter(c, &bucket, stream);
}

static void layer_ready(void *arg, int64_t layer) {
    struct zero *z = (struct zero *)arg;
    if (!z->state->reduce) return;
    reduce(z, layer + 1);
    if (z->level >= ZERO_GRADIENTS) z->state->in_grad_slot[layer % SLOTS] = layer;
}

void zero_settle(struct zero *z) {
    struct zero_state *s = z->state;
    if (!s) return;
    for (int64_t i = 0; i < SLOTS; i++) empty_grad_slot(z, i);
    for (int64_t i = 0; i < s->buckets; i++) {
        await(z, &s->grad_ticket[i]);
        await(z, &s->param_ticket[i]);
    }
}

/* --- creation --- */

void zero_gpt_options(struct gpt_options *options, enum zero_level level, int64_t world) {
    options->param_slots = world > 1 && level >= ZERO_PARAMETERS ? SLOTS : 0;
    options->grad_slots = world > 1 && level >= ZERO_GRADIENTS && !options->lora.rank ? SLOTS : 0;
}

static int64_t *no_tickets(int64_t n) {
    int64_t *t = (int64_t *)xmalloc((size_t)n * sizeof *t);
    for (int64_t i = 0; i < n; i++) t[i] = NONE;
    return t;
}

/* (L * part) in the model's dtype; zeroed, because no kernel writes the gaps between tensors. */
static struct tensor new_shards(struct zero *z, enum memory_kind kind, int64_t part, const char *what) {
    struct gpt *g = z->gpt;
    int64_t n = max_i64(1, g->config.layers * part);
    void *p = ctx_alloc(g->ctx, kind, n * (int64_t)dtype_size(g->options.dtype), what);
    struct tensor t = tensor_make(what, g->options.dtype, p, n, 0, 0, 0);
    fill(g->ctx, &t, 0.0f);
    return t;
}

/* Lays out this rank's parts and allocates those that are not in the model's buffers. Returns the
 * elements of the largest bucket. */
static int64_t make_parts(struct zero *z) {
    struct zero_state *s = z->state;
    struct gpt *g = z->gpt;
    int64_t at = 0, largest = 0, in_block = comm_part(g->layout.block, z->comm->parts, z->comm->part).count;
    if (z->level >= ZERO_GRADIENTS && !frozen(z))
        s->grad_shards = new_shards(z, MEM_GRADIENTS, in_block, "this rank's gradients");
    if (z->level >= ZERO_PARAMETERS)
        s->param_shards = new_shards(z, MEM_PARAMETERS, in_block, "this rank's parameters");
    for (int64_t i = 0; i < s->buckets; i++) {
        struct zero_bucket b = bucket_of(z, i);
        struct comm_part part = comm_part(b.end - b.first, z->comm->parts, z->comm->part);
        struct optimizer_piece *p = &s->parts[i];
        *p = (struct optimizer_piece){
            .first = b.first + part.first, .count = part.count, .at = at, .group = b.group};
        struct tensor params = params_of(z, i);
        p->param = b.layer >= 0 && z->level >= ZERO_PARAMETERS
                       ? tensor_range(&s->param_shards, b.layer * in_block, in_block)
                       : own(z, &params);
        if (!frozen(z)) {
            struct tensor grads = grads_of(z, i);
            p->grad = b.layer >= 0 && z->level >= ZERO_GRADIENTS
                          ? tensor_range(&s->grad_shards, b.layer * in_block, in_block)
                          : own(z, &grads);
        }
        at += part.count;
        largest = max_i64(largest, b.end - b.first);
    }
    return largest;
}

/* For the parts, which a rank updates alone or with the others; `largest` is a bucket. */
static void create_optimizer(struct zero *z, struct optimizer_options options, int64_t largest) {
    struct zero_state *s = z->state;
    struct gpt *g = z->gpt;
    void *p = ctx_alloc(g->ctx, MEM_OPTIMIZER, s->buckets * (int64_t)sizeof(float), "the parts' norms");
    s->norms = tensor_make("norms", DTYPE_F32, p, s->buckets, 0, 0, 0);
    fill(g->ctx, &s->norms, 0.0f); /* empty parts, and those of other teams, stay zero */
    if (z->level == ZERO_NONE) {
        optimizer_create(z->optimizer, g, options);
        return;
    }
    if (options.kind == OPTIMIZER_MUON) {
        p = ctx_alloc(g->ctx, MEM_OPTIMIZER, g->layout.block * (int64_t)dtype_size(g->options.dtype),
                      "Muon's updates on their way");
        s->transit = tensor_make("transit", g->options.dtype, p, g->layout.block, 0, 0, 0);
    }
    optimizer_create_pieces(z->optimizer, g, s->parts, s->buckets, options);
    ctx_reserve_scratch(g->ctx, largest * (int64_t)sizeof(float)); /* zero_whole's */
}

void zero_create(struct zero *z, struct gpt *g, struct optimizer *opt, struct comm *comm,
                 enum zero_level level, struct optimizer_options options) {
    *z = (struct zero){.comm = comm, .gpt = g, .optimizer = opt};
    if (comm->world == 1 || (frozen(z) && level < ZERO_PARAMETERS)) {
        optimizer_create(opt, g, options);
        return;
    }
    z->level = level;
    struct zero_state *s = z->state = (struct zero_state *)xcalloc(1, sizeof *s);
    s->buckets = zero_bucket_count(&g->config);
    s->parts = (struct optimizer_piece *)xcalloc((size_t)s->buckets, sizeof *s->parts);
    s->param_ticket = no_tickets(s->buckets);
    s->grad_ticket = no_tickets(s->buckets);
    for (int i = 0; i < SLOTS; i++) s->in_param_slot[i] = s->in_grad_slot[i] = NONE;
    int64_t largest = make_parts(z);
    if (frozen(z))
        optimizer_create(opt, g, options);
    else
        create_optimizer(z, options, largest);
    g->hooks = (struct gpt_hooks){.arg = z};
    if (level >= ZERO_OPTIMIZER) g->hooks.layer_needed = layer_needed;
    if (level >= ZERO_OPTIMIZER && !frozen(z)) g->hooks.layer_grads_needed = layer_grads_needed;
    if (!frozen(z)) g->hooks.layer_ready = layer_ready;
    if (level >= ZERO_PARAMETERS) g->hooks.layer_written = layer_written;
}

void zero_free(struct zero *z) {
    if (z->state) {
        zero_settle(z);
        free(z->state->parts);
        free(z->state->param_ticket);
        free(z->state->grad_ticket);
        free(z->state);
        z->gpt->hooks = (struct gpt_hooks){0};
    }
    memset(z, 0, sizeof *z);
}

/* --- the step --- */

bool zero_communicates(const struct zero *z, bool last) {
    if (!z->state) return false;
    if (last || z->level >= ZERO_GRADIENTS) return true;
    for (int64_t i = 0; i < z->state->buckets; i++)
        if (z->state->param_ticket[i] != NONE) return true;
    return false;
}

void zero_micro_step(struct zero *z, bool first, bool last) {
    struct zero_state *s = z->state;
    if (s && !frozen(z)) {
        s->first = first;
        s->reduce = last || z->level >= ZERO_GRADIENTS;
        if (first && z->level >= ZERO_OPTIMIZER) clear_gaps(z, 0);
    }
    gpt_forward_backward(z->gpt, first);
    if (!s || !last || frozen(z)) return;
    reduce(z, 0);
    reduce(z, s->buckets - 1);
}

/* Muon on divided blocks, in rounds of a block for each rank of a team. Every rank computes the momentum of
 * its parts; a block's owner gathers them, makes the matrices orthogonal and gives the parts back. */
static void update_by_muon(struct zero *z, const struct update_args *args) {
    struct zero_state *s = z->state;
    struct gpt *g = z->gpt;
    struct comm *c = z->comm;
    int64_t L = g->config.layers;
    for (int64_t first = 0; first < L; first += c->parts) {
        int64_t count = min_i64(c->parts, L - first);
        for (int64_t k = 0; k < count; k++) {
            struct tensor *block = k == c->part ? &z->optimizer->block : &s->transit, part = own(z, block);
            const struct optimizer_piece *piece = &s->parts[1 + first + k];
            if (piece->count) optimizer_momentum(z->optimizer, g, piece, 0, &part, args);
            int64_t ticket = c->gather(c, block, k, g->ctx->stream);
            await(z, &ticket);
        }
        if (c->part < count) optimizer_orthogonalize(z->optimizer, g, &z->optimizer->block);
        for (int64_t k = 0; k < count; k++) {
            struct tensor *block = k == c->part ? &z->optimizer->block : &s->transit, part = own(z, block);
            const struct optimizer_piece *piece = &s->parts[1 + first + k];
            int64_t ticket = c->scatter(c, block, k, g->ctx->stream);
            await(z, &ticket);
            if (piece->count) optimizer_apply(z->optimizer, g, piece, 0, &part, args);
        }
    }
}

/* Adapters, their gradients and their state are small: every rank stores them whole, at every level. */
static void reduce_adapters(struct zero *z) {
    struct tensor loss = tensor_range(&z->gpt->numbers, STEP_LOSS, 1), grads = z->gpt->lora.grads;
    int64_t ticket = z->comm->all_reduce(z->comm, &grads, z->gpt->ctx->stream);
    await(z, &ticket);
    ticket = z->comm->all_reduce(z->comm, &loss, z->gpt->ctx->stream);
    await(z, &ticket);
}

void zero_update(struct zero *z, const struct update_args *args) {
    struct zero_state *s = z->state;
    struct gpt *g = z->gpt;
    if (!s || frozen(z)) {
        if (z->comm && z->comm->world > 1) reduce_adapters(z);
        optimizer_step(z->optimizer, g, args);
        return;
    }
    ctx_range_push(g->ctx, "update");
    zero_settle(z);
    for (int64_t i = 0; i < s->buckets && in_first_team(z); i++) {
        struct tensor norm = tensor_range(&s->norms, i, 1);
        if (s->parts[i].count) sumsq(g->ctx, &norm, &s->parts[i].grad);
    }
    struct tensor total = tensor_range(&g->numbers, STEP_SUMSQ, 1);
    struct tensor both = tensor_range(&g->numbers, STEP_LOSS, 2);
    sum(g->ctx, &total, &s->norms, NULL, false);
    int64_t ticket = z->comm->all_reduce(z->comm, &both, g->ctx->stream);
    await(z, &ticket);
    optimizer_skip_outlier(g, args);
    optimizer_update(z->optimizer, g, args);
    if (z->level >= ZERO_OPTIMIZER && z->optimizer->kind == OPTIMIZER_MUON) update_by_muon(z, args);
    if (z->level >= ZERO_OPTIMIZER) gather_all(z);
    ctx_range_pop(g->ctx);
}

/* --- for checkpoints and the start of a run --- */

static const struct tensor *state_of(const struct optimizer *opt, enum zero_what what) {
    return what == ZERO_M ? &opt->m : what == ZERO_V ? &opt->v : &opt->master;
}

bool zero_keeps(const struct zero *z, enum zero_what what, int64_t i) {
    if (what == ZERO_MASTER) return z->optimizer->has_master;
    return what != ZERO_V || optimizer_has_v(z->optimizer, bucket_of(z, i).layer >= 0);
}

/* Whether a rank stores only its part of the bucket. */
static bool divided(const struct zero *z, enum zero_what what, const struct zero_bucket *b) {
    return what == ZERO_PARAMS ? z->level >= ZERO_PARAMETERS && b->layer >= 0 : z->level > ZERO_NONE;
}

/* This rank's stored range of the bucket. */
static struct zero_range stored(const struct zero *z, enum zero_what what, int64_t i) {
    struct zero_bucket b = bucket_of(z, i);
    const struct optimizer_piece *part = divided(z, what, &b) ? &z->state->parts[i] : NULL;
    struct zero_range r = {.first = part ? part->first : b.first,
                           .count = part ? part->count : b.end - b.first};
    if (what == ZERO_PARAMS)
        r.here = part ? part->param : params_of(z, i);
    else if (what == ZERO_GRADS)
        r.here = part ? part->grad : grads_of(z, i);
    else
        r.here = optimizer_state(z->optimizer, state_of(z->optimizer, what), r.first, r.count);
    return r;
}

struct tensor zero_whole(struct zero *z, enum zero_what what, int64_t i) {
    struct ctx *ctx = z->gpt->ctx;
    struct zero_bucket b = bucket_of(z, i);
    struct tensor here = stored(z, what, i).here;
    int64_t n = b.end - b.first;
    zero_settle(z);
    if (!divided(z, what, &b)) return here;
    ctx_reserve_scratch(ctx, n * (int64_t)sizeof(float));
    struct tensor whole = tensor_make("a whole bucket", here.dtype, ctx->scratch, n, 0, 0, 0);
    struct tensor part = own(z, &whole);
    copy(z, &part, &here);
    int64_t ticket = z->comm->all_gather(z->comm, &whole, ctx->stream);
    await(z, &ticket);
    return whole;
}

bool zero_stored(struct zero *z, enum zero_what what, int64_t first, int64_t count, int64_t *next,
                 struct zero_range *range) {
    while (*next < first + count) {
        int64_t i = bucket_at(z->gpt, *next);
        if (!zero_keeps(z, what, i)) {
            *next = min_i64(first + count, bucket_of(z, i).end);
            continue;
        }
        struct zero_range all = stored(z, what, i);
        int64_t from = max_i64(*next, all.first), to = min_i64(first + count, all.first + all.count);
        *next = min_i64(first + count, bucket_of(z, i).end);
        if (from >= to) continue;
        *range = (struct zero_range){from, to - from, tensor_range(&all.here, from - all.first, to - from)};
        return true;
    }
    return false;
}

void zero_parameters_changed(struct zero *z) {
    struct zero_state *s = z->state;
    if (!s) return;
    zero_settle(z);
    forget_slots(z);
    for (int64_t i = 0; i < s->buckets; i++) {
        if (z->level >= ZERO_PARAMETERS && bucket_of(z, i).layer >= 0) continue;
        struct tensor bucket = params_of(z, i);
        s->param_ticket[i] = z->comm->broadcast(z->comm, &bucket, 0, z->gpt->ctx->stream);
        await(z, &s->param_ticket[i]);
    }
}

/* Causal attention forward on Hopper (sm_90a), also with a window, within documents and with heads of keys
 * that several query heads share, for bf16 and heads of 64 or 128 columns, as in FlashAttention-3 (Shah et
 * al. 2024, arXiv 2407.08608): a producer loads tiles by TMA, and two consuming warpgroups overlap softmax
 * with wgmma products. Backward is in attn_hopper_backward.cu.
 *
 * A block takes tiles of 128 queries. Their keys come 128 at a time, beginning at the diagonal, so that
 * only the first step has a mask, and those at the start of a window or document; keys that none of the
 * queries sees are never loaded. At T = 1024 a tile of 128 rows has 0.89 of its work below the diagonal, one
 * of 192 rows would have 0.67.
 *
 * A step of a warpgroup of 64 queries takes, at head size 64, 2 * 64*128*64 multiply-adds, 512 clocks of a
 * multiprocessor's tensor cores, and 64*128 exponentials, 512 clocks at 16 per clock. Neither may wait for
 * the other:
 *   - Within a warpgroup, wgmma computes the scores of a step while the probabilities of the step before meet
 *     the values, and softmax runs during these products.
 *   - The two warpgroups take turns at starting products (named barriers), so that one computes its softmax
 *     while the tensor cores work for the other.
 * Probabilities stay in registers: the accumulators of one product, rounded, are the operand of the next.
 *
 * A consumer's thread holds HS/2 sums, 64 scores and 32 registers of rounded probabilities, of 240. Shared
 * memory holds the queries, a ring of key and value tiles (head 64: 6 of 16 KiB, head 128: 4 of 32 KiB) and
 * staging of the result. There is one block per multiprocessor. Not measured yet. */
#include "llmc/cuda/attn_hopper.cuh"

/* --- shape --- */

constexpr int STEP = 128; /* keys */

template <int HS> struct forward_shape {
    static constexpr int TILE = ROWS * HS; /* elements, of queries, keys or values */
    static_assert(ROWS == STEP, "one tensor map has the boxes of all");
    static constexpr int SLOTS = HS == 64 ? 6 : 4;
    static constexpr size_t SHARED_BYTES = sizeof(bf16) * ((1 + SLOTS) * TILE + ROWS * STAGING_PITCH<HS>);
};

/* What the tiles of one launch have in common. */
struct forward_task {
    bf16 *out;  /* (B,T,NH*HS) */
    float *lse; /* (B,NH,T) */
    int length, NH, NKV;
    float scale;
    tile_list list; /* number 0 is the last tile of a head: the one with the most keys */
    first_keys keys;

    /* The step with the first keys that a tile of queries sees; it comes last. */
    template <hopper_kind KIND> __device__ __forceinline__ int first_step(int head, int tile) const {
        if constexpr (KIND == PLAIN) return 0;
        return keys.of(head / NH, length, tile * ROWS) / STEP;
    }
};

template <int HS> struct forward_shared {
    bf16 *queries, *ring_tiles, *staging;
    tile_place *place; /* of the queries */
    mbarrier *queries_full, *queries_empty, *full, *empty;
};

/* --- softmax: online, base 2 --- */

/* A thread's two rows. The maximum is that of the whole row, the sum that of the thread's own columns. */
struct row_softmax {
    float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
};

/* Turns scores into probabilities relative to the new maximum. `shrink` becomes the factor for earlier
 * ones. `scale` includes log2(e). A query sees its own key in the first step, so no maximum is -infinity
 * afterwards. */
DEVICE_INLINE void softmax_step(row_softmax &state, float (&s)[STEP / 2], float (&shrink)[2], float scale) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float max = state.max[h], sum = 0.0f;
#pragma unroll
        for (int j = 0; j < STEP / 8; j++) max = fmaxf(max, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 1));
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, 2));
        float base = max * scale;
        shrink[h] = fast_exp2(state.max[h] * scale - base);
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int i = 4 * j + 2 * h; i < 4 * j + 2 * h + 2; i++)
                sum += s[i] = fast_exp2(fmaf(s[i], scale, -base));
        state.max[h] = max;
        state.sum[h] = state.sum[h] * shrink[h] + sum;
    }
}

/* Masks the tile on the diagonal; the warpgroup's rows begin at its row `first_row`. */
DEVICE_INLINE void mask_keys(float (&s)[STEP / 2], int first_row) {
    int diagonal = first_row + row_of(0) - column_of(0, 0); /* seen from accumulator 0 */
#pragma unroll
    for (int j = 0; j < STEP / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (right_of_first(j, i) > diagonal) s[4 * j + i] = -INFINITY;
}

/* --- producer: one thread --- */

/* Tiles go through the ring in the order of their use: K K V K V ... K V V. */
template <int HS, hopper_kind KIND>
DEVICE_INLINE void produce(const forward_shared<HS> &shared, const CUtensorMap *map,
                           const forward_task &task) {
    using shape = forward_shape<HS>;
    constexpr int bytes = shape::TILE * (int)sizeof(bf16);
    ring<shape::SLOTS> at;
    int C = task.NH * HS, query_parity = 1;
    tile_place place = take_tile(task.list);
    for (; place.head >= 0; query_parity ^= 1) {
        int b = place.head / task.NH, col = place.head % task.NH * HS;
        int last = task.list.tiles - 1 - place.tile; /* the step on the diagonal has the number of the tile */
        int first = task.first_step<KIND>(place.head, last);
        int key_col = C + col, value_col = key_col + C;
        if (KIND != PLAIN) { /* NH/NKV neighbouring query heads share a head of keys and values */
            key_col = C + place.head % task.NH / (task.NH / task.NKV) * HS;
            value_col = key_col + task.NKV * HS;
        }
        auto load = [&](int column, int step) {
            mbarrier_wait(&shared.empty[at.slot], at.parity ^ 1);
            mbarrier_expect(&shared.full[at.slot], bytes);
            load_tile<HS, STEP>(shared.ring_tiles + at.slot * shape::TILE, map, b, step * STEP, column,
                                &shared.full[at.slot]);
            at.next();
        };
        load(key_col, last);
        mbarrier_wait(shared.queries_empty, query_parity);
        *shared.place = place;
        mbarrier_expect(shared.queries_full, bytes);
        load_tile<HS, ROWS>(shared.queries, map, b, last * ROWS, col, shared.queries_full);
        for (int step = last - 1; step >= first; step--) {
            load(key_col, step);
            load(value_col, step + 1);
        }
        load(value_col, first);
        place = take_tile(task.list);
    }
    mbarrier_wait(shared.queries_empty, query_parity);
    *shared.place = place;
    mbarrier_arrive(shared.queries_full);
}

/* --- consumer: a warpgroup --- */

/* Waits for this group's turn to start products; barrier 1 + group is passed by the other group. */
DEVICE_INLINE void take_turn(int group) { named_barrier_wait(1 + group, CONSUMERS * GROUP); }
DEVICE_INLINE void pass_turn(int group) { named_barrier_arrive(1 + (group ^ 1), CONSUMERS * GROUP); }

template <int HS>
DEVICE_INLINE void store_result(const forward_task &task, const tile_place &place, int first,
                                float (&acc)[HS / 2], const row_softmax &state, bf16 *staging) {
    int64_t C = (int64_t)task.NH * HS, b = place.head / task.NH, h = place.head % task.NH;
    float inverse[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float sum = quad_sum(state.sum[i]);
        int t = first + row_of(i);
        inverse[i] = 1.0f / sum;
        if (threadIdx.x % 4 == 0 && t < task.length)
            task.lse[(int64_t)place.head * task.length + t] = state.max[i] * task.scale + logf(sum);
    }
    store_rows<HS>(task.out + b * task.length * C + h * HS, C, first, task.length, acc, inverse, staging);
}

template <int HS, hopper_kind KIND>
DEVICE_INLINE void consume(const forward_shared<HS> &shared, const forward_task &task, int group) {
    using shape = forward_shape<HS>;
    ring<shape::SLOTS> at;
    own_rows<HS, false> queries(shared.queries + group * 64 * SLAB);
    bf16 *staging = shared.staging + group * 64 * STAGING_PITCH<HS>;
    float scale = task.scale * LOG2_E;
    int query_parity = 0;
    auto wait_for_tile = [&]() -> const bf16 * {
        mbarrier_wait(&shared.full[at.slot], at.parity);
        return shared.ring_tiles + at.slot * shape::TILE;
    };
    if (group == 1) pass_turn(group);
    for (;; query_parity ^= 1) {
        mbarrier_wait(shared.queries_full, query_parity);
        tile_place place = told_tile(shared.place);
        if (place.head < 0) break;
        int last = task.list.tiles - 1 - place.tile, first = task.first_step<KIND>(place.head, last);
        if (KIND == NARROWED) first = agreed(first);
        left_edge<KIND> edge(task.keys, place.head / task.NH, task.length, last * ROWS + group * 64);
        float s[STEP / 2], acc[HS / 2], shrink[2];
        uint32_t p[STEP / 16][4];
        row_softmax state;

        const bf16 *keys = wait_for_tile();
        wgmma_fence();
        multiply_transposed<STEP>(s, queries, keys);
        wgmma_commit();
        wgmma_wait<0>();
        pin_registers(s);
        release(&shared.empty[at.slot]);
        at.next();
        mask_keys(s, group * 64);
        edge.hide(s, last * STEP, -INFINITY);
        softmax_step(state, s, shrink, scale);
        pack<STEP>(p, s);

        for (int step = last - 1; step >= first; step--) { /* its scores, values of the step before */
            keys = wait_for_tile();
            mbarrier *keys_empty = &shared.empty[at.slot];
            at.next();
            take_turn(group);
            wgmma_fence();
            multiply_transposed<STEP>(s, queries, keys);
            wgmma_commit();
            const bf16 *values = wait_for_tile();
            wgmma_fence();
            multiply_add<STEP>(acc, p, values, step < last - 1);
            wgmma_commit();
            pass_turn(group);
            wgmma_wait<1>();
            pin_registers(s);
            release(keys_empty);
            edge.hide(s, step * STEP, -INFINITY);
            softmax_step(state, s, shrink, scale);
            settle(state.sum[0] + state.sum[1]); /* all exponentials, which run beside the products */
            wgmma_wait<0>();
            pin_registers(acc);
            release(&shared.empty[at.slot]);
            at.next();
#pragma unroll
            for (int i = 0; i < HS / 2; i++) acc[i] *= shrink[i / 2 % 2];
            pack<STEP>(p, s);
        }
        release_converged(shared.queries_empty); /* all lanes have read the place, too */

        const bf16 *values = wait_for_tile();
        wgmma_fence();
        multiply_add<STEP>(acc, p, values, last > first);
        wgmma_commit();
        wgmma_wait<0>();
        pin_registers(acc);
        release(&shared.empty[at.slot]);
        at.next();
        store_result<HS>(task, place, last * ROWS + group * 64, acc, state, staging);
    }
    if (group == 0) take_turn(group); /* the one that group 1 passed last */
}

/* --- kernel --- */

template <int HS, hopper_kind KIND>
__global__ void __launch_bounds__(THREADS, 1)
    attn_forward_hopper_kernel(const __grid_constant__ CUtensorMap map, forward_task task) {
    using shape = forward_shape<HS>;
    DYNAMIC_SHARED(bf16, tiles);
    SHARED(tile_place, place, [1]);
    SHARED(mbarrier, queries_barrier, [2]);
    SHARED(mbarrier, full, [shape::SLOTS]);
    SHARED(mbarrier, empty, [shape::SLOTS]);
    forward_shared<HS> shared = {tiles,
                                 tiles + shape::TILE,
                                 tiles + (1 + shape::SLOTS) * shape::TILE,
                                 place,
                                 &queries_barrier[0],
                                 &queries_barrier[1],
                                 full,
                                 empty};
    open_barriers(queries_barrier, full, empty);
    int group = this_group() - 1;
    if (group < 0) {
        registers_shrink<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce<HS, KIND>(shared, &map, task);
    } else {
        registers_grow<CONSUMER_REGISTERS>();
        consume<HS, KIND>(shared, task, group);
    }
}

/* --- launcher --- */

int64_t attn_forward_hopper_need(struct tensor *out, struct tensor *lse, const struct tensor *qkv,
                                 const struct tensor *prefix, const struct attn_rule *rule, int t0) {
    return t0 == 0 && hopper_takes(out, qkv, rule) ? NEEDS_ZEROS : OP_UNSUPPORTED;
}

void attn_forward_hopper(const struct op_env *env, struct tensor *out, struct tensor *lse,
                         const struct tensor *qkv, const struct tensor *prefix, const struct attn_rule *rule,
                         int t0) {
    int NH = rule->heads, NKV = rule->kv_heads;
    int64_t B = out->dim[0], T = out->dim[1], C = out->dim[2];
    with_kernel(rule, C / NH, [&](auto head_size, auto kind) {
        constexpr int HS = decltype(head_size)::value;
        constexpr hopper_kind KIND = decltype(kind)::value;
        forward_task task = {data_of<bf16>(out),
                             f32(lse),
                             (int)T,
                             NH,
                             NKV,
                             1.0f / sqrtf((float)HS),
                             list_of_tiles(env, out, rule),
                             first_keys_of(rule, T)};
        CUtensorMap map = tensor_map_3d(qkv->data, B, T, C + 2 * NKV * HS, ROWS, SLAB, SWIZZLE_128);
        launch({blocks_of(task.list), THREADS, forward_shape<HS>::SHARED_BYTES, env->stream},
               attn_forward_hopper_kernel<HS, KIND>, map, task);
    });
}

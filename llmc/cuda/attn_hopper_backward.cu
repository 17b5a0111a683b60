/* Causal attention backward on Hopper (sm_90a), also with a window, within documents and with heads of keys
 * that several query heads share, for bf16 and heads of 64 or 128 columns. attn_hopper.cu explains the forward
 * pass.
 *
 * There are two kernels of the same shape. In one a block owns 128 keys and walks the queries that see
 * them, for dk and dv; in the other it owns 128 queries and walks the keys that they see, for dq. Each of
 * the two consuming warpgroups owns 64 rows and takes the other side 64 at a time, so that little is
 * computed in vain along the diagonal (0.94 of the products count at T = 1024). A small kernel before them
 * computes D and the logarithms to base 2.
 *
 * Where query heads share keys, each query head leaves its own dk and dv in scratch, and a last kernel adds
 * up those of a group. That moves 8*C bytes a token more; with heads of 128, a loop over the query heads in
 * the block that owns the keys has too many registers.
 *
 * This takes seven products of 64x64xHS per pair of tiles, where five would do, because both kernels
 * compute S and dP. With five products every block of keys adds to dq. Without a fixed order of the
 * additions the result is not deterministic; with one, blocks wait for each other in a chain. Either way
 * each pair of tiles moves 64*HS sums in fp32 to L2 and back (32 KiB for head 64, 8 times the tiles), and
 * dS must pass through shared memory to be transposed. Here every sum stays in the registers of one warp,
 * in a fixed order, without atomics or an fp32 buffer. P and dS pass from the accumulators of one product
 * into the operand of the next, because the kernel of the keys computes them transposed. Shared memory is
 * only read.
 *
 * A pair of tiles takes, at head size 64, 512 + 384 clocks of a multiprocessor's tensor cores (128 per
 * product) and 2 * 256 clocks of exponentials. These overlap with the products of the other warpgroup and
 * of their own: dP runs while P is computed, and the last products of a step while the scores of the next
 * begin. For 64 sequences of 12 heads and 1024 positions that makes 0.4 ms if the tensor cores never wait,
 * or 640 TFLOP/s counted as five products; at the goal of 300 they are idle half of the time. Each side is
 * read from L2 once for every 128 rows of the other. Not measured yet.
 *
 * A warp issues 241 (dq) or 273 (dk, dv) instructions in such a step, two warps share a scheduler, and the
 * step of both takes the tensor cores 768 or 1024 clocks: there is room for waits. So that it stays so, the
 * step on the diagonal, which has the mask, is a copy of the loop of its own.
 *
 * A consumer's thread holds HS (dk, dv) or HS/2 (dq) sums, 64 registers of S and dP and 32 of these as
 * operands, of 240. Its own tiles are operands, too: with heads of 64 columns they stay in 32 registers, and
 * the next ones are loaded meanwhile; with heads of 128 only q of dq has registers. Shared memory holds 2
 * tiles of 128 rows, 4 (head 128: 3) pairs of tiles of 64, and staging. There is one block per
 * multiprocessor. */
#include "llmc/cuda/attn_hopper.cuh"

/* --- shape --- */

constexpr int STEP = 64; /* rows of the other side */

/* The side that a block owns; it walks the other. */
enum side { QUERIES, KEYS };

template <int HS> struct backward_shape {
    static constexpr int OWN = ROWS * HS, OTHER = STEP * HS; /* elements of a tile */
    static constexpr int SLOTS = HS == 64 ? 4 : 3;           /* of the ring, two tiles each */
    static constexpr bool RESIDENT = HS == 64;               /* own tiles; 128 columns leave no registers */
    static constexpr size_t SHARED_BYTES =
        sizeof(bf16) * (2 * OWN + 2 * SLOTS * OTHER + ROWS * STAGING_PITCH<HS>);
};

/* Of a query: lse in units of log2, and D = out . dout. */
struct alignas(8) query_statistic {
    float base, D;
};

/* What the tiles of one launch have in common. */
struct backward_task {
    bf16 *dqkv; /* (B,T,C+2*NKV*HS) */
    /* (B,T,2C) in rows of dkv_stride: dk and dv of each query head. Where query heads share keys they are in
     * scratch, and group_sum_kernel adds them up. */
    bf16 *dkv;
    int dkv_stride;
    const query_statistic *statistics; /* (B,NH,padded) */
    int length, padded, NH, NKV;       /* padded: length, rounded up to whole tiles */
    float scale;
    tile_list list;
    first_keys keys;
    const int *ends; /* NARROWED: (B,padded), of each key the end of the queries that see it */
};

template <int HS> struct backward_shared {
    bf16 *own, *ring_tiles, *staging;    /* own: two tiles; ring_tiles: two per slot */
    query_statistic (*statistics)[STEP]; /* KEYS: of the queries in each slot */
    query_statistic *own_statistics;     /* QUERIES */
    tile_place *place;                   /* of the own tiles */
    mbarrier *own_full, *own_empty, *full, *empty;
};

/* A block's tile, and the range first..end-1 of the other side's tiles of STEP rows. Warpgroup g owns the
 * 64 rows from 64*(2*tile + g) on, so the diagonal crosses them at step 2*tile + g; one of the groups has a
 * step less. */
struct tile_steps {
    int tile, first, end;
};
/* The end of the steps whose queries see some of the STEP keys that begin at ends[at]. */
DEVICE_INLINE int end_of_keys(const backward_task &task, int at) {
    return (task.ends[at + STEP - 1] + STEP - 1) / STEP;
}
template <side own, hopper_kind KIND>
DEVICE_INLINE tile_steps steps_of(const tile_place &place, const backward_task &task) {
    int all = (task.length + STEP - 1) / STEP, b = place.head / task.NH;
    if (own == KEYS) {
        int second = b * task.padded + place.tile * ROWS + STEP; /* of the warpgroup with the later keys */
        return {place.tile, 2 * place.tile, KIND == PLAIN ? all : end_of_keys(task, second)};
    }
    int tile = task.list.tiles - 1 - place.tile; /* tile 0 of the list has the most keys */
    int first = KIND == PLAIN ? 0 : task.keys.of(b, task.length, tile * ROWS) / STEP;
    return {tile, first, min(2 * tile + 2, all)};
}

/* --- statistics --- */

/* HS/8 neighbouring threads per query and head. Rows from `length` to `padded` get zeros; since q and dout
 * are zero there, they add nothing to any sum. For each row, as a key, one thread finds the end of those that
 * see it. */
template <int HS, hopper_kind KIND>
__global__ void __launch_bounds__(256)
    attn_backward_statistics_kernel(query_statistic *statistics, const bf16 *dout, const bf16 *out,
                                    const float *lse, int length, int padded, int NH, int *ends,
                                    first_keys keys) {
    constexpr int lanes = HS / vec<bf16>::size;
    int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; /* in (B,padded,NH,lanes); the grid is exact */
    int64_t row = i / (NH * lanes), b = row / padded;
    int t = (int)(row % padded), h = (int)(i / lanes % NH);
    float sum = 0.0f;
    if (t < length) {
        int64_t at = ((b * length + t) * NH * lanes + i % (NH * lanes)) * vec<bf16>::size;
        vec<bf16> o = vec<bf16>::load(out + at), d = vec<bf16>::load(dout + at);
#pragma unroll
        for (int k = 0; k < vec<bf16>::size; k++) sum = fmaf(to_float(o[k]), to_float(d[k]), sum);
    }
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (i % lanes != 0) return;
    float base = t < length ? lse[(b * NH + h) * length + t] * LOG2_E : 0.0f;
    statistics[(b * NH + h) * padded + t] = {base, sum};
    if (KIND == NARROWED && h == 0) {
        int64_t key = min(t, length - 1);
        attn_range seen_by = {key, min(key + keys.window, (int64_t)length)};
        seen_by = attn_queries_in_document(seen_by, keys.first ? keys.first + b * length : NULL, key);
        ends[b * padded + t] = (int)seen_by.end;
    }
}

/* --- producer: one thread --- */

/* Own tiles are q and dout, or k and v. A slot holds the other side: k and v, or q, dout and their
 * statistics. */
template <int HS, side own, hopper_kind KIND>
DEVICE_INLINE void produce(const backward_shared<HS> &shared, const CUtensorMap *qkv, const CUtensorMap *dout,
                           const backward_task &task) {
    using shape = backward_shape<HS>;
    constexpr int own_bytes =
        2 * shape::OWN * (int)sizeof(bf16) + (own == QUERIES ? ROWS * (int)sizeof(query_statistic) : 0);
    constexpr int slot_bytes =
        2 * shape::OTHER * (int)sizeof(bf16) + (own == KEYS ? STEP * (int)sizeof(query_statistic) : 0);
    ring<shape::SLOTS> at;
    int C = task.NH * HS, own_parity = 1;
    for (;; own_parity ^= 1) {
        tile_place place = take_tile(task.list);
        mbarrier_wait(shared.own_empty, own_parity);
        *shared.place = place;
        if (place.head < 0) break;
        tile_steps steps = steps_of<own, KIND>(place, task);
        int b = place.head / task.NH, col = place.head % task.NH * HS;
        int key_col = C + col, value_col = key_col + C;
        if (KIND != PLAIN) { /* NH/NKV neighbouring query heads share a head of keys and values */
            key_col = C + place.head % task.NH / (task.NH / task.NKV) * HS;
            value_col = key_col + task.NKV * HS;
        }
        const query_statistic *statistics = task.statistics + (int64_t)place.head * task.padded;
        mbarrier_expect(shared.own_full, own_bytes);
        if (own == QUERIES)
            bulk_load(shared.own_statistics, statistics + steps.tile * ROWS,
                      ROWS * (int)sizeof(query_statistic), shared.own_full);
#pragma unroll
        for (int part = 0; part < ROWS / STEP; part++) {
            int row = steps.tile * ROWS + part * STEP;
            bf16 *to = shared.own + part * STEP * SLAB;
            load_tile<HS, ROWS>(to, qkv, b, row, own == KEYS ? key_col : col, shared.own_full);
            load_tile<HS, ROWS>(to + shape::OWN, own == KEYS ? qkv : dout, b, row,
                                own == KEYS ? value_col : col, shared.own_full);
        }
        for (int step = steps.first; step < steps.end; step++) {
            mbarrier *full = &shared.full[at.slot];
            bf16 *to = shared.ring_tiles + at.slot * 2 * shape::OTHER;
            mbarrier_wait(&shared.empty[at.slot], at.parity ^ 1);
            mbarrier_expect(full, slot_bytes);
            load_tile<HS, STEP>(to, qkv, b, step * STEP, own == KEYS ? col : key_col, full);
            load_tile<HS, STEP>(to + shape::OTHER, own == KEYS ? dout : qkv, b, step * STEP,
                                own == KEYS ? col : value_col, full);
            if (own == KEYS)
                bulk_load(shared.statistics[at.slot], statistics + step * STEP,
                          STEP * (int)sizeof(query_statistic), full);
            at.next();
        }
    }
    mbarrier_arrive(shared.own_full);
}

/* --- consumers: a warpgroup --- */

template <int N2> DEVICE_INLINE void clear(float (&acc)[N2]) {
#pragma unroll
    for (int i = 0; i < N2; i++) acc[i] = 0.0f;
}

/* Stores the gradient of part 0 (q), 1 (k) or 2 (v), times scale. */
template <int HS, hopper_kind KIND>
DEVICE_INLINE void store_gradient(const backward_task &task, const tile_place &place, int part, int first,
                                  const float (&acc)[HS / 2], float scale, bf16 *staging) {
    int64_t C = (int64_t)task.NH * HS, b = place.head / task.NH, h = place.head % task.NH, stride = 3 * C;
    bf16 *to = task.dqkv + part * C;
    if (KIND != PLAIN) {
        stride = part ? task.dkv_stride : C + 2 * task.NKV * HS;
        to = part ? task.dkv + (part - 1) * C : task.dqkv;
    }
    float factor[2] = {scale, scale};
    store_rows<HS>(to + b * task.length * stride + h * HS, stride, first, task.length, acc, factor, staging);
}

/* Passes a slot of which this warpgroup needs nothing. */
template <int HS, class R> DEVICE_INLINE void skip_slot(const backward_shared<HS> &shared, R &at) {
    mbarrier_wait(&shared.full[at.slot], at.parity);
    release_converged(&shared.empty[at.slot]);
    at.next();
}

/* s, scores, becomes P. Rows are queries with these statistics, columns keys; those after the query are
 * `masked` in the tile on the diagonal. */
DEVICE_INLINE void probabilities(float (&s)[STEP / 2], const query_statistic (&statistic)[2], float scale,
                                 bool masked) {
    int diagonal = row_of(0) - column_of(0, 0); /* seen from accumulator 0 */
    if (masked) pin_register(diagonal);         /* else the comparisons are kept for later tiles */
#pragma unroll
    for (int j = 0; j < STEP / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &p = s[4 * j + i];
            p = fast_exp2(fmaf(p, scale, -statistic[i / 2].base));
            if (masked && right_of_first(j, i) > diagonal) p = 0.0f;
        }
}
/* The same transposed: rows are keys, columns queries, of which a thread has STEP/4. Reads D with the
 * logarithms, two queries at once. */
DEVICE_INLINE void probabilities_transposed(float (&s)[STEP / 2], float (&D)[STEP / 4],
                                            const query_statistic *statistics, float scale, bool masked) {
    int diagonal = row_of(0) - column_of(0, 0);
    if (masked) pin_register(diagonal);
#pragma unroll
    for (int j = 0; j < STEP / 8; j++) {
        vec<float> v = vec<float>::load(&statistics[column_of(j, 0)].base);
        D[2 * j] = v[1], D[2 * j + 1] = v[3];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &p = s[4 * j + i];
            p = fast_exp2(fmaf(p, scale, -v[i % 2 * 2]));
            if (masked && right_of_first(j, i) < diagonal) p = 0.0f;
        }
    }
}

/* What all lanes of a consuming warp agree on. */
template <side own, hopper_kind KIND>
DEVICE_INLINE tile_steps agreed_steps_of(const tile_place &place, const backward_task &task) {
    tile_steps steps = steps_of<own, KIND>(place, task);
    if (KIND == NARROWED) steps.first = agreed(steps.first), steps.end = agreed(steps.end);
    return steps;
}

/* dq: rows are queries, columns keys. */
template <int HS, hopper_kind KIND>
DEVICE_INLINE void consume_keys(const backward_shared<HS> &shared, const backward_task &task, int group) {
    using shape = backward_shape<HS>;
    ring<shape::SLOTS> at;
    own_rows<HS, true> query(shared.own + group * 64 * SLAB);
    own_rows<HS, shape::RESIDENT> dout(query.tile + shape::OWN);
    bf16 *staging = shared.staging + group * 64 * STAGING_PITCH<HS>;
    float scale = task.scale * LOG2_E;
    int own_parity = 0;
    for (;; own_parity ^= 1) {
        mbarrier_wait(shared.own_full, own_parity);
        tile_place place = told_tile(shared.place);
        if (place.head < 0) break;
        tile_steps steps = agreed_steps_of<QUERIES, KIND>(place, task);
        int first = steps.tile * ROWS + group * 64, diagonal = 2 * steps.tile + group;
        left_edge<KIND> edge(task.keys, place.head / task.NH, task.length, first);
        float dq[HS / 2], s[STEP / 2], dp[STEP / 2];
        uint32_t ds[STEP / 16][4];
        query_statistic statistic[2];
#pragma unroll
        for (int h = 0; h < 2; h++) statistic[h] = shared.own_statistics[group * 64 + row_of(h)];
        clear(dq);
        int before = -1; /* the slot whose keys the last product still reads */
        query.open();
        dout.open();
        if (shape::RESIDENT) release_converged(shared.own_empty);
        int step = steps.first;
        if (KIND == NARROWED)
            for (; step < edge.least / STEP; step++) skip_slot(shared, at); /* its keys come before */
#pragma unroll
        for (int masked = 0; masked < 2; masked++) /* steps before the diagonal, then the one on it */
            for (int end = min(diagonal + masked, steps.end); step < end; step++) {
                int slot = at.slot;
                const bf16 *key = shared.ring_tiles + slot * 2 * shape::OTHER, *value = key + shape::OTHER;
                mbarrier_wait(&shared.full[slot], at.parity);
                at.next();
                wgmma_fence();
                multiply_transposed<STEP>(s, query, key);
                wgmma_commit();
                multiply_transposed<STEP>(dp, dout, value);
                wgmma_commit();
                wgmma_wait<1>(); /* for the scores and the product of the step before */
                pin_registers(s);
                if (before >= 0) release(&shared.empty[before]);
                before = slot;
                probabilities(s, statistic, scale, masked);
                edge.hide(s, step * STEP, 0.0f);
                settle_all(s); /* P is computed beside dP */
                wgmma_wait<0>();
                pin_registers(dp);
#pragma unroll
                for (int i = 0; i < STEP / 2; i++) s[i] *= dp[i] - statistic[i / 2 % 2].D;
                pack<STEP>(ds, s);
                wgmma_fence();
                multiply_add<STEP>(dq, ds, key, true);
                wgmma_commit();
            }
        for (; step < steps.end; step++) skip_slot(shared, at); /* its keys come after all of these queries */
        if (!shape::RESIDENT) release_converged(shared.own_empty);
        wgmma_wait<0>();
        pin_registers(dq);
        release(&shared.empty[before]);
        store_gradient<HS, KIND>(task, place, 0, first, dq, task.scale, staging);
    }
}

/* P, transposed, becomes 0 for queries that no longer see the key of their row. The step begins with `query`;
 * `ends` are those of the warpgroup's keys. */
DEVICE_INLINE void hide_late_queries(float (&p)[STEP / 2], int query, const int *ends) {
    int thread = (int)threadIdx.x % GROUP;
    pin_register(thread); /* else its row would be kept through the loop, for which there is no register */
    ends += thread / WARP_SIZE * 16 + thread % WARP_SIZE / 4; /* row_of(0) */
    query += thread % 4 * 2;                                  /* column_of(0, 0) */
    int left[2] = {ends[0] - query, ends[8] - query};
#pragma unroll
    for (int j = 0; j < STEP / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (j * 8 + i % 2 >= left[i / 2]) p[4 * j + i] = 0.0f;
}

/* dk and dv: rows are keys, columns queries. */
template <int HS, hopper_kind KIND>
DEVICE_INLINE void consume_queries(const backward_shared<HS> &shared, const backward_task &task, int group) {
    using shape = backward_shape<HS>;
    ring<shape::SLOTS> at;
    own_rows<HS, shape::RESIDENT> key(shared.own + group * 64 * SLAB), value(key.tile + shape::OWN);
    bf16 *staging = shared.staging + group * 64 * STAGING_PITCH<HS>;
    float scale = task.scale * LOG2_E;
    int own_parity = 0;
    for (;; own_parity ^= 1) {
        mbarrier_wait(shared.own_full, own_parity);
        tile_place place = told_tile(shared.place);
        if (place.head < 0) break;
        tile_steps steps = agreed_steps_of<KEYS, KIND>(place, task);
        int first = steps.tile * ROWS + group * 64, diagonal = 2 * steps.tile + group;
        /* of the warpgroup: the end of its steps, the first one in which a key is not seen, the place in ends */
        int own_end = steps.end, edge = steps.end, ends = place.head / task.NH * task.padded + first;
        if (KIND == NARROWED) {
            own_end = agreed(end_of_keys(task, ends));
            edge = agreed(task.ends[ends] / STEP);
        }
        float dk[HS / 2], dv[HS / 2], s[STEP / 2], dp[STEP / 2], D[STEP / 4];
        /* with heads of 128 columns there are no registers for both operands: dS waits until dv has used P */
        constexpr int OPERANDS = HS <= 64 ? 2 : 1;
        uint32_t operand[OPERANDS][STEP / 16][4], (&p)[STEP / 16][4] = operand[0];
        uint32_t(&ds)[STEP / 16][4] = operand[OPERANDS - 1];
        clear(dk);
        clear(dv);
        int before = -1; /* the slot that the last products still read */
        key.open();
        value.open();
        if (shape::RESIDENT) release_converged(shared.own_empty);
        int step = steps.first;
        for (int end = min(diagonal, steps.end); step < end; step++)
            skip_slot(shared, at); /* its queries come before all of these keys */
#pragma unroll
        for (int masked = 1; masked >= 0; masked--) /* the step on the diagonal, then those behind it */
            for (int end = masked ? min(diagonal + 1, own_end) : own_end; step < end; step++) {
                int slot = at.slot;
                const bf16 *query = shared.ring_tiles + slot * 2 * shape::OTHER;
                const bf16 *dout = query + shape::OTHER;
                mbarrier_wait(&shared.full[slot], at.parity);
                at.next();
                wgmma_fence();
                multiply_transposed<STEP>(s, key, query);
                wgmma_commit();
                multiply_transposed<STEP>(dp, value, dout);
                wgmma_commit();
                wgmma_wait<1>(); /* for the scores and the products of the step before */
                pin_registers(s);
                if (before >= 0) release_converged(&shared.empty[before]); /* its statistics are read */
                before = slot;
                probabilities_transposed(s, D, shared.statistics[slot], scale, masked);
                if (KIND == NARROWED && step >= edge) hide_late_queries(s, step * STEP, task.ends + ends);
                pack<STEP>(p, s);
                wgmma_fence();
                multiply_add<STEP>(dv, p, dout, true);
                wgmma_commit();
                wgmma_wait<OPERANDS - 1>();
                pin_registers(dp);
#pragma unroll
                for (int i = 0; i < STEP / 2; i++) s[i] *= dp[i] - D[i / 4 * 2 + i % 2];
                pack<STEP>(ds, s);
                wgmma_fence();
                multiply_add<STEP>(dk, ds, query, true);
                wgmma_commit();
            }
        if (!shape::RESIDENT) release_converged(shared.own_empty);
        wgmma_wait<0>();
        pin_registers(dk);
        pin_registers(dv);
        if (before >= 0)
            release_converged(&shared.empty[before]); /* keys beyond the end may have had no step */
        if (KIND == NARROWED)
            for (; step < steps.end; step++) skip_slot(shared, at); /* its queries see only later keys */
        store_gradient<HS, KIND>(task, place, 1, first, dk, task.scale, staging);
        store_gradient<HS, KIND>(task, place, 2, first, dv, 1.0f, staging);
    }
}

/* --- kernel --- */

template <int HS, side own, hopper_kind KIND>
__global__ void __launch_bounds__(THREADS, 1)
    attn_backward_hopper_kernel(const __grid_constant__ CUtensorMap qkv,
                                const __grid_constant__ CUtensorMap dout, backward_task task) {
    using shape = backward_shape<HS>;
    DYNAMIC_SHARED(bf16, tiles);
    SHARED(mbarrier, own_barrier, [2]);
    SHARED(mbarrier, full, [shape::SLOTS]);
    SHARED(mbarrier, empty, [shape::SLOTS]);
    SHARED_ALIGNED(query_statistic, statistics, [own == KEYS ? shape::SLOTS : 1][STEP], 16);
    SHARED_ALIGNED(query_statistic, own_statistics, [own == QUERIES ? ROWS : 2], 16);
    SHARED(tile_place, place, [1]);
    backward_shared<HS> shared = {tiles,
                                  tiles + 2 * shape::OWN,
                                  tiles + 2 * shape::OWN + 2 * shape::SLOTS * shape::OTHER,
                                  statistics,
                                  own_statistics,
                                  place,
                                  &own_barrier[0],
                                  &own_barrier[1],
                                  full,
                                  empty};
    open_barriers(own_barrier, full, empty);
    int group = this_group() - 1;
    if (group < 0) {
        registers_shrink<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce<HS, own, KIND>(shared, &qkv, &dout, task);
    } else {
        registers_grow<CONSUMER_REGISTERS>();
        if (own == KEYS)
            consume_queries<HS, KIND>(shared, task, group);
        else
            consume_keys<HS, KIND>(shared, task, group);
    }
}

/* --- shared keys --- */

/* dqkv (rows,C+2*NKV*HS), its columns of keys and values, = the sums over the query heads of a group of
 * dkv (rows,2,NH,HS). A thread adds a vector of each query head. */
template <int HS>
static __global__ void __launch_bounds__(256)
    group_sum_kernel(bf16 *dqkv, const bf16 *dkv, int64_t vectors, int NH, int NKV) {
    constexpr int LANES = HS / vec<bf16>::size;
    int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; /* in (rows,2,NKV,LANES) */
    if (i >= vectors) return;
    int64_t head = i / LANES, row = head / (2 * NKV);
    int group = NH / NKV, col = (int)(i % LANES) * vec<bf16>::size;
    const bf16 *from = dkv + head * group * HS + col;
    float sum[vec<bf16>::size] = {}, x[vec<bf16>::size];
    for (int g = 0; g < group; g++) {
        to_floats(x, vec<bf16>::load(from + g * HS));
#pragma unroll
        for (int k = 0; k < vec<bf16>::size; k++) sum[k] += x[k];
    }
    vec<bf16> out;
#pragma unroll
    for (int k = 0; k < vec<bf16>::size; k++) out[k] = from_float<bf16>(sum[k]);
    out.store(dqkv + ((row + 1) * NH + head) * HS + col); /* rows of NH + 2*NKV heads */
}

/* --- launcher --- */

static int64_t padded_length(const struct tensor *out) { return round_up(out->dim[1], ROWS); }
static bool is_grouped(const struct attn_rule *rule) { return rule->kv_heads != rule->heads; }

struct backward_scratch {
    query_statistic *statistics;
    int *ends; /* NARROWED */
    bf16 *dkv; /* grouped */
    int64_t bytes;
};
static backward_scratch take_backward(void *memory, const struct tensor *out, const struct attn_rule *rule) {
    scratch_pieces s = {memory, 0};
    int64_t rows = out->dim[0] * padded_length(out);
    backward_scratch b = {};
    b.statistics = s.take<query_statistic>(rows * rule->heads);
    if (!attn_rule_is_plain(rule) || is_grouped(rule)) b.ends = s.take<int>(rows);
    if (is_grouped(rule)) b.dkv = s.take<bf16>(2 * tensor_count(out));
    b.bytes = s.bytes;
    return b;
}

int64_t attn_backward_hopper_need(struct tensor *dqkv, const struct tensor *dout, const struct tensor *out,
                                  const struct tensor *lse, const struct tensor *qkv,
                                  const struct tensor *prefix, const struct attn_rule *rule) {
    if (!hopper_takes(out, qkv, rule) || !starts_on_vector(dqkv, dout)) return OP_UNSUPPORTED;
    return take_backward(nullptr, out, rule).bytes;
}

void attn_backward_hopper(const struct op_env *env, struct tensor *dqkv, const struct tensor *dout,
                          const struct tensor *out, const struct tensor *lse, const struct tensor *qkv,
                          const struct tensor *prefix, const struct attn_rule *rule) {
    int NH = rule->heads, NKV = rule->kv_heads;
    int64_t B = out->dim[0], T = out->dim[1], C = out->dim[2], padded = padded_length(out);
    backward_scratch s = take_backward(env->scratch, out, rule);
    with_kernel(rule, C / NH, [&](auto head_size, auto kind) {
        constexpr int HS = decltype(head_size)::value;
        constexpr hopper_kind KIND = decltype(kind)::value;
        first_keys keys = first_keys_of(rule, T);
        backward_task task = {data_of<bf16>(dqkv),
                              s.dkv ? s.dkv : data_of<bf16>(dqkv) + C,
                              (int)(s.dkv ? 2 * C : 3 * C),
                              s.statistics,
                              (int)T,
                              (int)padded,
                              NH,
                              NKV,
                              1.0f / sqrtf((float)HS),
                              list_of_tiles(env, out, rule),
                              keys,
                              s.ends};
        CUtensorMap qkv_map = tensor_map_3d(qkv->data, B, T, C + 2 * NKV * HS, STEP, SLAB, SWIZZLE_128);
        CUtensorMap dout_map = tensor_map_3d(dout->data, B, T, C, STEP, SLAB, SWIZZLE_128);
        launch({grid_size(B * padded * C / vec<bf16>::size, 256), 256, 0, env->stream},
               attn_backward_statistics_kernel<HS, KIND>, s.statistics, data_of<bf16>(dout),
               data_of<bf16>(out), f32(lse), (int)T, (int)padded, NH, s.ends, keys);
        launch_config config(blocks_of(task.list), THREADS, backward_shape<HS>::SHARED_BYTES, env->stream);
        launch(config, attn_backward_hopper_kernel<HS, KEYS, KIND>, qkv_map, dout_map, task);
        launch(config, attn_backward_hopper_kernel<HS, QUERIES, KIND>, qkv_map, dout_map, task);
        int64_t vectors = B * T * 2 * NKV * HS / vec<bf16>::size;
        if (s.dkv)
            launch({grid_size(vectors, 256), 256, 0, env->stream}, group_sum_kernel<HS>, data_of<bf16>(dqkv),
                   s.dkv, vectors, NH, NKV);
    });
}

/* What both directions of attention on Hopper share: the order of a block's tiles, the ring of tiles in
 * shared memory, products of tiles, and the way of results to memory.
 *
 * A tile in shared memory is a stack of slabs of 64 columns, [HS/64][rows][64], as TMA writes it with
 * SWIZZLE_128: a row of a slab is 128 bytes, the largest that this swizzle takes. */
#ifndef LLMC_CUDA_ATTN_HOPPER_CUH
#define LLMC_CUDA_ATTN_HOPPER_CUH

#include "llmc/cuda/attn.cuh"
#include "llmc/cuda/hopper.cuh"
#include "llmc/cuda/operands.cuh"

/* --- blocks --- */

/* Warpgroup 0 is the producer: one of its threads starts the loads. The two others are consumers, each with
 * 64 rows of the block's tile. 65536 registers are 504 for each triple of threads of the three warpgroups;
 * they are divided as 24 + 2*240. */
constexpr int GROUP = 128, CONSUMERS = 2, THREADS = GROUP * (1 + CONSUMERS);
constexpr int ROWS = 64 * CONSUMERS;
constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240;
constexpr int SLAB = 64; /* columns */

constexpr float LOG2_E = 1.4426950408889634f;

/* --- which tile next --- */

/* The tiles of all heads in the order in which blocks take them: the longest first, within a party of heads
 * whose operands fit the L2 cache together, because every later tile of a head reads its keys. */
struct tile_list {
    int tiles, heads;   /* tiles of a head; heads of all sequences */
    int party, parties; /* heads of a party, of which the last has the rest; number of parties */
    unsigned *taken;    /* how many have been; of op_env.zeros */
};
struct tile_place {
    int tile; /* 0 is the longest */
    int head; /* -1: there are no more tiles */
};
DEVICE_INLINE tile_place place_of_tile(const tile_list &list, int number) {
    int per_party = list.party * list.tiles, party = min(number / per_party, list.parties - 1);
    int first = party * list.party, rest = number - party * per_party;
    int heads = party == list.parties - 1 ? list.heads - first : list.party;
    return {rest / heads, first + rest % heads};
}

/* There is one block per multiprocessor for the whole launch, so that the loads of a tile overlap with the
 * end of the one before. Each takes the next tile of the list when it has room for one: a block that shares
 * its multiprocessor, with NCCL during a reduction, takes fewer, and one that starts late takes none. Which
 * block computes a tile changes no bit of it. Every block asks until there are no more, so `taken` has
 * wrapped to 0 when the launch ends. The producer asks, while the ring holds work for the consumers, and
 * tells them. */
DEVICE_INLINE tile_place take_tile(const tile_list &list) {
    unsigned count = (unsigned)(list.tiles * list.heads);
    unsigned number = atomicInc(list.taken, count + gridDim.x - 1);
    tile_place place = number < count ? place_of_tile(list, (int)number) : tile_place{0, -1};
    return {__shfl_sync(1u, place.tile, 0), __shfl_sync(1u, place.head, 0)};
}
/* What the producer wrote to shared memory, equal in all lanes also for the compiler (see this_group). */
DEVICE_INLINE tile_place told_tile(const tile_place *place) {
    return {__shfl_sync(ALL_LANES, place->tile, 0), __shfl_sync(ALL_LANES, place->head, 0)};
}

/* Host side: the list in parties of up to `fitting` heads. */
static inline tile_list list_of_tiles(int64_t tiles, int64_t heads, int64_t fitting, unsigned *taken) {
    int64_t party = min_i64(max_i64(1, fitting), heads);
    return {(int)tiles, (int)heads, (int)party, (int)(heads / party), taken};
}
static inline int multiprocessors() {
    int device, count;
    cuda_check(cudaGetDevice(&device));
    cuda_check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}
/* The list of a launch, whose tiles share T rows of 2*HS columns of a head; and its grid. Query heads of a
 * group, which are neighbours in the list, share them, too. */
static inline tile_list list_of_tiles(const struct op_env *env, const struct tensor *out,
                                      const struct attn_rule *rule) {
    constexpr int64_t L2_SHARE = 16 << 20; /* of the 50 MiB of an H100 or H200 */
    int64_t B = out->dim[0], T = out->dim[1], NH = rule->heads, group = NH / rule->kv_heads;
    int64_t bytes = 2 * T * out->dim[2] / NH * (int64_t)sizeof(bf16);
    return list_of_tiles(ceil_div(T, ROWS), B * NH, L2_SHARE / bytes * group, (unsigned *)env->zeros);
}
static inline unsigned blocks_of(const tile_list &list) {
    return (unsigned)min((int64_t)list.tiles * list.heads, (int64_t)multiprocessors());
}

/* --- rules --- */

/* What a kernel is compiled for, so that plain attention (attn_rule_is_plain) pays nothing for other rules.
 * NARROWED: a window or documents narrow the causal mask, or query heads share keys. */
enum hopper_kind { PLAIN, NARROWED };

/* Where the keys that a query sees begin. */
struct first_keys {
    int window;           /* at most the length */
    const int32_t *first; /* (B,T) or NULL: attn_rule.h */

    /* Of query t of sequence b, or of the last query if t is beyond the end. It never falls with t. */
    __device__ __forceinline__ int of(int b, int length, int t) const {
        t = min(t, length - 1);
        int key = max(t - window + 1, 0);
        return first ? max(key, first[(int64_t)b * length + t]) : key;
    }
};
static inline first_keys first_keys_of(const struct attn_rule *rule, int64_t T) {
    return {(int)(rule->mask == ATTN_WINDOW ? min_i64(rule->window, T) : T),
            rule->first ? i32(rule->first) : NULL};
}

/* Bytes of scratch for a kernel that wants none itself: op_env.zeros comes with scratch only. */
constexpr int64_t NEEDS_ZEROS = 1;

/* Do the kernels take these operands? The number of a tile is an int. */
static inline bool hopper_takes(const struct tensor *out, const struct tensor *qkv,
                                const struct attn_rule *rule) {
    int64_t NH = rule->heads, HS = out->dim[2] / NH;
    return rule->score == ATTN_SCALED_DOT && (rule->mask == ATTN_CAUSAL || rule->mask == ATTN_WINDOW) &&
           rule->softcap == 0.0f && !rule->dropout && out->dtype == DTYPE_BF16 && (HS == 64 || HS == 128) &&
           starts_on_vector(out, qkv) && out->dim[1] < (1 << 24) &&
           ceil_div(out->dim[1], ROWS) * out->dim[0] * NH < (1 << 30);
}

/* Calls f with the head size and the kind of the rule as compile-time numbers. */
template <class F> static void with_kernel(const struct attn_rule *rule, int64_t HS, F f) {
    std::integral_constant<hopper_kind, PLAIN> plain;
    std::integral_constant<hopper_kind, NARROWED> narrowed;
    std::integral_constant<int, 64> head_64;
    std::integral_constant<int, 128> head_128;
    if (attn_rule_is_plain(rule) && rule->kv_heads == rule->heads)
        HS == 64 ? f(head_64, plain) : f(head_128, plain);
    else
        HS == 64 ? f(head_64, narrowed) : f(head_128, narrowed);
}

/* --- the ring --- */

/* The place of a producer or consumer in a ring of slots. Each slot has a barrier `full`, which counts the
 * bytes of the slot, and a barrier `empty`, at which every consuming warp arrives. */
template <int SLOTS> struct ring {
    int slot = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++slot == SLOTS) slot = 0, parity ^= 1;
    }
};
constexpr int CONSUMING_WARPS = CONSUMERS * GROUP / WARP_SIZE;

/* Initialises all barriers of a kernel: {full, empty} of its own tile, and those of the ring. Every thread
 * of the block must call. */
template <int SLOTS>
DEVICE_INLINE void open_barriers(mbarrier (&own)[2], mbarrier (&full)[SLOTS], mbarrier (&empty)[SLOTS]) {
    if (threadIdx.x == 0) {
        mbarrier_init(&own[0], 1);
        mbarrier_init(&own[1], CONSUMING_WARPS);
        for (int s = 0; s < SLOTS; s++) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], CONSUMING_WARPS);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
}
/* This warp has read the slot. Only after a wgmma_wait, which its lanes pass together. */
DEVICE_INLINE void release(mbarrier *empty) {
    if (threadIdx.x % WARP_SIZE == 0) mbarrier_arrive(empty);
}
/* The same where no wgmma has converged the lanes: a lane that still waited for the slot when the next
 * phase began would miss its phase. */
DEVICE_INLINE void release_converged(mbarrier *empty) {
    __syncwarp();
    release(empty);
}

/* Starts loading rows from `row` on of columns col..col+HS-1 of matrix b; rows beyond its end become
 * zeros. */
template <int HS, int TILE_ROWS>
DEVICE_INLINE void load_tile(bf16 *tile, const CUtensorMap *map, int b, int row, int col, mbarrier *full) {
#pragma unroll
    for (int slab = 0; slab < HS / SLAB; slab++)
        tma_load_3d(tile + slab * TILE_ROWS * SLAB, map, b, row, col + slab * SLAB, full);
}

/* --- products of a warpgroup's 64 rows; started, not waited for --- */

/* Bytes from the start of a tile of TILE_ROWS rows to its columns 16*k.. */
template <int TILE_ROWS> DEVICE_INLINE constexpr int columns_at(int k) {
    return (k * 16 / SLAB * TILE_ROWS * SLAB + k * 16 % SLAB) * (int)sizeof(bf16);
}

/* The warpgroup's 64 rows of a tile of ROWS rows, operand a of all products with them. RESIDENT ones stay in
 * registers from open() on, which comes after the tile's arrival. The others are read from shared memory by
 * every product, and with b that is 128 bytes a clock, as much as shared memory gives. */
template <int HS, bool RESIDENT> struct own_rows {
    const bf16 *tile; /* at the first of the rows */
    uint32_t kept[RESIDENT ? HS / 16 : 1][4];

    __device__ __forceinline__ explicit own_rows(const bf16 *tile_) : tile(tile_) {}
    __device__ __forceinline__ void open() {
        if constexpr (RESIDENT) {
            int lane = (int)threadIdx.x % WARP_SIZE;
            int row = (int)threadIdx.x % GROUP / WARP_SIZE * 16 + lane % 16; /* of chunk lane/16 */
            const bf16 *at = tile + row * SLAB;
#pragma unroll
            for (int k = 0; k < HS / 16; k++) {
                int chunk = (k * 2 % 8 + lane / 16) ^ row % 8; /* as SWIZZLE_128 places it */
                ldmatrix_x4(kept[k], at + k * 16 / SLAB * ROWS * SLAB + chunk * 8);
            }
        }
    }
};

/* s (64,N) = own (64,HS) @ b (N,HS)^T; b is a tile of B_ROWS rows */
template <int B_ROWS, int HS, bool RESIDENT, int N2>
DEVICE_INLINE void multiply_transposed(float (&s)[N2], const own_rows<HS, RESIDENT> &own, const bf16 *b) {
    uint64_t columns = wgmma_descriptor(b, 16, 1024, SWIZZLE_128);
#pragma unroll
    for (int k = 0; k < HS / 16; k++) {
        uint64_t b_k = descriptor_after(columns, columns_at<B_ROWS>(k));
        if constexpr (RESIDENT)
            wgmma<false>(s, own.kept[k], b_k, k > 0);
        else
            wgmma<false, false>(
                s, descriptor_after(wgmma_descriptor(own.tile, 16, 1024, SWIZZLE_128), columns_at<ROWS>(k)),
                b_k, k > 0);
    }
}
/* acc (64,HS) = or += p (64,STEP) @ tile (STEP,HS) */
template <int STEP, int N2>
DEVICE_INLINE void multiply_add(float (&acc)[N2], const uint32_t (&p)[STEP / 16][4], const bf16 *tile,
                                bool accumulate) {
    uint64_t rows = wgmma_descriptor(tile, STEP * SLAB * sizeof(bf16), 1024, SWIZZLE_128);
#pragma unroll
    for (int k = 0; k < STEP / 16; k++)
        wgmma<true>(acc, p[k], descriptor_after(rows, k * 16 * SLAB * sizeof(bf16)), accumulate || k > 0);
}
/* p = s, rounded to bf16, in the layout of multiply_add's operand */
template <int STEP> DEVICE_INLINE void pack(uint32_t (&p)[STEP / 16][4], const float (&s)[STEP / 2]) {
#pragma unroll
    for (int k = 0; k < STEP / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = 8 * k + i / 2 * 4 + i % 2 * 2;
            p[k][i] = pack_bf16(s[at], s[at + 1]);
        }
}

/* Accumulator d[4j + i] of a thread is row row_of(i / 2) of the warpgroup's 64, column column_of(j, i). */
DEVICE_INLINE int row_of(int h) {
    int thread = (int)threadIdx.x % GROUP;
    return thread / WARP_SIZE * 16 + h * 8 + thread % WARP_SIZE / 4;
}
DEVICE_INLINE int column_of(int j, int i) { return j * 8 + (int)threadIdx.x % 4 * 2 + i % 2; }

/* How much further right of the diagonal, in columns less rows, accumulator d[4j + i] is than d[0]. */
DEVICE_INLINE int right_of_first(int j, int i) { return j * 8 + i % 2 - i / 2 * 8; }

/* x, which is equal in all lanes of a warp, from lane 0, so that the compiler knows that they agree: what
 * depends on it, control flow and descriptors, then lives in uniform registers, where wgmma takes descriptors
 * from. */
DEVICE_INLINE int agreed(int x) { return __shfl_sync(ALL_LANES, x, 0); }
/* The number of this thread's warpgroup. */
DEVICE_INLINE int this_group() { return agreed((int)threadIdx.x / GROUP); }

/* Where the keys begin that the 64 queries of a warpgroup see, which are its rows. */
template <hopper_kind KIND> struct left_edge {
    int row[2] = {};         /* of the thread's two queries */
    int least = 0, most = 0; /* of the first and of the last query */

    __device__ __forceinline__ left_edge(const first_keys &keys, int b, int length, int query) {
        if constexpr (KIND == NARROWED) {
            least = agreed(keys.of(b, length, query));
            most = agreed(keys.of(b, length, query + 63));
            for (int h = 0; h < 2; h++) row[h] = keys.of(b, length, query + row_of(h));
        }
    }
    /* In a tile that begins with this key, what belongs to keys that are not seen becomes `hidden`. */
    template <int N2> __device__ __forceinline__ void hide(float (&s)[N2], int key, float hidden) const {
        if constexpr (KIND == NARROWED)
            if (key < most)
#pragma unroll
                for (int i = 0; i < N2; i++)
                    if (key + column_of(i / 4, i % 2) < row[i / 2 % 2]) s[i] = hidden;
    }
};

/* The sum over the four lanes that share a row. */
DEVICE_INLINE float quad_sum(float v) {
    v += __shfl_xor_sync(ALL_LANES, v, 1);
    return v + __shfl_xor_sync(ALL_LANES, v, 2);
}

/* --- results --- */

template <int HS> constexpr int STAGING_PITCH = HS + 8; /* rows in different banks, 16-byte aligned */

/* Writes the warpgroup's accumulated rows, times scale[half], to rows first.. < limit of global memory,
 * `stride` apart, by way of its `staging` (64 rows of STAGING_PITCH). A warp handles its 16 rows alone. */
template <int HS>
DEVICE_INLINE void store_rows(bf16 *rows, int64_t stride, int first, int limit, const float (&acc)[HS / 2],
                              const float (&scale)[2], bf16 *staging) {
    int thread = (int)threadIdx.x % GROUP;
    pin_register(thread); /* else addresses would be computed before the products and take their registers */
    int warp = thread / WARP_SIZE, lane = thread % WARP_SIZE;
    bf16 *to = staging + (warp * 16 + lane / 4) * STAGING_PITCH<HS> + lane % 4 * 2; /* of acc[0] */
    __syncwarp(); /* the rows of the previous tile have left */
#pragma unroll
    for (int j = 0; j < HS / 8; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int at = 4 * j + 2 * h;
            *reinterpret_cast<uint32_t *>(to + h * 8 * STAGING_PITCH<HS> + j * 8) =
                pack_bf16(acc[at] * scale[h], acc[at + 1] * scale[h]);
        }
    __syncwarp();
    constexpr int chunks = HS / 8;
#pragma unroll
    for (int i = lane; i < 16 * chunks; i += WARP_SIZE) {
        int r = warp * 16 + i / chunks, c = i % chunks * 8;
        if (first + r < limit)
            vec<bf16>::load(staging + r * STAGING_PITCH<HS> + c).store(rows + (first + r) * stride + c);
    }
}

#endif

/* llmc/cuda/hopper.cuh on an sm_90 GPU or the simulated one: a matrix product in which one warpgroup loads
 * tiles by TMA and another multiplies them by wgmma, through a ring of stages, in both operand layouts and
 * odd sizes. Then every instance of wgmma alone, stacks of matrices, warpgroups that take turns, and the
 * order of attention's tiles. */
#include "test/cuda/test_cuda.h"

#include "llmc/cuda/attn_hopper.cuh"

enum { TILE = 64, STAGES = 3, TILE_BYTES = TILE * TILE * 2 };

/* d (M,N) fp32 = a (M,K) @ b; b is (N,K) if K-major, (K,N) if MN-major. 256 threads per 64x64 tile. */
template <bool b_mn_major>
static __global__ void __launch_bounds__(256)
    product_kernel(float *d, const __grid_constant__ CUtensorMap map_a,
                   const __grid_constant__ CUtensorMap map_b, int M, int N, int K) {
    DYNAMIC_SHARED(bf16, tiles); /* [STAGES][a | b] */
    SHARED(mbarrier, full, [STAGES]);
    SHARED(mbarrier, empty, [STAGES]);
    int thread = (int)threadIdx.x, row0 = (int)blockIdx.y * TILE, col0 = (int)blockIdx.x * TILE;
    int steps = (K + TILE - 1) / TILE;
    if (thread == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&full[s], 1);
            mbarrier_init(&empty[s], 128);
        }
        mbarrier_fence_init();
    }
    __syncthreads();
    if (thread < 128) { /* the loading warpgroup, of which one thread works */
        for (int i = 0; i < steps && thread == 0; i++) {
            int s = i % STAGES;
            bf16 *a = tiles + s * 2 * TILE * TILE, *b = a + TILE * TILE;
            mbarrier_wait(&empty[s], (i / STAGES & 1) ^ 1);
            mbarrier_expect(&full[s], 2 * TILE_BYTES);
            tma_load_2d(a, &map_a, row0, i * TILE, &full[s]);
            if (b_mn_major)
                tma_load_2d(b, &map_b, i * TILE, col0, &full[s]);
            else
                tma_load_2d(b, &map_b, col0, i * TILE, &full[s]);
        }
        return;
    }
    float sum[32] = {};
    for (int i = 0; i < steps; i++) {
        int s = i % STAGES;
        const bf16 *a = tiles + s * 2 * TILE * TILE, *b = a + TILE * TILE;
        mbarrier_wait(&full[s], i / STAGES & 1);
        wgmma_fence();
        for (int k = 0; k < TILE; k += 16) {
            uint64_t da = wgmma_descriptor(a + k, 16, 1024, SWIZZLE_128);
            uint64_t db = b_mn_major ? wgmma_descriptor(b + k * TILE, TILE_BYTES, 1024, SWIZZLE_128)
                                     : wgmma_descriptor(b + k, 16, 1024, SWIZZLE_128);
            wgmma<false, b_mn_major>(sum, da, db, true);
        }
        wgmma_commit();
        wgmma_wait<0>();
        mbarrier_arrive(&empty[s]);
    }
    int lane = thread % 32, row = row0 + (thread - 128) / 32 * 16 + lane / 4;
    for (int j = 0; j < 8; j++)
        for (int h = 0; h < 4; h++) {
            int r = row + h / 2 * 8, c = col0 + j * 8 + lane % 4 * 2 + h % 2;
            if (r < M && c < N) d[(int64_t)r * N + c] = sum[j * 4 + h];
        }
}

/* Small integers: the result is exact. */
template <bool b_mn_major> static void check_product(int M, int N, int K) {
    buffer<bf16> a((int64_t)M * K), b((int64_t)N * K);
    buffer<float> d((int64_t)M * N);
    for (int i = 0; i < M * K; i++) a.host[(size_t)i] = from_float_host<bf16>((float)((i * 7) % 13 - 6));
    for (int i = 0; i < N * K; i++) b.host[(size_t)i] = from_float_host<bf16>((float)((i * 5) % 11 - 5));
    a.upload();
    b.upload();
    CUtensorMap map_a = tensor_map_2d(a.device, M, K, TILE, TILE, SWIZZLE_128);
    CUtensorMap map_b = b_mn_major ? tensor_map_2d(b.device, K, N, TILE, TILE, SWIZZLE_128)
                                   : tensor_map_2d(b.device, N, K, TILE, TILE, SWIZZLE_128);
    launch({dim3((unsigned)(N + TILE - 1) / TILE, (unsigned)(M + TILE - 1) / TILE), 256,
            STAGES * 2 * TILE_BYTES},
           product_kernel<b_mn_major>, d.device, map_a, map_b, M, N, K);
    d.download();
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            float want = 0;
            for (int k = 0; k < K; k++)
                want += to_float_host(a.host[(size_t)(m * K + k)]) *
                        to_float_host(b.host[(size_t)(b_mn_major ? k * N + n : n * K + k)]);
            if (!(d.host[(size_t)(m * N + n)] == want))
                fail_msg("(%d,%d) of (%d,%d,%d) is %g, should be %g", m, n, M, N, K,
                         (double)d.host[(size_t)(m * N + n)], (double)want);
        }
}

/* --- every shape and kind of operand of wgmma --- */

enum kind { SHARED_K_MAJOR, SHARED_MN_MAJOR, REGISTERS };

/* d (64,N) = a (64,64) @ b (64,N), where a and b are matrix 1 of three. `before` is another product, whose
 * group still runs when the kernel waits for that of d. Tiles come by TMA, in slabs of 64 columns. */
template <kind a_kind, bool b_mn_major, int N>
static __global__ void __launch_bounds__(128)
    shapes_kernel(float *d, float *late, const bf16 *a, const __grid_constant__ CUtensorMap map_a,
                  const __grid_constant__ CUtensorMap map_b) {
    DYNAMIC_SHARED(bf16, tiles); /* a | b */
    SHARED(mbarrier, full, [1]);
    int thread = (int)threadIdx.x, lane = thread % 32, row = thread / 32 * 16 + lane / 4;
    bf16 *tile_b = tiles + 64 * 64;
    if (thread == 0) {
        mbarrier_init(full, 1);
        mbarrier_fence_init();
        mbarrier_expect(full, (64 + N) * 64 * 2);
        tma_load_3d(tiles, &map_a, 1, 0, 0, full);
        for (int slab = 0; slab < (b_mn_major ? N / 64 : 1); slab++)
            tma_load_3d(tile_b + slab * 64 * 64, &map_b, 1, 0, slab * 64, full);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    uint32_t own[4][4];
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++)
            memcpy(&own[k][i], a + (64 + row + i % 2 * 8) * 64 + k * 16 + i / 2 * 8 + lane % 4 * 2, 4);
    float sum[N / 2], other[32];
    for (int i = 0; i < N / 2; i++) sum[i] = 1.0f; /* not to be added to */
    for (int i = 0; i < 32; i++) other[i] = 2.0f;  /* to be added to */
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        uint64_t db = b_mn_major ? wgmma_descriptor(tile_b + k * 16 * 64, 64 * 128, 1024, SWIZZLE_128)
                                 : wgmma_descriptor(tile_b + k * 16, 16, 1024, SWIZZLE_128);
        if constexpr (a_kind == REGISTERS)
            wgmma<b_mn_major>(sum, own[k], db, k > 0);
        else if constexpr (a_kind == SHARED_MN_MAJOR)
            wgmma<true, b_mn_major>(sum, wgmma_descriptor(tiles + k * 16 * 64, 64 * 128, 1024, SWIZZLE_128),
                                    db, k > 0);
        else
            wgmma<false, b_mn_major>(sum, wgmma_descriptor(tiles + k * 16, 16, 1024, SWIZZLE_128), db, k > 0);
    }
    wgmma_commit();
    wgmma_fence();
    wgmma<false, false>(other, wgmma_descriptor(tiles, 16, 1024, SWIZZLE_128),
                        wgmma_descriptor(tiles, 16, 1024, SWIZZLE_128), true);
    wgmma_commit();
    wgmma_wait<1>();
    pin_registers(sum);
    for (int i = 0; i < N / 2; i++) d[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = sum[i];
    wgmma_wait<0>();
    pin_registers(other);
    for (int i = 0; i < 32; i++)
        late[(row + i / 2 % 2 * 8) * 64 + i / 4 * 8 + lane % 4 * 2 + i % 2] = other[i];
}

/* Matrices have fewer rows than a box; the rest must read as zeros, not as the next matrix. */
template <kind a_kind, bool b_mn_major, int N> static void check_shape() {
    constexpr int K = 64, rows_b = b_mn_major ? K - 3 : N - 3, cols_b = b_mn_major ? N : K;
    buffer<bf16> a(3 * 64 * K), b(3 * rows_b * cols_b);
    buffer<float> d(64 * N), late(64 * 64);
    for (size_t i = 0; i < a.host.size(); i++) a.host[i] = from_float_host<bf16>((float)((i * 7) % 13) - 6);
    for (size_t i = 0; i < b.host.size(); i++) b.host[i] = from_float_host<bf16>((float)((i * 5) % 11) - 5);
    a.upload();
    b.upload();
    launch({1, 128, (64 + N) * 64 * 2}, shapes_kernel<a_kind, b_mn_major, N>, d.device, late.device, a.device,
           tensor_map_3d(a.device, 3, 64, K, 64, 64, SWIZZLE_128),
           tensor_map_3d(b.device, 3, rows_b, cols_b, b_mn_major ? 64 : N, 64, SWIZZLE_128));
    d.download();
    late.download();
    auto at_a =
        [&](int m,
            int k) { /* transposed where it is MN-major */
                     return to_float_host(
                         a.host[(size_t)(a_kind == SHARED_MN_MAJOR ? (64 + k) * 64 + m : (64 + m) * 64 + k)]);
        };
    auto at_b = [&](int k, int n) {
        int r = b_mn_major ? k : n, c = b_mn_major ? n : k;
        return r < rows_b ? to_float_host(b.host[(size_t)((rows_b + r) * cols_b + c)]) : 0.0f;
    };
    for (int m = 0; m < 64; m++)
        for (int n = 0; n < N; n++) {
            float want = 0;
            for (int k = 0; k < K; k++) want += at_a(m, k) * at_b(k, n);
            if (!(d.host[(size_t)(m * N + n)] == want))
                fail_msg("(%d,%d) of %d columns is %g, should be %g", m, n, N,
                         (double)d.host[(size_t)(m * N + n)], (double)want);
        }
    for (int m = 0; m < 64; m++)
        for (int n = 0; n < 64; n++) {
            float want = 2;
            for (int k = 0; k < 16; k++)
                want += to_float_host(a.host[(size_t)((64 + m) * 64 + k)]) *
                        to_float_host(a.host[(size_t)((64 + n) * 64 + k)]);
            if (!(late.host[(size_t)(m * 64 + n)] == want))
                fail_msg("(%d,%d) of the later product is %g, should be %g", m, n,
                         (double)late.host[(size_t)(m * 64 + n)], (double)want);
        }
}

/* --- registers, named barriers, bulk copies --- */

/* Two warpgroups take turns to compute value = 2*value + number; the third loads the numbers. */
static __global__ void __launch_bounds__(384, 1) turns_kernel(int *out, const int *numbers, int rounds) {
    SHARED_ALIGNED(int, number, [64], 16);
    SHARED(int, value, [1]);
    SHARED(mbarrier, full, [1]);
    int group = (int)threadIdx.x / 128;
    if (threadIdx.x == 0) {
        value[0] = 1;
        mbarrier_init(full, 1);
        mbarrier_fence_init();
    }
    __syncthreads();
    if (group == 0) {
        registers_shrink<24>();
        if (threadIdx.x == 0) {
            mbarrier_expect(full, sizeof number);
            bulk_load(number, numbers, sizeof number, full);
        }
        return;
    }
    registers_grow<240>();
    mbarrier_wait(full, 0);
    if (group == 2) named_barrier_arrive(1, 256);
    for (int i = 0; i < rounds; i++) {
        named_barrier_wait(group, 256);
        if (threadIdx.x % 128 == 77) value[0] = 2 * value[0] + number[2 * i + group - 1];
        named_barrier_arrive(3 - group, 256);
    }
    if (group == 1) named_barrier_wait(1, 256);
    if (threadIdx.x == 128) out[0] = value[0];
}

/* --- the order of attention's tiles --- */

/* taken (tiles*heads): the tiles in the order in which they were taken, as tile*heads + head. */
static __global__ void take_kernel(int *taken, unsigned *count, tile_list list) {
    for (tile_place place; (place = take_tile(list)).head >= 0;)
        taken[atomicAdd(count, 1u)] = place.tile * list.heads + place.head;
}

/* Every tile is taken once, by any number of blocks, and the counter is 0 again at the end. One block takes
 * them ordered by party, then by length. Returns by what share of the mean the busiest of `blocks` exceeds
 * it. Each block takes its next tile when it is done with the one before, and a tile takes as long as it has
 * steps. */
static double check_tiles(int tiles, int heads, int fitting, int blocks) {
    int all = tiles * heads;
    buffer<unsigned> counters(2); /* of the list, of what was taken */
    buffer<int> taken(all);
    tile_list list = list_of_tiles(tiles, heads, fitting, counters.device);
    std::vector<int> seen((size_t)all), work((size_t)blocks);
    cuda_check(cudaMemset(counters.device, 0, counters.bytes()));
    for (int grid : {blocks < all ? blocks : all, 1}) {
        cuda_check(cudaMemset(counters.device + 1, 0, sizeof(unsigned)));
        launch({(unsigned)grid, 1}, take_kernel, taken.device, counters.device + 1, list);
        counters.download();
        taken.download();
        assert_int_equal(counters.host[0], 0);
        assert_int_equal(counters.host[1], all);
        for (int t : taken.host) seen[(size_t)t]++;
    }
    for (int times : seen) assert_int_equal(times, 2);
    size_t number = 0;
    int total = 0;
    for (int first = 0; first < heads;) {
        int end = heads - first < 2 * list.party ? heads : first + list.party;
        for (int tile = 0; tile < tiles; tile++)
            for (int head = first; head < end; head++) {
                assert_int_equal(taken.host[number++], tile * heads + head);
                int *least = &work[0];
                for (int &w : work)
                    if (w < *least) least = &w;
                *least += tiles - tile;
                total += tiles - tile;
            }
        first = end;
    }
    int most = 0;
    for (int w : work) most = w > most ? w : most;
    return most / ((double)total / blocks) - 1.0;
}

static bool has_hopper() {
    int major = 0;
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    return major == 9;
}

static void test_k_major(void **) {
    if (!has_hopper()) skip();
    check_product<false>(64, 64, 256);
    check_product<false>(100, 72, 200);
}
static void test_mn_major(void **) {
    if (!has_hopper()) skip();
    check_product<true>(64, 64, 256);
    check_product<true>(100, 72, 200);
}

static void test_shapes(void **) {
    if (!has_hopper()) skip();
    check_shape<SHARED_K_MAJOR, false, 64>();
    check_shape<SHARED_K_MAJOR, true, 64>();
    check_shape<SHARED_MN_MAJOR, false, 64>();
    check_shape<SHARED_MN_MAJOR, true, 64>();
    check_shape<REGISTERS, false, 64>();
    check_shape<REGISTERS, true, 64>();
    check_shape<SHARED_K_MAJOR, false, 128>();
    check_shape<SHARED_K_MAJOR, true, 128>();
    check_shape<SHARED_MN_MAJOR, true, 128>();
    check_shape<REGISTERS, false, 128>();
    check_shape<REGISTERS, true, 128>();
}
static void test_turns(void **) {
    if (!has_hopper()) skip();
    enum { ROUNDS = 9 };
    buffer<int> numbers(64), out(1);
    int want = 1;
    for (int i = 0; i < 64; i++) numbers.host[(size_t)i] = i * 5 % 7;
    for (int i = 0; i < 2 * ROUNDS; i++) want = 2 * want + numbers.host[(size_t)i];
    numbers.upload();
    launch({1, 384}, turns_kernel, out.device, numbers.device, (int)ROUNDS);
    out.download();
    assert_int_equal(out.host[0], want);
}

static void test_tiles(void **) { /* on any GPU */
    check_tiles(1, 1, 1, 1);
    check_tiles(5, 7, 3, 4);
    check_tiles(3, 2, 0, 6);
    assert_true(check_tiles(8, 24, 24, 12) == 0.0);
    /* only the ends, where not every block has a tile left, lose */
    assert_true(check_tiles(8, 770, 64, 132) < 0.02);
    assert_true(check_tiles(9, 300, 8, 13) < 0.02);
    assert_true(check_tiles(16, 192, 32, 132) < 0.02);
}

int main(int argc, char **argv) {
    require_device();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_k_major), cmocka_unit_test(test_mn_major),
                                       cmocka_unit_test(test_shapes), cmocka_unit_test(test_turns),
                                       cmocka_unit_test(test_tiles)};
    return test_main(argc, argv, tests, NULL, NULL);
}

/* llmc/cuda/hopper.cuh on an sm_90 GPU or the simulated one: a matrix product in which one warpgroup loads
 * tiles by TMA and another multiplies them by wgmma, through a ring of stages; both operand layouts, and odd
 * sizes. */
#include "test/test_cuda.h"

#include "llmc/cuda/hopper.cuh"

enum { TILE = 64, STAGES = 3, TILE_BYTES = TILE * TILE * 2 };

/* d (M,N) fp32 = a (M,K) @ b, b being (N,K) for K-major, (K,N) for MN-major. 256 threads a 64x64 tile. */
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
    if (thread < 128) { /* the loading warpgroup; one thread does it */
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
            wgmma_m64n64k16<false, b_mn_major>(sum, da, db, true);
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

int main(void) {
    require_device();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_k_major), cmocka_unit_test(test_mn_major)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

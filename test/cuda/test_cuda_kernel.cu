/* The primitives of llmc/cuda/kernel.cuh, on a GPU or on the simulated one, each against a plain loop on
 * the host. A misread register layout would be wrong in kernels and simulation alike; on a GPU this test
 * shows it. */
#include "test/cuda/test_cuda.h"

/* --- warps and blocks --- */

static __global__ void reduce_kernel(float *sums, float *maxima, const float *x) {
    SHARED(float, scratch, [32]);
    float v = x[threadIdx.x];
    sums[threadIdx.x] = block_sum(v, scratch);
    maxima[threadIdx.x] = block_max(v, scratch); /* reuses the scratch at once */
    float s = warp_sum(v), m = warp_max(v);
    if (threadIdx.x % WARP_SIZE == 5) {
        sums[blockDim.x + threadIdx.x / WARP_SIZE] = s;
        maxima[blockDim.x + threadIdx.x / WARP_SIZE] = m;
    }
}

static void test_reductions(void **) {
    for (int threads : {32, 96, 256, 1024}) {
        buffer<float> x(threads), sums(threads + 32), maxima(threads + 32);
        for (int i = 0; i < threads; i++) x.host[i] = (float)((i * 37) % 101) - 120.0f; /* all negative */
        x.upload();
        launch({1, (unsigned)threads}, reduce_kernel, sums.device, maxima.device, x.device);
        sums.download();
        maxima.download();
        float total = 0, most = -INFINITY;
        for (int w = 0; w < threads / 32; w++) {
            float warp_total = 0, warp_most = -INFINITY;
            for (int i = w * 32; i < w * 32 + 32; i++) {
                warp_total += x.host[i];
                warp_most = fmaxf(warp_most, x.host[i]);
            }
            assert_true(sums.host[threads + w] == warp_total && maxima.host[threads + w] == warp_most);
            total += warp_total;
            most = fmaxf(most, warp_most);
        }
        for (int i = 0; i < threads; i++) assert_true(sums.host[i] == total && maxima.host[i] == most);
    }
}

/* Shuffles with widths, partial masks, votes: 13 results per lane. */
enum { WARP_RESULTS = 13 };
static __global__ void warp_kernel(int *out) {
    int lane = (int)threadIdx.x, *o = out + lane * WARP_RESULTS;
    o[0] = __shfl_sync(ALL_LANES, lane * 10, 5, 8);
    o[1] = __shfl_xor_sync(ALL_LANES, lane * 10, 3);
    o[2] = __shfl_down_sync(ALL_LANES, lane * 10, 4, 16);
    o[3] = __shfl_up_sync(ALL_LANES, lane * 10, 3, 8);
    o[4] = (int)__ballot_sync(ALL_LANES, lane % 3 == 0);
    o[5] = __any_sync(ALL_LANES, lane == 7);
    o[6] = __all_sync(ALL_LANES, lane < 31);
    o[7] = __reduce_add_sync(ALL_LANES, lane);
    o[8] = __reduce_max_sync(ALL_LANES, lane ^ 9);
    if (lane < 16)
        o[9] = __shfl_xor_sync(0x0000ffffu, lane, 1);
    else
        o[9] = __shfl_xor_sync(0xffff0000u, lane, 2);
    o[10] = __popc((unsigned)lane) + __clz(lane + 1);
    o[11] = __syncthreads_count(lane < 11);
    o[12] = __syncthreads_or(lane == 3) + 2 * __syncthreads_and(lane != 3);
}

static void test_warp_operations(void **) {
    buffer<int> out(32 * WARP_RESULTS);
    launch({1, 32}, warp_kernel, out.device);
    out.download();
    for (int lane = 0; lane < 32; lane++) {
        const int *o = &out.host[lane * WARP_RESULTS];
        assert_int_equal(o[0], (lane / 8 * 8 + 5) * 10);
        assert_int_equal(o[1], (lane ^ 3) * 10);
        assert_int_equal(o[2], (lane % 16 + 4 < 16 ? lane + 4 : lane) * 10);
        assert_int_equal(o[3], (lane % 8 >= 3 ? lane - 3 : lane) * 10);
        assert_int_equal(o[4], 0x49249249);
        assert_int_equal(o[5], 1);
        assert_int_equal(o[6], 0);
        assert_int_equal(o[7], 31 * 16);
        assert_int_equal(o[8], 31);
        assert_int_equal(o[9], lane < 16 ? lane ^ 1 : lane ^ 2);
        assert_int_equal(o[10], __builtin_popcount((unsigned)lane) + __builtin_clz((unsigned)lane + 1));
        assert_int_equal(o[11], 11);
        assert_int_equal(o[12], 1);
    }
}

/* The last block to finish adds what all blocks wrote. */
static __global__ void last_block_kernel(float *total, float *partial, unsigned *finished) {
    SHARED(bool, last, [1]);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = (float)(blockIdx.x + 1);
        __threadfence();
        last[0] = atomicInc(finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last[0] || threadIdx.x != 0) return;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++) sum += partial[i];
    *total = sum;
}

static void test_last_block(void **) {
    buffer<float> total(1), partial(17);
    buffer<unsigned> finished(1);
    finished.host[0] = 0;
    finished.upload();
    for (int repeat = 0; repeat < 2; repeat++) { /* the counter resets itself */
        launch({17, 64}, last_block_kernel, total.device, partial.device, finished.device);
        total.download();
        assert_true(total.host[0] == 17 * 18 / 2);
        total.clear();
    }
}

/* --- vectors and conversions --- */

template <class T> static __global__ void vector_kernel(T *out, const T *inp, int vectors) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= vectors) return;
    vec<T> a = vec<T>::load(inp + i * vec<T>::size), b = vec<T>::load_streaming(inp + i * vec<T>::size);
    for (int k = 0; k < vec<T>::size; k++) a[k] = from_float<T>(to_float(a[k]) + 2.0f * to_float(b[k]));
    if (i % 2)
        a.store(out + i * vec<T>::size);
    else
        a.store_streaming(out + i * vec<T>::size);
}

template <class T> static void check_vectors() {
    const int n = 37 * vec<T>::size;
    buffer<T> inp(n), out(n);
    for (int i = 0; i < n; i++) inp.host[i] = from_float_host<T>((float)i / 7.0f - 11.0f);
    inp.upload();
    launch({2, 32}, vector_kernel<T>, out.device, inp.device, 37);
    out.download();
    for (int i = 0; i < n; i++) {
        float x = to_float_host(inp.host[i]);
        assert_true(to_float_host(out.host[i]) == to_float_host(from_float_host<T>(x + 2.0f * x)));
    }
}
static void test_vectors(void **) {
    check_vectors<float>();
    check_vectors<bf16>();
}

static __global__ void random_kernel(uint32_t *out, float *unit) {
    struct rng4 r = rng_philox(12345678901234ull, RNG_TEST, threadIdx.x * 1000000007ull);
    for (int k = 0; k < 4; k++) out[threadIdx.x * 4 + k] = r.v[k];
    unit[threadIdx.x] = rng_unit_float(r.v[0]);
}
static void test_random_numbers(void **) {
    buffer<uint32_t> out(64 * 4);
    buffer<float> unit(64);
    launch({1, 64}, random_kernel, out.device, unit.device);
    out.download();
    unit.download();
    for (uint64_t i = 0; i < 64; i++) {
        struct rng4 r = rng_philox(12345678901234ull, RNG_TEST, i * 1000000007ull);
        for (int k = 0; k < 4; k++) assert_int_equal(out.host[i * 4 + k], r.v[k]);
        assert_true(unit.host[i] == rng_unit_float(r.v[0]));
    }
}

/* --- fast mathematics --- */

static __global__ void mathematics_kernel(float *out, const float *x) {
    float v = x[threadIdx.x];
    out[threadIdx.x * 4] = fast_exp2(v);
    out[threadIdx.x * 4 + 1] = fast_tanh(v);
    out[threadIdx.x * 4 + 2] = rsqrtf(fabsf(v) + 1.0f);
    out[threadIdx.x * 4 + 3] = __expf(v);
}
static void test_mathematics(void **) {
    buffer<float> x(256), out(1024);
    for (int i = 0; i < 256; i++) x.host[i] = ((float)i - 128.0f) / 16.0f;
    x.upload();
    launch({1, 256}, mathematics_kernel, out.device, x.device);
    out.download();
    for (int i = 0; i < 256; i++) {
        double v = x.host[i], want[4] = {exp2(v), tanh(v), 1.0 / sqrt(fabs(v) + 1.0), exp(v)};
        const double relative[4] = {1e-6, 0, 1e-6, 2e-6}, absolute[4] = {0, 6e-4, 0, 0};
        for (int k = 0; k < 4; k++) {
            double tolerance = relative[k] * want[k] + absolute[k];
            if (!(fabs((double)out.host[i * 4 + k] - want[k]) <= tolerance))
                fail_msg("function %d of %g is %g, should be %g", k, v, (double)out.host[i * 4 + k], want[k]);
        }
    }
}

/* --- tensor cores and asynchronous copies --- */

/* out (16,8) = a (16,16) @ b, with operands through cp.async and ldmatrix. The instruction takes columns of
 * b: by ldmatrix_x4_trans if b is (16,8) row-major, by ldmatrix_x4 if it is the transpose, (8,16). Only
 * rows < valid of a are copied; the rest must be zero. */
template <bool b_transposed>
static __global__ void tile_kernel(float *out, const bf16 *a, const bf16 *b, int valid) {
    SHARED_ALIGNED(bf16, tile_a, [16][16], 16);
    SHARED_ALIGNED(bf16, tile_b, [16 * 8], 16);
    int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    cp_async16(&tile_a[lane / 2][lane % 2 * 8], a + lane * 8, lane / 2 < valid);
    cp_async_commit();
    if (lane < 16) cp_async16(tile_b + lane * 8, b + lane * 8);
    cp_async_commit();
    cp_async_wait<1>();
    __syncwarp();
    uint32_t ra[4], rb[4];
    ldmatrix_x4(ra, &tile_a[lane % 16][lane / 16 * 8]);
    cp_async_wait<0>();
    __syncwarp();
    if (b_transposed)
        ldmatrix_x4(rb, tile_b + (lane % 8) * 16 + lane / 8 % 2 * 8);
    else
        ldmatrix_x4_trans(rb, tile_b + lane % 16 * 8);
    float d[4] = {0.5f, 0.5f, 0.5f, 0.5f};
    mma_m16n8k16(d, ra, rb[0], rb[1]);
    for (int k = 0; k < 4; k++) out[(g + k / 2 * 8) * 8 + 2 * t + k % 2] = d[k];
}

template <bool b_transposed> static void check_tile(int valid) {
    buffer<bf16> a(256), b(128);
    buffer<float> out(128);
    for (int i = 0; i < 256; i++) a.host[i] = from_float_host<bf16>((float)((i * 7) % 13 - 6)); /* exact */
    for (int i = 0; i < 128; i++) b.host[i] = from_float_host<bf16>((float)((i * 5) % 11 - 5));
    a.upload();
    b.upload();
    launch({1, 32}, tile_kernel<b_transposed>, out.device, a.device, b.device, valid);
    out.download();
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            float want = 0.5f;
            for (int k = 0; k < 16 && m < valid; k++)
                want += to_float_host(a.host[m * 16 + k]) *
                        to_float_host(b.host[b_transposed ? n * 16 + k : k * 8 + n]);
            if (!(out.host[m * 8 + n] == want))
                fail_msg("(%d,%d) is %g, should be %g", m, n, (double)out.host[m * 8 + n], (double)want);
        }
}
static void test_tile(void **) {
    for (int valid : {16, 9, 0}) {
        check_tile<false>(valid);
        check_tile<true>(valid);
    }
}

/* --- launches --- */

static __global__ void index_kernel(int *out) {
    DYNAMIC_SHARED(int, space);
    int thread = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    space[19999 - thread] = block;
    __syncthreads();
    out[block * 24 + thread] = 100 * space[19999 - thread] + thread;
}
static void test_launch(void **) {
    buffer<int> out(30 * 24);
    launch({dim3(2, 3, 5), dim3(4, 3, 2), 80000}, index_kernel,
           out.device); /* more than the default 48 KiB */
    out.download();
    for (int i = 0; i < 30 * 24; i++) assert_int_equal(out.host[i], i / 24 * 100 + i % 24);
}

int main(int argc, char **argv) {
    require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reductions),     cmocka_unit_test(test_warp_operations),
        cmocka_unit_test(test_last_block),     cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_random_numbers), cmocka_unit_test(test_mathematics),
        cmocka_unit_test(test_tile),           cmocka_unit_test(test_launch),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

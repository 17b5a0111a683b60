/* Deliberate bugs, for the test of the simulated device itself (test_sim_bugs.sh).
 *     bugs list           each case with the detectors that must notice it
 *     bugs CASE           runs it: exit status 0 means that no detector noticed
 * Detectors: forward, reverse, random (one of several seeds), lazy (likewise), protect (SIM_PROTECT=1),
 * asan, tsan. Cases without detectors are correct: all detectors must stay silent. */
#include "test/cuda/test_cuda.h"

#include "llmc/cuda/hopper.cuh"

#include <cstdlib>

/* --- common to the cases --- */

static void expect(float got, float want) {
    if (fabsf(got - want) <= 1e-3f * fabsf(want)) return;
    printf("wrong result: %g, should be %g\n", (double)got, (double)want);
    exit(1);
}

static float first(buffer<float> &b) {
    b.download();
    return b.host[0];
}

static void fill(buffer<float> &b, float value) {
    for (float &x : b.host) x = value;
    b.upload();
}

static __global__ void set_kernel(float *out, int n, float value) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) out[i] = value;
}
static __global__ void add_kernel(float *x, float value) { x[threadIdx.x] += value; }
static __global__ void sum_kernel(float *out, const float *x, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    *out = sum;
}

/* --- barriers --- */

template <bool barrier> static __global__ void neighbour_kernel(float *out) {
    SHARED(float, s, [64]);
    s[threadIdx.x] = (float)threadIdx.x;
    if (barrier) __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}
template <bool barrier> static void neighbours() {
    buffer<float> out(64);
    launch({1, 64}, neighbour_kernel<barrier>, out.device);
    out.download();
    for (int i = 0; i < 64; i++) expect(out.host[i], (float)(63 - i));
}

/* Two block sums through one array; a fast warp writes the second while a slow one still reads the
 * first. */
template <bool barrier> static __global__ void reuse_kernel(float *out, const float *x) {
    SHARED(float, s, [8]);
    float result = 0;
    for (int round = 0; round < 2; round++) {
        float v = warp_sum(x[round * 256 + threadIdx.x]);
        if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v;
        __syncthreads();
        float total = 0;
        for (int i = 0; i < 8; i++) total += s[i];
        result = result * 10 + total;
        if (barrier) __syncthreads();
    }
    out[threadIdx.x] = result;
}
template <bool barrier> static void reuse() {
    buffer<float> x(512), out(256);
    for (int i = 0; i < 512; i++) x.host[i] = i < 256 ? 1.0f : 2.0f;
    x.upload();
    launch({1, 256}, reuse_kernel<barrier>, out.device, x.device);
    out.download();
    for (int i = 0; i < 256; i++) expect(out.host[i], 256 * 10 + 512);
}

static __global__ void early_exit_kernel(float *out, int n) {
    if ((int)threadIdx.x >= n) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
static void early_exit() {
    buffer<float> out(128);
    launch({1, 128}, early_exit_kernel, out.device, 64);
    expect(first(out), 1);
}

static __global__ void two_places_kernel(float *out) {
    if (threadIdx.x < 64)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}
static void two_places() {
    buffer<float> out(128);
    launch({1, 128}, two_places_kernel, out.device);
    expect(first(out), 1);
}

/* Thread 0 waits for a flag that thread 32 sets after a barrier which thread 0 never reaches. */
static __global__ void livelock_kernel(volatile int *flag) {
    if (threadIdx.x == 0)
        while (*flag == 0) __nanosleep(20);
    __syncthreads();
    if (threadIdx.x == 32) *flag = 1;
}
static void livelock() {
    buffer<int> flag(1);
    flag.host[0] = 0;
    flag.upload();
    launch({1, 64}, livelock_kernel, flag.device);
    flag.download();
}

static __global__ void endless_kernel(float *out) {
    for (volatile int i = 0; i >= 0; i = (i + 1) % 1000) continue;
    *out = 1;
}
static void endless() {
    setenv("SIM_TIMEOUT", "1", 1);
    buffer<float> out(1);
    launch({1, 1}, endless_kernel, out.device);
}

/* --- warps --- */

static __global__ void divergent_kernel(float *out) {
    float v = (float)threadIdx.x;
    if (threadIdx.x < 16) v += __shfl_xor_sync(ALL_LANES, v, 1);
    out[threadIdx.x] = v;
}
static void divergent_shuffle() {
    buffer<float> out(32);
    launch({1, 32}, divergent_kernel, out.device);
    expect(first(out), 1);
}

static __global__ void foreign_mask_kernel(float *out) {
    out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);
}
static void foreign_mask() {
    buffer<float> out(32);
    launch({1, 32}, foreign_mask_kernel, out.device);
    expect(first(out), 1);
}

static __global__ void no_syncwarp_kernel(float *out) {
    SHARED(float, s, [32]);
    s[threadIdx.x] = (float)threadIdx.x;
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}
static void no_syncwarp() {
    buffer<float> out(32);
    launch({1, 32}, no_syncwarp_kernel, out.device);
    expect(first(out), 1);
}

/* --- between blocks --- */

/* Every block writes 32 numbers; the last one to arrive adds all of them. */
enum last_bug { LAST_RIGHT, LAST_WITHOUT_FENCE, LAST_WITHOUT_BARRIER };
template <last_bug bug>
static __global__ void last_block_kernel(float *total, float *partial, unsigned *done) {
    SHARED(bool, last, [1]);
    __syncthreads(); /* needless: two barriers per block must not order one block before the next */
    partial[blockIdx.x * blockDim.x + threadIdx.x] = 1;
    if (bug != LAST_WITHOUT_BARRIER) __syncthreads();
    if (threadIdx.x == 0) {
        if (bug != LAST_WITHOUT_FENCE) __threadfence();
        last[0] = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last[0] || threadIdx.x != 0) return;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x * blockDim.x; i++) sum += partial[i];
    *total = sum;
}
template <last_bug bug> static void last_block() {
    buffer<float> total(1), partial(16 * 32);
    buffer<unsigned> done(1);
    done.host[0] = 0;
    done.upload();
    launch({16, 32}, last_block_kernel<bug>, total.device, partial.device, done.device);
    expect(first(total), 16 * 32);
}

template <bool atomic> static __global__ void count_kernel(float *out) {
    if (threadIdx.x != 0) return;
    if (atomic)
        atomicAdd(out, 1.0f);
    else
        *out += 1.0f;
}
template <bool atomic> static void count() {
    buffer<float> out(1);
    fill(out, 0);
    launch({8, 32}, count_kernel<atomic>, out.device);
    expect(first(out), 8);
}

/* --- bounds and uninitialised memory --- */

static void write_past_end() {
    buffer<float> x(1000);
    launch({1, 1001}, set_kernel, x.device, 1001, 2.0f);
    expect(first(x), 2);
}
static void write_far_past_end() {
    buffer<float> x(1000);
    launch({8, 1024}, set_kernel, x.device, 8000, 2.0f);
    expect(first(x), 2);
}
static void write_before() {
    buffer<float> x(1000);
    launch({1, 4}, set_kernel, x.device - 1, 4, 2.0f);
    expect(first(x), 2);
}
static void read_past_end() {
    buffer<float> x(1000), out(1);
    fill(x, 1);
    launch({1, 1}, sum_kernel, out.device, x.device, 1001);
    expect(first(out), 1000);
}
static void uninitialised() {
    buffer<float> out(1);
    float *x;
    cuda_check(cudaMalloc((void **)&x, 400));
    launch({1, 1}, sum_kernel, out.device, x, 100);
    expect(first(out), 0);
}

static __global__ void shared_end_kernel(float *out, int i) {
    SHARED(float, s, [64]);
    SHARED(float, t, [64]);
    s[threadIdx.x] = t[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x == 0) s[i] = 3;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x] + t[threadIdx.x];
}
static void shared_past_end() {
    buffer<float> out(64);
    launch({1, 64}, shared_end_kernel, out.device, 64);
    expect(first(out), 2);
}

static __global__ void dynamic_end_kernel(float *out, int i) {
    DYNAMIC_SHARED(float, s);
    s[threadIdx.x] = 1;
    __syncthreads();
    if (threadIdx.x == 0) s[i] = 3;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
}
static void dynamic_past_end() {
    buffer<float> out(64);
    launch({1, 64, 256}, dynamic_end_kernel, out.device, 64);
    expect(first(out), 1);
}
static void dynamic_missing() {
    buffer<float> out(64);
    launch({1, 64}, dynamic_end_kernel, out.device, 0);
    expect(first(out), 3);
}

static __global__ void shared_unset_kernel(float *out) {
    SHARED(float, s, [64]);
    if (threadIdx.x < 63) s[threadIdx.x] = 1;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < 64; i++) sum += s[i];
    out[threadIdx.x] = sum;
}
static void shared_uninitialised() {
    buffer<float> out(64);
    launch({1, 64}, shared_unset_kernel, out.device);
    expect(first(out), 63);
}

static __global__ void local_end_kernel(float *out, int n) {
    float a[8];
    for (int i = 0; i <= n; i++) a[i] = (float)i;
    out[threadIdx.x] = a[threadIdx.x % 8];
}
static void local_past_end() {
    buffer<float> out(64);
    launch({1, 64}, local_end_kernel, out.device, 8);
    out.download();
    expect(out.host[1], 1);
}

static __global__ void misaligned_kernel(float *out, const float *x) {
    vec<float>::load_streaming(x + 1).store_streaming(out);
}
static void misaligned_vector() {
    buffer<float> out(4), x(8);
    fill(x, 1);
    launch({1, 1}, misaligned_kernel, out.device, x.device);
    expect(first(out), 1);
}

static __global__ void overflow_kernel(float *out, int row, int columns) {
    *out = (float)(row * columns != 7);
}
static void index_overflow() {
    buffer<float> out(1);
    launch({1, 1}, overflow_kernel, out.device, 70000, 50257);
    expect(first(out), 1);
}

/* --- pointers of the wrong kind --- */

struct pointer_in_struct {
    float *p;
    int n;
};
static __global__ void struct_kernel(pointer_in_struct a) {
    if ((int)threadIdx.x < a.n) a.p[threadIdx.x] = 1;
}

static void host_pointer() {
    std::vector<float> x(64, 1.0f);
    buffer<float> out(1);
    launch({1, 1}, sum_kernel, out.device, x.data(), 64);
    expect(first(out), 64);
}
[[maybe_unused]] static void host_pointer_in_struct() {
    std::vector<float> x(64, 0.0f);
    launch({1, 64}, struct_kernel, pointer_in_struct{x.data(), 64});
    cuda_check(cudaDeviceSynchronize());
    expect(x[3], 1);
}
static void host_touches_device() {
    buffer<float> x(1);
    launch({1, 1}, set_kernel, x.device, 1, 2.0f);
    cuda_check(cudaDeviceSynchronize());
    expect(*(volatile float *)x.device, 2);
}
static void freed_pointer() {
    float *x;
    cuda_check(cudaMalloc((void **)&x, 256));
    cuda_check(cudaFree(x));
    launch({1, 64}, set_kernel, x, 64, 1.0f);
}
static void freed_pointer_in_struct() {
    float *x;
    cuda_check(cudaMalloc((void **)&x, 256));
    cuda_check(cudaFree(x));
    launch({1, 64}, struct_kernel, pointer_in_struct{x, 64});
    cuda_check(cudaDeviceSynchronize());
}
static void wrong_copy_kind() {
    buffer<float> x(1);
    float h = 0;
    cuda_check(cudaMemcpy(&h, x.device, sizeof h, cudaMemcpyHostToDevice));
}
static void copy_too_long() {
    buffer<float> x(1000);
    std::vector<float> h(2000);
    cuda_check(cudaMemcpy(h.data(), x.device, 8000, cudaMemcpyDeviceToHost));
}

/* --- asynchronous copies and matrix loads --- */

template <int waits> static __global__ void copy_kernel(float *out, const float *x) {
    SHARED_ALIGNED(float, s, [128], 16);
    cp_async16(s + threadIdx.x * 4, x + threadIdx.x * 4);
    cp_async_commit();
    if (waits == 1) cp_async_wait<1>(); /* that group may still be under way */
    if (waits == 0) cp_async_wait<0>();
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];
    if (waits != 0) cp_async_wait<0>();
}
template <int waits> static void copy() {
    buffer<float> out(32), x(128);
    fill(x, 1);
    launch({1, 32}, copy_kernel<waits>, out.device, x.device);
    expect(first(out), 1);
}

static __global__ void ldmatrix_kernel(float *out) {
    SHARED_ALIGNED(bf16, s, [33 * 8], 16);
    for (int i = (int)threadIdx.x; i < 33 * 8; i += 32) s[i] = from_float<bf16>(1.0f);
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, s + threadIdx.x * 8 + 1);
    out[threadIdx.x] = (float)r[0];
}
static void misaligned_ldmatrix() {
    buffer<float> out(32);
    launch({1, 32}, ldmatrix_kernel, out.device);
    out.download();
}

/* --- Hopper's asynchronous units: d = a @ a^T of one 64x64 tile, all ones --- */

enum tile_bug { TILE_RIGHT, TILE_WITHOUT_TMA_WAIT, TILE_WITHOUT_WGMMA_WAIT };
template <tile_bug b>
static __global__ void tile_kernel(float *out, const __grid_constant__ CUtensorMap map) {
    DYNAMIC_SHARED(bf16, tile);
    SHARED(mbarrier, full, [1]);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_fence_init();
        mbarrier_expect(full, 64 * 64 * 2);
        tma_load_2d(tile, &map, 0, 0, full);
    }
    __syncthreads();
    if (b != TILE_WITHOUT_TMA_WAIT) mbarrier_wait(full, 0);
    float sum[32] = {};
    wgmma_fence();
    for (int k = 0; k < 64; k += 16) {
        uint64_t operand = wgmma_descriptor(tile + k, 16, 1024, SWIZZLE_128);
        wgmma<false, false>(sum, operand, operand, true);
    }
    wgmma_commit();
    if (b != TILE_WITHOUT_WGMMA_WAIT) wgmma_wait<0>();
    out[threadIdx.x] = sum[0];
    wgmma_wait<0>();
    mbarrier_wait(full, 0);
}
template <tile_bug b> static void tile() {
    buffer<bf16> x(64 * 64);
    buffer<float> out(128);
    for (bf16 &v : x.host) v = from_float_host<bf16>(1.0f);
    x.upload();
    launch({1, 128, 64 * 64 * 2}, tile_kernel<b>, out.device,
           tensor_map_2d(x.device, 64, 64, 64, 64, SWIZZLE_128));
    expect(first(out), 64);
}

/* --- launches --- */

static void too_much_shared() {
    buffer<float> out(64);
    launch({1, 64, 228 * 1024}, dynamic_end_kernel, out.device, 0);
}
static void block_too_large() {
    buffer<float> out(1);
    launch({1, dim3(32, 64)}, set_kernel, out.device, 1, 1.0f);
}
static void empty_grid() {
    buffer<float> out(1);
    launch({0, 32}, set_kernel, out.device, 1, 1.0f);
}

/* --- streams, events, graphs --- */

static cudaStream_t new_stream() {
    cudaStream_t s;
    cuda_check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
}

/* One stream adds, the other sums: it has to wait for an event of the first. */
template <bool wait> static void two_streams() {
    cudaStream_t one = new_stream(), two = new_stream();
    cudaEvent_t event;
    cuda_check(cudaEventCreate(&event));
    buffer<float> x(64), out(1);
    fill(x, 0);
    launch({1, 64, 0, one}, add_kernel, x.device, 5.0f);
    cuda_check(cudaEventRecord(event, one));
    if (wait) cuda_check(cudaStreamWaitEvent(two, event, 0));
    launch({1, 1, 0, two}, sum_kernel, out.device, x.device, 64);
    cuda_check(cudaStreamSynchronize(two));
    expect(first(out), 320);
    cuda_check(cudaEventDestroy(event));
}

template <bool wait> static void read_result() {
    cudaStream_t stream = new_stream();
    buffer<float> x(64), out(1);
    fill(x, 1);
    float *h;
    cuda_check(cudaMallocHost((void **)&h, sizeof *h));
    *h = -1;
    launch({1, 1, 0, stream}, sum_kernel, out.device, x.device, 64);
    cuda_check(cudaMemcpyAsync(h, out.device, sizeof *h, cudaMemcpyDeviceToHost, stream));
    if (wait) cuda_check(cudaStreamSynchronize(stream));
    expect(*h, 64);
}

static void staging_reused() {
    cudaStream_t stream = new_stream();
    buffer<float> x(1);
    float *h;
    cuda_check(cudaMallocHost((void **)&h, sizeof *h));
    *h = 7;
    cuda_check(cudaMemcpyAsync(x.device, h, sizeof *h, cudaMemcpyHostToDevice, stream));
    *h = 8;
    cuda_check(cudaStreamSynchronize(stream));
    expect(first(x), 7);
}

enum capture_bug { CAPTURE_RIGHT, CAPTURE_SYNCHRONIZES, CAPTURE_ALLOCATES, CAPTURE_DEFAULT_STREAM };
template <capture_bug b> static void capture() {
    cudaStream_t stream = new_stream();
    buffer<float> x(64);
    fill(x, 0);
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    float *p = nullptr;
    cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    launch({1, 64, 0, b == CAPTURE_DEFAULT_STREAM ? nullptr : stream}, add_kernel, x.device, 1.0f);
    if (b == CAPTURE_SYNCHRONIZES) cuda_check(cudaStreamSynchronize(stream));
    if (b == CAPTURE_ALLOCATES) cuda_check(cudaMalloc((void **)&p, 4));
    launch({1, 64, 0, stream}, add_kernel, x.device, 2.0f);
    cuda_check(cudaStreamEndCapture(stream, &graph));
    cuda_check(cudaGraphInstantiate(&executable, graph, 0));
    cuda_check(cudaGraphDestroy(graph));
    for (int i = 0; i < 3; i++) cuda_check(cudaGraphLaunch(executable, stream));
    cuda_check(cudaStreamSynchronize(stream));
    expect(first(x), 9);
    cuda_check(cudaGraphExecDestroy(executable));
}

/* --- the table --- */

static const struct {
    const char *name;
    void (*run)();
    const char *detectors;
} cases[] = {
    {"barrier", neighbours<true>, ""},
    {"barrier_missing", neighbours<false>, "forward reverse random tsan"},
    {"reuse", reuse<true>, ""},
    {"reuse_without_barrier", reuse<false>, "random tsan"},
    {"exit_before_barrier", early_exit, "forward reverse random"},
    {"barrier_in_two_places", two_places, "forward reverse random"},
    {"livelock", livelock, "forward reverse random"},
    {"endless_loop", endless, "forward"},
    {"divergent_shuffle", divergent_shuffle, "forward reverse random"},
    {"lane_outside_its_mask", foreign_mask, "forward reverse random"},
    {"syncwarp_missing", no_syncwarp, "tsan"},
    {"last_block", last_block<LAST_RIGHT>, ""},
    {"last_block_without_fence", last_block<LAST_WITHOUT_FENCE>, "tsan"},
    {"last_block_without_barrier", last_block<LAST_WITHOUT_BARRIER>, "tsan"},
    {"atomic_add", count<true>, ""},
    {"plain_add_across_blocks", count<false>, "tsan"},
    {"write_past_end", write_past_end, "forward reverse random asan"},
    {"write_far_past_end", write_far_past_end, "forward reverse random asan"},
    {"write_before_start", write_before, "forward reverse random asan"},
    {"read_past_end", read_past_end, "forward asan"},
    {"uninitialised_global", uninitialised, "forward"},
    {"shared_past_end", shared_past_end, "forward asan"},
    {"dynamic_shared_past_end", dynamic_past_end, "forward asan"},
    {"dynamic_shared_missing", dynamic_missing, "forward"},
    {"uninitialised_shared", shared_uninitialised, "forward"},
    {"local_past_end", local_past_end, "forward asan"},
    {"misaligned_vector", misaligned_vector, "forward asan"},
    {"index_overflow", index_overflow, "forward asan"},
    {"host_pointer", host_pointer, "forward"},
#if __has_builtin(__builtin_clear_padding) /* else structs with padding are not looked into */
    {"host_pointer_in_struct", host_pointer_in_struct, "forward"},
#endif
    {"host_touches_device", host_touches_device, "protect"},
    {"freed_pointer", freed_pointer, "forward"},
    {"freed_pointer_in_struct", freed_pointer_in_struct, "forward asan"},
    {"wrong_copy_kind", wrong_copy_kind, "forward"},
    {"copy_too_long", copy_too_long, "forward"},
    {"copy_async", copy<0>, ""},
    {"copy_async_one_group_early", copy<1>, "forward reverse random"},
    {"copy_async_wait_missing", copy<2>, "forward reverse random"},
    {"misaligned_ldmatrix", misaligned_ldmatrix, "forward"},
    {"tma_and_wgmma", tile<TILE_RIGHT>, ""},
    {"tma_wait_missing", tile<TILE_WITHOUT_TMA_WAIT>, "forward reverse random"},
    {"wgmma_wait_missing", tile<TILE_WITHOUT_WGMMA_WAIT>, "forward reverse random"},
    {"too_much_shared", too_much_shared, "forward"},
    {"block_too_large", block_too_large, "forward"},
    {"empty_grid", empty_grid, "forward"},
    {"two_streams", two_streams<true>, ""},
    {"event_wait_missing", two_streams<false>, "lazy"},
    {"read_result", read_result<true>, ""},
    {"stream_wait_missing", read_result<false>, "lazy"},
    {"staging_buffer_reused", staging_reused, "lazy"},
    {"graph", capture<CAPTURE_RIGHT>, ""},
    {"capture_synchronizes", capture<CAPTURE_SYNCHRONIZES>, "forward"},
    {"capture_allocates", capture<CAPTURE_ALLOCATES>, "forward"},
    {"capture_default_stream", capture<CAPTURE_DEFAULT_STREAM>, "forward"},
};

int main(int argc, char **argv) {
    const char *wanted = argc == 2 ? argv[1] : "";
    for (auto &c : cases) {
        if (strcmp(wanted, "list") == 0) printf("%s %s\n", c.name, c.detectors);
        if (strcmp(wanted, c.name) != 0) continue;
        c.run();
        return 0;
    }
    return strcmp(wanted, "list") == 0 ? 0 : 2;
}

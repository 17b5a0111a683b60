/* Hopper's barriers, bulk copies and warpgroup products in PTX (PTX ISA 8.0). Only hopper.cuh includes this
 * file. */
#ifndef LLMC_CUDA_HOPPER_PTX_CUH
#define LLMC_CUDA_HOPPER_PTX_CUH

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HOPPER_PTX(...) asm volatile(__VA_ARGS__)
#else
#define HOPPER_PTX(...) __trap()
#endif

/* --- mbarrier: one thread initialises; others use it after mbarrier_fence_init() and a block barrier --- */

DEVICE_INLINE void mbarrier_init(mbarrier *b, int count) {
    HOPPER_PTX("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
DEVICE_INLINE void mbarrier_fence_init() { HOPPER_PTX("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE_INLINE void mbarrier_arrive(mbarrier *b) {
    HOPPER_PTX("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
/* Arrives and announces `bytes` that TMA will bring. */
DEVICE_INLINE void mbarrier_expect(mbarrier *b, int bytes) {
    HOPPER_PTX("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}
/* Waits for the end of the phase with this parity: 0 for the first, then 1, 0, ... On a new barrier a wait
 * for parity 1 returns at once. */
DEVICE_INLINE void mbarrier_wait(mbarrier *b, int parity) {
    HOPPER_PTX("{\n.reg .pred done;\nretry:\n"
               "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
               "@!done bra retry;\n}" ::"r"(shared_address(b)),
               "r"(parity)
               : "memory");
}

/* --- TMA --- */

/* One thread starts loading the box whose first element is (row, col); mbarrier b counts its bytes. */
DEVICE_INLINE void tma_load_2d(void *shared, const CUtensorMap *map, int row, int col, mbarrier *b) {
    HOPPER_PTX("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
               "{%2, %3}], [%4];" ::"r"(shared_address(shared)),
               "l"(map), "r"(col), "r"(row), "r"(shared_address(b))
               : "memory");
}
DEVICE_INLINE void tma_load_3d(void *shared, const CUtensorMap *map, int depth, int row, int col,
                               mbarrier *b) {
    HOPPER_PTX("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
               "{%2, %3, %4}], [%5];" ::"r"(shared_address(shared)),
               "l"(map), "r"(col), "r"(row), "r"(depth), "r"(shared_address(b))
               : "memory");
}
/* The same for contiguous `bytes`, a multiple of 16; both addresses are 16-byte aligned. */
DEVICE_INLINE void bulk_load(void *shared, const void *global, int bytes, mbarrier *b) {
    HOPPER_PTX(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(b))
        : "memory");
}
/* Orders a thread's writes to shared memory before wgmma or TMA that read them. */
DEVICE_INLINE void fence_async_proxy() { HOPPER_PTX("fence.proxy.async;" ::: "memory"); }

/* --- wgmma: by the 128 threads of a warpgroup together --- */

DEVICE_INLINE void wgmma_fence() { HOPPER_PTX("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE_INLINE void wgmma_commit() { HOPPER_PTX("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Waits for all groups but the newest `pending`; their registers and tiles must not be touched before. */
template <int pending> DEVICE_INLINE void wgmma_wait() {
    HOPPER_PTX("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* Running products change their accumulators without the compiler's knowledge. It moves no use of d across
 * this line, which therefore follows the wait. */
template <int N> DEVICE_INLINE void pin_registers(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

/* Makes x and what it is computed from be computed here, before a wait, while products run. Otherwise the
 * assembler moves the wait up across arithmetic that does not depend on it. A sleep that practically never
 * happens serves: it may not be moved, and its condition needs x. */
DEVICE_INLINE void settle(float x) {
    asm volatile("{\n.reg .pred p;\nsetp.gt.f32 p, %0, 0f7f000000;\n@p nanosleep.u32 1;\n}" ::"f"(x)
                 : "memory");
}

/* The same for accumulators: one of four, since the assembler does not split the arithmetic further. */
template <int N> DEVICE_INLINE void settle_all(const float (&x)[N]) {
    float all = x[3];
#pragma unroll
    for (int i = 7; i < N; i += 4) all += x[i];
    settle(all);
}

/* d (64xN fp32) = or += a (64x16) @ b (16xN), bf16; N is twice the number of accumulators, 64 or 128. b is
 * a tile in shared memory, a one too or in registers; the flags say which tile is MN-major. Thread t of the
 * warpgroup, lane l of warp w, holds d[4j+h] = row 16w + l/4 + 8(h/2), column 8j + 2(l%4) + h%2, and of a
 * what mma_m16n8k16 has: a[i] = row 16w + l/4 + 8(i%2), columns 2(l%4) + 8(i/2) and the next. So the
 * accumulators of two blocks of 8 columns, rounded, are an a of 16. */
#define WGMMA_TEXT(N, D, A, B, P, TRANSPOSED)                                                                \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                                           \
    "wgmma.mma_async.sync.aligned.m64n" N "k16.f32.bf16.bf16 " D ", " A ", " B ", p, 1, 1, " TRANSPOSED      \
    ";\n}"
#define WGMMA_32                                                                                             \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define WGMMA_64                                                                                             \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                                       \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                                       \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define WGMMA_OUT(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_OUT_32                                                                                         \
    WGMMA_OUT(0), WGMMA_OUT(4), WGMMA_OUT(8), WGMMA_OUT(12), WGMMA_OUT(16), WGMMA_OUT(20), WGMMA_OUT(24),    \
        WGMMA_OUT(28)
#define WGMMA_OUT_64                                                                                         \
    WGMMA_OUT_32, WGMMA_OUT(32), WGMMA_OUT(36), WGMMA_OUT(40), WGMMA_OUT(44), WGMMA_OUT(48), WGMMA_OUT(52),  \
        WGMMA_OUT(56), WGMMA_OUT(60)

template <bool a_mn_major, bool b_mn_major>
DEVICE_INLINE void wgmma(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    HOPPER_PTX(WGMMA_TEXT("64", WGMMA_32, "%32", "%33", "%34", "%35, %36")
               : WGMMA_OUT_32
               : "l"(a), "l"(b), "r"((int)accumulate), "n"((int)a_mn_major), "n"((int)b_mn_major));
}
template <bool a_mn_major, bool b_mn_major>
DEVICE_INLINE void wgmma(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    HOPPER_PTX(WGMMA_TEXT("128", WGMMA_64, "%64", "%65", "%66", "%67, %68")
               : WGMMA_OUT_64
               : "l"(a), "l"(b), "r"((int)accumulate), "n"((int)a_mn_major), "n"((int)b_mn_major));
}
template <bool b_mn_major>
DEVICE_INLINE void wgmma(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    HOPPER_PTX(WGMMA_TEXT("64", WGMMA_32, "{%32,%33,%34,%35}", "%36", "%37", "%38")
               : WGMMA_OUT_32
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate),
                 "n"((int)b_mn_major));
}
template <bool b_mn_major>
DEVICE_INLINE void wgmma(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    HOPPER_PTX(WGMMA_TEXT("128", WGMMA_64, "{%64,%65,%66,%67}", "%68", "%69", "%70")
               : WGMMA_OUT_64
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate),
                 "n"((int)b_mn_major));
}

#undef WGMMA_TEXT
#undef WGMMA_32
#undef WGMMA_64
#undef WGMMA_OUT
#undef WGMMA_OUT_32
#undef WGMMA_OUT_64

/* --- warpgroups --- */

/* Releases or takes registers until each thread of the warpgroup has `count`, a multiple of 8 in 24..256.
 * Taking waits until there are enough. Every warp of the group must call. */
template <int count> DEVICE_INLINE void registers_shrink() {
    HOPPER_PTX("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count> DEVICE_INLINE void registers_grow() {
    HOPPER_PTX("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

/* Barrier 1..15 of a block for `threads` of its threads, in whole warps. The last to wait or arrive
 * releases those that wait. */
DEVICE_INLINE void named_barrier_wait(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE_INLINE void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#undef HOPPER_PTX

#endif

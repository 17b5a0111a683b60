/* The counterpart of llmc/cuda/hopper_ptx.cuh for the simulated device: contracts are there, the
 * implementation is in hopper.cpp. wgmma.fence and fence.proxy.async are not modelled; only a GPU shows
 * that one is missing. */
#ifndef SIM_HOPPER_H
#define SIM_HOPPER_H

namespace sim {

void mbarrier_init(mbarrier *b, int count);
void mbarrier_arrive(mbarrier *b, int bytes, const char *file, int line);
void mbarrier_wait(mbarrier *b, int parity);
/* depth -1: of a map of rank 2 */
void tma_load(void *shared, const CUtensorMap *map, int depth, int row, int col, mbarrier *b,
              const char *file, int line);
void bulk_load(void *shared, const void *global, int bytes, mbarrier *b, const char *file, int line);
/* a_registers: the thread's four, or nullptr: a is a descriptor */
void wgmma_issue(float *d, int n, uint64_t a, const uint32_t *a_registers, uint64_t b, bool a_mn_major,
                 bool b_mn_major, bool accumulate);
void wgmma_commit();
void wgmma_wait(int pending, const char *file, int line);
void set_registers(int count, const char *file, int line);

}  // namespace sim

DEVICE_INLINE void mbarrier_init(mbarrier *b, int count) { sim::mbarrier_init(b, count); }
DEVICE_INLINE void mbarrier_fence_init() {}
DEVICE_INLINE void mbarrier_arrive(mbarrier *b, SIM_HERE) { sim::mbarrier_arrive(b, 0, file, line); }
DEVICE_INLINE void mbarrier_expect(mbarrier *b, int bytes, SIM_HERE) {
    sim::mbarrier_arrive(b, bytes, file, line);
}
DEVICE_INLINE void mbarrier_wait(mbarrier *b, int parity) { sim::mbarrier_wait(b, parity); }
DEVICE_INLINE void tma_load_2d(void *shared, const CUtensorMap *map, int row, int col, mbarrier *b,
                               SIM_HERE) {
    sim::tma_load(shared, map, -1, row, col, b, file, line);
}
DEVICE_INLINE void tma_load_3d(void *shared, const CUtensorMap *map, int depth, int row, int col, mbarrier *b,
                               SIM_HERE) {
    sim::tma_load(shared, map, depth, row, col, b, file, line);
}
DEVICE_INLINE void bulk_load(void *shared, const void *global, int bytes, mbarrier *b, SIM_HERE) {
    sim::bulk_load(shared, global, bytes, b, file, line);
}
DEVICE_INLINE void fence_async_proxy() {}
DEVICE_INLINE void wgmma_fence() {}
DEVICE_INLINE void wgmma_commit() { sim::wgmma_commit(); }
template <int pending> DEVICE_INLINE void wgmma_wait(SIM_HERE) { sim::wgmma_wait(pending, file, line); }
template <int N> DEVICE_INLINE void pin_registers(float (&)[N]) {}
DEVICE_INLINE void settle(float) {}
template <int N> DEVICE_INLINE void settle_all(const float (&)[N]) {}
template <bool a_mn_major, bool b_mn_major, int N>
DEVICE_INLINE void wgmma(float (&d)[N], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(N == 32 || N == 64, "the shapes of hopper.cuh");
    sim::wgmma_issue(d, 2 * N, a, nullptr, b, a_mn_major, b_mn_major, accumulate);
}
template <bool b_mn_major, int N>
DEVICE_INLINE void wgmma(float (&d)[N], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(N == 32 || N == 64, "the shapes of hopper.cuh");
    sim::wgmma_issue(d, 2 * N, 0, a, b, false, b_mn_major, accumulate);
}
template <int count> DEVICE_INLINE void registers_shrink(SIM_HERE) { sim::set_registers(count, file, line); }
template <int count> DEVICE_INLINE void registers_grow(SIM_HERE) { sim::set_registers(count, file, line); }
DEVICE_INLINE void named_barrier_wait(int id, int threads, SIM_HERE) {
    sim::block_barrier(id, threads, file, line);
}
DEVICE_INLINE void named_barrier_arrive(int id, int threads, SIM_HERE) {
    sim::barrier_arrive(id, threads, file, line);
}

#endif

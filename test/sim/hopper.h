/* The instructions of llmc/cuda/hopper.cuh on the simulated device; contracts there, implementation in
 * hopper.cpp. Not modelled: wgmma.fence and fence.proxy.async, whose absence only a GPU shows. */
#ifndef SIM_HOPPER_H
#define SIM_HOPPER_H

namespace sim {

void mbarrier_init(mbarrier *b, int count);
void mbarrier_arrive(mbarrier *b, int bytes, const char *file, int line);
void mbarrier_wait(mbarrier *b, int parity);
void tma_load_2d(void *shared, const CUtensorMap *map, int row, int col, mbarrier *b, const char *file,
                 int line);
void wgmma_issue(float *d, int n, uint64_t a, uint64_t b, bool a_mn_major, bool b_mn_major, bool accumulate);
void wgmma_commit();
void wgmma_wait(int pending, const char *file, int line);

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
    sim::tma_load_2d(shared, map, row, col, b, file, line);
}
DEVICE_INLINE void fence_async_proxy() {}
DEVICE_INLINE void wgmma_fence() {}
DEVICE_INLINE void wgmma_commit() { sim::wgmma_commit(); }
template <int pending> DEVICE_INLINE void wgmma_wait(SIM_HERE) { sim::wgmma_wait(pending, file, line); }
template <bool a_mn_major, bool b_mn_major>
DEVICE_INLINE void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    sim::wgmma_issue(d, 64, a, b, a_mn_major, b_mn_major, accumulate);
}

#endif

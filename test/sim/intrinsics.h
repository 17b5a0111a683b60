/* CUDA's device functions for the simulated device: barriers, shuffles, votes, atomics, loads and stores
 * with cache hints, mathematical functions that a host lacks. Only what the engine's kernels use or may
 * soon use. */
#ifndef SIM_INTRINSICS_H
#define SIM_INTRINSICS_H

/* --- barriers and fences --- */

inline void __syncthreads(SIM_HERE) { sim::block_barrier(0, 0, file, line); }
inline int __syncthreads_and(int p, SIM_HERE) { return sim::block_vote(sim::vote::all, p != 0, file, line); }
inline int __syncthreads_or(int p, SIM_HERE) { return sim::block_vote(sim::vote::any, p != 0, file, line); }
inline int __syncthreads_count(int p, SIM_HERE) {
    return sim::block_vote(sim::vote::count, p != 0, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SIM_HERE) {
    sim::warp_collective(mask, "__syncwarp", nullptr, nullptr, true, file, line);
}
inline void __threadfence() { sim::set_fence(); }
inline void __threadfence_system() { sim::set_fence(); }
inline void __threadfence_block() { sim::set_fence(); }
inline void __nanosleep(unsigned) { sim::spin(); }
[[noreturn]] inline void __trap() { sim::bug("__trap()"); }

/* --- shuffles: every lane names the lane that it reads --- */

namespace sim {

struct shuffle {
    uint64_t in, out;
    int source;
};
SIM_NO_SANITIZE inline void shuffle_lanes(void *lane[32], unsigned present) {
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        shuffle *s = (shuffle *)lane[i];
        bool readable = present >> s->source & 1; /* else the value is undefined: all ones is a NaN */
        s->out = readable ? ((shuffle *)lane[s->source])->in : ~0ull;
    }
}
template <class T>
T shuffle_from(unsigned mask, const char *operation, T v, int source, const char *file, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves up to 8 bytes");
    shuffle s{0, 0, source};
    memcpy(&s.in, &v, sizeof v);
    warp_collective(mask, operation, &s, shuffle_lanes, false, file, line);
    memcpy(&v, &s.out, sizeof v);
    return v;
}

}  // namespace sim

/* Lanes are in segments of `width`; a source outside the segment is the lane itself. */
template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, SIM_HERE) {
    int segment = sim::lane_id() & ~(width - 1);
    return sim::shuffle_from(mask, "__shfl_sync", v, segment | (source & (width - 1)), file, line);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, SIM_HERE) {
    int lane = sim::lane_id(), end = (lane & ~(width - 1)) + width, source = lane ^ bits;
    return sim::shuffle_from(mask, "__shfl_xor_sync", v, source < end ? source : lane, file, line);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, SIM_HERE) {
    int lane = sim::lane_id(), end = (lane & ~(width - 1)) + width, source = lane + (int)delta;
    return sim::shuffle_from(mask, "__shfl_down_sync", v, source < end ? source : lane, file, line);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, SIM_HERE) {
    int lane = sim::lane_id(), begin = lane & ~(width - 1), source = lane - (int)delta;
    return sim::shuffle_from(mask, "__shfl_up_sync", v, source >= begin ? source : lane, file, line);
}

/* --- votes and integer reductions --- */

namespace sim {

struct ballot {
    bool predicate;
    unsigned result;
};
SIM_NO_SANITIZE inline void ballot_lanes(void *lane[32], unsigned present) {
    unsigned result = 0;
    for (int i = 0; i < 32; i++)
        if ((present >> i & 1) && ((ballot *)lane[i])->predicate) result |= 1u << i;
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) ((ballot *)lane[i])->result = result;
}
inline unsigned ballot_of(unsigned mask, const char *operation, bool predicate, const char *file, int line) {
    ballot b{predicate, 0};
    warp_collective(mask, operation, &b, ballot_lanes, false, file, line);
    return b.result;
}

template <class T, class F> SIM_NO_SANITIZE void reduce_lanes(void *lane[32], unsigned present) {
    bool first = true;
    T total{};
    for (int i = 0; i < 32; i++) {
        if (!(present >> i & 1)) continue;
        total = first ? *(T *)lane[i] : F::combine(total, *(T *)lane[i]);
        first = false;
    }
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) *(T *)lane[i] = total;
}
struct add {
    template <class T> static T combine(T a, T b) { return a + b; }
};
struct maximum {
    template <class T> static T combine(T a, T b) { return a > b ? a : b; }
};
struct minimum {
    template <class T> static T combine(T a, T b) { return a < b ? a : b; }
};
template <class F, class T> T reduce(unsigned mask, const char *operation, T v, const char *file, int line) {
    warp_collective(mask, operation, &v, reduce_lanes<T, F>, false, file, line);
    return v;
}

}  // namespace sim

inline unsigned __ballot_sync(unsigned mask, int p, SIM_HERE) {
    return sim::ballot_of(mask, "__ballot_sync", p != 0, file, line);
}
inline int __any_sync(unsigned mask, int p, SIM_HERE) {
    return sim::ballot_of(mask, "__any_sync", p != 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int p, SIM_HERE) {
    return sim::ballot_of(mask, "__all_sync", p == 0, file, line) == 0;
}
template <class T> T __reduce_add_sync(unsigned mask, T v, SIM_HERE) {
    return sim::reduce<sim::add>(mask, "__reduce_add_sync", v, file, line);
}
template <class T> T __reduce_max_sync(unsigned mask, T v, SIM_HERE) {
    return sim::reduce<sim::maximum>(mask, "__reduce_max_sync", v, file, line);
}
template <class T> T __reduce_min_sync(unsigned mask, T v, SIM_HERE) {
    return sim::reduce<sim::minimum>(mask, "__reduce_min_sync", v, file, line);
}

/* --- atomics: real ones, since blocks may run on several host threads. CUDA's are relaxed: under
 * ThreadSanitizer one releases only after a fence of the same thread, so that a missing fence is a race
 * --- */

namespace sim {

template <class T>
using bits_of =
    std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;

template <class T, class F> T read_modify_write(T *p, F f) {
    using U = bits_of<T>;
    U *u = (U *)p, before = __atomic_load_n(u, __ATOMIC_RELAXED), after;
    T old, changed;
#ifdef __SANITIZE_THREAD__
    bool release = take_fence();
#else
    bool release = false;
#endif
    for (;;) {
        memcpy((void *)&old, &before, sizeof old);
        changed = f(old);
        memcpy(&after, (void *)&changed, sizeof after);
        bool done =
            release
                ? __atomic_compare_exchange_n(u, &before, after, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
                : __atomic_compare_exchange_n(u, &before, after, false, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE);
        if (done) return old;
    }
}

}  // namespace sim

template <class T> T atomicAdd(T *p, std::common_type_t<T> v) {
    return sim::read_modify_write(p, [=](T x) { return x + v; });
}
inline __nv_bfloat16 atomicAdd(__nv_bfloat16 *p, __nv_bfloat16 v) {
    return sim::read_modify_write(p, [=](__nv_bfloat16 x) { return __hadd(x, v); });
}
template <class T> T atomicMax(T *p, std::common_type_t<T> v) {
    return sim::read_modify_write(p, [=](T x) { return x > v ? x : v; });
}
template <class T> T atomicMin(T *p, std::common_type_t<T> v) {
    return sim::read_modify_write(p, [=](T x) { return x < v ? x : v; });
}
template <class T> T atomicExch(T *p, std::common_type_t<T> v) {
    return sim::read_modify_write(p, [=](T) { return v; });
}
template <class T> T atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return sim::read_modify_write(p, [=](T x) { return x == expected ? v : x; });
}
inline unsigned atomicInc(unsigned *p, unsigned last) { /* counts 0..last and starts again */
    return sim::read_modify_write(p, [=](unsigned x) { return x >= last ? 0u : x + 1; });
}

/* --- loads and stores with cache hints; as on hardware, only naturally aligned ones --- */

namespace sim {

template <class T> void check_aligned(const T *p) {
    if ((uintptr_t)p % sizeof(T) != 0)
        bug("misaligned access of %zu bytes at %p", sizeof(T), (const void *)p);
}

}  // namespace sim

template <class T> T __ldg(const T *p) { return sim::check_aligned(p), *p; }
template <class T> T __ldcs(const T *p) { return sim::check_aligned(p), *p; }
template <class T> T __ldcg(const T *p) { return sim::check_aligned(p), *p; }
template <class T> T __ldca(const T *p) { return sim::check_aligned(p), *p; }
template <class T> void __stcs(T *p, std::common_type_t<T> v) { sim::check_aligned(p), *p = v; }
template <class T> void __stcg(T *p, std::common_type_t<T> v) { sim::check_aligned(p), *p = v; }

/* --- mathematics --- */

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __float2int_rn(float x) { return (int)lrintf(x); }
inline void sincospif(float x, float *s, float *c) {
    *s = sinf((float)M_PI * x);
    *c = cosf((float)M_PI * x);
}
inline float cospif(float x) { return cosf((float)M_PI * x); }
inline float sinpif(float x) { return sinf((float)M_PI * x); }

namespace sim {

template <class To, class From> To bit_cast(From v) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast");
    To r;
    memcpy(&r, &v, sizeof r);
    return r;
}

}  // namespace sim

inline int __float_as_int(float x) { return sim::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return sim::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return sim::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return sim::bit_cast<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

/* CUDA declares these globally, also with mixed signs. */
using std::max;
using std::min;
inline unsigned max(int a, unsigned b) { return std::max((unsigned)a, b); }
inline unsigned max(unsigned a, int b) { return std::max(a, (unsigned)b); }
inline unsigned min(int a, unsigned b) { return std::min((unsigned)a, b); }
inline unsigned min(unsigned a, int b) { return std::min(a, (unsigned)b); }

#endif

/* The counterpart of llmc/cuda/kernel_ptx.cuh for the simulated device: launch, shared memory, warp
 * reductions, tensor cores, asynchronous copies, fast mathematics. The contracts are there. */
#ifndef SIM_WRAPPERS_H
#define SIM_WRAPPERS_H

/* --- launch --- */

namespace sim {

/* A struct's padding may hold a host address that was left on the stack, so it is cleared before the words
 * of the struct are checked. With a compiler that cannot clear it (clang before 20) this check is off. */
template <class T> void check_argument(T &v, int number, const launch_info &info) {
    if constexpr (std::is_pointer_v<T>) check_kernel_pointer((const void *)v, number, info);
#if __has_builtin(__builtin_clear_padding)
    if constexpr (std::is_class_v<T>) {
        __builtin_clear_padding(&v);
        check_kernel_struct(&v, sizeof v, number, info);
    }
#endif
}

}  // namespace sim

template <class... Params, class... Args>
void launch(const launch_config &config, void (*kernel)(Params...), Args &&...args) {
    static_assert(sizeof...(Params) == sizeof...(Args), "launch: wrong number of kernel arguments");
    sim::launch_info info{config.grid, config.block, config.smem,
                          config.file, config.line,  (const void *)kernel};
    sim::check_launch(info);
    std::tuple<std::decay_t<Params>...> values(std::forward<Args>(args)...);
    [[maybe_unused]] int number = 1;
    std::apply([&](auto &...v) { (sim::check_argument(v, number++, info), ...); }, values);
    struct call {
        void (*kernel)(Params...);
        std::tuple<std::decay_t<Params>...> values;
    };
    sim::enqueue(config.stream, [info, c = call{kernel, values}]() mutable {
        sim::run_grid(
            info, [](void *p) { std::apply(((call *)p)->kernel, ((call *)p)->values); }, &c);
        sim::check_guard_zones(info);
    });
}

/* --- shared memory --- */

#define SHARED_ALIGNED(type, name, dims, alignment)                                                          \
    typedef type name##_shared_type dims;                                                                    \
    static ::sim::shared_slot name##_shared_slot{sizeof(name##_shared_type), alignment, -1};                 \
    name##_shared_type &name = *(name##_shared_type *)::sim::shared_static(name##_shared_slot)
#define SHARED(type, name, dims)   SHARED_ALIGNED(type, name, dims, alignof(type))
#define DYNAMIC_SHARED(type, name) type *name = (type *)::sim::shared_dynamic()

DEVICE_INLINE uint32_t shared_address(const void *p) { return sim::shared_address(p); }

/* --- warp reductions: one exchange in place of five shuffles, in the same butterfly order --- */

namespace sim {

inline void all_lanes(unsigned present, const char *operation) {
    if (present != 0xffffffffu) bug("%s needs 32 lanes, but only %08x are here", operation, present);
}
template <class F> SIM_NO_SANITIZE void butterfly(void *lane[32], unsigned present) {
    all_lanes(present, "a warp reduction");
    float a[32], b[32];
    for (int i = 0; i < 32; i++) a[i] = *(float *)lane[i];
    for (int offset = 16; offset > 0; offset >>= 1) {
        for (int i = 0; i < 32; i++) b[i] = F::combine(a[i], a[i ^ offset]);
        for (int i = 0; i < 32; i++) a[i] = b[i];
    }
    for (int i = 0; i < 32; i++) *(float *)lane[i] = a[i];
}
struct fmax_of {
    SIM_NO_SANITIZE static float combine(float a, float b) { return fmaxf(a, b); }
};
struct sum_of {
    SIM_NO_SANITIZE static float combine(float a, float b) { return a + b; }
};

}  // namespace sim

DEVICE_INLINE float warp_sum(float v, SIM_HERE) {
    sim::warp_collective(ALL_LANES, "warp_sum", &v, sim::butterfly<sim::sum_of>, false, file, line);
    return v;
}
DEVICE_INLINE float warp_max(float v, SIM_HERE) {
    sim::warp_collective(ALL_LANES, "warp_max", &v, sim::butterfly<sim::fmax_of>, false, file, line);
    return v;
}

/* --- tensor cores --- */

namespace sim {

struct mma_operands { /* of one lane */
    float *d;
    const uint32_t *a;
    uint32_t b[2];
};
SIM_NO_SANITIZE inline float half_of(uint32_t pair, int upper) {
    uint32_t bits = upper ? pair & 0xffff0000u : pair << 16;
    float f;
    __builtin_memcpy(&f, &bits, sizeof f);
    return f;
}
/* Unpacks the lanes' registers into matrices (layout in kernel_ptx.cuh), multiplies, and packs the
 * result. */
SIM_NO_SANITIZE inline void mma_lanes(void *lane[32], unsigned present) {
    all_lanes(present, "mma.sync");
    float a[16][16], b[16][8], d[16][8];
    for (int i = 0; i < 32; i++) {
        const mma_operands *x = (const mma_operands *)lane[i];
        int g = i / 4, t = i % 4 * 2;
        for (int h = 0; h < 2; h++) {
            a[g][t + h] = half_of(x->a[0], h);
            a[g + 8][t + h] = half_of(x->a[1], h);
            a[g][t + 8 + h] = half_of(x->a[2], h);
            a[g + 8][t + 8 + h] = half_of(x->a[3], h);
            b[t + h][g] = half_of(x->b[0], h);
            b[t + 8 + h][g] = half_of(x->b[1], h);
            d[g][t + h] = x->d[h];
            d[g + 8][t + h] = x->d[2 + h];
        }
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) d[m][n] += a[m][k] * b[k][n];
    for (int i = 0; i < 32; i++) {
        mma_operands *x = (mma_operands *)lane[i];
        int g = i / 4, t = i % 4 * 2;
        for (int h = 0; h < 2; h++) {
            x->d[h] = d[g][t + h];
            x->d[2 + h] = d[g + 8][t + h];
        }
    }
}

struct matrix_load { /* of one lane: the row that it names, the registers that it gets */
    uint32_t *r;
    const void *row;
};
template <bool transposed> SIM_NO_SANITIZE void load_matrices(void *lane[32], unsigned present) {
    all_lanes(present, "ldmatrix");
    auto row = [&](int matrix, int i)
                   SIM_NO_SANITIZE { return (const uint16_t *)((matrix_load *)lane[matrix * 8 + i])->row; };
    for (int i = 0; i < 32; i++) {
        const void *p = ((matrix_load *)lane[i])->row;
        if ((uintptr_t)p % 16 != 0) bug("ldmatrix: row %p of lane %d is not 16-byte aligned", p, i);
        if (!is_shared(p, 16)) bug("ldmatrix: row %p of lane %d is not in shared memory", p, i);
    }
    for (int i = 0; i < 32; i++) {
        int g = i / 4, t = i % 4 * 2;
        for (int m = 0; m < 4; m++) {
            uint32_t lo = transposed ? row(m, t)[g] : row(m, g)[t];
            uint32_t hi = transposed ? row(m, t + 1)[g] : row(m, g)[t + 1];
            ((matrix_load *)lane[i])->r[m] = lo | hi << 16;
        }
    }
}

}  // namespace sim

DEVICE_INLINE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SIM_HERE) {
    sim::mma_operands x{d, a, {b0, b1}};
    sim::warp_collective(ALL_LANES, "mma.m16n8k16", &x, sim::mma_lanes, false, file, line);
}
DEVICE_INLINE void ldmatrix_x4(uint32_t (&r)[4], const void *row, SIM_HERE) {
    sim::note_read(row, 16);
    sim::matrix_load x{r, row};
    sim::warp_collective(ALL_LANES, "ldmatrix.x4", &x, sim::load_matrices<false>, false, file, line);
}
DEVICE_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, SIM_HERE) {
    sim::note_read(row, 16);
    sim::matrix_load x{r, row};
    sim::warp_collective(ALL_LANES, "ldmatrix.x4.trans", &x, sim::load_matrices<true>, false, file, line);
}

/* --- asynchronous copies --- */

DEVICE_INLINE void cp_async16(void *shared, const void *global, bool valid = true, SIM_HERE) {
    sim::copy_async(shared, global, 16, valid, file, line);
}
DEVICE_INLINE void cp_async_commit() { sim::copy_async_commit(); }
template <int pending> DEVICE_INLINE void cp_async_wait() { sim::copy_async_wait(pending); }

/* --- fast mathematics: exact here --- */

DEVICE_INLINE void pin_register(int &) {}
DEVICE_INLINE float fast_exp2(float x) { return exp2f(x); }
DEVICE_INLINE float fast_tanh(float x) { return tanhf(x); }

#endif

/* Hopper's asynchronous units, mbarriers, TMA and wgmma, and the registers of a warpgroup.
 *
 * A TMA load fills its destination with NaN when it is issued, and completes at some moment while a thread
 * waits on an mbarrier. A wgmma fills its accumulators with NaN when it is issued, and reads its operands,
 * including those in registers, at the wait. Data that is used too early is therefore NaN, and data that is
 * overwritten too early is read in its new form. */
#include "test/sim/worker.h"

#include "llmc/cuda/hopper.cuh"

namespace sim {

/* --- mbarrier --- */

struct barrier_state { /* in the 8 bytes of an mbarrier */
    uint32_t phase : 1, count : 15, pending : 16;
    int32_t bytes; /* expected and not there yet */
};
static_assert(sizeof(barrier_state) == sizeof(mbarrier));

static barrier_state *state_of(mbarrier *b) {
    (void)sim::shared_address(b); /* fails if it is not in shared memory */
    return (barrier_state *)b;
}

static void end_phase_if_complete(barrier_state *s) {
    if (s->pending != 0 || s->bytes != 0) return;
    s->phase ^= 1;
    s->pending = s->count;
}

void mbarrier_init(mbarrier *b, int count) {
    barrier_state *s = state_of(b);
    s->phase = 0;
    s->count = s->pending = (uint16_t)(count & 0x7fff);
    s->bytes = 0;
}

void mbarrier_arrive(mbarrier *b, int bytes, const char *file, int line) {
    barrier_state *s = state_of(b);
    if (s->pending == 0)
        bug("mbarrier at %s:%d: more threads arrive than its count of %d", file, line, s->count);
    happens_before_release(b);
    s->bytes += bytes;
    s->pending = (s->pending - 1) & 0xffff;
    end_phase_if_complete(s);
    preempt();
}

/* Completes one pending TMA load. */
static bool run_tma(worker *w) {
    size_t waiting = w->tma_queue.size();
    if (waiting == 0) return false;
    size_t i = 0;
    if (knobs().order == order::reverse) i = waiting - 1;
    if (knobs().order == order::random) {
        if (w->count > 0 && random_bits() % 2 == 0) return false; /* other threads first */
        i = random_bits() % waiting;
    }
    quiet q;
    std::function<void()> load = std::move(w->tma_queue[i]);
    w->tma_queue.erase(w->tma_queue.begin() + (ptrdiff_t)i);
    load();
    w->idle_spins = 0;
    return true;
}

void mbarrier_wait(mbarrier *b, int parity) {
    while (state_of(b)->phase == (uint32_t)parity)
        if (!run_tma(this_worker)) spin();
    happens_before_acquire(b);
}

/* --- TMA --- */

enum : uint64_t { TILE_MAP_MAGIC = 0x51a3d };
struct tile_map { /* inside the opaque 128 bytes of a CUtensorMap */
    uint64_t magic;
    const char *data;
    uint64_t cols, rows, depth, pitch, depth_pitch;
    uint32_t rank;
    uint32_t box_cols, box_rows;
    swizzle mode;
};

/* A byte address with the 16-byte chunks of its row permuted. */
static uint32_t swizzled(uint32_t address, swizzle mode) {
    static const uint32_t masks[] = {0, 7, 3, 1};
    return address ^ (address >> 7 & masks[mode]) << 4;
}

/* For the race detector the bytes are written now, whenever they arrive, and published by the barrier. */
static void begin_load(void *shared, size_t bytes, mbarrier *b) {
    note_write(shared, bytes);
    happens_before_release(b);
    fill_nan(shared, bytes);
}
static void end_load(size_t bytes, mbarrier *b) {
    barrier_state *s = state_of(b);
    s->bytes -= (int32_t)bytes;
    end_phase_if_complete(s);
}

void tma_load(void *shared, const CUtensorMap *opaque, int depth, int row, int col, mbarrier *b,
              const char *file, int line) {
    static const uint32_t alignments[] = {128, 1024, 512, 256};
    tile_map map;
    memcpy(&map, opaque, sizeof map);
    if (map.magic != TILE_MAP_MAGIC) bug("tma at %s:%d: not a tensor map", file, line);
    if ((map.rank == 2) != (depth == -1))
        bug("tma at %s:%d: the tensor map has rank %u", file, line, map.rank);
    uint32_t address = sim::shared_address(shared), row_bytes = map.box_cols * 2,
             bytes = row_bytes * map.box_rows;
    if (address % alignments[map.mode] != 0)
        bug("tma at %s:%d: destination %#x is not %u-byte aligned, as its swizzle mode wants", file, line,
            address, alignments[map.mode]);
    begin_load(shared, bytes, b);
    quiet q;
    this_worker->tma_queue.push_back([=] {
        int64_t z = map.rank == 2 ? 0 : depth;
        for (uint32_t r = 0; r < map.box_rows; r++)
            for (uint32_t c = 0; c < map.box_cols; c++) {
                int64_t y = (int64_t)row + r, x = (int64_t)col + c;
                bool inside = y >= 0 && x >= 0 && y < (int64_t)map.rows && x < (int64_t)map.cols && z >= 0 &&
                              z < (int64_t)map.depth;
                uint16_t v = 0;
                if (inside) {
                    const char *from =
                        map.data + (size_t)z * map.depth_pitch + (size_t)y * map.pitch + (size_t)x * 2;
                    memcpy(&v, from, sizeof v);
                    count_access(from, sizeof v, false);
                }
                memcpy(shared_pointer(swizzled(address + r * row_bytes + c * 2, map.mode)), &v, sizeof v);
            }
        end_load(bytes, b);
    });
}

void bulk_load(void *shared, const void *global, int bytes, mbarrier *b, const char *file, int line) {
    if (bytes <= 0 || bytes % 16 != 0 || (uintptr_t)global % 16 != 0 || sim::shared_address(shared) % 16 != 0)
        bug("bulk copy at %s:%d: %p, %p or %d bytes are not multiples of 16", file, line, shared, global,
            bytes);
    if (!is_device_pointer(global) || !is_device_pointer((const char *)global + bytes - 1))
        bug("bulk copy at %s:%d: source %p is not device memory", file, line, global);
    note_read(global, (size_t)bytes);
    begin_load(shared, (size_t)bytes, b);
    quiet q;
    this_worker->tma_queue.push_back([=] {
        for (int i = 0; i < bytes; i++) ((char *)shared)[i] = ((const char *)global)[i]; /* see fill_nan */
        end_load((size_t)bytes, b);
    });
}

/* --- wgmma --- */

/* Address of element (mn, k) of an operand, by the canonical layouts of the PTX ISA. */
static uint32_t operand_address(uint64_t desc, bool mn_major, int mn, int k) {
    uint32_t start = (uint32_t)(desc & 0x3fff) << 4, leading = (uint32_t)(desc >> 16 & 0x3fff) << 4,
             stride = (uint32_t)(desc >> 32 & 0x3fff) << 4;
    swizzle mode = (swizzle)(desc >> 62);
    static const uint32_t row_bytes[] = {16, 128, 64, 32};
    uint32_t row = row_bytes[mode], i = (uint32_t)mn, j = (uint32_t)k, offset;
    if (!mn_major) {
        offset = i / 8 * stride + i % 8 * row + (mode ? j * 2 : j / 8 * leading + j % 8 * 2);
    } else if (mode) {
        uint32_t per_row = row / 2;
        offset = i / per_row * leading + i % per_row * 2 + j / 8 * stride + j % 8 * row;
    } else {
        offset = i / 8 * stride + i % 8 * 2 + j / 8 * leading + j % 8 * 16;
    }
    return swizzled(start + offset, mode);
}

void wgmma_issue(float *d, int n, uint64_t a, const uint32_t *a_registers, uint64_t b, bool a_mn_major,
                 bool b_mn_major, bool accumulate) {
    quiet q;
    thread *t = this_worker->current;
    bool held = false;
    for (const wgmma_registers &r : t->accumulators) held |= r.first == d;
    if (!held) {
        wgmma_registers r;
        r.first = d;
        r.count = n / 2;
        for (int i = 0; i < r.count; i++) {
            r.value[i] = d[i];
            d[i] = NAN;
        }
        t->accumulators.push_back(r);
    }
    t->wgmmas.push_back({a, b, a_registers, d, n, a_mn_major, b_mn_major, accumulate, t->wgmma_group});
}

void wgmma_commit() { this_worker->current->wgmma_group++; }

/* Eight elements that lie side by side in shared memory, whatever the swizzle: of a K-major operand (mn,
 * k..k+7), of an MN-major one (mn..mn+7, k). */
static const uint16_t *eight_elements(uint64_t desc, bool mn_major, int mn, int k) {
    return (const uint16_t *)shared_pointer(operand_address(desc, mn_major, mn, k));
}
static float from_bits(uint16_t half) { return bit_cast<float>((uint32_t)half << 16); }

/* x[k][mn] = an operand of `count` by 16 in shared memory */
static void fetch_operand(float (*x)[128], uint64_t desc, bool mn_major, int count) {
    for (int i = 0; i < count; i += mn_major ? 8 : 1)
        for (int k = 0; k < 16; k += mn_major ? 1 : 8) {
            const uint16_t *p = eight_elements(desc, mn_major, i, k);
            for (int e = 0; e < 8; e++) (mn_major ? x[k][i + e] : x[k + e][i]) = from_bits(p[e]);
        }
}
/* x[k][row] = the operand a that the threads hold in registers */
static void fetch_registers(float (*x)[128], thread *const *threads, size_t number) {
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < 8; i++) {
            uint32_t pair = threads[t]->wgmmas[number].a_registers[i / 2];
            int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, k = t % 4 * 2 + i / 4 * 8 + i % 2;
            x[k][row] = from_bits((uint16_t)(i % 2 ? pair >> 16 : pair));
        }
}

/* Executes one wgmma of the whole warpgroup: the one that each thread issued as number `number`. */
static void multiply(thread *const *threads, const size_t number) {
    const wgmma_op first = threads[0]->wgmmas[number];
    static thread_local float a[16][128], b[16][128], d[64][128];
    float *held[128];
    for (int i = 0; i < 128; i++) {
        const wgmma_op &mine = threads[i]->wgmmas[number];
        if (mine.desc_a != first.desc_a || mine.desc_b != first.desc_b || mine.n != first.n ||
            !mine.a_registers != !first.a_registers)
            bug("wgmma: the shapes or descriptors differ within a warpgroup");
        held[i] = nullptr;
        for (wgmma_registers &r : threads[i]->accumulators)
            if (r.first == mine.d && r.count == mine.n / 2) held[i] = r.value;
        if (!held[i]) bug("wgmma: accumulators of two shapes share registers");
    }
    if (first.a_registers)
        fetch_registers(a, threads, number);
    else
        fetch_operand(a, first.desc_a, first.a_mn_major, 64);
    fetch_operand(b, first.desc_b, first.b_mn_major, first.n);
    auto for_each_accumulator = [&](auto f) {
        for (int i = 0; i < 128; i++)
            for (int k = 0; k < first.n / 2; k++)
                f(held[i][k], d[i / 32 * 16 + i % 32 / 4 + k / 2 % 2 * 8][k / 4 * 8 + i % 4 * 2 + k % 2]);
    };
    for_each_accumulator([&](float &own, float &whole) { whole = first.accumulate ? own : 0.0f; });
    for (int m = 0; m < 64; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < first.n; n++) d[m][n] += a[k][m] * b[k][n];
    for_each_accumulator([&](float &own, float &whole) { own = whole; });
}

struct wait_data {
    sim::thread *thread;
    int below; /* groups before this number must be done */
};

static void finish_groups(void **data, int count) {
    thread *threads[128] = {};
    for (int i = 0; i < count; i++) threads[i] = ((wait_data *)data[i])->thread;
    size_t issued = threads[0]->wgmmas.size(), done = 0;
    for (int i = 1; i < count; i++)
        if (threads[i]->wgmmas.size() != issued)
            bug("wgmma: the threads of a warpgroup issued different numbers of products");
    while (done < issued && threads[0]->wgmmas[done].group < ((wait_data *)data[0])->below)
        multiply(threads, done++);
    for (int i = 0; i < count; i++) {
        thread *t = threads[i];
        t->wgmmas.erase(t->wgmmas.begin(), t->wgmmas.begin() + (ptrdiff_t)done);
        size_t kept = 0;
        for (const wgmma_registers &r : t->accumulators) {
            bool used = false; /* registers come back only when no product that uses them is under way */
            for (const wgmma_op &op : t->wgmmas) used |= op.d == r.first;
            if (used)
                t->accumulators[kept++] = r;
            else
                for (int k = 0; k < r.count; k++) r.first[k] = r.value[k];
        }
        t->accumulators.resize(kept);
    }
}

/* For the race detector, one thread of the warpgroup reads the operands of every product that ends here. */
static void note_operand_reads(const wgmma_op &op) {
    auto note = [](uint64_t desc, bool mn_major, int count) {
        for (int i = 0; i < count; i += mn_major ? 8 : 1)
            for (int k = 0; k < 16; k += mn_major ? 1 : 8)
                note_read(eight_elements(desc, mn_major, i, k), 16);
    };
    if (!op.a_registers) note(op.desc_a, op.a_mn_major, 64);
    note(op.desc_b, op.b_mn_major, op.n);
}

void wgmma_wait(int pending, const char *file, int line) {
    preempt();
    thread *t = this_worker->current;
    wait_data data{t, t->wgmma_group - pending};
    if (SIM_TSAN && t->linear % 128 == 0)
        for (const wgmma_op &op : t->wgmmas)
            if (op.group < data.below) note_operand_reads(op);
    group_collective(4, "wgmma.wait_group", &data, finish_groups, file, line);
}

/* --- registers --- */

/* The number of registers that the kernel was compiled with is not known here, so only the requests of the
 * warpgroups are added up. */
void set_registers(int count, const char *file, int line) {
    enum { REGISTERS = 65536 };
    worker *w = this_worker;
    if (count < 24 || count > 256 || count % 8 != 0)
        bug("setmaxnreg at %s:%d: %d is not a multiple of 8 in 24..256", file, line, count);
    group_collective(4, "setmaxnreg", nullptr, nullptr, file, line);
    w->registers[w->current->warp / 4] = count;
    int total = 0;
    for (int r : w->registers) total += 128 * r;
    if (total > REGISTERS)
        bug("setmaxnreg at %s:%d: the block's warpgroups want %d registers, more than %d", file, line, total,
            REGISTERS);
}

}  // namespace sim

using namespace sim;

/* --- tensor maps: the driver's function, found as on a GPU --- */

extern "C" {

CUresult cuTensorMapEncodeTiled(CUtensorMap *out, CUtensorMapDataType type, cuuint32_t rank, void *data,
                                const cuuint64_t *size, const cuuint64_t *pitch, const cuuint32_t *box,
                                const cuuint32_t *step, CUtensorMapInterleave, CUtensorMapSwizzle mode,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    static const swizzle modes[] = {SWIZZLE_NONE, SWIZZLE_32, SWIZZLE_64, SWIZZLE_128};
    static const cuuint32_t row_limits[] = {512, 32, 64, 128};
    bool deep = rank == 3;
    if (type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || (rank != 2 && !deep) || mode > CU_TENSOR_MAP_SWIZZLE_128B)
        return CUDA_ERROR_NOT_SUPPORTED;
    bool valid = (uintptr_t)data % 16 == 0 && pitch[0] % 16 == 0 && step[0] == 1 && step[1] == 1 &&
                 box[0] <= 256 && box[1] <= 256 && box[0] * 2 <= row_limits[mode] && box[0] * 2 % 16 == 0;
    if (deep) valid = valid && pitch[1] % 16 == 0 && step[2] == 1;
    if (!valid || !is_device_pointer(data)) return CUDA_ERROR_INVALID_VALUE;
    if (deep && box[2] != 1) return CUDA_ERROR_NOT_SUPPORTED;
    tile_map map = {TILE_MAP_MAGIC, (const char *)data,  size[0], size[1], deep ? size[2] : 1,
                    pitch[0],       deep ? pitch[1] : 0, rank,    box[0],  box[1],
                    modes[mode]};
    static_assert(sizeof map <= sizeof *out);
    memset(out, 0, sizeof *out);
    memcpy(out, &map, sizeof map);
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **entry, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *result) {
    bool known = strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *entry = known ? (void *)cuTensorMapEncodeTiled : nullptr;
    if (result) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
}

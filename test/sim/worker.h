/* Shared by the runtime's own files: the state of a worker, which is a host thread that runs one block at a
 * time, and the hooks into the sanitizers.
 *
 * The runtime is compiled without -fsanitize. Under ThreadSanitizer every CUDA thread is a TSan fiber, so
 * that a race between two of them is reported with both lines; the runtime's own work must not be charged
 * to a CUDA thread and runs in the host's context (struct quiet). */
#ifndef SIM_WORKER_H
#define SIM_WORKER_H

#include "test/sim/sim.h"

#include "test/sim/options.h"

#include "test/sim/fiber.h"

#include <vector>

#if SIM_TSAN
extern "C" {
void *__tsan_get_current_fiber();
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *address);
void __tsan_release(void *address);
void __tsan_read_range(void *address, unsigned long size);
void __tsan_write_range(void *address, unsigned long size);
}
#endif

namespace sim {

enum {
    MAX_THREADS = 1024,
    MAX_WARPS = 32,
    MAX_BARRIERS = 16,
    MAX_WARP_OPS = 8, /* disjoint or nested masks of one warp that wait at the same time */
    SHARED_ARENA = 1 << 20,
    SHARED_LIMIT = 227 * 1024, /* per block on sm_90 */
    SHARED_DEFAULT_LIMIT = 48 * 1024,
    REDZONE = SIM_ASAN ? 64 : 16,
};

enum class state : uint8_t { unstarted, ready, running, at_barrier, in_warp_op, in_group_op, done };

struct pending_copy { /* cp.async */
    void *dst;
    const void *src; /* nullptr: zeros */
    int bytes, group;
};

struct wgmma_op { /* one wgmma.mma_async of a thread */
    uint64_t desc_a, desc_b;
    const uint32_t *a_registers; /* in place of desc_a, or nullptr */
    float *d;
    int n;
    bool a_mn_major, b_mn_major, accumulate;
    int group;
};
struct wgmma_registers { /* accumulators that the tensor core owns until the wait */
    float *first;
    int count;
    float value[128];
};

struct thread {
    sim::fiber *fiber;
    uint3 index;
    uint16_t linear, warp;
    uint8_t lane, barrier;
    sim::state state;
    bool fenced;
    const char *operation, *file; /* what it waits for, for messages */
    int line;
    unsigned mask;
    int copy_group;
    std::vector<pending_copy> copies;
    int wgmma_group;
    std::vector<wgmma_op> wgmmas;
    std::vector<wgmma_registers> accumulators;
    void *tsan[2];
};

struct barrier {
    int arrived, expected; /* expected 0: every thread of the block */
    vote kind;
    int tally, result;
    const char *file;
    int line;
    char sync[2][2]; /* addresses for TSan's release and acquire, by tsan_set, used in turn */
    int turn;
};

struct warp_op {
    unsigned mask, arrived;
    const char *operation, *file;
    int line;
    warp_function fn;
    void *data[32];
};
struct warp {
    warp_op op[MAX_WARP_OPS];
    int ops;
    unsigned alive;
    char sync[2][2];
    int turn;
};
struct group_op {
    int arrived;
    const char *operation;
    void *data[256];
};

struct shared_entry {
    unsigned block; /* the block (worker.block_count) that it was made for */
    void *memory;
};

struct worker {
    const launch_info *launch = nullptr;
    void (*body)(void *) = nullptr;
    void *arg = nullptr;

    sim::thread thread[MAX_THREADS];
    int threads = 0, alive = 0;
    sim::thread *current = nullptr;
    uint16_t runnable[2 * MAX_THREADS]; /* ring of thread numbers */
    unsigned head = 0, count = 0;

    sim::fiber host; /* where run_block() waits */
    sim::fiber *running = nullptr;
    std::vector<sim::fiber *> idle;
    unsigned fibers = 0;

    sim::barrier barrier[MAX_BARRIERS];
    sim::warp warp[MAX_WARPS];
    group_op group[MAX_WARPS];
    int registers[MAX_WARPS / 4]; /* of a thread of each warpgroup that has set them, else 0 */

    uint64_t random = 1;
    bool by_priority = false; /* random order: let whole warps run far ahead of others */
    uint8_t priority[MAX_WARPS];
    uint64_t idle_spins = 0;

    char *shared = nullptr;
    size_t shared_top = 0, shared_used = 0;
    void *dynamic = nullptr;
    std::vector<shared_entry> slots;
    std::vector<std::pair<char *, size_t>> shared_objects; /* redzones are checked at the block's end */
    unsigned block_count = 0;

    std::vector<std::function<void()>> tma_queue;

    char sync_start, sync_end;
    void *tsan_host = nullptr;
    int tsan_set = 0;
    sim::fiber *tsan_stack[2][MAX_THREADS] = {}; /* TSan ties a stack to one context */
};

extern thread_local worker *this_worker; /* nullptr on threads that never ran a block */

inline uint64_t next_random(uint64_t &state) { /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* memset would be intercepted by ThreadSanitizer and count as an access of the CUDA thread. */
inline void fill_nan(void *p, size_t bytes) {
#ifdef __x86_64__
    asm volatile("rep stosb" : "+D"(p), "+c"(bytes) : "a"(0xff) : "memory");
#else
    for (volatile unsigned char *q = (volatile unsigned char *)p; bytes > 0; bytes--) *q++ = 0xff;
#endif
}

inline void poison([[maybe_unused]] const void *p, [[maybe_unused]] size_t bytes) {
#if SIM_ASAN
    __asan_poison_memory_region(p, bytes);
#endif
}
inline void unpoison([[maybe_unused]] const void *p, [[maybe_unused]] size_t bytes) {
#if SIM_ASAN
    __asan_unpoison_memory_region(p, bytes);
#endif
}
inline void tsan_acquire([[maybe_unused]] void *p) {
#if SIM_TSAN
    __tsan_acquire(p);
#endif
}
inline void tsan_release([[maybe_unused]] void *p) {
#if SIM_TSAN
    __tsan_release(p);
#endif
}
inline void tsan_enter([[maybe_unused]] void *context) {
#if SIM_TSAN
    __tsan_switch_to_fiber(context, 1 /* no synchronisation */);
#endif
}

/* While an object of this type exists, TSan charges no access to the running CUDA thread. */
struct quiet {
    quiet() { tsan_enter(this_worker->tsan_host); }
    ~quiet() { tsan_enter(this_worker->current->tsan[this_worker->tsan_set]); }
};

void make_ready(worker *w, thread *t);
/* Runs other threads until the current one is ready again; its state says what it waits for. */
void suspend(worker *w);

/* waiting.cpp: lets the threads go on that wait at a barrier, or in an operation of a warp. `last` is the one
 * that runs and came last; nullptr: a thread for which they waited has exited. */
void release_barrier(worker *w, int id, const thread *last);
void finish_warp_op(worker *w, int warp_number, int op_number, const thread *last);

/* shared.cpp */
void shared_begin_block(worker *w);
void shared_end_block(worker *w);

}  // namespace sim

#endif

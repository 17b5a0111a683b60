/* The execution model: fibers, the choice of the next thread, the life of a thread, blocks, grids. Built
 * without -fsanitize; see worker.h. */
#define SIM_FIBER_IMPLEMENTATION
#include "test/sim/worker.h"

#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <mutex>
#include <pthread.h>
#include <thread>
#include <unistd.h>

namespace sim {

thread_local worker *this_worker;

/* --- messages --- */

void bug(const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "SIM ERROR: %s\n", text);
    worker *w = this_worker;
    if (w && w->launch && w->current) {
        static const char *const orders[] = {"forward", "reverse", "random"};
        fprintf(stderr,
                "  in the kernel launched at %s:%d with grid (%u,%u,%u) block (%u,%u,%u)\n"
                "  block (%u,%u,%u) thread (%u,%u,%u) = warp %d lane %d; SIM_ORDER=%s SIM_SEED=%llu\n",
                w->launch->file, w->launch->line, gridDim.x, gridDim.y, gridDim.z, blockDim.x, blockDim.y,
                blockDim.z, blockIdx.x, blockIdx.y, blockIdx.z, w->current->index.x, w->current->index.y,
                w->current->index.z, w->current->warp, w->current->lane, orders[(int)knobs().order],
                (unsigned long long)knobs().seed);
    }
    fflush(nullptr);
    _exit(99);
}

/* Prints where each thread of the block waits, with one line for neighbours that wait at the same place,
 * then fails. */
[[noreturn]] static void bug_stuck(worker *w, const char *why) {
    static const char *const names[] = {"", "ready", "running", "__syncthreads", "warp", "group", "done"};
    fprintf(stderr, "SIM: %s; the threads of the block wait at\n", why);
    int shown = 0;
    for (int i = 0, j; i < w->threads && shown < 12; i = j + 1) {
        const thread *t = &w->thread[i];
        for (j = i; j + 1 < w->threads; j++) {
            const thread *u = &w->thread[j + 1];
            if (u->state != t->state || u->line != t->line || u->file != t->file) break;
        }
        if (t->state != state::at_barrier && t->state != state::in_warp_op && t->state != state::in_group_op)
            continue;
        fprintf(stderr, "  threads %d..%d: %s %s at %s:%d, mask %08x\n", i, j, names[(int)t->state],
                t->operation, t->file, t->line, t->mask);
        shown++;
    }
    bug("%s", why);
}

/* --- which thread runs next --- */

const launch_info *current_launch() { return this_worker ? this_worker->launch : nullptr; }
int lane_id() { return this_worker->current->lane; }
int warp_id() { return this_worker->current->warp; }
int thread_linear_id() { return this_worker->current->linear; }
uint64_t random_bits() { return next_random(this_worker->random) >> 16; }

enum { RING = 2 * MAX_THREADS };

void make_ready(worker *w, thread *t) {
    t->state = state::ready;
    w->runnable[(w->head + w->count++) % RING] = t->linear;
}

/* Random order. In half of the blocks each choice is uniform. In the other half, warps have random
 * priorities that change now and then. A warp may then do the work of several barriers before another
 * starts. Uniform choices practically never produce that, and some bugs, such as a buffer reused too early,
 * show only then. */
static unsigned pick_random(worker *w) {
    if (!w->by_priority) return (w->head + (unsigned)(random_bits() % w->count)) % RING;
    uint64_t r = random_bits();
    if (r % 128 == 0) w->priority[(r >> 8) % MAX_WARPS] = (uint8_t)(r >> 16);
    unsigned best = w->head % RING, best_priority = 256;
    for (unsigned k = 0; k < w->count; k++) {
        unsigned i = (w->head + k) % RING, p = w->priority[w->runnable[i] / 32];
        if (p < best_priority) {
            best_priority = p;
            best = i;
        }
    }
    return best;
}

static thread *pick(worker *w) {
    if (w->count == 0) return nullptr;
    if (knobs().order == order::forward) {
        thread *t = &w->thread[w->runnable[w->head]];
        w->head = (w->head + 1) % RING;
        w->count--;
        return t;
    }
    unsigned last = (w->head + w->count - 1) % RING;
    if (knobs().order == order::random) std::swap(w->runnable[pick_random(w)], w->runnable[last]);
    w->count--;
    return &w->thread[w->runnable[last]];
}

/* --- switching --- */

static void fiber_main();

static fiber *new_fiber(worker *w, unsigned color) {
    fiber *f = new fiber();
    fiber_init(f, knobs().stack_bytes, color, fiber_main);
    w->fibers++;
    return f;
}

static fiber *fiber_for(worker *w, const thread *t) {
    if (SIM_TSAN) {
        fiber *&own = w->tsan_stack[w->tsan_set][t->linear];
        if (!own) own = new_fiber(w, 0);
        return own;
    }
    if (w->idle.empty()) return new_fiber(w, w->fibers * 704 % 4096);
    fiber *f = w->idle.back();
    w->idle.pop_back();
    return f;
}

static void set_current(worker *w, thread *t) {
    w->current = t;
    t->state = state::running;
    threadIdx = t->index;
    tsan_enter(t->tsan[w->tsan_set]);
}

static void switch_to(worker *w, fiber *to) {
    fiber *from = w->running;
    w->running = to;
    fiber_switch(from, to);
}

void suspend(worker *w) {
    thread *me = w->current, *next = pick(w);
    if (!next) bug_stuck(w, "deadlock: no thread of the block can go on");
    if (next->state == state::unstarted) next->fiber = fiber_for(w, next);
    set_current(w, next);
    if (next != me) switch_to(w, next->fiber);
}

void spin() {
    worker *w = this_worker;
    if (++w->idle_spins > 2000000) bug_stuck(w, "livelock: threads only spin");
    if (w->count == 0) return;
    thread *t = w->current;
    t->operation = "spin";
    make_ready(w, t);
    if (knobs().order == order::reverse) { /* a spinning thread runs last: move it to the head */
        w->count--;
        w->head = (w->head + RING - 1) % RING;
        w->runnable[w->head] = t->linear;
        w->count++;
    }
    if (w->by_priority) w->priority[t->warp] = 255;
    suspend(w);
}

void preempt() {
    if (knobs().order != order::random || random_bits() % 4 != 0) return;
    this_worker->idle_spins = 0;
    spin();
}

/* --- memory order --- */

void set_fence() { this_worker->current->fenced = true; }
bool take_fence() {
    thread *t = this_worker->current;
    bool fenced = t->fenced;
    t->fenced = false;
    return fenced;
}
void happens_before_release(void *p) { tsan_release(p); }
void happens_before_acquire(void *p) { tsan_acquire(p); }

void (*on_access)(const void *p, size_t bytes, bool write);
extern "C" void sim_count_accesses(void (*count)(const void *p, size_t bytes, bool write)) {
    on_access = count;
}

/* Reports to the sanitizers an access that the runtime makes for the thread. */
void note_read([[maybe_unused]] const void *p, [[maybe_unused]] size_t bytes) {
    count_access(p, bytes, false);
#if SIM_TSAN
    __tsan_read_range((void *)p, bytes);
#elif SIM_ASAN
    if (void *bad = __asan_region_is_poisoned((void *)p, bytes)) bug("a copy reads out of bounds at %p", bad);
#endif
}
void note_write([[maybe_unused]] void *p, [[maybe_unused]] size_t bytes) {
    count_access(p, bytes, true);
#if SIM_TSAN
    __tsan_write_range(p, bytes);
#elif SIM_ASAN
    if (void *bad = __asan_region_is_poisoned(p, bytes)) bug("a copy writes out of bounds at %p", bad);
#endif
}

/* --- the life of a thread --- */

static void thread_exits(worker *w, thread *t) {
    if (!t->copies.empty() && knobs().strict)
        bug("a thread exits with %zu cp.async copies that it never waited for", t->copies.size());
    if (!t->wgmmas.empty() && knobs().strict)
        bug("a thread exits with %zu wgmma operations that it never waited for", t->wgmmas.size());
    t->copies.clear();
    t->state = state::done;
    w->alive--;
    warp &wp = w->warp[t->warp];
    wp.alive &= ~(1u << t->lane);
    for (int i = 0; i < wp.ops;) { /* operations that only waited for this lane */
        warp_op &op = wp.op[i];
        if ((op.mask >> t->lane & 1) && knobs().strict)
            bug("lane %d exits while lanes %08x wait for it at %s (%s:%d), mask %08x", t->lane, op.arrived,
                op.operation, op.file, op.line, op.mask);
        if ((op.mask >> t->lane & 1) && op.arrived == (op.mask & wp.alive))
            finish_warp_op(w, t->warp, i, nullptr);
        else
            i++;
    }
    for (int i = 0; i < MAX_BARRIERS; i++) {
        barrier &b = w->barrier[i];
        if (b.arrived == 0 || b.expected != 0) continue;
        if (knobs().strict)
            bug("a thread exits while %d threads of its block wait at __syncthreads (%s:%d)", b.arrived,
                b.file, b.line);
        if (b.arrived >= w->alive) release_barrier(w, i, nullptr);
    }
    tsan_release(&w->sync_end);
}

/* Runs threads one after another on one stack, as long as each runs to its end. */
static void fiber_main() {
    fiber_started();
    worker *w = this_worker;
    for (;;) {
        tsan_acquire(&w->sync_start);
        w->body(w->arg);
        thread_exits(w, w->current);
        thread *next = pick(w);
        fiber *me = w->running;
        if (!next && w->alive)
            bug_stuck(w, "deadlock: the remaining threads of the block wait for threads that have exited");
        if (next && next->state == state::unstarted && !SIM_TSAN) {
            next->fiber = me;
            set_current(w, next);
            continue;
        }
        w->idle.push_back(me);
        if (!next) {
            switch_to(w, &w->host);
            continue;
        }
        if (next->state == state::unstarted) next->fiber = fiber_for(w, next);
        set_current(w, next);
        switch_to(w, next->fiber);
    }
}

/* --- blocks and grids --- */

static uint64_t mix(uint64_t x) {
    x ^= x >> 31;
    x *= 0x7fb5d329728ea185ull;
    x ^= x >> 27;
    x *= 0x81dadef4bc2dd44dull;
    return x ^ x >> 33;
}

static void run_block(worker *w, uint64_t number) {
    const launch_info &launch = *w->launch;
    blockIdx.x = (unsigned)(number % launch.grid.x);
    blockIdx.y = (unsigned)(number / launch.grid.x % launch.grid.y);
    blockIdx.z = (unsigned)(number / launch.grid.x / launch.grid.y);
    w->random = mix(knobs().seed * 1000003 + number + 1) | 1;
    w->by_priority = knobs().order == order::random && random_bits() % 2 == 1;
    for (auto &p : w->priority) p = (uint8_t)random_bits();

    w->alive = w->threads;
    w->head = 0;
    w->count = 0;
    w->idle_spins = 0;
    w->block_count++;
    w->tsan_set ^= 1; /* consecutive blocks share no context and no sync address */
    shared_begin_block(w);
    for (auto &b : w->barrier) b.arrived = 0;
    for (auto &g : w->group) g.arrived = 0;
    for (int &r : w->registers) r = 0;
    for (int i = 0; i < w->threads; i++) {
        thread *t = &w->thread[i];
        if (t->lane == 0) {
            w->warp[t->warp].ops = 0;
            w->warp[t->warp].alive = 0;
        }
        w->warp[t->warp].alive |= 1u << t->lane;
        t->copy_group = 0;
        t->wgmma_group = 0;
        t->fenced = false;
        make_ready(w, t);
        t->state = state::unstarted;
    }
    tsan_release(&w->sync_start);
    thread *first = pick(w);
    first->fiber = fiber_for(w, first);
    set_current(w, first);
    w->running = &w->host;
    switch_to(w, first->fiber);
    tsan_enter(w->tsan_host);
    shared_end_block(w);
    w->current = nullptr;
}

static worker *make_worker() {
    worker *w = new worker();
    w->shared =
        (char *)mmap(nullptr, SHARED_ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (w->shared == MAP_FAILED) bug("no memory for the shared memory of a block");
    poison(w->shared, SHARED_ARENA);
    if (SIM_ASAN) { /* ASan must know the host's stack before it can switch back to it */
        pthread_attr_t attributes;
        void *stack;
        pthread_getattr_np(pthread_self(), &attributes);
        pthread_attr_getstack(&attributes, &stack, &w->host.size);
        pthread_attr_destroy(&attributes);
        w->host.stack = (char *)stack;
    }
    /* Under TSan nothing may be allocated while a CUDA thread runs. */
    for (auto &t : w->thread) t.copies.reserve(SIM_TSAN ? 256 : 0);
    w->idle.reserve(1 << 16);
    w->slots.resize(256, {0, nullptr});
    w->shared_objects.reserve(256);
    return w;
}

struct grid_job {
    const launch_info *launch;
    void (*body)(void *);
    void *arg;
    std::atomic<uint64_t> next;
    uint64_t blocks, stride; /* random order visits block number k*stride + seed */
};

static void run_blocks(grid_job *job) {
    if (!this_worker) this_worker = make_worker();
    worker *w = this_worker;
    w->launch = job->launch;
    w->body = job->body;
    w->arg = job->arg;
    gridDim = job->launch->grid;
    blockDim = job->launch->block;
    w->threads = (int)(blockDim.x * blockDim.y * blockDim.z);
    for (int i = 0; i < w->threads; i++) {
        thread *t = &w->thread[i];
        unsigned n = (unsigned)i;
        t->linear = (uint16_t)n;
        t->warp = (uint16_t)(n / 32);
        t->lane = (uint8_t)(n % 32);
        t->index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    }
#if SIM_TSAN
    /* The host creates all contexts. Whoever creates a context is ordered before everything the context
     * does, so a CUDA thread that created one would hide its races with it. */
    w->tsan_host = __tsan_get_current_fiber();
    for (int i = 0; i < w->threads; i++)
        for (auto &context : w->thread[i].tsan)
            if (!context) context = __tsan_create_fiber(0);
#endif
    for (uint64_t k; (k = job->next.fetch_add(1, std::memory_order_relaxed)) < job->blocks;) {
        order o = knobs().order;
        run_block(w, o == order::random    ? (k * job->stride + knobs().seed) % job->blocks
                     : o == order::reverse ? job->blocks - 1 - k
                                           : k);
    }
    tsan_acquire(&w->sync_end);
    w->launch = nullptr;
}

/* Host threads that help with large grids. They live until the process ends. */
struct pool {
    std::mutex mutex;
    std::condition_variable work, done;
    grid_job *job = nullptr;
    int generation = 0, active = 0, helpers = 0;

    void helper() {
        for (int seen = 0;;) {
            grid_job *mine;
            {
                std::unique_lock<std::mutex> lock(mutex);
                work.wait(lock, [&] { return generation != seen; });
                seen = generation;
                mine = job;
            }
            run_blocks(mine);
            std::lock_guard<std::mutex> lock(mutex);
            if (--active == 0) done.notify_one();
        }
    }
    void run(grid_job *j) {
        for (; helpers < knobs().workers - 1; helpers++) std::thread([this] { helper(); }).detach();
        {
            std::lock_guard<std::mutex> lock(mutex);
            job = j;
            generation++;
            active = helpers;
        }
        work.notify_all();
        run_blocks(j);
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, [&] { return active == 0; });
    }
};

static uint64_t gcd(uint64_t a, uint64_t b) { return b == 0 ? a : gcd(b, a % b); }

void run_grid(const launch_info &launch, void (*body)(void *), void *arg) {
    if (this_worker && this_worker->current) bug("a kernel launches a kernel");
    grid_job job;
    job.launch = &launch;
    job.body = body;
    job.arg = arg;
    job.next = 0;
    job.blocks = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    job.stride = mix(knobs().seed) % job.blocks | 1;
    while (gcd(job.stride, job.blocks) != 1) job.stride += 2;
    uint64_t threads = job.blocks * launch.block.x * launch.block.y * launch.block.z;
    static pool *helpers = new pool(); /* never destroyed: its threads wait in it when the process ends */
    if (knobs().workers > 1 && job.blocks > 1 && threads >= 4096)
        helpers->run(&job);
    else
        run_blocks(&job);
}

}  // namespace sim

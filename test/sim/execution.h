/* Interface of the execution model (execution.cpp, waiting.cpp): what intrinsics, wrappers and the runtime
 * API ask of it.
 *
 * A grid is a loop over blocks, a block a loop over its CUDA threads. A thread runs until it must wait for
 * others; then its fiber is suspended and another thread runs. Kernels that never wait never switch. */
#ifndef SIM_EXECUTION_H
#define SIM_EXECUTION_H

namespace sim {

/* Prints "SIM ERROR: ..." with the kernel, block and thread that run, and exits with status 99. */
[[noreturn]] void bug(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* --- grids --- */

struct launch_info {
    dim3 grid, block;
    size_t shared_bytes;
    const char *file;
    int line;
    const void *kernel;
};
const launch_info *current_launch(); /* nullptr outside kernels */

/* Runs body(arg) for every thread of the grid; returns when all are done. */
void run_grid(const launch_info &launch, void (*body)(void *), void *arg);

int lane_id();
int warp_id();
int thread_linear_id();
uint64_t random_bits();

/* --- waiting --- */

/* Barrier `id` of the block, for `threads` threads (0: all of them). */
void block_barrier(int id, int threads, const char *file, int line);
/* Arrives at the barrier without waiting. */
void barrier_arrive(int id, int threads, const char *file, int line);
enum class vote { all, any, count };
int block_vote(vote kind, bool predicate, const char *file, int line);

/* The primitive behind all warp-wide operations. Every lane in `mask` calls it with the same operation; the
 * last one to arrive runs fn on the data of all lanes, then all continue. With `orders_memory`, writes
 * before the call are visible to all lanes after it, as with __syncwarp; shuffles do not order memory. Only
 * the race detector sees the difference. */
using warp_function = void (*)(void *lane[32], unsigned present);
void warp_collective(unsigned mask, const char *operation, void *data, warp_function fn, bool orders_memory,
                     const char *file, int line);
/* The same for the threads of `warps` consecutive warps (a warpgroup is 4). */
using group_function = void (*)(void **thread, int count);
void group_collective(int warps, const char *operation, void *data, group_function fn, const char *file,
                      int line);

void spin();    /* for loops that wait for another thread of the block: lets the others run */
void preempt(); /* in random order another thread may run here */

/* --- memory order, for ThreadSanitizer: an atomic releases only if its thread has fenced before --- */

void set_fence();
bool take_fence();
void happens_before_release(void *p);
void happens_before_acquire(void *p);
void note_read(const void *p, size_t bytes);
void note_write(void *p, size_t bytes);

/* --- for test_traffic.c: reports what the runtime itself moves (asynchronous copies, cuBLASLt) --- */

extern void (*on_access)(const void *p, size_t bytes, bool write); /* nullptr: nobody counts */
inline void count_access(const void *p, size_t bytes, bool write) {
    if (on_access) on_access(p, bytes, write);
}

/* --- shared memory of the block that runs --- */

/* One per SHARED declaration. */
struct shared_slot {
    unsigned size, align;
    int id; /* -1 until first used */
};
void *shared_static(shared_slot &slot);
void *shared_dynamic();
bool is_shared(const void *p, size_t bytes);
uint32_t shared_address(const void *p);
void *shared_pointer(uint32_t address);

/* --- asynchronous copies: the bytes move at the wait, never earlier --- */

void copy_async(void *shared, const void *global, int bytes, bool valid, const char *file, int line);
void copy_async_commit();
void copy_async_wait(int pending);

/* --- checks by memory.cpp --- */

bool is_device_pointer(const void *p);
void check_launch(const launch_info &launch);
void check_kernel_pointer(const void *p, int argument, const launch_info &launch);
void check_kernel_struct(const void *p, size_t bytes, int argument, const launch_info &launch);
void check_guard_zones(const launch_info &launch);

/* --- streams (stream.cpp): runs `work` now or later, or records it --- */

void enqueue(cudaStream_t stream, std::function<void()> work);

}  // namespace sim

#endif

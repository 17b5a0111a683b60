/* Shared memory of a block, and the asynchronous copies into it (cp.async).
 *
 * Every object is filled with NaN when a block first reaches it and has a redzone behind it: poisoned for
 * AddressSanitizer, which then names the access; otherwise checked when the block ends. */
#include "test/sim/worker.h"

#include <mutex>

namespace sim {

enum { ARENA_BASE = 1024 }; /* so that address 0 stays invalid */

static void *shared_alloc(worker *w, size_t size, size_t align) {
    w->shared_top = (w->shared_top + align - 1) / align * align;
    char *p = w->shared + w->shared_top;
    w->shared_top = (w->shared_top + size + REDZONE + 15) / 16 * 16;
    if (w->shared_top > SHARED_ARENA) bug("shared memory: the simulator's arena is exhausted");
    unpoison(p, size);
    fill_nan(p, size + (SIM_ASAN ? 0 : REDZONE));
    w->shared_objects.push_back({p, size});
    return p;
}

void shared_begin_block(worker *w) {
    if (SIM_ASAN) poison(w->shared, w->shared_top);
    /* TSan: new pages have no history, so the previous block's accesses are forgotten. */
    if (SIM_TSAN && w->shared_top > 0)
        mmap(w->shared, (w->shared_top + 4095) / 4096 * 4096, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    w->shared_top = ARENA_BASE;
    w->shared_used = w->launch->shared_bytes;
    w->shared_objects.clear();
    w->dynamic = w->launch->shared_bytes ? shared_alloc(w, w->launch->shared_bytes, 1024) : nullptr;
}

void shared_end_block(worker *w) {
    if (!w->tma_queue.empty()) bug("a block ends with %zu TMA copies never waited for", w->tma_queue.size());
    if (SIM_ASAN) return;
    for (auto &object : w->shared_objects)
        for (size_t i = 0; i < REDZONE; i++)
            if ((unsigned char)object.first[object.second + i] != 0xff)
                bug("block (%u,%u,%u) of the kernel launched at %s:%d wrote past the end of a shared array "
                    "of %zu bytes, at byte %zu",
                    blockIdx.x, blockIdx.y, blockIdx.z, w->launch->file, w->launch->line, object.second,
                    object.second + i);
}

void *shared_static(shared_slot &slot) {
    static std::mutex mutex;
    static int slots;
    worker *w = this_worker;
    if (__atomic_load_n(&slot.id, __ATOMIC_ACQUIRE) < 0) {
        quiet q;
        std::lock_guard<std::mutex> lock(mutex);
        if (slot.id < 0) __atomic_store_n(&slot.id, slots++, __ATOMIC_RELEASE);
    }
    if ((size_t)slot.id >= w->slots.size()) {
        quiet q;
        w->slots.resize((size_t)slot.id + 256, {0, nullptr});
    }
    shared_entry &entry = w->slots[(size_t)slot.id];
    if (entry.block != w->block_count) {
        quiet q;
        w->shared_used += slot.size;
        if (w->shared_used > SHARED_LIMIT)
            bug("%zu bytes of shared memory, static and dynamic, are more than a block's %d", w->shared_used,
                SHARED_LIMIT);
        if (w->shared_used - w->launch->shared_bytes > SHARED_DEFAULT_LIMIT)
            bug("%zu bytes of static shared memory are more than a block's %d; use DYNAMIC_SHARED",
                w->shared_used - w->launch->shared_bytes, SHARED_DEFAULT_LIMIT);
        entry = {w->block_count, shared_alloc(w, slot.size, slot.align)};
    }
    return entry.memory;
}

void *shared_dynamic() {
    if (!this_worker->dynamic)
        bug("the kernel uses dynamic shared memory but was launched with 0 bytes of it");
    return this_worker->dynamic;
}

bool is_shared(const void *p, size_t bytes) {
    const char *base = this_worker->shared;
    return (const char *)p >= base && (const char *)p + bytes <= base + SHARED_ARENA;
}

uint32_t shared_address(const void *p) {
    if (!is_shared(p, 1)) bug("%p is not an address of shared memory", p);
    return (uint32_t)((const char *)p - this_worker->shared);
}

void *shared_pointer(uint32_t address) { return this_worker->shared + address; }

/* --- cp.async --- */

void copy_async(void *shared, const void *global, int bytes, bool valid, const char *file, int line) {
    thread *t = this_worker->current;
    if ((uintptr_t)shared % (unsigned)bytes || (valid && (uintptr_t)global % (unsigned)bytes))
        bug("cp.async at %s:%d: %p or %p is not %d-byte aligned", file, line, shared, global, bytes);
    if (!is_shared(shared, (size_t)bytes))
        bug("cp.async at %s:%d: destination %p is not shared memory", file, line, shared);
    if (valid && !is_device_pointer(global))
        bug("cp.async at %s:%d: source %p is not device memory", file, line, global);
    if (valid) note_read(global, (size_t)bytes);
    note_write(shared, (size_t)bytes);
    fill_nan(shared, (size_t)bytes); /* a read before the wait gets NaN */
    t->copies.push_back({shared, valid ? global : nullptr, bytes, t->copy_group});
}

void copy_async_commit() { this_worker->current->copy_group++; }

void copy_async_wait(int pending) {
    thread *t = this_worker->current;
    size_t kept = 0;
    for (const pending_copy &c : t->copies) {
        if (c.group >= t->copy_group - pending) {
            t->copies[kept++] = c;
            continue;
        }
        for (int i = 0; i < c.bytes; i++) ((char *)c.dst)[i] = c.src ? ((const char *)c.src)[i] : 0;
        note_write(c.dst, (size_t)c.bytes);
    }
    t->copies.resize(kept);
}

}  // namespace sim

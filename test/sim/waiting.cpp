/* What the threads of a block do together: barriers, operations of a warp and of several warps. A thread that
 * is not the last to come is suspended, and the last one makes the others ready again. Built without
 * -fsanitize; see worker.h. */
#include "test/sim/worker.h"

namespace sim {

/* --- block barriers --- */

void release_barrier(worker *w, int id, const thread *last) {
    barrier &b = w->barrier[id];
    b.arrived = 0;
    b.result = b.tally;
    b.turn ^= 1;
    for (int i = 0; i < w->threads; i++) {
        thread *t = &w->thread[i];
        if (t->state == state::at_barrier && t->barrier == id && t != last) make_ready(w, t);
    }
    w->idle_spins = 0;
}

static void check_named_barrier(int id, int threads, const barrier &b, const char *file, int line) {
    if (id < 1 || id >= MAX_BARRIERS || threads <= 0 || threads % 32 != 0 || threads != b.expected)
        bug("barrier %d at %s:%d: %d threads, while others say %d; wants whole warps, the same number of "
            "them everywhere, and a number in 1..%d",
            id, file, line, threads, b.expected, MAX_BARRIERS - 1);
}

void block_barrier(int id, int threads, const char *file, int line) {
    worker *w = this_worker;
    barrier &b = w->barrier[id];
    thread *me = w->current;
    int turn = b.turn;
    tsan_release(&b.sync[w->tsan_set][turn]);
    if (b.arrived == 0) {
        b.file = file;
        b.line = line;
        b.expected = threads;
    } else if (knobs().strict && id == 0 && (b.line != line || strcmp(b.file, file) != 0)) {
        bug("divergent __syncthreads: this thread is at %s:%d, others of its block wait at %s:%d", file, line,
            b.file, b.line);
    }
    if (id != 0) check_named_barrier(id, threads, b, file, line);
    if (threads == 0 && knobs().strict && w->alive < w->threads)
        bug("__syncthreads at %s:%d, but %d of the block's %d threads have already exited", file, line,
            w->threads - w->alive, w->threads);
    me->file = file;
    me->line = line;
    me->barrier = (uint8_t)id;
    me->operation = "";
    me->mask = 0;
    if (++b.arrived >= (threads ? threads : w->alive)) {
        release_barrier(w, id, me);
    } else {
        me->state = state::at_barrier;
        suspend(w);
    }
    tsan_acquire(&b.sync[w->tsan_set][turn]);
}

void barrier_arrive(int id, int threads, const char *file, int line) {
    worker *w = this_worker;
    barrier &b = w->barrier[id];
    tsan_release(&b.sync[w->tsan_set][b.turn]);
    if (b.arrived == 0) b.expected = threads;
    check_named_barrier(id, threads, b, file, line);
    if (++b.arrived >= threads) release_barrier(w, id, nullptr);
    preempt();
}

int block_vote(vote kind, bool predicate, const char *file, int line) {
    barrier &b = this_worker->barrier[0];
    if (b.arrived == 0) {
        b.kind = kind;
        b.tally = kind == vote::all;
    }
    if (kind == vote::all) b.tally &= predicate;
    if (kind == vote::any) b.tally |= predicate;
    if (kind == vote::count) b.tally += predicate;
    block_barrier(0, 0, file, line);
    return b.result;
}

/* --- warp operations --- */

void finish_warp_op(worker *w, int warp_number, int op_number, const thread *last) {
    warp &wp = w->warp[warp_number];
    warp_op &op = wp.op[op_number];
    unsigned present = op.arrived;
    if (op.fn) op.fn(op.data, present);
    wp.turn ^= 1;
    w->idle_spins = 0;
    for (int lane = 0; lane < 32; lane++) {
        thread *t = &w->thread[warp_number * 32 + lane];
        if ((present >> lane & 1) && t != last) make_ready(w, t);
    }
    if (op_number != --wp.ops) wp.op[op_number] = wp.op[wp.ops];
}

/* Returns the warp's operation with this mask: the one in which other lanes already wait, or a new one.
 * Overlapping masks are legal, because lanes may reach a wider operation early; a cycle is reported as a
 * deadlock. */
static int find_warp_op(warp &wp, unsigned mask, const char *operation, warp_function fn, const char *file,
                        int line) {
    for (int i = 0; i < wp.ops; i++) {
        warp_op &op = wp.op[i];
        if (op.mask != mask) continue;
        if (strcmp(op.operation, operation) != 0)
            bug("divergent warp: this lane is at %s (%s:%d), other lanes wait at %s (%s:%d), mask %08x",
                operation, file, line, op.operation, op.file, op.line, mask);
        if (knobs().strict && op.line != line)
            bug("divergent warp: %s at %s:%d and at %s:%d, mask %08x", operation, file, line, op.file,
                op.line, mask);
        return i;
    }
    if (wp.ops == MAX_WARP_OPS) bug("more than %d operations of one warp wait", MAX_WARP_OPS);
    warp_op &op = wp.op[wp.ops];
    op.mask = mask;
    op.arrived = 0;
    op.operation = operation;
    op.file = file;
    op.line = line;
    op.fn = fn;
    return wp.ops++;
}

void warp_collective(unsigned mask, const char *operation, void *data, warp_function fn, bool orders_memory,
                     const char *file, int line) {
    worker *w = this_worker;
    thread *me = w->current;
    warp &wp = w->warp[me->warp];
    if (!(mask >> me->lane & 1))
        bug("%s at %s:%d: lane %d is not in its own mask %08x", operation, file, line, me->lane, mask);
    bool partial_warp = me->warp == w->threads / 32; /* the last warp of a block of, say, 40 threads */
    if (knobs().strict && (mask & ~wp.alive) && !partial_warp)
        bug("%s at %s:%d: mask %08x names lanes that have exited (alive: %08x)", operation, file, line, mask,
            wp.alive);
    int number = find_warp_op(wp, mask, operation, fn, file, line);
    warp_op &op = wp.op[number];
    int turn = wp.turn;
    if (orders_memory) tsan_release(&wp.sync[w->tsan_set][turn]);
    op.arrived |= 1u << me->lane;
    op.data[me->lane] = data;
    if (op.arrived == (mask & wp.alive)) {
        finish_warp_op(w, me->warp, number, me);
    } else {
        me->state = state::in_warp_op;
        me->operation = operation;
        me->file = file;
        me->line = line;
        me->mask = mask;
        suspend(w);
    }
    if (orders_memory) tsan_acquire(&wp.sync[w->tsan_set][turn]);
}

void group_collective(int warps, const char *operation, void *data, group_function fn, const char *file,
                      int line) {
    worker *w = this_worker;
    thread *me = w->current;
    int size = warps * 32, number = me->warp / warps, first = number * size;
    group_op &g = w->group[number];
    if (first + size > w->threads) bug("%s at %s:%d needs %d whole warps", operation, file, line, warps);
    if (g.arrived && strcmp(g.operation, operation) != 0)
        bug("divergent warpgroup: %s at %s:%d while others wait at %s", operation, file, line, g.operation);
    g.operation = operation;
    g.data[me->linear - first] = data;
    if (++g.arrived < size) {
        me->state = state::in_group_op;
        me->operation = operation;
        me->file = file;
        me->line = line;
        me->mask = 0;
        suspend(w);
        return;
    }
    g.arrived = 0;
    if (fn) {
        quiet q;
        fn(g.data, size);
    }
    for (int i = 0; i < size; i++)
        if (&w->thread[first + i] != me) make_ready(w, &w->thread[first + i]);
}

}  // namespace sim

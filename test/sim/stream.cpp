/* Streams, events and graphs.
 *
 * An item of work is a closure. By default it runs when it is enqueued. With SIM_LAZY=1 each stream keeps a
 * queue, and work runs only when a synchronisation needs it; at such points other streams advance by random
 * amounts. A missing event wait or stream synchronisation then shows as a wrong result.
 *
 * A capture records closures in the order of the calls; a graph launch runs them in that order. */
#include "test/sim/runtime.h"

#include <chrono>
#include <deque>
#include <memory>
#include <vector>

namespace sim {

struct stream;

struct dependency { /* work number `sequence` of a stream must be done */
    sim::stream *stream;
    uint64_t sequence;
};
struct item {
    std::function<void()> work;
    std::vector<dependency> needs;
};
struct graph {
    std::vector<std::function<void()>> work;
};
struct stream {
    std::deque<item> queue;
    uint64_t pushed = 0, done = 0;
    bool nonblocking = false, destroyed = false;
    std::vector<dependency> waits; /* of the next work: cudaStreamWaitEvent */
    graph *capture = nullptr;
};
struct event {
    sim::stream *stream = nullptr;
    uint64_t sequence = 0;
    graph *capture = nullptr;
    std::shared_ptr<double> milliseconds = std::make_shared<double>(0.0);
};

/* Never destroyed: destructors of other static objects may still use it. */
static stream &null_stream = *new stream();
static std::vector<stream *> &streams = *new std::vector<stream *>{&null_stream};
static int captures; /* number of streams that are being captured */

static stream *of(cudaStream_t s) {
    if (s == nullptr || s == cudaStreamLegacy) return &null_stream;
    stream *found = (stream *)s;
    for (stream *t : streams)
        if (t == found && !t->destroyed) return found;
    bug("%p is not a stream", (void *)s);
}

std::recursive_mutex &api_mutex() {
    static std::recursive_mutex mutex;
    return mutex;
}

/* --- running what is queued --- */

static void run_until(stream *s, uint64_t sequence) {
    while (s->done < sequence) {
        std::vector<dependency> needs = s->queue.front().needs;
        for (const dependency &d : needs) run_until(d.stream, d.sequence);
        if (s->done >= sequence) return;
        item next = std::move(s->queue.front());
        s->queue.pop_front();
        {
            device_access access;
            next.work();
        }
        s->done++;
    }
}

static void drain(stream *s) { run_until(s, s->pushed); }
void drain_all() {
    for (stream *s : streams) drain(s);
}

uint64_t stream_position(cudaStream_t s) {
    SIM_API_LOCK;
    return of(s)->pushed;
}
void stream_advance(cudaStream_t s, uint64_t position) {
    SIM_API_LOCK;
    run_until(of(s), std::min(position, of(s)->pushed)); /* without SIM_LAZY nothing is queued */
}

/* At a synchronisation the other streams may have advanced by any amount. */
static void advance_others() {
    static uint64_t random = knobs().seed * 0x9E3779B97F4A7C15ull | 1;
    for (stream *s : streams) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        uint64_t waiting = s->pushed - s->done;
        if (waiting > 0 && (random >> 20) % 2 == 0) run_until(s, s->done + 1 + (random >> 30) % waiting);
    }
}

void forbid_in_capture(const char *call) {
    if (captures) bug("%s while a stream is being captured", call);
}

void enqueue(cudaStream_t handle, std::function<void()> work) {
    SIM_API_LOCK;
    initialize();
    stream *s = of(handle);
    if (s->capture) {
        s->capture->work.push_back(std::move(work));
        return;
    }
    if (s == &null_stream) forbid_in_capture("work on the default stream");
    if (!knobs().lazy) {
        device_access access;
        work();
        return;
    }
    item next{std::move(work), std::move(s->waits)};
    s->waits.clear();
    if (s == &null_stream) {
        for (stream *o : streams)
            if (o != s && !o->nonblocking) next.needs.push_back({o, o->pushed});
    } else if (!s->nonblocking) {
        next.needs.push_back({&null_stream, null_stream.pushed});
    }
    s->queue.push_back(std::move(next));
    s->pushed++;
}

static double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

}  // namespace sim

using namespace sim;

extern "C" {

/* --- streams --- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    SIM_API_LOCK;
    initialize();
    stream *made = new stream();
    made->nonblocking = flags & cudaStreamNonBlocking;
    streams.push_back(made);
    *s = (cudaStream_t)made;
    return cudaSuccess;
}
/* Priorities are accepted and have no effect: nothing runs concurrently here. */
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int) {
    return cudaStreamCreateWithFlags(s, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t s) {
    SIM_API_LOCK;
    stream *gone = of(s);
    drain(gone);
    gone->destroyed = true; /* dependencies may still point to it */
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    SIM_API_LOCK;
    forbid_in_capture("cudaStreamSynchronize");
    advance_others();
    drain(of(s));
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    SIM_API_LOCK;
    forbid_in_capture("cudaDeviceSynchronize");
    drain_all();
    return cudaSuccess;
}

/* --- events --- */

cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = (cudaEvent_t) new event();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete (event *)e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t s) {
    SIM_API_LOCK;
    event *e = (event *)handle;
    e->capture = of(s)->capture;
    auto time = e->milliseconds = std::make_shared<double>(0.0);
    enqueue(s, [time] { *time = now_ms(); });
    e->stream = of(s);
    e->sequence = of(s)->pushed;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t handle, unsigned) {
    SIM_API_LOCK;
    event *e = (event *)handle;
    if (e->capture) { /* the stream joins the capture */
        if (!of(s)->capture) captures++;
        of(s)->capture = e->capture;
    } else if (e->stream) {
        of(s)->waits.push_back({e->stream, e->sequence});
    }
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    SIM_API_LOCK;
    forbid_in_capture("cudaEventSynchronize");
    event *e = (event *)handle;
    advance_others();
    if (e->stream) run_until(e->stream, e->sequence);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = (float)(*((event *)end)->milliseconds - *((event *)start)->milliseconds);
    return cudaSuccess;
}

/* --- capture and graphs --- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    SIM_API_LOCK;
    stream *origin = of(s);
    if (origin == &null_stream || origin->capture) return report(cudaErrorStreamCaptureUnsupported);
    origin->capture = new graph();
    captures++;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out) {
    SIM_API_LOCK;
    graph *g = of(s)->capture;
    if (!g) return report(cudaErrorIllegalState);
    for (stream *t : streams)
        if (t->capture == g) {
            t->capture = nullptr;
            captures--;
        }
    *out = (cudaGraph_t)g;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status) {
    SIM_API_LOCK;
    *status = of(s)->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t g, unsigned long long) {
    *exec = (cudaGraphExec_t) new graph(*(graph *)g);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    graph *g = (graph *)exec;
    enqueue(s, [g] {
        for (auto &work : g->work) work();
    });
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    delete (graph *)g;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    SIM_API_LOCK;
    drain_all(); /* a launch may still be queued */
    delete (graph *)exec;
    return cudaSuccess;
}
}

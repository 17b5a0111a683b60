/* NCCL between simulated devices, one per process of this machine: the functions of llmc/ranks/nccl_api.h.
 *
 * A unique id names Unix sockets. Every rank connects to every other, and a thread of the communicator
 * receives messages, as NCCL's proxy thread does. An operation is work on a stream: it sends each rank the
 * data that this rank needs, waits for the messages of the others, and adds in rank order, in fp32 with one
 * rounding. As on a GPU it waits for ever for a rank that does not come; ncclCommGetAsyncError then reports
 * that a process is gone, and ncclCommAbort ends the wait.
 *
 * Lazy streams (SIM_LAZY=1) run only when the host synchronises, so two ranks could wait for each other,
 * which GPUs never do. Therefore a second thread runs queued operations as soon as another rank has reached
 * them.
 *
 * Reported as bugs: operations that differ between ranks in kind, type, size, root or order; addresses
 * outside device memory; buffers that overlap in ways that NCCL does not allow; use of a communicator after
 * its end; capture. SIM_NCCL_VERSION=21805 simulates another version, SIM_NCCL_CUT=1 a network that fails
 * at the next operation. */
#include "test/sim/runtime.h"

#include "llmc/ranks/nccl_api.h"
#include "llmc/ops/tensor.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <poll.h>
#include <string>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <vector>

/* The prototypes, which NCCL's own header would supply. */
extern "C" {
#define NCCL_PROTOTYPE(member, name, required, result, parameters) result name parameters;
NCCL_FUNCTIONS(NCCL_PROTOTYPE)
#undef NCCL_PROTOTYPE
}

namespace sim {

/* --- communicators --- */

enum class kind : uint32_t { all_reduce, reduce, reduce_scatter, all_gather, broadcast, exchange, goodbye };

struct nccl_header { /* of a message: the operation, and how many bytes follow */
    sim::kind kind;
    int32_t type, root;
    uint64_t number, count, bytes;
};
struct nccl_message {
    nccl_header header;
    std::vector<char> payload;
};
struct nccl_hello {
    int32_t version, world, rank, device;
};
struct nccl_queued { /* operation of this rank: where it stands */
    cudaStream_t stream;
    uint64_t position;
};

struct nccl_communicator {
    int rank = 0, world = 1;
    std::vector<int> sockets; /* by rank; -1: this one */
    int stop = -1;            /* eventfd: ends the receiver */
    std::thread receiver, runner;
    std::atomic<bool> ended{false}; /* destroyed or aborted */
    std::atomic<int> error{NCCL_SUCCESS};

    std::mutex mutex; /* guards the members below; locked after the API's mutex if both are needed */
    std::condition_variable changed;
    std::vector<std::deque<nccl_message>> inbox; /* by rank */
    std::vector<nccl_queued> queued;             /* all operations so far, by number */
    uint64_t done = 0, wanted = 0; /* numbers of operations: completed here; reached by another rank */
    bool aborted = false, closing = false;
};

/* Never destroyed: threads and queued work may still refer to them. */
static std::vector<nccl_communicator *> &communicators = *new std::vector<nccl_communicator *>();
static std::string &last_error_text = *new std::string();

static int refuse(int result, const std::string &text) {
    last_error_text = text;
    return result;
}

static nccl_communicator *communicator_of(void *comm, const char *call) {
    for (nccl_communicator *c : communicators)
        if (c == comm) {
            if (c->ended) bug("%s: the communicator was aborted or destroyed", call);
            return c;
        }
    bug("%s: %p is not a communicator", call, comm);
}

static int version() {
    const char *text = getenv("SIM_NCCL_VERSION");
    return text ? atoi(text) : 22809;
}

/* --- threads --- */

static bool write_all(int fd, const void *data, size_t bytes) {
    for (const char *p = (const char *)data; bytes > 0;) {
        ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL);
        if (n <= 0 && errno != EINTR) return false;
        if (n > 0) p += n, bytes -= (size_t)n;
    }
    return true;
}
static bool read_all(int fd, void *data, size_t bytes) {
    for (char *p = (char *)data; bytes > 0;) {
        ssize_t n = recv(fd, p, bytes, 0);
        if (n == 0 || (n < 0 && errno != EINTR)) return false;
        if (n > 0) p += n, bytes -= (size_t)n;
    }
    return true;
}

/* False if this rank will send no more. */
static bool receive_message(nccl_communicator *c, int from) {
    nccl_message m;
    bool ok = read_all(c->sockets[(size_t)from], &m.header, sizeof m.header);
    if (ok && m.header.kind == kind::goodbye) return false;
    if (ok) {
        m.payload.resize(m.header.bytes);
        ok = read_all(c->sockets[(size_t)from], m.payload.data(), m.payload.size());
    }
    std::lock_guard<std::mutex> lock(c->mutex);
    if (ok) {
        c->wanted = std::max(c->wanted, m.header.number + 1);
        c->inbox[(size_t)from].push_back(std::move(m));
    } else {
        c->error = NCCL_REMOTE_ERROR;
    }
    c->changed.notify_all();
    return ok;
}

static void receive_all(nccl_communicator *c) {
    std::vector<pollfd> fds;
    for (int fd : c->sockets) fds.push_back({fd, POLLIN, 0});
    fds.push_back({c->stop, POLLIN, 0});
    for (;;) {
        if (poll(fds.data(), fds.size(), -1) < 0) continue;
        if (fds.back().revents) return;
        for (int r = 0; r < c->world; r++)
            if (fds[(size_t)r].revents && !receive_message(c, r)) fds[(size_t)r].fd = -1;
    }
}

static void run_what_others_wait_for(nccl_communicator *c) {
    std::unique_lock<std::mutex> lock(c->mutex);
    for (;;) {
        c->changed.wait(
            lock, [c] { return c->closing || std::min(c->wanted, (uint64_t)c->queued.size()) > c->done; });
        if (c->closing) return;
        nccl_queued next = c->queued[c->done];
        lock.unlock();
        stream_advance(next.stream, next.position);
        lock.lock();
    }
}

static void end_threads(nccl_communicator *c) {
    uint64_t one = 1;
    if (c->stop >= 0 && write(c->stop, &one, sizeof one) < 0) bug("eventfd: %s", strerror(errno));
    for (int fd : c->sockets)
        if (fd >= 0) shutdown(fd, SHUT_RD); /* in the middle of a message */
    if (c->runner.joinable()) c->runner.join();
    if (c->receiver.joinable()) c->receiver.join();
    for (int fd : c->sockets)
        if (fd >= 0) close(fd);
    if (c->stop >= 0) close(c->stop);
}

/* --- operations --- */

struct nccl_leg { /* one ncclSend or ncclRecv */
    int peer;
    char *data;
    size_t bytes;
};
/* An exchange is a group of ncclSend and ncclRecv; all ranks must call one. */
struct nccl_operation_call {
    const char *name;
    nccl_communicator *comm;
    nccl_header header;
    const char *send;
    char *receive;
    std::vector<nccl_leg> sends, receives;
};

static size_t type_size(int type) { return type == NCCL_FLOAT32 ? 4 : 2; }

static std::string text_of(const nccl_header &h) {
    static const char *const names[] = {"AllReduce", "Reduce",    "ReduceScatter",
                                        "AllGather", "Broadcast", "Send or Recv"};
    std::string text = std::string(names[(int)h.kind]) + " of " + std::to_string(h.count) +
                       (h.type == NCCL_FLOAT32 ? " float32" : " bfloat16");
    if (h.kind == kind::reduce || h.kind == kind::broadcast) text += " with root " + std::to_string(h.root);
    return text;
}

/* The part of this rank's data that rank `to` needs. */
static std::pair<const char *, size_t> outgoing(const nccl_operation_call &o, int to) {
    size_t bytes = o.header.count * type_size(o.header.type);
    switch (o.header.kind) {
    case kind::reduce:
        return {o.send, to == o.header.root ? bytes : 0};
    case kind::broadcast:
        return {o.send, o.comm->rank == o.header.root ? bytes : 0};
    case kind::reduce_scatter:
        return {o.send + (size_t)to * bytes, bytes};
    case kind::exchange:
        for (const nccl_leg &leg : o.sends)
            if (leg.peer == to) return {leg.data, leg.bytes};
        return {nullptr, 0};
    default:
        return {o.send, bytes};
    }
}

static void send_to_all(const nccl_operation_call &o) {
    for (int r = 0; r < o.comm->world; r++) {
        if (r == o.comm->rank) continue;
        nccl_header header = o.header;
        auto data = outgoing(o, r);
        header.bytes = data.second;
        int fd = o.comm->sockets[(size_t)r];
        if (!write_all(fd, &header, sizeof header) || !write_all(fd, data.first, data.second))
            o.comm->error = NCCL_REMOTE_ERROR;
    }
}

/* Collects the others' messages of this operation, with this rank's own data in its place. False if
 * aborted. */
static bool receive_from_all(const nccl_operation_call &o, std::vector<nccl_message> &from) {
    nccl_communicator *c = o.comm;
    from.resize((size_t)c->world);
    for (int r = 0; r < c->world; r++) {
        nccl_message &m = from[(size_t)r];
        if (r == c->rank) {
            auto own = outgoing(o, r);
            m.header = o.header;
            if (own.second) m.payload.assign(own.first, own.first + own.second);
            continue;
        }
        std::unique_lock<std::mutex> lock(c->mutex);
        auto &inbox = c->inbox[(size_t)r];
        c->changed.wait(lock, [&] { return c->aborted || (!inbox.empty() && !c->error); });
        if (c->aborted) return false;
        m = std::move(inbox.front());
        inbox.pop_front();
        const nccl_header &a = o.header, &b = m.header;
        if (a.number != b.number || a.kind != b.kind || a.type != b.type || a.root != b.root ||
            a.count != b.count)
            bug("NCCL: the ranks differ in operation %llu: %s on rank %d, %s on rank %d",
                (unsigned long long)a.number, text_of(a).c_str(), c->rank, text_of(b).c_str(), r);
    }
    return true;
}

static float element(const char *data, size_t i, int type) {
    float value;
    uint16_t half;
    if (type == NCCL_FLOAT32) {
        memcpy(&value, data + 4 * i, 4);
        return value;
    }
    memcpy(&half, data + 2 * i, 2);
    return f32_from_bf16(half);
}

static void add_up(char *out, const std::vector<nccl_message> &from, size_t count, int type) {
    for (size_t i = 0; i < count; i++) {
        float sum = element(from[0].payload.data(), i, type);
        for (size_t r = 1; r < from.size(); r++) sum += element(from[r].payload.data(), i, type);
        uint16_t half = bf16_from_f32(sum);
        if (type == NCCL_FLOAT32)
            memcpy(out + 4 * i, &sum, 4);
        else
            memcpy(out + 2 * i, &half, 2);
    }
}

static void combine(const nccl_operation_call &o, const std::vector<nccl_message> &from) {
    const nccl_header &h = o.header;
    size_t bytes = h.count * type_size(h.type);
    switch (h.kind) {
    case kind::reduce:
        if (o.comm->rank != h.root) return;
        [[fallthrough]];
    case kind::all_reduce:
    case kind::reduce_scatter:
        add_up(o.receive, from, h.count, h.type);
        return;
    case kind::exchange:
        for (size_t r = 0; r < from.size(); r++) {
            const nccl_leg *leg = nullptr;
            for (const nccl_leg &l : o.receives)
                if (l.peer == (int)r) leg = &l;
            size_t expected = leg ? leg->bytes : 0,
                   sent = (int)r == o.comm->rank ? 0 : from[r].payload.size();
            if (sent != expected)
                bug("NCCL: rank %d sends %zu bytes to rank %d, which receives %zu", (int)r, sent,
                    o.comm->rank, expected);
            if (expected) memcpy(leg->data, from[r].payload.data(), expected);
        }
        return;
    case kind::all_gather:
        for (size_t r = 0; r < from.size(); r++)
            if (bytes) memcpy(o.receive + r * bytes, from[r].payload.data(), bytes);
        return;
    default:
        if (bytes) memcpy(o.receive, from[(size_t)h.root].payload.data(), bytes);
    }
}

/* The operations of one ncclGroupStart ... ncclGroupEnd run concurrently: none sees what another has
 * written. */
static void run(const std::vector<nccl_operation_call> &group) {
    std::vector<std::vector<nccl_message>> from(group.size());
    nccl_communicator *c = group[0].comm;
    for (const auto &o : group) send_to_all(o);
    bool ok = true;
    for (size_t i = 0; i < group.size() && ok; i++) ok = receive_from_all(group[i], from[i]);
    for (size_t i = 0; i < group.size() && ok; i++) combine(group[i], from[i]);
    std::lock_guard<std::mutex> lock(c->mutex);
    c->done += group.size();
    c->changed.notify_all();
}

/* The operations called since ncclGroupStart, all for one stream. */
struct open_group {
    int depth = 0, result = NCCL_SUCCESS;
    cudaStream_t stream = nullptr;
    std::vector<nccl_operation_call> calls;
};
static thread_local open_group group;

static int end_group() {
    int result = group.result;
    std::vector<nccl_operation_call> calls = std::move(group.calls);
    group.calls.clear();
    group.result = NCCL_SUCCESS;
    if (result != NCCL_SUCCESS || calls.empty()) return result;
    SIM_API_LOCK;
    nccl_communicator *c = calls[0].comm;
    if (c->error != NCCL_SUCCESS) return refuse(c->error, "an earlier operation has failed");
    {
        std::lock_guard<std::mutex> lock(c->mutex);
        uint64_t position = stream_position(group.stream) + 1;
        for (auto &o : calls) {
            o.header.number = c->queued.size();
            c->queued.push_back({group.stream, position});
        }
        if (knobs().lazy) c->changed.notify_all();
    }
    if (getenv("SIM_NCCL_CUT"))
        for (int fd : c->sockets)
            if (fd >= 0) shutdown(fd, SHUT_RDWR);
    enqueue(group.stream, [calls] { run(calls); });
    return NCCL_SUCCESS;
}

/* NCCL allows `receive` to be this rank's part of `send`, or `send` to be this rank's part of `receive`. */
static void check_overlap(const char *name, const char *send, size_t send_bytes, const char *receive,
                          size_t receive_bytes, const char *in_place_send, const char *in_place_receive) {
    if (send == in_place_send && receive == in_place_receive) return;
    if (send < receive + receive_bytes && receive < send + send_bytes)
        bug("%s: the buffers %p and %p overlap in a way that NCCL does not allow", name, (const void *)send,
            (const void *)receive);
}

static int call(const char *name, sim::kind k, const void *send, void *receive, size_t count, int type,
                int op, int root, void *comm, void *stream) {
    SIM_API_LOCK;
    nccl_communicator *c = communicator_of(comm, name);
    forbid_in_capture(name);
    if (type != NCCL_FLOAT32 && type != NCCL_BFLOAT16) bug("%s: type %d is not simulated", name, type);
    if (op != NCCL_SUM) bug("%s: operation %d is not simulated", name, op);
    if (root < 0 || root >= c->world) {
        int result = refuse(NCCL_INVALID_ARGUMENT, std::string(name) + ": invalid root");
        if (group.depth > 0) group.result = result;
        return result;
    }
    if (group.depth > 0 && !group.calls.empty() && (group.stream != stream || group.calls[0].comm != c))
        bug("%s: groups of several streams or communicators are not simulated", name);
    size_t bytes = count * type_size(type), offset = (size_t)c->rank * bytes, all = (size_t)c->world * bytes;
    size_t send_bytes = k == kind::reduce_scatter ? all : bytes;
    size_t receive_bytes = k == kind::all_gather ? all : bytes;
    bool sends = k != kind::broadcast || c->rank == root, receives = k != kind::reduce || c->rank == root;
    const char *s = (const char *)send, *r = (const char *)receive;
    if (sends && bytes) check_device_range(s, send_bytes, name);
    if (receives && bytes) check_device_range(r, receive_bytes, name);
    if (sends && receives && bytes)
        check_overlap(name, s, send_bytes, r, receive_bytes, k == kind::all_gather ? r + offset : s,
                      k == kind::reduce_scatter ? s + offset
                      : k == kind::all_gather   ? r
                                                : s);
    group.stream = (cudaStream_t)stream;
    group.calls.push_back({name, c, {k, type, root, 0, count, 0}, s, (char *)receive, {}, {}});
    return group.depth > 0 ? NCCL_SUCCESS : end_group();
}

/* Sends and receives of a group become one operation. */
static int leg(const char *name, bool sends, void *data, size_t count, int type, int peer, void *comm,
               void *stream) {
    SIM_API_LOCK;
    nccl_communicator *c = communicator_of(comm, name);
    forbid_in_capture(name);
    if (group.depth == 0) bug("%s: only in groups is it simulated", name);
    if (peer < 0 || peer >= c->world || peer == c->rank) bug("%s: rank %d with rank %d", name, c->rank, peer);
    if (group.calls.empty())
        group.calls.push_back(
            {name, c, {kind::exchange, NCCL_FLOAT32, 0, 0, 0, 0}, nullptr, nullptr, {}, {}});
    nccl_operation_call &o = group.calls[0];
    if (o.header.kind != kind::exchange ||
        (!(o.sends.empty() && o.receives.empty()) && group.stream != stream))
        bug("%s: groups with other operations or of several streams are not simulated", name);
    size_t bytes = count * type_size(type);
    if (bytes) check_device_range((const char *)data, bytes, name);
    std::vector<nccl_leg> &legs = sends ? o.sends : o.receives;
    for (const nccl_leg &l : legs)
        if (l.peer == peer) bug("%s: two for rank %d in a group are not simulated", name, peer);
    group.stream = (cudaStream_t)stream;
    legs.push_back({peer, (char *)data, bytes});
    return NCCL_SUCCESS;
}

/* --- opening --- */

static sockaddr_un address_of(const nccl_id &id, int rank, socklen_t *size) {
    sockaddr_un a = {};
    a.sun_family = AF_UNIX; /* a path that begins with a zero byte has no file */
    int n = snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "%.60s.%d", id.bytes, rank);
    *size = (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + (size_t)n);
    return a;
}

/* Greets the process at the other end; on success its socket is in its place. */
static int greet(nccl_communicator *c, int fd) {
    nccl_hello mine = {version(), c->world, c->rank, 0}, other;
    cudaGetDevice(&mine.device);
    if (!write_all(fd, &mine, sizeof mine) || !read_all(fd, &other, sizeof other))
        return refuse(NCCL_SYSTEM_ERROR, "a process is gone");
    if (other.version != mine.version)
        return refuse(NCCL_INVALID_USAGE,
                      "Mismatched NCCL version detected : rank " + std::to_string(c->rank) + " version " +
                          std::to_string(mine.version) + " rank " + std::to_string(other.rank) + " version " +
                          std::to_string(other.version));
    if (other.world != c->world || other.rank < 0 || other.rank >= c->world ||
        c->sockets[(size_t)other.rank] >= 0 || other.rank == c->rank)
        return refuse(NCCL_INVALID_USAGE, "another process has the same rank or another world size");
    if (other.device == mine.device)
        return refuse(NCCL_INVALID_USAGE, "Duplicate GPU detected : rank " + std::to_string(c->rank) +
                                              " and rank " + std::to_string(other.rank) +
                                              " both on CUDA device " + std::to_string(mine.device));
    c->sockets[(size_t)other.rank] = fd;
    return NCCL_SUCCESS;
}

/* Connects to the lower ranks and waits for the higher ones, for ever, as NCCL does. */
static int connect_all(nccl_communicator *c, const nccl_id &id) {
    socklen_t size;
    sockaddr_un a = address_of(id, c->rank, &size);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), result = NCCL_SUCCESS;
    if (bind(listener, (sockaddr *)&a, size) != 0 || listen(listener, c->world) != 0)
        return refuse(NCCL_SYSTEM_ERROR, std::string("bind: ") + strerror(errno));
    for (int r = 0; r < c->rank && result == NCCL_SUCCESS; r++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        a = address_of(id, r, &size);
        while (connect(fd, (sockaddr *)&a, size) != 0) usleep(1000);
        result = greet(c, fd);
    }
    for (int r = c->rank + 1; r < c->world && result == NCCL_SUCCESS; r++) {
        int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        result = greet(c, fd);
    }
    close(listener);
    return result;
}

}  // namespace sim

using namespace sim;

extern "C" {

/* --- the interface --- */

int ncclGetVersion(int *v) {
    *v = version();
    return NCCL_SUCCESS;
}

int ncclGetUniqueId(struct nccl_id *id) {
    memset(id, 0, sizeof *id);
    auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    snprintf(id->bytes, sizeof id->bytes, "sim-nccl-%d-%llx", (int)getpid(), (unsigned long long)now);
    return NCCL_SUCCESS;
}

int ncclCommInitRank(void **comm, int world, struct nccl_id id, int rank) {
    initialize();
    if (world < 1 || rank < 0 || rank >= world)
        return refuse(NCCL_INVALID_ARGUMENT, "invalid rank requested");
    nccl_communicator *c = new nccl_communicator();
    c->rank = rank;
    c->world = world;
    c->sockets.assign((size_t)world, -1);
    c->inbox.resize((size_t)world);
    if (int result = connect_all(c, id)) {
        delete c;
        return result;
    }
    if (world > 1) {
        c->stop = eventfd(0, EFD_CLOEXEC);
        c->receiver = std::thread(receive_all, c);
        if (knobs().lazy) c->runner = std::thread(run_what_others_wait_for, c);
    }
    SIM_API_LOCK;
    communicators.push_back(c);
    *comm = c;
    return NCCL_SUCCESS;
}

/* Finishes queued operations, and tells the others that this connection ends on purpose. */
int ncclCommDestroy(void *comm) {
    nccl_communicator *c = communicator_of(comm, "ncclCommDestroy");
    if (!c->queued.empty()) stream_advance(c->queued.back().stream, c->queued.back().position);
    c->ended = true;
    nccl_header goodbye = {kind::goodbye, 0, 0, 0, 0, 0};
    for (int fd : c->sockets)
        if (fd >= 0) write_all(fd, &goodbye, sizeof goodbye);
    {
        std::lock_guard<std::mutex> lock(c->mutex);
        c->closing = true;
        c->changed.notify_all();
    }
    end_threads(c);
    return NCCL_SUCCESS;
}

/* May be called by any thread, while another one waits in an operation and holds the API's lock. */
int ncclCommAbort(void *comm) {
    nccl_communicator *c = communicator_of(comm, "ncclCommAbort");
    c->ended = true;
    {
        std::lock_guard<std::mutex> lock(c->mutex);
        c->aborted = c->closing = true;
        c->changed.notify_all();
    }
    for (int fd : c->sockets)
        if (fd >= 0) shutdown(fd, SHUT_RDWR);
    end_threads(c);
    return NCCL_SUCCESS;
}

int ncclCommGetAsyncError(void *comm, int *error) {
    *error = communicator_of(comm, "ncclCommGetAsyncError")->error;
    return NCCL_SUCCESS;
}

const char *ncclGetErrorString(int result) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
                                        "unhandled system error (run with NCCL_DEBUG=INFO for details)",
                                        "internal error",
                                        "invalid argument (run with NCCL_DEBUG=WARN for details)",
                                        "invalid usage (run with NCCL_DEBUG=WARN for details)",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return result >= 0 && result < 8 ? texts[result] : "unknown result code";
}
const char *ncclGetLastError(void *) { return last_error_text.c_str(); }

int ncclGroupStart(void) {
    group.depth++;
    return NCCL_SUCCESS;
}
int ncclGroupEnd(void) {
    if (group.depth == 0) return refuse(NCCL_INVALID_USAGE, "ncclGroupEnd: not in a group call");
    return --group.depth == 0 ? end_group() : NCCL_SUCCESS;
}

int ncclAllReduce(const void *send, void *receive, size_t count, int type, int op, void *comm, void *stream) {
    return call("ncclAllReduce", kind::all_reduce, send, receive, count, type, op, 0, comm, stream);
}
int ncclReduce(const void *send, void *receive, size_t count, int type, int op, int root, void *comm,
               void *stream) {
    return call("ncclReduce", kind::reduce, send, receive, count, type, op, root, comm, stream);
}
int ncclReduceScatter(const void *send, void *receive, size_t count, int type, int op, void *comm,
                      void *stream) {
    return call("ncclReduceScatter", kind::reduce_scatter, send, receive, count, type, op, 0, comm, stream);
}
int ncclAllGather(const void *send, void *receive, size_t count, int type, void *comm, void *stream) {
    return call("ncclAllGather", kind::all_gather, send, receive, count, type, NCCL_SUM, 0, comm, stream);
}
int ncclSend(const void *data, size_t count, int type, int peer, void *comm, void *stream) {
    return leg("ncclSend", true, const_cast<void *>(data), count, type, peer, comm, stream);
}
int ncclRecv(void *data, size_t count, int type, int peer, void *comm, void *stream) {
    return leg("ncclRecv", false, data, count, type, peer, comm, stream);
}
int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root, void *comm,
                  void *stream) {
    return call("ncclBroadcast", kind::broadcast, send, receive, count, type, NCCL_SUM, root, comm, stream);
}
}

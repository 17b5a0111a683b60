/* Device and page-locked memory: allocation, copies, and the checks that find stray pointers.
 *
 * Device memory is one reserved range of addresses. Each allocation has its own pages with an inaccessible
 * page behind them; it ends, up to the 256 bytes of alignment, where its pages end. Addresses are never
 * used twice, so a freed pointer faults. Everything is filled with one bits: a NaN in every floating-point
 * format. */
#include "test/sim/runtime.h"

#include <csignal>
#include <cstdarg>
#include <map>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#if SIM_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace sim {

enum { PAGE = 4096, ALIGN = 256 };

struct allocation {
    size_t size, mapped;
    bool freed;
    /* Bytes before the user's: under ASan none, since it checks the end to the byte. */
    size_t lead() const { return SIM_ASAN ? 0 : (mapped - size) / ALIGN * ALIGN; }
};

struct device_memory {
    char *base = nullptr;
    size_t reserved = 0, top = 0, used = 0;
    std::map<char *, allocation> allocations; /* by first page */
    std::map<const char *, size_t> pinned;
    bool open = true;
};
static device_memory &memory = *new device_memory(); /* never destroyed; see stream.cpp */

static void reserve() {
    if (memory.base) return;
    memory.reserved = SIM_TSAN ? (size_t)16 << 30 : (size_t)1 << 40;
    void *p = mmap(nullptr, memory.reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) bug("cannot reserve %zu bytes of address space", memory.reserved);
    memory.base = (char *)p;
    memory.open = !knobs().protect;
}

static const std::pair<char *const, allocation> *find_allocation(const void *p) {
    auto it = memory.allocations.upper_bound((char *)p);
    if (it == memory.allocations.begin()) return nullptr;
    --it;
    return (char *)p < it->first + it->second.mapped ? &*it : nullptr;
}

bool is_device_pointer(const void *p) {
    return memory.base && (char *)p >= memory.base && (char *)p < memory.base + memory.top;
}

bool is_pinned(const void *p) {
    auto it = memory.pinned.upper_bound((const char *)p);
    if (it == memory.pinned.begin()) return false;
    --it;
    return (const char *)p < it->first + it->second;
}

static void set_access(bool open) {
    if (!knobs().protect || open == memory.open) return;
    for (auto &a : memory.allocations)
        if (!a.second.freed) mprotect(a.first, a.second.mapped, open ? PROT_READ | PROT_WRITE : PROT_NONE);
    memory.open = open;
}
device_access::device_access() : was_open(memory.open) { set_access(true); }
device_access::~device_access() {
    if (!was_open) set_access(false);
}

/* --- checks --- */

void check_device_range(const void *p, size_t bytes, const char *what) {
    auto *a = find_allocation(p);
    if (!a || a->second.freed || (char *)p < a->first + a->second.lead() ||
        (char *)p + bytes > a->first + a->second.lead() + a->second.size)
        bug("%s: %zu bytes at %p are not inside one live allocation of device memory", what, bytes, p);
}

void check_kernel_pointer(const void *p, int argument, const launch_info &launch) {
    if (!p || is_pinned(p)) return; /* the device reads page-locked memory too */
    if (!is_device_pointer(p))
        bug("launch at %s:%d: argument %d, %p, is not device memory", launch.file, launch.line, argument, p);
    auto *a = find_allocation(p);
    if (!a || a->second.freed)
        bug("launch at %s:%d: argument %d, %p, is a freed device pointer", launch.file, launch.line, argument,
            p);
}

/* Checks a struct passed by value, its padding cleared: a word that is the address of mapped host memory is
 * most likely a host pointer. */
void check_kernel_struct(const void *p, size_t bytes, int argument, const launch_info &launch) {
    for (size_t i = 0; i + sizeof(uintptr_t) <= bytes; i += sizeof(uintptr_t)) {
        uintptr_t word;
        memcpy(&word, (const char *)p + i, sizeof word);
        if (word < 0x550000000000u || word >> 47 || is_device_pointer((void *)word)) continue;
        if (msync((void *)(word / PAGE * PAGE), 1, MS_ASYNC) != 0 || is_pinned((void *)word)) continue;
        bug("launch at %s:%d: argument %d holds a host address, %p, at byte %zu", launch.file, launch.line,
            argument, (void *)word, i);
    }
}

/* The bytes between an allocation and the ends of its pages must keep their fill. */
void check_guard_zones(const launch_info &launch) {
    if (SIM_ASAN) return;
    for (auto &a : memory.allocations) {
        if (a.second.freed) continue;
        const unsigned char *page = (const unsigned char *)a.first;
        size_t lead = a.second.lead(), end = lead + a.second.size;
        for (size_t i = end; i < a.second.mapped; i++)
            if (page[i] != 0xff)
                bug("the kernel launched at %s:%d wrote past the end of the %zu-byte allocation %p, at byte "
                    "%zu",
                    launch.file, launch.line, a.second.size, a.first + lead, i - lead);
        for (size_t i = lead > ALIGN ? lead - ALIGN : 0; i < lead; i++)
            if (page[i] != 0xff)
                bug("the kernel launched at %s:%d wrote before the %zu-byte allocation %p, at byte -%zu",
                    launch.file, launch.line, a.second.size, a.first + lead, lead - i);
    }
}

/* --- faults --- */

/* printf into a signal handler's stderr */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (write(STDERR_FILENO, text, (size_t)n) < 0) _exit(99);
}

static void say_where() {
    const launch_info *launch = current_launch();
    if (!launch) return;
    say("  in the kernel launched at %s:%d, block (%u,%u,%u) thread (%u,%u,%u)\n", launch->file, launch->line,
        blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
}

static void on_fault(int, siginfo_t *info, void *) {
    const char *p = (const char *)info->si_addr;
    auto *a = find_allocation(p);
    if (a)
        say("SIM ERROR: %s: %p, offset %td of the %zu-byte allocation at %p\n",
            a->second.freed ? "use of freed device memory"
            : memory.open   ? "access to device memory"
                            : "host code touches device memory",
            p, p - a->first - (ptrdiff_t)a->second.lead(), a->second.size, a->first + a->second.lead());
    else if (is_device_pointer(p))
        say("SIM ERROR: access to %p, past the end of an allocation of device memory\n", p);
    else
        say("SIM ERROR: fault at %p: a wild pointer, or the guard page of a CUDA thread's stack\n", p);
    say_where();
    _exit(98);
}

/* The plain build traps instead of calling a sanitizer's library. */
static void on_trap(int) {
    say("SIM ERROR: an index outside of its array, or an integer overflow: gdb stops at the line\n");
    say_where();
    _exit(98);
}

static void on_timeout(int) {
    say("SIM ERROR: still running after SIM_TIMEOUT seconds%s\n",
        current_launch() ? "" : ", outside of kernels");
    say_where();
    _exit(97);
}

void initialize() {
    static std::once_flag once;
    std::call_once(once, [] {
        if (knobs().timeout) {
            signal(SIGALRM, on_timeout);
            alarm(knobs().timeout);
        }
        if (SIM_ASAN || SIM_TSAN) return; /* they have handlers of their own */
        static char stack[1 << 16];
        stack_t alternate = {};
        alternate.ss_sp = stack;
        alternate.ss_size = sizeof stack;
        sigaltstack(&alternate, nullptr);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, nullptr);
        sigaction(SIGBUS, &action, nullptr);
        signal(SIGILL, on_trap);
        signal(SIGTRAP, on_trap);
    });
}

}  // namespace sim

using namespace sim;

extern "C" {

/* --- allocation --- */

cudaError_t cudaMalloc(void **p, size_t bytes) {
    SIM_API_LOCK;
    initialize();
    forbid_in_capture("cudaMalloc");
    reserve();
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    size_t mapped = (bytes + PAGE - 1) / PAGE * PAGE;
    if (bytes > knobs().memory_bytes - memory.used || memory.top + mapped + PAGE > memory.reserved)
        return report(cudaErrorMemoryAllocation);
    char *page = memory.base + memory.top;
    memory.top += mapped + PAGE;
    mprotect(page, mapped, PROT_READ | PROT_WRITE);
    memset(page, 0xff, mapped);
    allocation a{bytes, mapped, false};
#if SIM_ASAN
    __asan_poison_memory_region(page + bytes, mapped - bytes);
#endif
    memory.allocations[page] = a;
    memory.used += bytes;
    if (!memory.open) mprotect(page, mapped, PROT_NONE);
    *p = page + a.lead();
    return cudaSuccess;
}

cudaError_t cudaFree(void *p) {
    SIM_API_LOCK;
    if (!p) return cudaSuccess;
    forbid_in_capture("cudaFree");
    drain_all();
    auto *found = find_allocation(p);
    if (!found || found->second.freed || (char *)p != found->first + found->second.lead())
        bug("cudaFree(%p): not the start of a live allocation", p);
    allocation &a = memory.allocations[found->first];
#if SIM_ASAN
    __asan_unpoison_memory_region(found->first, a.mapped);
#endif
    madvise(found->first, a.mapped, MADV_DONTNEED);
    mprotect(found->first, a.mapped, PROT_NONE);
    a.freed = true;
    memory.used -= a.size;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned) {
    SIM_API_LOCK;
    initialize();
    forbid_in_capture("cudaHostAlloc");
    if (posix_memalign(p, PAGE, bytes ? bytes : 1) != 0) return report(cudaErrorMemoryAllocation);
    memset(*p, 0xff, bytes);
    memory.pinned[(const char *)*p] = bytes;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }

cudaError_t cudaFreeHost(void *p) {
    SIM_API_LOCK;
    if (!p) return cudaSuccess;
    drain_all();
    if (memory.pinned.erase((const char *)p) != 1) bug("cudaFreeHost(%p): not page-locked memory", p);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    SIM_API_LOCK;
    *total = knobs().memory_bytes;
    *available = knobs().memory_bytes - memory.used;
    return cudaSuccess;
}

/* --- copies --- */

static void check_copy(const char *call, const void *dst, const void *src, size_t bytes,
                       cudaMemcpyKind kind) {
    static const char *const kinds[] = {"HostToHost", "HostToDevice", "DeviceToHost", "DeviceToDevice",
                                        "Default"};
    bool to_device = is_device_pointer(dst), from_device = is_device_pointer(src);
    bool wants_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool wants_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && (to_device != wants_to || from_device != wants_from))
        bug("%s %s: destination %p is %s memory, source %p is %s memory", call, kinds[kind], dst,
            to_device ? "device" : "host", src, from_device ? "device" : "host");
    if (to_device) check_device_range(dst, bytes, call);
    if (from_device) check_device_range(src, bytes, call);
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    SIM_API_LOCK;
    check_copy("cudaMemcpyAsync", dst, src, bytes, kind);
    bool pageable_src = !is_device_pointer(src) && !is_pinned(src);
    bool pageable_dst = !is_device_pointer(dst) && !is_pinned(dst);
    if (pageable_src || pageable_dst) forbid_in_capture("a copy of memory that is not page-locked");
    if (pageable_src) { /* staged before the call returns */
        auto staged = std::make_shared<std::string>((const char *)src, bytes);
        enqueue(stream, [=] { memcpy(dst, staged->data(), bytes); });
    } else {
        enqueue(stream, [=] { memmove(dst, src, bytes); });
    }
    if (pageable_dst) return cudaStreamSynchronize(stream); /* returns with the bytes */
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
    cudaError_t e = cudaMemcpyAsync(dst, src, bytes, kind, nullptr);
    return e == cudaSuccess ? cudaStreamSynchronize(nullptr) : e;
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream) {
    SIM_API_LOCK;
    if (!is_device_pointer(dst)) bug("cudaMemsetAsync: %p is not device memory", dst);
    check_device_range(dst, bytes, "cudaMemsetAsync");
    enqueue(stream, [=] { memset(dst, value, bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *dst, int value, size_t bytes) {
    return cudaMemsetAsync(dst, value, bytes, nullptr);
}
}

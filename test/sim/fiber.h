/* Fibers: each CUDA thread that has to wait gets its own stack. A switch takes 20 instructions on x86-64
 * (2-9 ns); elsewhere ucontext does it with a system call (about 170 ns). */
#ifndef SIM_FIBER_H
#define SIM_FIBER_H

#include <cstddef>
#include <cstdint>
#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif
#if SIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace sim {

struct fiber {
    char *stack = nullptr;
    size_t size = 0;
    void *fake_stack = nullptr; /* AddressSanitizer's */
#ifdef __x86_64__
    void *stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

#ifdef __x86_64__
/* Saves the callee-saved registers on the current stack, its pointer in *save, and resumes at `to`. */
extern "C" void sim_switch_stack(void **save, void *to);
#ifdef SIM_FIBER_IMPLEMENTATION
asm(R"(
.text
.globl sim_switch_stack
.type sim_switch_stack,@function
.p2align 5
sim_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp,(%rdi)
    movq %rsi,%rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size sim_switch_stack,.-sim_switch_stack
)");
#endif
#endif

/* A fiber that starts in entry(), which must not return. `color` shifts the top of the stack, so that the
 * hot lines of a thousand stacks do not fall into the same cache sets. */
inline void fiber_init(fiber *f, size_t size, unsigned color, void (*entry)()) {
    enum { PAGE = 4096 };
    void *map = mmap(nullptr, size + PAGE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) bug("no memory for the stack of a CUDA thread");
    mprotect(map, PAGE, PROT_NONE); /* an overflow of the stack faults */
    f->stack = (char *)map + PAGE;
    f->size = size;
    char *top = f->stack + size - (color & ~63u);
#ifdef __x86_64__
    void **sp = (void **)top;
    *--sp = nullptr; /* alignment, and the end of a debugger's backtrace */
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    f->stack_pointer = sp;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = (size_t)(top - f->stack);
    f->context.uc_link = nullptr;
    makecontext(&f->context, entry, 0);
#endif
}

inline void fiber_switch(fiber *from, fiber *to) {
#if SIM_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->size);
#endif
#ifdef __x86_64__
    sim_switch_stack(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->context, &to->context);
#endif
#if SIM_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

/* Must be the first call on a new fiber. */
inline void fiber_started() {
#if SIM_ASAN
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace sim

#endif

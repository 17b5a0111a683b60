# The simulated device (test/sim/README.md): the CUDA sources, compiled by $(CXX) with test/sim/sim.h in front. It needs
# the toolkit's headers. Three builds: plain, which traps what UBSan finds at little cost; with ThreadSanitizer; and for
# SANITIZE=1 with AddressSanitizer and UBSan. Only kernels and tests are instrumented; the runtime itself tells the
# sanitizers what its fibers do (test/sim/worker.h).
SIM_MISSING := $(if $(wildcard $(CUDA_HOME)/include/cublasLt.h),,left out: no CUDA headers in $(CUDA_HOME)/include (set CUDA_HOME))
# clang makes memset of a kernel's stores, which the counting of test_traffic does not see, and its OpenMP is not known to
# ThreadSanitizer.
SIM_GCC     := $(shell $(CXX) -fno-tree-loop-distribute-patterns -fsyntax-only -x c++ /dev/null 2>/dev/null && echo yes)
SIM_BUILDS  := $(if $(SIM_MISSING),,$(if $(SANITIZE),asan,plain $(if $(SIM_GCC),tsan)))
SIM_SRC      = $(CUDA_SRC) $(wildcard test/sim/*.cpp)
SIM_FLAGS    = -std=c++17 -D_GNU_SOURCE -I. -isystem $(CUDA_HOME)/include -include test/sim/sim.h \
               -DKERNEL_WRAPPERS='"test/sim/wrappers.h"' -DHOPPER_WRAPPERS='"test/sim/hopper.h"' -MMD -MP $(WARN) \
               -Wno-unknown-pragmas -Wno-pass-failed -Wno-psabi $(SIM_NATIVE)
# The simulated device never leaves this machine.
SIM_NATIVE  := $(shell $(CXX) -march=native -fsyntax-only -x c++ /dev/null 2>/dev/null && echo -march=native)
# Variables without an initial value hold nonsense, not the zeros that a fresh stack happens to have.
SIM_FILL    := $(shell $(CXX) -ftrivial-auto-var-init=pattern -fsyntax-only -x c++ /dev/null 2>/dev/null \
                 && echo -ftrivial-auto-var-init=pattern)
# A loop of the runtime must not become a call of memcpy, which ThreadSanitizer would take for the kernel's.
SIM_LOOPS   := $(if $(SIM_GCC),-fno-tree-loop-distribute-patterns)
# -g1 has the lines that sanitizers name, and takes a third less time than -g, which gdb needs for variables.
SIM_SAN_asan = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
SIM_SAN_tsan = -fsanitize=thread
SIM_KERNEL_plain = -g -fsanitize=bounds,signed-integer-overflow -fsanitize-undefined-trap-on-error
SIM_KERNEL_asan  = -g1 $(SIM_SAN_asan)
SIM_KERNEL_tsan  = -g1 $(SIM_SAN_tsan)
SIM_DEF_asan = -DSIM_ASAN=1
SIM_DEF_tsan = -DSIM_TSAN=1
SIM_KERNEL   = $(CXX) -x c++ $(SIM_FLAGS) -O1 $(SIM_FILL) $(SIM_KERNEL_$(1))
SIM_RUNTIME  = $(CXX) $(SIM_FLAGS) -g -O3 $(SIM_LOOPS) $(PKG_CFLAGS) $(SIM_DEF_$(1))
SIM_OBJ      = $(patsubst %,$(BUILD)/sim/$(1)/%.o,$(basename $(SIM_SRC)))
SIM_TESTS    = $(foreach b,$(SIM_BUILDS),$(addprefix $(BUILD)/sim/$(b)/test/,$(CUDA_TEST) sim/bugs)) \
               $(if $(filter tsan,$(SIM_BUILDS)),$(BUILD)/sim/test_traffic) \
               $(if $(filter plain,$(SIM_BUILDS)),$(BUILD)/sim/plain/train_gpt $(BUILD)/backends/sim/train_gpt)

.PHONY: sim
sim: $(if $(SIM_BUILDS),$(BUILD)/train_gpt_sim $(SIM_TESTS))  ## the CUDA trainer on a simulated GPU, build/train_gpt_sim, and its tests (test/sim/README.md)
	$(if $(SIM_BUILDS),:,echo "simulated GPU $(SIM_MISSING)"; exit 1)

define SIM_RULES
$(BUILD)/sim/$(1)/test/sim/%.o: test/sim/%.cpp
	mkdir -p $$(@D); echo "  $$@"
	$(SIM_RUNTIME) -c $$< -o $$@

$(BUILD)/sim/$(1)/%.o: %.cu
	mkdir -p $$(@D); echo "  $$@"
	$(SIM_KERNEL) -c $$< -o $$@

$(BUILD)/sim/$(1)/libcuda.a: $(SIM_OBJ)

$(BUILD)/sim/$(1)/test/%: $(BUILD)/sim/$(1)/test/%.o $(BUILD)/sim/$(1)/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$$(LINK)

$(BUILD)/sim/$(1)/test/%: $(BUILD)/test/%.o $(BUILD)/sim/$(1)/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$$(LINK)

$(BUILD)/sim/$(1)/train_gpt: $(BUILD)/train_gpt.o $(BUILD)/build.o $(BUILD)/sim/$(1)/libcuda.a $(BUILD)/libllmc.a
	$$(LINK)

$(BUILD)/sim/$(1)/%: LINKER = $(CXX)

$(BUILD)/sim/$(1)/%: LINK_FLAGS = $(CUDA_LINK),-u,ncclGetUniqueId,--export-dynamic-symbol=nccl*
$(BUILD)/sim/$(1)/%: LDLIBS += $(SIM_SAN_$(1))
$(BUILD)/sim/$(1)/test/%: LDLIBS += -lcmocka
endef
$(foreach b,plain asan tsan,$(eval $(call SIM_RULES,$(b))))

# Kernels of the tsan build in the runtime of the plain one: the test itself takes the sanitizer's place and counts.
$(BUILD)/sim/test_traffic: $(BUILD)/test/sim/test_traffic.o $(patsubst %.cu,$(BUILD)/sim/tsan/%.o,$(wildcard llmc/cuda/*.cu)) \
    $(patsubst %.cpp,$(BUILD)/sim/plain/%.o,$(wildcard test/sim/*.cpp)) $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(LINK)
$(BUILD)/sim/test_traffic: LINKER = $(CXX)
$(BUILD)/sim/test_traffic: LDLIBS += -lcmocka

$(BUILD)/bench_sim $(BUILD)/scaling_sim: $(BUILD)/%_sim: $(BUILD)/dev/%.o $(BUILD)/sim/plain/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(LINK)
$(BUILD)/%_sim: LINKER = $(CXX)
$(BUILD)/%_sim: LINK_FLAGS = $(LADDER_LINK)

$(BUILD)/train_gpt_sim: $(BUILD)/sim/$(firstword $(SIM_BUILDS))/train_gpt
	cp $< $@

# Two targets do everything: `make train` and `make test`. `make help` lists the rest, `make config` shows the choices.
# Sources are found by wildcard; a new file needs no line here. Every choice is a variable: make OPT=-O1 SANITIZE=1 ...
CC       = gcc
CXX      = g++
BUILD    = build
# 512-bit vectors where there are any: compilers choose 256 for the sake of older processors; the loops over exp
# are a third faster.
WIDE     = $(if $(filter x86_64,$(shell uname -m)),-mprefer-vector-width=512)
MARCH    = native
OPT      = -O3 -march=$(MARCH) $(WIDE)
SANITIZE =
ARGS     =
# WERROR=1, as continuous integration has it: warnings are errors. Every new compiler brings new ones, which must not
# keep anybody from training.
WERROR   =
MAKEFLAGS += --no-builtin-rules
# All cores, unless `make -jN` says otherwise.
ifeq ($(filter -j% --jobserver%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
endif

DEBIAN_PACKAGES = gcc g++ make pkg-config libopenblas-openmp-dev libpcre2-dev libjansson-dev libutf8proc-dev \
                  libxxhash-dev zlib1g-dev libzstd-dev libcmocka-dev curl
PKGS       = openblas jansson libpcre2-8 libutf8proc libxxhash zlib libzstd
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

# For test-gpu, SANITIZE means compute-sanitizer instead.
ifneq ($(and $(SANITIZE),$(if $(filter test-gpu,$(MAKECMDGOALS)),,1)),)
BUILD   := $(BUILD)/sanitize
OPT      = -O1 -march=$(MARCH)
SANFLAGS = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
endif
WARN     = -Wall -Wextra $(if $(WERROR),-Werror) -Wshadow -Wpointer-arith -Wno-unused-parameter \
           -Wno-missing-field-initializers
# -fno-math-errno and contraction change no comparison and no NaN; -ffast-math would, and is never used.
CPPFLAGS = -D_GNU_SOURCE -I. $(PKG_CFLAGS) -MMD -MP
CFLAGS   = -std=c11 -g $(OPT) -fno-math-errno -ffp-contract=fast -fopenmp $(WARN) -Wstrict-prototypes \
           -Wmissing-prototypes $(SANFLAGS)
LDLIBS   = $(PKG_LIBS) -lm -lpthread -ldl -fopenmp $(SANFLAGS)

LIB_OBJ  = $(patsubst %.c,$(BUILD)/%.o,$(filter-out data/%_main.c,$(wildcard llmc/*/*.c data/*.c)))
PROGRAMS = $(BUILD)/train_gpt $(patsubst data/%_main.c,$(BUILD)/%,$(wildcard data/*_main.c)) \
           $(patsubst dev/%.c,$(BUILD)/%,$(wildcard dev/*.c))
TESTS    = $(patsubst test/%.c,$(BUILD)/test/%,$(filter-out test/cuda/% test/sim/%,$(wildcard test/*/test_*.c)))
TEST_LIB_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(wildcard test/*/test_*.c test/fuzz/*.c),$(wildcard test/*.c test/*/*.c)))
FUZZ_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(filter-out test/fuzz/test_%,$(wildcard test/fuzz/*.c)))
FUZZ     = $(filter-out fuzz test_fuzz,$(patsubst test/fuzz/%.c,%,$(wildcard test/fuzz/*.c)))
FUZZ_SECONDS = 600

# --- the CUDA back end ---
#
# llmc/cuda/*.cu, and the ladders of dev/variants, which only tests and the benchmark link, are compiled by nvcc
# for GPUs, and by $(CXX) for the simulated device of test/sim, which needs the toolkit's headers only. Either
# way they become an archive that is linked before libllmc.a; `-u device_open_cuda` makes the linker take the
# back end from there instead of llmc/ops/device_nocuda.c.
# CUDA=1: with the back end for GPUs; 0: without; auto: with, if there are nvcc and a GPU.

CUDA      = auto
CUDA_HOME = /usr/local/cuda
NVCC      = $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc))
# What the GPU says that it is, or an H100.
CUDA_ARCH = $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .),90)
# 90 is compiled as 90a: only that has wgmma and TMA, which rows made for 90 use.
CUDA_CODE = $(CUDA_ARCH:90=90a)
NVCCFLAGS = -std=c++17 -O3 -g -lineinfo -D_GNU_SOURCE -I. $(if $(WERROR),-Werror all-warnings) \
            -Xcompiler -Wall,-Wextra,-Wshadow,-Wno-unused-parameter,-Wno-missing-field-initializers
CUDA_SRC  = $(wildcard llmc/cuda/*.cu dev/variants/*.cu)
CUDA_TEST = $(basename $(patsubst test/%,%,$(wildcard test/cuda/test_*.c test/cuda/test_*.cu)))
CUDA_LINK = -Wl,-u,device_open_cuda
CUDA_LIBS = -L$(CUDA_HOME)/lib64 -lcublasLt -lcudart -Wl,-rpath,$(CUDA_HOME)/lib64
CUDA_ALL  = $(filter 90a $(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch)),80 86 89 90a 100 120)
GPU_TESTS = $(addprefix $(BUILD)/cuda/test/,$(CUDA_TEST))

WITH_CUDA := $(filter 1,$(CUDA:auto=$(if $(NVCC),$(if $(wildcard /dev/nvidiactl),1))))
CUDA_LIB  := $(if $(WITH_CUDA),$(BUILD)/cuda/libcuda.a)
ifneq ($(and $(WITH_CUDA),$(if $(NVCC),,none)),)
$(error CUDA=1, but there is no nvcc in $(CUDA_HOME)/bin or in PATH: install the CUDA toolkit or set CUDA_HOME)
endif

# The simulated device in three builds: plain, for AddressSanitizer and UBSan, for ThreadSanitizer. Only kernels
# and tests are instrumented; the runtime itself tells the sanitizers what its fibers do (test/sim/worker.h).
SIM_MISSING := $(if $(wildcard $(CUDA_HOME)/include/cublasLt.h),,left out: no CUDA headers in $(CUDA_HOME)/include (set CUDA_HOME))
SIM_BUILDS  := $(if $(SIM_MISSING),,$(if $(SANITIZE),asan,plain asan tsan))
SIM_SRC      = $(CUDA_SRC) $(wildcard test/sim/*.cpp)
SIM_FLAGS    = -std=c++17 -g -D_GNU_SOURCE -I. -isystem $(CUDA_HOME)/include \
               -include test/sim/sim.h -DKERNEL_WRAPPERS='"test/sim/wrappers.h"' -DHOPPER_WRAPPERS='"test/sim/hopper.h"' -MMD -MP $(WARN) \
               -Wno-unknown-pragmas -Wno-psabi
# NCCL is looked for in the program itself first (llmc/ranks/comm_nccl.c): there it finds the simulated one.
SIM_LINK     = $(CUDA_LINK),-u,ncclGetUniqueId,--export-dynamic-symbol=nccl*
# Variables without an initial value hold nonsense, not the zeros that a fresh stack happens to have.
SIM_FILL    := $(shell $(CXX) -ftrivial-auto-var-init=pattern -fsyntax-only -x c++ /dev/null 2>/dev/null \
                 && echo -ftrivial-auto-var-init=pattern)
SIM_SAN_asan = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
SIM_SAN_tsan = -fsanitize=thread
SIM_DEF_asan = -DSIM_ASAN=1
SIM_DEF_tsan = -DSIM_TSAN=1
# What `make test` runs on it: test/run.sh explains the assignments.
SIM_RUN      = $(addprefix $(BUILD)/sim/$(1)/test/,$(CUDA_TEST))
SIM_RUNS_plain = test/sim/test_sim_ranks.sh LLMC_TEST_LADDERS=0 $(call SIM_RUN,plain) SIM_LAZY=1 SIM_ORDER=reverse $(call SIM_RUN,plain) \
               SIM_LAZY= SIM_ORDER=random $(foreach seed,1 2 3,SIM_SEED=$(seed) $(call SIM_RUN,plain)) \
               SIM_SEED= SIM_ORDER= LLMC_TEST_LADDERS=
SIM_RUNS_asan  = $(call SIM_RUN,asan)
SIM_RUNS_tsan  = $(BUILD)/sim/test_traffic test/sim/test_sim_bugs.sh OMP_NUM_THREADS=1 LLMC_TEST_SIZE=small LLMC_TEST_LADDERS=0 \
               $(call SIM_RUN,tsan) OMP_NUM_THREADS= LLMC_TEST_SIZE= LLMC_TEST_LADDERS=
SIM_TESTS    = $(foreach b,$(SIM_BUILDS),$(addprefix $(BUILD)/sim/$(b)/test/,$(CUDA_TEST) sim/bugs)) \
               $(if $(filter tsan,$(SIM_BUILDS)),$(BUILD)/sim/test_traffic) \
               $(if $(filter plain,$(SIM_BUILDS)),$(BUILD)/sim/plain/train_gpt)

.PHONY: all train test run-tests test-gpu bench bench-cpu bench-data fuzz sim mutants cuda-all deps clean format help config
.DELETE_ON_ERROR:
ifeq ($(V),)
.SILENT: # V=1 shows every command
endif

all: $(PROGRAMS)

sim: $(if $(SIM_BUILDS),$(BUILD)/train_gpt_sim $(SIM_TESTS))  ## the CUDA trainer on a simulated GPU, build/train_gpt_sim, and its tests (see test/sim/README.md)
	@$(if $(SIM_BUILDS),,echo "simulated GPU $(SIM_MISSING)"; exit 1)

test-gpu: $(GPU_TESTS)  ## the CUDA tests on this machine's GPU (SANITIZE=1 TOOL=memcheck|racecheck|initcheck|synccheck: under compute-sanitizer)
	@PREFIX="$(if $(SANITIZE),compute-sanitizer --tool $(or $(TOOL),memcheck) --error-exitcode 9)" JOBS=1 sh test/run.sh $(GPU_TESTS)

# Everything that dev/mutants.sh needs to compile a source and to link the tests with it.
MUTANT_SIM = $(filter plain tsan,$(SIM_BUILDS))
mutants: export BUILD := $(BUILD)
mutants: export COMPILE_host = $(CC) $(filter-out -MMD -MP,$(CPPFLAGS) $(CFLAGS)) -w
mutants: export LINK_host = $(CC)
mutants: export LIBS_host = $(BUILD)/test/libtest.a $(BUILD)/libllmc.a $(LDLIBS) -lcmocka
define MUTANT_RULES
mutants: export COMPILE_$(1) = $(CXX) -x c++ $(filter-out -MMD -MP,$(SIM_FLAGS)) -w -O1 -march=$(MARCH) $(SIM_FILL) $(SIM_SAN_$(1))
mutants: export LINK_$(1) = $(CXX) $(CUDA_LINK)
mutants: export LIBS_$(1) = $(BUILD)/sim/$(1)/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a $(LDLIBS) $(SIM_SAN_$(1)) -lcmocka
endef
$(foreach b,$(MUTANT_SIM),$(eval $(call MUTANT_RULES,$(b))))
mutants: $(addprefix $(BUILD)/test/,$(addprefix ops/test_,ops op_gradients op_harness op_values fp8) model/test_gpt) \
    $(foreach b,$(MUTANT_SIM),$(addprefix $(BUILD)/sim/$(b)/test/cuda/,test_cuda_ops test_cuda_fp8))  ## break the sources in many ways, one at a time: a test must notice each (ARGS=WORD: only some)
	@sh dev/mutants.sh "$(ARGS)"

cuda-all:  ## compile the CUDA sources for every architecture that nvcc knows, to see that they do
	@mkdir -p $(BUILD); for arch in $(CUDA_ALL); do for file in $(CUDA_SRC) $(wildcard test/cuda/*.cu); do \
	    $(NVCC) $(NVCCFLAGS) -gencode arch=compute_$$arch,code=sm_$$arch -c $$file -o $(BUILD)/cuda-all.o || exit 1; \
	done; echo "sm_$$arch: $(words $(CUDA_SRC) $(wildcard test/cuda/*.cu)) files"; done; rm -f $(BUILD)/cuda-all.o

train: deps  ## install what is missing, build, and train on the built-in corpus
	@$(MAKE) --no-print-directory $(BUILD)/train_gpt
	$(BUILD)/train_gpt $(ARGS)

test: deps  ## install what is missing, build and run every test (SANITIZE=1: under ASan and UBSan)
	@$(MAKE) --no-print-directory run-tests

# Two run at a time: what takes longest must not begin last.
LONGEST_FIRST = test/test_layout.sh test/test_mutants.sh $(foreach b,$(filter tsan,$(SIM_BUILDS)),$(SIM_RUNS_$(b))) $(TESTS) \
                $(foreach b,$(filter-out tsan,$(SIM_BUILDS)),$(SIM_RUNS_$(b)))

build-tests: $(PROGRAMS) $(TESTS) $(SIM_TESTS)  ## build every test, and run none
run-tests: $(PROGRAMS) $(TESTS) $(SIM_TESTS)
	@$(if $(SIM_MISSING),echo "simulated GPU $(SIM_MISSING)")
	@BUILD=$(BUILD) sh test/run.sh $(LONGEST_FIRST)

# The seeds come from the short course in test_fuzz.c; what libFuzzer finds is kept in build/fuzz/corpus.
fuzz:  ## fuzz the parsers of untrusted input with libFuzzer, one after another (FUZZ="shard options" FUZZ_SECONDS=600)
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory deps DEBIAN_PACKAGES="clang libclang-rt-14-dev libomp-dev"
	@$(MAKE) --no-print-directory $(BUILD)/test/fuzz/test_fuzz
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/fuzz CC=clang OPT="-O1 -march=$(MARCH) -Wno-pass-failed" \
	    SANFLAGS="-DLIBFUZZER -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" \
	    $(FUZZ:%=$(BUILD)/fuzz/test/fuzz/%)
	$(BUILD)/test/fuzz/test_fuzz --seeds $(BUILD)/fuzz/seeds
	for t in $(FUZZ); do mkdir -p $(BUILD)/fuzz/corpus/$$t; echo "$$t"; \
	    OMP_NUM_THREADS=1 $(BUILD)/fuzz/test/fuzz/$$t -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=4096 \
	        -verbosity=0 -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/$$t- \
	        $(BUILD)/fuzz/corpus/$$t $(BUILD)/fuzz/seeds/$$t || exit 1; done

# Threads that wait spin only briefly, as train_gpt's do.
bench: $(BUILD)/bench  ## time every operation alone (ARGS='--op attn --json FILE')
	GOMP_SPINCOUNT=1000 $(BUILD)/bench $(ARGS)

bench-data: $(BUILD)/bench_tokenizer $(BUILD)/stories  ## speed of tokenizer training and encoding, on generated text
	$(BUILD)/stories --count 60000 --seed 2 >$(BUILD)/bench-data.txt
	$(BUILD)/bench_tokenizer train $(BUILD)/bench-data.txt 4096 $$(nproc) $(BUILD)/bench-data.json
	$(BUILD)/bench_tokenizer encode $(BUILD)/bench-data.txt $(BUILD)/bench-data.json $$(nproc)
	$(BUILD)/bench_tokenizer linear $(BUILD)/bench-data.txt $(BUILD)/bench-data.json

bench-cpu: $(BUILD)/bench  ## `make bench` on the CPU
	GOMP_SPINCOUNT=1000 $(BUILD)/bench --device cpu $(ARGS)

deps:  ## install the Debian packages that are missing (as root), or print the command that does
	@missing=; for p in $(DEBIAN_PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	if [ $$(id -u) -ne 0 ]; then echo "These packages are missing; install them with"; \
	    echo "    sudo apt-get install -y$$missing"; exit 1; fi; \
	echo "installing$$missing"; \
	(apt-get install -y -qq $$missing || (apt-get update -qq && apt-get install -y -qq $$missing)) >$${TMPDIR:-/tmp}/llmc-deps.log 2>&1 \
	    || { cat $${TMPDIR:-/tmp}/llmc-deps.log; exit 1; }

format:  ## clang-format every source file
	clang-format -i $$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp')

clean:  ## remove everything that was built
	rm -rf build

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

config:  ## the choices in effect
	@echo "CC=$(CC) CXX=$(CXX) OPT='$(OPT)' SANITIZE=$(SANITIZE) BUILD=$(BUILD)"
	@echo "libraries: $(PKG_LIBS)"
	@echo "CUDA=$(CUDA): $(if $(WITH_CUDA),$(NVCC) for sm_$(CUDA_CODE),CPU only)"
	@echo "simulated GPU: $(or $(SIM_MISSING),with the headers in $(CUDA_HOME)/include)"

# --- rules ---

$(BUILD)/libllmc.a: $(LIB_OBJ)
	@rm -f $@ && ar rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D); echo "  $@"
	$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@

# Replaced when the choice of the back end changes, so that the programs are linked again.
$(BUILD)/with-cuda.$(or $(WITH_CUDA),0):
	@mkdir -p $(@D) && rm -f $(BUILD)/with-cuda.* && touch $@

# The driver is plain C11; its .cu name is for builds with nvcc.
$(BUILD)/train_gpt.o: train_gpt.cu
	@mkdir -p $(@D); echo "  $@"
	$(CC) -x c $(CPPFLAGS) $(CFLAGS) -c $< -o $@

$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(CUDA_LIB) $(BUILD)/libllmc.a $(BUILD)/with-cuda.$(or $(WITH_CUDA),0)
	$(if $(CUDA_LIB),$(CXX),$(CC)) -o $@ $< $(if $(CUDA_LIB),$(CUDA_LINK) $(CUDA_LIB)) $(BUILD)/libllmc.a \
	    $(if $(CUDA_LIB),$(CUDA_LIBS)) $(LDLIBS)

$(BUILD)/%: $(BUILD)/data/%_main.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS)

$(BUILD)/%: $(BUILD)/dev/%.o $(CUDA_LIB) $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(if $(CUDA_LIB),$(CXX),$(CC)) -o $@ $< $(if $(CUDA_LIB),$(CUDA_LINK),-u,ladder_ops $(CUDA_LIB)) $(BUILD)/test/libtest.a \
	    $(BUILD)/libllmc.a $(if $(CUDA_LIB),$(CUDA_LIBS)) $(LDLIBS)

# What several test programs share.
$(BUILD)/test/libtest.a: $(TEST_LIB_OBJ)
	@rm -f $@ && ar rcs $@ $^

$(BUILD)/test/%: $(BUILD)/test/%.o $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS) -lcmocka

# Mapped files become memory of exactly their size there: see test/fuzz/fuzz.h.
$(BUILD)/test/fuzz/test_fuzz: $(BUILD)/test/fuzz/test_fuzz.o $(FUZZ_OBJ) $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS) -lcmocka

$(BUILD)/test/fuzz/test_fuzz $(BUILD)/test/fuzz/%: LDLIBS += -Wl,--wrap=file_map,--wrap=file_unmap

$(BUILD)/test/fuzz/%: $(BUILD)/test/fuzz/%.o $(BUILD)/test/fuzz/fuzz.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS) -fsanitize=fuzzer

# --- rules of the CUDA back end ---

$(BUILD)/cuda/%.o: %.cu
	@mkdir -p $(@D); echo "  $@"
	$(NVCC) $(NVCCFLAGS) -gencode arch=compute_$(CUDA_CODE),code=sm_$(CUDA_CODE) -MMD -MP -c $< -o $@

$(BUILD)/cuda/libcuda.a: $(CUDA_SRC:%.cu=$(BUILD)/cuda/%.o)
	@rm -f $@ && ar rcs $@ $^

$(BUILD)/cuda/test/%: $(BUILD)/cuda/test/%.o $(BUILD)/cuda/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(CXX) -o $@ $< $(CUDA_LINK) $(filter %.a,$^) $(CUDA_LIBS) $(LDLIBS) -lcmocka

$(BUILD)/cuda/test/%: $(BUILD)/test/%.o $(BUILD)/cuda/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	@mkdir -p $(@D)
	$(CXX) -o $@ $< $(CUDA_LINK) $(filter %.a,$^) $(CUDA_LIBS) $(LDLIBS) -lcmocka

# The rules of one build of the simulated device.
define SIM_RULES
$(BUILD)/sim/$(1)/test/sim/%.o: test/sim/%.cpp
	@mkdir -p $$(@D); echo "  $$@"
	$(CXX) $(SIM_FLAGS) -O3 -march=$(MARCH) -fno-tree-loop-distribute-patterns $(PKG_CFLAGS) $(SIM_DEF_$(1)) -c $$< -o $$@

$(BUILD)/sim/$(1)/%.o: %.cu
	@mkdir -p $$(@D); echo "  $$@"
	$(CXX) -x c++ $(SIM_FLAGS) -O$(if $(SIM_SAN_$(1)),1,2) -march=$(MARCH) $(SIM_FILL) $(SIM_SAN_$(1)) -c $$< -o $$@

$(BUILD)/sim/$(1)/libcuda.a: $(patsubst %,$(BUILD)/sim/$(1)/%.o,$(basename $(SIM_SRC)))
	@rm -f $$@ && ar rcs $$@ $$^

$(BUILD)/sim/$(1)/test/%: $(BUILD)/sim/$(1)/test/%.o $(BUILD)/sim/$(1)/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(CXX) -o $$@ $$< $(SIM_LINK) $$(filter %.a,$$^) $(LDLIBS) $(SIM_SAN_$(1)) -lcmocka

$(BUILD)/sim/$(1)/test/%: $(BUILD)/test/%.o $(BUILD)/sim/$(1)/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	@mkdir -p $$(@D)
	$(CXX) -o $$@ $$< $(SIM_LINK) $$(filter %.a,$$^) $(LDLIBS) $(SIM_SAN_$(1)) -lcmocka

$(BUILD)/sim/$(1)/train_gpt: $(BUILD)/train_gpt.o $(BUILD)/sim/$(1)/libcuda.a $(BUILD)/libllmc.a
	$(CXX) -o $$@ $$< $(SIM_LINK) $$(filter %.a,$$^) $(LDLIBS) $(SIM_SAN_$(1))
endef
$(foreach b,$(SIM_BUILDS),$(eval $(call SIM_RULES,$(b))))

# Kernels of the tsan build in the runtime of the plain one: the test itself takes the sanitizer's place and counts.
$(BUILD)/sim/test_traffic: $(BUILD)/test/sim/test_traffic.o $(patsubst %.cu,$(BUILD)/sim/tsan/%.o,$(wildcard llmc/cuda/*.cu)) \
    $(patsubst %.cpp,$(BUILD)/sim/plain/%.o,$(wildcard test/sim/*.cpp)) $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(CXX) -o $@ $^ $(LDLIBS) -lcmocka

$(BUILD)/bench_sim $(BUILD)/scaling_sim: $(BUILD)/%_sim: $(BUILD)/dev/%.o $(BUILD)/sim/plain/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(CXX) -o $@ $< $(CUDA_LINK),-u,ladder_ops $(filter %.a,$^) $(LDLIBS)

$(BUILD)/train_gpt_sim: $(BUILD)/sim/$(firstword $(SIM_BUILDS))/train_gpt
	@cp $< $@

.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

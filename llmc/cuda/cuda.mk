# The CUDA back end. llmc/cuda/*.cu, and the ladders of dev/variants, which only tests and benchmarks use, are compiled
# by nvcc for GPUs, and by $(CXX) for the simulated device (test/sim/sim.mk). Either way they become an archive that
# stands before libllmc.a in the link; `-u device_open_cuda` makes the linker take the back end from there, not from
# llmc/ops/device_nocuda.c.

# CUDA=1: with the back end for GPUs; 0: without; auto: with, if there are nvcc and a GPU.
CUDA      = auto
# The toolkit in its usual place, or that of the nvcc in PATH: compiler, headers and libraries belong together.
CUDA_HOME := $(or $(patsubst %/bin/nvcc,%,$(or $(wildcard /usr/local/cuda/bin/nvcc),$(realpath $(shell command -v nvcc)))), \
                 /usr/local/cuda)
NVCC      = $(wildcard $(CUDA_HOME)/bin/nvcc)
# What the GPU says that it is, or an H100. Where nvidia-smi prints something else than 9.0, an error for example, it says
# nothing.
CUDA_ARCH = $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
                         sed -n '1s/^\([0-9]*\)\.\([0-9]\)$$/\1\2/p'),90)
# 90 is compiled as 90a: only that has wgmma and TMA, which rows made for 90 use.
CUDA_CODE = $(CUDA_ARCH:90=90a)
CUDA_GENCODE = arch=compute_$(CUDA_CODE),code=sm_$(CUDA_CODE)
CUDA_OPT  = -O3
NVCCFLAGS = -std=c++17 $(CUDA_OPT) -g -lineinfo -D_GNU_SOURCE -I. $(if $(WERROR),-Werror all-warnings) \
            -Xcompiler -Wall,-Wextra,-Wshadow,-Wno-unused-parameter,-Wno-missing-field-initializers
CUDA_SRC  = $(wildcard llmc/cuda/*.cu dev/variants/*.cu)
CUDA_TEST = $(basename $(patsubst test/%,%,$(wildcard test/cuda/test_*.c test/cuda/test_*.cu)))
CUDA_LINK = -Wl,-u,device_open_cuda
LADDER_LINK = $(CUDA_LINK),-u,ladder_ops
CUDA_LIBS = -L$(CUDA_HOME)/lib64 -lcublasLt -lcudart $(if $(BUNDLE),,$(CUDA_RPATH))
CUDA_RPATH = -Wl,-rpath,$(CUDA_HOME)/lib64
CUDA_ALL  = $(filter 90a $(patsubst compute_%,%,$(shell $(NVCC) --list-gpu-arch)),80 86 89 90a 100 120)
GPU_TESTS = $(addprefix $(BUILD)/cuda/test/,$(CUDA_TEST))

WITH_CUDA := $(filter 1,$(CUDA:auto=$(if $(NVCC),$(if $(wildcard /dev/nvidiactl),1))))
ifneq ($(WITH_CUDA),)
ifeq ($(NVCC),)
$(error CUDA=1, but there is no nvcc in $(CUDA_HOME)/bin: install the CUDA toolkit or set CUDA_HOME)
endif
CUDA_LIB = $(BUILD)/cuda/libcuda.a
$(BUILD)/train_gpt $(DEV_PROGRAMS): LINKER = $(CXX)
$(BUILD)/train_gpt: LINK_FLAGS = $(CUDA_LINK)
$(DEV_PROGRAMS): LINK_FLAGS = $(LADDER_LINK)
$(BUILD)/train_gpt $(DEV_PROGRAMS): LDLIBS := $(CUDA_LIBS) $(LDLIBS)
endif
# Replaced when the choice of the back end changes, so that the programs are linked again.
CUDA_STAMP = $(BUILD)/with-cuda.$(or $(WITH_CUDA),0)
$(CUDA_STAMP):
	mkdir -p $(@D) && rm -f $(BUILD)/with-cuda.* && touch $@

.PHONY: test-gpu gpu-programs cuda-all
gpu-programs: $(BUILD)/train_gpt $(BUILD)/bench $(GPU_TESTS)  ## what profiling/measure_gpu.sh runs (CUDA=1)

test-gpu: $(GPU_TESTS)  ## the CUDA tests on this machine's GPU (SANITIZE=1 TOOL=memcheck|racecheck|initcheck|synccheck: under compute-sanitizer)
	PREFIX="$(if $(SANITIZE),compute-sanitizer --tool $(or $(TOOL),memcheck) --error-exitcode 9)" JOBS=1 sh test/run.sh $(GPU_TESTS)

cuda-all:  ## compile the CUDA sources for every architecture that nvcc knows; fails on spilled registers and serialised wgmma
	NVCC="$(NVCC) $(NVCCFLAGS)" BUILD=$(BUILD) sh dev/cuda_all.sh "$(CUDA_ALL)" $(CUDA_SRC) $(wildcard test/cuda/*.cu)

$(BUILD)/cuda/%.o: %.cu
	mkdir -p $(@D); echo "  $@"
	$(NVCC) $(NVCCFLAGS) -gencode $(CUDA_GENCODE) -MMD -MP -c $< -o $@

$(BUILD)/cuda/libcuda.a: $(CUDA_SRC:%.cu=$(BUILD)/cuda/%.o)

$(BUILD)/cuda/test/%: $(BUILD)/cuda/test/%.o $(BUILD)/cuda/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(LINK)

$(BUILD)/cuda/test/%: $(BUILD)/test/%.o $(BUILD)/cuda/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(LINK)

$(BUILD)/cuda/test/%: LINKER = $(CXX)
$(BUILD)/cuda/test/%: LINK_FLAGS = $(CUDA_LINK)
$(BUILD)/cuda/test/%: LDLIBS += $(CUDA_LIBS) -lcmocka

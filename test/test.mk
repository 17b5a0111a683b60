# The test programs, and what `make test` and `make test-long` run. A program is built from test/FOLDER/test_NAME.c; every
# other .c there is in libtest.a. Those of test/cuda run on a GPU (`make test-gpu`) and on the simulated one.
TESTS        = $(patsubst test/%.c,$(BUILD)/test/%,$(filter-out test/cuda/% test/sim/%,$(wildcard test/*/test_*.c)))
TEST_LIB_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(wildcard test/*/test_*.c test/fuzz/*.c),$(wildcard test/*.c test/*/*.c)) dev/learn/grade.c)

# What runs on the simulated device; test/run.sh explains the assignments. A missing barrier shows in the results of some
# order of threads, and in every order to ThreadSanitizer, which needs the small cases only.
SIM_RUN   = $(addprefix $(BUILD)/sim/$(1)/test/cuda/,$(notdir $(CUDA_TEST)))
RUN_tsan  = $(BUILD)/sim/test_traffic \
            OMP_NUM_THREADS=1 LLMC_TEST_SIZE=small LLMC_TEST_LADDERS=0 $(filter-out %_zero,$(call SIM_RUN,tsan)) \
            OMP_NUM_THREADS= LLMC_TEST_SIZE= LLMC_TEST_LADDERS=
RUN_plain = test/sim/test_sim_bugs.sh test/test_backends.sh test/test_measure_gpu.sh test/sim/test_sim_ranks.sh test/sim/test_sim_batch.sh LLMC_TEST_LADDERS=0 $(call SIM_RUN,plain) \
            SIM_LAZY=1 SIM_ORDER=reverse $(call SIM_RUN,plain) SIM_LAZY= SIM_ORDER= LLMC_TEST_LADDERS=
RUN_asan  = test/sim/test_sim_bugs.sh $(call SIM_RUN,asan)
RUN_LONG  = OMP_NUM_THREADS=1 $(call SIM_RUN,tsan) OMP_NUM_THREADS= \
            SIM_ORDER=random $(foreach seed,1 2 3,SIM_SEED=$(seed) $(call SIM_RUN,plain)) SIM_SEED= SIM_ORDER= \
            $(if $(NVCC),LINKED=nvcc test/test_backends.sh)

.PHONY: tests run-tests test-long run-long test-alone
tests: $(PROGRAMS) $(TESTS) $(SIM_TESTS)

# Several run at a time: what takes longest must not begin last.
LONGEST = $(filter %/test_launch %/test_train,$(TESTS))
# Programs use the fastest instruction set of llmc/cpu that the processor has; these tests run with the others, too.
CPU_HAS  := plain $(shell grep -m 1 '^flags' /proc/cpuinfo | grep -ow avx2)
OTHER_ISA = $(foreach isa,$(filter $(CPU_HAS),$(wordlist 2,9,$(CPU_ISA))),LLMC_VARIANT=cpu:$(isa) $(CPU_TESTS)) LLMC_VARIANT=
CPU_TESTS = $(addprefix $(BUILD)/test/,ops/test_ops ops/test_op_values ops/test_op_gradients ops/test_fp8 model/test_gpt model/test_kinds model/test_generate ranks/test_zero)
run-tests: tests
	$(if $(SIM_MISSING),echo "simulated GPU $(SIM_MISSING)",:)
	BUILD=$(BUILD) sh test/run.sh test/test_layout.sh test/test_mutants.sh test/test_install.sh $(LONGEST) $(foreach b,$(filter tsan,$(SIM_BUILDS)),$(RUN_$(b))) \
	    $(filter-out $(LONGEST),$(TESTS)) $(OTHER_ISA) $(foreach b,$(filter-out tsan,$(SIM_BUILDS)),$(RUN_$(b)))

run-long: tests $(if $(NVCC),$(BUILD)/backends/nvcc/train_gpt)
	BUILD=$(BUILD) sh test/run.sh $(if $(SIM_BUILDS),$(RUN_LONG))

test-long: test  ## make test, and what takes an hour: every order and size, ASan and UBSan, each test alone, fuzzing, fresh Debian systems
	$(MAKE) --no-print-directory run-long
	$(MAKE) --no-print-directory SANITIZE=1 test
	$(MAKE) --no-print-directory test-alone
	$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=20
	sh dev/debian.sh

test-alone: tests  ## run each test by itself, and those of a program in reverse and random order
	PREFIX="sh test/alone.sh" BUILD=$(BUILD) sh test/run.sh $(TESTS) LLMC_TEST_LADDERS=0 $(if $(SIM_BUILDS),$(call SIM_RUN,plain))

$(BUILD)/test/libtest.a: $(TEST_LIB_OBJ)

$(BUILD)/test/%: $(BUILD)/test/%.o $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(LINK)

$(BUILD)/test/%: LDLIBS += -lcmocka

# The programs of CUDA=1, linked by the rules of CUDA=1 for test/test_backends.sh: with the simulated back end as the archive,
# or with nvcc's, compiled no further than to PTX and without optimisation. The host's objects are links to those of this
# build.
BACKEND_sim  = NVCC=: CUDA_LIB=$(BUILD)/sim/plain/libcuda.a CUDA_LIBS=
BACKEND_nvcc = CUDA_OPT="-O0 -Xcicc -O0" CUDA_GENCODE=arch=compute_90a,code=compute_90a
$(BUILD)/backends/sim/train_gpt: $(BUILD)/sim/plain/libcuda.a
$(BUILD)/backends/%/train_gpt: $(PROGRAMS)
	rm -rf $(@D) && mkdir -p $(@D)
	cp -al $(BUILD)/libllmc.a $(BUILD)/train_gpt.o $(BUILD)/llmc $(BUILD)/data $(BUILD)/dev $(BUILD)/test $(@D)
	$(MAKE) --no-print-directory BUILD=$(@D) CUDA=1 $(BACKEND_$*) all

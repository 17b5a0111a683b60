# The test programs and what `make test` runs. A program is built from test/FOLDER/test_NAME.c; every other .c there is in
# libtest.a. Those of test/cuda run on a GPU (`make test-gpu`) and on the simulated one (test/sim/sim.mk).
TESTS        = $(patsubst test/%.c,$(BUILD)/test/%,$(filter-out test/cuda/% test/sim/%,$(wildcard test/*/test_*.c)))
TEST_LIB_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(filter-out $(wildcard test/*/test_*.c test/fuzz/*.c),$(wildcard test/*.c test/*/*.c)))

# What runs on the simulated device: test/run.sh explains the assignments.
SIM_RUN        = $(addprefix $(BUILD)/sim/$(1)/test/,$(CUDA_TEST))
SIM_RUNS_plain = test/test_backends.sh test/sim/test_sim_ranks.sh LLMC_TEST_LADDERS=0 $(call SIM_RUN,plain) SIM_LAZY=1 SIM_ORDER=reverse $(call SIM_RUN,plain) \
                 SIM_LAZY= SIM_ORDER=random $(foreach seed,1 2 3,SIM_SEED=$(seed) $(call SIM_RUN,plain)) \
                 SIM_SEED= SIM_ORDER= LLMC_TEST_LADDERS=
SIM_RUNS_asan  = $(call SIM_RUN,asan)
SIM_RUNS_tsan  = $(BUILD)/sim/test_traffic test/sim/test_sim_bugs.sh OMP_NUM_THREADS=1 LLMC_TEST_SIZE=small LLMC_TEST_LADDERS=0 \
                 $(call SIM_RUN,tsan) OMP_NUM_THREADS= LLMC_TEST_SIZE= LLMC_TEST_LADDERS=

.PHONY: tests run-tests
tests: $(PROGRAMS) $(TESTS) $(SIM_TESTS)

# Two run at a time: what takes longest must not begin last.
run-tests: tests
	$(if $(SIM_MISSING),echo "simulated GPU $(SIM_MISSING)",:)
	BUILD=$(BUILD) sh test/run.sh test/test_layout.sh test/test_mutants.sh $(foreach b,$(filter tsan,$(SIM_BUILDS)),$(SIM_RUNS_$(b))) $(TESTS) \
	    $(foreach b,$(filter-out tsan,$(SIM_BUILDS)),$(SIM_RUNS_$(b)))

$(BUILD)/test/libtest.a: $(TEST_LIB_OBJ)

$(BUILD)/test/%: $(BUILD)/test/%.o $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(LINK)

$(BUILD)/test/%: LDLIBS += -lcmocka

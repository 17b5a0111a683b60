# Benchmarks, and what developers run now and then.
.PHONY: bench bench-cpu bench-data learn mutants format

# Threads that wait spin only briefly, as train_gpt's do.
bench: $(BUILD)/bench  ## time every operation alone (ARGS='--op attn --json FILE')
	GOMP_SPINCOUNT=1000 $(BUILD)/bench $(ARGS)

bench-cpu: $(BUILD)/bench $(BUILD)/train_gpt  ## how near the CPU's operations are to its sgemm and copy rates, with a verdict on each
	sh dev/bench_cpu.sh $(BUILD)

bench-data: $(BUILD)/bench_tokenizer $(BUILD)/stories  ## speed of tokenizer training and encoding, on generated text
	$(BUILD)/stories --count 60000 --seed 2 >$(BUILD)/bench-data.txt
	$(BUILD)/bench_tokenizer train $(BUILD)/bench-data.txt 4096 $$(nproc) $(BUILD)/bench-data.json
	$(BUILD)/bench_tokenizer encode $(BUILD)/bench-data.txt $(BUILD)/bench-data.json $$(nproc)
	$(BUILD)/bench_tokenizer linear $(BUILD)/bench-data.txt $(BUILD)/bench-data.json

# An exercise of dev/learn: the learner's function, what grades it, and the engine with its tests.
LEARN_PROGRAMS = $(patsubst dev/learn/ch%.c,$(BUILD)/learn/ch%,$(wildcard dev/learn/ch*.c))
$(LEARN_PROGRAMS): $(BUILD)/learn/%: $(BUILD)/dev/learn/%.o $(BUILD)/dev/learn/main.o $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(LINK)
tests: $(LEARN_PROGRAMS)

CH =
LEARN_PROGRAM = $(filter $(BUILD)/learn/$(shell printf ch%02d $(CH) 2>/dev/null),$(LEARN_PROGRAMS))
learn: $(if $(CH),$(or $(LEARN_PROGRAM),no-such-chapter))  ## grade the exercise of a chapter of dev/learn: make learn CH=3
	$(if $(CH),$(LEARN_PROGRAM),cat dev/learn/README.md)

.PHONY: no-such-chapter
no-such-chapter:
	echo "CH=$(CH): the chapters with exercises are 1 to $(words $(LEARN_PROGRAMS))"; exit 1

# Everything that dev/mutants.sh needs to compile a source and to link the tests with it.
mutants: export BUILD := $(BUILD)
mutants: export COMPILE_host = $(CC) $(filter-out -MMD -MP,$(CPPFLAGS) $(CFLAGS)) -DCPU_ISA=$(lastword $(CPU_ISA)) -w
mutants: export LLMC_VARIANT = cpu:$(lastword $(CPU_ISA))
mutants: export LINK_host = $(CC)
mutants: export LIBS_host = $(BUILD)/test/libtest.a $(BUILD)/libllmc.a $(LDLIBS) -lcmocka
MUTANT_SIM = $(filter plain tsan,$(SIM_BUILDS))
define MUTANT_RULES
mutants: export COMPILE_$(1) = $(filter-out -MMD -MP,$(call SIM_KERNEL,$(1))) -w
mutants: export LINK_$(1) = $(CXX) $(CUDA_LINK)
mutants: export LIBS_$(1) = $(BUILD)/sim/$(1)/libcuda.a $(BUILD)/test/libtest.a $(BUILD)/libllmc.a $(LDLIBS) $(SIM_SAN_$(1)) -lcmocka
endef
$(foreach b,$(MUTANT_SIM),$(eval $(call MUTANT_RULES,$(b))))
MUTANT_TESTS := $(filter-out test/cuda/%,$(sort $(shell grep '^\[' dev/mutants.txt | grep -o 'test/[a-z_]*/test_[a-z0-9_]*')))
mutants: $(PROGRAMS) $(addprefix $(BUILD)/,$(MUTANT_TESTS)) \
    $(foreach b,$(MUTANT_SIM),$(addprefix $(BUILD)/sim/$(b)/test/cuda/,test_cuda_ops test_cuda_fp8))
mutants:  ## break the sources in many ways, one at a time: a test must notice each (ARGS=WORD: only some)
	sh dev/mutants.sh "$(ARGS)"

format:  ## clang-format every source file
	clang-format -i $$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp')

# Fuzzing. test_fuzz has all targets and a short course of inputs; `make fuzz` builds each target with libFuzzer.
FUZZ_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(filter-out test/fuzz/test_%,$(wildcard test/fuzz/*.c)))
FUZZ     = $(filter-out fuzz test_fuzz,$(patsubst test/fuzz/%.c,%,$(wildcard test/fuzz/*.c)))
FUZZ_SECONDS = 600

# The seeds come from the short course in test_fuzz.c; what libFuzzer finds is kept in build/fuzz/corpus.
.PHONY: fuzz
fuzz:  ## fuzz the parsers of untrusted input with libFuzzer, one after another (FUZZ="shard options" FUZZ_SECONDS=600)
	$(MAKE) --no-print-directory deps DEBIAN_PACKAGES="$(DEBIAN_PACKAGES) clang libomp-dev"
	$(MAKE) --no-print-directory $(BUILD)/test/fuzz/test_fuzz
	$(MAKE) --no-print-directory BUILD=$(BUILD)/fuzz CC=clang OPT="-O1 -Wno-pass-failed" \
	    SANFLAGS="-DLIBFUZZER -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" \
	    $(FUZZ:%=$(BUILD)/fuzz/test/fuzz/%)
	$(BUILD)/test/fuzz/test_fuzz --seeds $(BUILD)/fuzz/seeds
	for t in $(FUZZ); do mkdir -p $(BUILD)/fuzz/corpus/$$t; echo "$$t"; \
	    OMP_NUM_THREADS=1 $(BUILD)/fuzz/test/fuzz/$$t -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=4096 \
	        -verbosity=0 -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/$$t- \
	        $(BUILD)/fuzz/corpus/$$t $(BUILD)/fuzz/seeds/$$t || exit 1; done

$(BUILD)/test/fuzz/test_fuzz: $(BUILD)/test/fuzz/test_fuzz.o $(FUZZ_OBJ) $(BUILD)/test/libtest.a $(BUILD)/libllmc.a
	$(LINK)

$(BUILD)/test/fuzz/%: $(BUILD)/test/fuzz/%.o $(BUILD)/test/fuzz/fuzz.o $(BUILD)/libllmc.a
	$(LINK)

# Mapped files become memory of exactly their size there: see test/fuzz/fuzz.h.
$(BUILD)/test/fuzz/%: LINK_FLAGS = -Wl,--wrap=file_map,--wrap=file_unmap
$(FUZZ:%=$(BUILD)/test/fuzz/%): LDLIBS += -fsanitize=fuzzer

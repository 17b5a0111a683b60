# Two targets do everything: `make train` and `make test`. `make help` lists the rest, `make config` shows the choices.
# Sources are found by wildcard; a new file needs no line here. Every choice is a variable: make OPT=-O1 SANITIZE=1 ...
CC       = gcc
CXX      = g++
BUILD    = build
OPT      = -O3 -march=native
SANITIZE =
ARGS     =
MAKEFLAGS += --no-builtin-rules

DEBIAN_PACKAGES = gcc g++ make pkg-config libopenblas-openmp-dev libpcre2-dev libjansson-dev libxxhash-dev \
                  zlib1g-dev libzstd-dev libcmocka-dev
PKGS       = openblas jansson libpcre2-8 libxxhash zlib libzstd
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

ifneq ($(SANITIZE),)
BUILD   := $(BUILD)/sanitize
OPT      = -O1 -march=native
SANFLAGS = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
endif
WARN     = -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wno-unused-parameter
# -fno-math-errno and contraction change no comparison and no NaN; -ffast-math would, and is never used.
CPPFLAGS = -D_GNU_SOURCE -I. $(PKG_CFLAGS) -MMD -MP
CFLAGS   = -std=c11 -g $(OPT) -fno-math-errno -ffp-contract=fast -fopenmp $(WARN) -Wstrict-prototypes \
           -Wmissing-prototypes $(SANFLAGS)
LDLIBS   = $(PKG_LIBS) -lm -lpthread -fopenmp $(SANFLAGS)

LIB_OBJ  = $(patsubst %.c,$(BUILD)/%.o,$(filter-out data/%_main.c,$(wildcard llmc/*.c llmc/cpu/*.c data/*.c)))
PROGRAMS = $(BUILD)/train_gpt $(patsubst data/%_main.c,$(BUILD)/%,$(wildcard data/*_main.c)) \
           $(patsubst dev/%.c,$(BUILD)/%,$(wildcard dev/*.c))
TESTS    = $(patsubst test/%.c,$(BUILD)/test/%,$(wildcard test/test_*.c))

.PHONY: all train test run-tests deps clean format help config
.DELETE_ON_ERROR:

all: $(PROGRAMS)

train: deps  ## install what is missing, build, and train on the built-in corpus
	@$(MAKE) --no-print-directory $(BUILD)/train_gpt
	$(BUILD)/train_gpt $(ARGS)

test: deps  ## install what is missing, build and run every test (SANITIZE=1: under ASan and UBSan)
	@$(MAKE) --no-print-directory run-tests

run-tests: $(PROGRAMS) $(TESTS)
	@BUILD=$(BUILD) sh test/run.sh $(TESTS)

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

# --- rules ---

$(BUILD)/libllmc.a: $(LIB_OBJ)
	@rm -f $@ && ar rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@

# The driver is plain C11; its .cu name is for builds with nvcc.
$(BUILD)/train_gpt.o: train_gpt.cu
	@mkdir -p $(@D)
	$(CC) -x c $(CPPFLAGS) $(CFLAGS) -c $< -o $@

$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS)

$(BUILD)/%: $(BUILD)/data/%_main.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS)

$(BUILD)/%: $(BUILD)/dev/%.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS)

$(BUILD)/test/%: $(BUILD)/test/%.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS) -lcmocka

.SECONDARY:
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

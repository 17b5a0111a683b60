# `make train` and `make test` do everything; `make help` lists the other targets, `make config` shows the settings.
# A new source file needs no line here. Every variable can be set on the command line: make OPT=-O1 SANITIZE=1
VERSION  = 1.0
CC       = gcc
CXX      = $(patsubst cc,c++,$(subst gcc,g++,$(subst clang,clang++,$(CC))))
BUILD    = build
OPT      = -O3
# llmc/cpu is compiled once for each instruction set, and the program chooses among them at run time (llmc/ops/cpu_ops.c).
# Compilers avoid 512-bit vectors for the sake of older processors; the loops over exp are a third faster with them.
# -fno-trapping-math changes no result: without it, gcc vectorises a conditional expression only with AVX-512's masks.
CPU_ISA_x86_64   = avx512 avx2 plain
CPU_ISA_aarch64  = neon
CPU_FLAGS_avx512 = -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
CPU_FLAGS_avx2   = -mavx2 -mfma
CPU_ISA         := $(or $(CPU_ISA_$(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))),plain)
# SANITIZE=1: with AddressSanitizer and UBSan. WERROR=1, for continuous integration: warnings are errors; by default
# the new warnings of a new compiler stop nobody. ARGS: for the program that is run. V=1: show every command.
SANITIZE =
WERROR   =
ARGS     =
V        =

MAKEFLAGS += --no-builtin-rules
# Compile on all cores, unless there is a -j. (GNU make before 4.4 does not show one that comes from the environment.)
ifeq ($(MAKELEVEL)$(filter -j% --jobs%,$(MAKEFLAGS) $(shell echo "$$MAKEFLAGS")),0)
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
endif
ifeq ($(V),)
.SILENT:
endif

DEBIAN_PACKAGES = gcc g++ make pkg-config libopenblas-openmp-dev libpcre2-dev libjansson-dev libutf8proc-dev \
                  libxxhash-dev zlib1g-dev libzstd-dev libmicrohttpd-dev libcmocka-dev curl $(if $(findstring clang,$(CC)),libomp-dev)
PKGS       = openblas jansson libpcre2-8 libutf8proc libxxhash zlib libzstd libmicrohttpd
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

# For test-gpu, SANITIZE means compute-sanitizer instead.
ifneq ($(and $(SANITIZE),$(if $(filter test-gpu,$(MAKECMDGOALS)),,1)),)
BUILD   := $(BUILD)/sanitize
OPT      = -O1
SANFLAGS = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
endif
WARN     = -Wall -Wextra $(if $(WERROR),-Werror) -Wshadow -Wpointer-arith -Wno-unused-parameter \
           -Wno-missing-field-initializers
# These change no comparison and no NaN; -ffast-math would, and is never used.
CPPFLAGS = -D_GNU_SOURCE -I. $(PKG_CFLAGS) -MMD -MP
CFLAGS   = -std=c11 -g $(OPT) -fno-math-errno -ffp-contract=fast -fopenmp $(WARN) -Wstrict-prototypes \
           -Wmissing-prototypes $(SANFLAGS)
LDLIBS   = $(PKG_LIBS) -lm -lpthread -ldl -fopenmp $(SANFLAGS)
COMPILE  = mkdir -p $(@D); echo "  $@"; $(CC) -x c $(CPPFLAGS) $(CFLAGS) -c $< -o $@
# BUNDLE=1: programs that find their libraries, and these each other's, in ../lib and nowhere else before (dev/install.mk).
BUNDLE_RPATH = -Wl,--disable-new-dtags '-Wl,-rpath,$$ORIGIN/../lib'
# The same line links every program; a target may have a LINKER, LINK_FLAGS and LDLIBS of its own.
LINKER   = $(CC)
LINK     = mkdir -p $(@D); $(LINKER) -o $@ $(LINK_FLAGS) $(if $(BUNDLE),$(BUNDLE_RPATH)) $(filter %.o %.a,$^) $(LDLIBS)

PAGE_KINDS = html css js
LIB_OBJ  = $(patsubst %.c,$(BUILD)/%.o,$(filter-out llmc/cpu/% data/%_main.c,$(wildcard llmc/*/*.c data/*.c))) \
           $(foreach isa,$(CPU_ISA),$(patsubst %.c,$(BUILD)/%.$(isa).o,$(wildcard llmc/cpu/*.c))) \
           $(patsubst %,$(BUILD)/%.o,$(foreach k,$(PAGE_KINDS),$(wildcard llmc/*/*.$(k))))
DATA_PROGRAMS = $(patsubst data/%_main.c,$(BUILD)/%,$(wildcard data/*_main.c))
DEV_PROGRAMS  = $(patsubst dev/%.c,$(BUILD)/%,$(wildcard dev/*.c))
PROGRAMS      = $(BUILD)/train_gpt $(DATA_PROGRAMS) $(DEV_PROGRAMS)

all: $(PROGRAMS)

include llmc/cuda/cuda.mk test/sim/sim.mk test/fuzz/fuzz.mk test/test.mk dev/dev.mk dev/install.mk

.PHONY: all train test build-tests deps clean help config FORCE
.DELETE_ON_ERROR:
.SECONDARY:

train: deps  ## install what is missing, build, and train on the built-in corpus
	$(MAKE) --no-print-directory $(BUILD)/train_gpt
	$(BUILD)/train_gpt $(ARGS)

test: deps  ## install what is missing, build and run every test (SANITIZE=1: under ASan and UBSan)
	$(MAKE) --no-print-directory run-tests

build-tests: deps  ## install what is missing and build every test, but run none
	$(MAKE) --no-print-directory tests

# These three start make again, because only then it finds the libraries that deps has installed. Beside other goals
# (`make all build-tests`) two makes would write the same files, so each of the three waits for the goals before it.
AGAIN = train test build-tests
$(filter $(AGAIN),$(MAKECMDGOALS)): | $(filter-out $(AGAIN) test-long,$(MAKECMDGOALS))
test build-tests: | $(filter train,$(MAKECMDGOALS))
build-tests: | $(filter test,$(MAKECMDGOALS))

deps:  ## install the Debian packages that are missing (as root), or print the command that does
	missing=; for p in $(DEBIAN_PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	if [ $$(id -u) -ne 0 ]; then echo "These packages are missing; install them with"; \
	    echo "    sudo apt-get install -y$$missing"; exit 1; fi; \
	echo "installing$$missing"; log=$${TMPDIR:-/tmp}/llmc-deps.log; \
	(apt-get install -y -qq $$missing || (apt-get update -qq && apt-get install -y -qq $$missing)) >$$log 2>&1 || \
	    { cat $$log; exit 1; }

clean:  ## remove everything that was built
	rm -rf build

help:  ## this list
	sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(filter-out %.d,$(MAKEFILE_LIST)) | expand -t 20

config:  ## the settings in effect
	echo "CC='$(CC)' CXX='$(CXX)' OPT='$(OPT)' SANITIZE=$(SANITIZE) BUILD=$(BUILD)"
	echo "libraries: $(PKG_LIBS)"
	echo "CUDA=$(CUDA): $(if $(WITH_CUDA),$(NVCC) for sm_$(CUDA_CODE),CPU only)"
	echo "simulated GPU: $(or $(SIM_MISSING),with the headers in $(CUDA_HOME)/include)"

$(BUILD)/%.o: %.c
	$(COMPILE)

define CPU_RULE
$(BUILD)/llmc/cpu/%.$(1).o: CFLAGS += -DCPU_ISA=$(1) $(CPU_FLAGS_$(1)) -fno-trapping-math
$(BUILD)/llmc/cpu/%.$(1).o: llmc/cpu/%.c
	$$(COMPILE)
endef
$(foreach isa,$(CPU_ISA),$(eval $(call CPU_RULE,$(isa))))

# The driver is plain C11; its .cu name says what it drives.
$(BUILD)/train_gpt.o: train_gpt.cu
	$(COMPILE)

# What pages consist of becomes bytes in the program: NAME.html defines NAME_html and NAME_html_size.
define PAGE_RULES
$(BUILD)/%.$(1).c: %.$(1)
	mkdir -p $$(@D)
	{ echo '#include <stddef.h>'; echo 'extern const unsigned char $$(*F)_$(1)[]; extern const size_t $$(*F)_$(1)_size;'; \
	  echo 'const unsigned char $$(*F)_$(1)[] = {'; od -An -v -tx1 $$< | sed 's/ \(..\)/0x\1,/g'; echo '};'; \
	  echo 'const size_t $$(*F)_$(1)_size = sizeof $$(*F)_$(1);'; } >$$@

$(BUILD)/%.$(1).o: $(BUILD)/%.$(1).c
	$$(COMPILE)

endef
$(foreach k,$(PAGE_KINDS),$(eval $(call PAGE_RULES,$(k))))

# What --version prints (llmc/base/build.h); replaced only when it changes.
COMMIT := $(or $(shell git --no-optional-locks describe --always --dirty --exclude='*' 2>/dev/null),unknown)
$(BUILD)/build.c: FORCE
	mkdir -p $(@D)
	{ echo '#include "llmc/base/build.h"'; echo 'const char build_version[] = "$(VERSION)";'; \
	  echo 'const char build_commit[] = "$(COMMIT)";'; echo 'const char build_flags[] = "$(subst ",\",$(strip $(OPT)))";'; } >$@.new
	if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(BUILD)/build.o: $(BUILD)/build.c
	$(COMPILE)

%.a:
	rm -f $@ && ar rcs $@ $^

$(BUILD)/libllmc.a: $(LIB_OBJ)

# Programs that open a device contain the CUDA back end, if there is one (llmc/cuda/cuda.mk).
$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(BUILD)/build.o $(CUDA_LIB) $(BUILD)/libllmc.a $(CUDA_STAMP)
	$(LINK)

$(DEV_PROGRAMS): $(BUILD)/%: $(BUILD)/dev/%.o $(CUDA_LIB) $(BUILD)/test/libtest.a $(BUILD)/libllmc.a $(CUDA_STAMP)
	$(LINK)

$(DATA_PROGRAMS): $(BUILD)/%: $(BUILD)/data/%_main.o $(BUILD)/build.o $(BUILD)/libllmc.a
	$(LINK)

-include $(shell find $(BUILD) -path $(BUILD)/debian -prune -o -name '*.d' -print 2>/dev/null)

# Everything is built from wildcards; every choice has a variable. `make help` lists targets, `make config` the choices.
BUILD   ?= build
CC      ?= gcc
CXX     ?= g++
OPT     ?= -O3 -march=native
SANITIZE ?=
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)
MAKEFLAGS += --no-builtin-rules
ifeq ($(origin CC),default)
CC = gcc
endif

DEBIAN_PACKAGES = gcc g++ make pkg-config libopenblas-openmp-dev libpcre2-dev libjansson-dev libxxhash-dev \
                  zlib1g-dev libzstd-dev libcmocka-dev
PKGS     = openblas jansson libpcre2-8 libxxhash
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)

WARN     = -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wno-unused-parameter
ifneq ($(SANITIZE),)
BUILD    := $(BUILD)/sanitize
SANFLAGS = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
endif
CFLAGS   = -std=c11 -D_GNU_SOURCE -g $(OPT) -fno-math-errno -ffp-contract=fast -fopenmp $(WARN) -Wstrict-prototypes -Wmissing-prototypes -I. $(PKG_CFLAGS) $(SANFLAGS)
LDLIBS   = $(PKG_LIBS) -lm -lpthread -fopenmp $(SANFLAGS)

LIB_SRC  = $(filter-out data/%_main.c,$(wildcard llmc/*.c llmc/cpu/*.c data/*.c))
LIB_OBJ  = $(LIB_SRC:%.c=$(BUILD)/%.o)
TOOLS    = $(patsubst data/%_main.c,$(BUILD)/%,$(wildcard data/*_main.c))
TESTS    = $(patsubst test/%.c,$(BUILD)/test/%,$(wildcard test/test_*.c))

.PHONY: all train test deps clean help
all: $(BUILD)/train_gpt $(TOOLS)

$(BUILD)/libllmc.a: $(LIB_OBJ)
	@rm -f $@ && ar rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

# The driver is plain C11; its .cu name is for builds with nvcc.
$(BUILD)/train_gpt.o: train_gpt.cu
	@mkdir -p $(@D)
	$(CC) -x c $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/train_gpt: $(BUILD)/train_gpt.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS)

$(TOOLS): $(BUILD)/%: $(BUILD)/data/%_main.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS)

$(BUILD)/test/%: $(BUILD)/test/%.o $(BUILD)/libllmc.a
	$(CC) -o $@ $^ $(LDLIBS) -lcmocka

clean:
	rm -rf build

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

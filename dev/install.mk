# `make install`: the programs, a manual page and completions for bash and zsh, all from the option tables.
PREFIX  = /usr/local
DESTDIR =
INSTALL_ROOT = $(DESTDIR)$(PREFIX)
# Programs of data/ get names that do not collide with others in PATH: build/prepare is installed as llmc-prepare.
INSTALLED    = train_gpt $(patsubst data/%_main.c,llmc-%,$(wildcard data/*_main.c))
INSTALL_FILES = $(foreach p,$(INSTALLED),bin/$(p) share/man/man1/$(p).1 \
                  share/bash-completion/completions/$(p) share/zsh/site-functions/_$(p))

.PHONY: install uninstall
install: $(BUILD)/train_gpt $(DATA_PROGRAMS)  ## install the programs, manual pages and completions under PREFIX=/usr/local (DESTDIR=)
	for file in $(INSTALL_FILES); do mkdir -p "$(INSTALL_ROOT)/$${file%/*}" || exit 1; done
	for p in $(INSTALLED); do \
	    to="$(INSTALL_ROOT)/bin/$$p"; \
	    cp $(BUILD)/$${p#llmc-} "$$to.new" && strip "$$to.new" && chmod 755 "$$to.new" && mv "$$to.new" "$$to" || exit 1; \
	    "$$to" --page man >"$(INSTALL_ROOT)/share/man/man1/$$p.1" && \
	    "$$to" --page bash >"$(INSTALL_ROOT)/share/bash-completion/completions/$$p" && \
	    "$$to" --page zsh >"$(INSTALL_ROOT)/share/zsh/site-functions/_$$p" || exit 1; \
	    echo "  $$to"; \
	done

uninstall:  ## remove what make install installed (with the same PREFIX and DESTDIR)
	for file in $(INSTALL_FILES); do rm -f "$(INSTALL_ROOT)/$$file"; done

# `make bundle`: a folder, and an archive of it, that runs on any x86-64 Linux with the glibc of Debian 12 or newer, without
# packages and compiler. With CUDA=1 it also has the benchmark, the CUDA tests and profiling/measure_gpu.sh; the CUDA
# libraries themselves come from the machine, `run` finds them.
BUNDLE_BUILD = $(BUILD)/for-bundle$(if $(WITH_CUDA),-cuda)
BUNDLE_FLAGS = $(CC) $(CFLAGS) $(if $(WITH_CUDA),$(NVCC) $(NVCCFLAGS) $(CUDA_GENCODE))
BUNDLE_DIR   = $(BUILD)/train_gpt-$(VERSION)-$(shell uname -m)$(if $(WITH_CUDA),-cuda)

.PHONY: bundle
bundle: deps  ## a folder and an archive that run on other machines (CUDA=1 CUDA_ARCH=90: for a GPU, with what measures there)
	rm -rf $(BUNDLE_DIR)
	# Objects of an earlier bundle with other flags must not get into this one.
	echo "$(BUNDLE_FLAGS)" | cmp -s - $(BUNDLE_BUILD)/flags || rm -rf $(BUNDLE_BUILD)
	mkdir -p $(BUNDLE_BUILD) && echo "$(BUNDLE_FLAGS)" >$(BUNDLE_BUILD)/flags
	LD_LIBRARY_PATH=$(CUDA_HOME)/lib64 $(MAKE) --no-print-directory BUILD=$(BUNDLE_BUILD) BUNDLE=1 \
	    CUDA=$(or $(WITH_CUDA),0) PREFIX= DESTDIR=$(BUNDLE_DIR) install $(if $(WITH_CUDA),gpu-programs)
	sh dev/bundle.sh $(BUNDLE_DIR) $(if $(WITH_CUDA),$(BUNDLE_BUILD) $(CUDA_HOME)/lib64)

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

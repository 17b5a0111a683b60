#include "llmc/cli/line_input.h"

#include <dlfcn.h>
#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What is used of libedit.so.2: editline(3). */
struct EditLine;
struct History;
struct history_event {
    int num;
    const char *str;
};
enum { EL_PROMPT = 0, EL_EDITOR = 2, EL_BIND = 4, EL_SETTY = 8, EL_HIST = 10, H_SETSIZE = 1, H_ENTER = 10 };

struct line_input {
    void *library; /* NULL: plain lines */
    struct EditLine *el;
    struct History *past;
    const char *(*gets)(struct EditLine *, int *count);
    int (*history)(struct History *, struct history_event *, int op, ...);
    void (*el_end)(struct EditLine *);
    void (*history_end)(struct History *);
    bool terminal;
    char *line;
    size_t capacity;
};

static const char *ask(struct EditLine *el) { return "> "; }

/* A function of the library; ISO C has no conversion from void * to it. */
static void find(void *library, const char *name, void *function) {
    void *found = dlsym(library, name);
    memcpy(function, &found, sizeof found);
}

/* Ctrl-C empties the line: while one is typed there is nothing to stop. */
static void open_editor(struct line_input *in) {
    struct EditLine *(*el_init)(const char *, FILE *, FILE *, FILE *);
    int (*el_set)(struct EditLine *, int op, ...);
    struct History *(*history_init)(void);
    struct history_event event;
    const char *term = getenv("TERM");
    if (!in->terminal || !term || strcmp(term, "dumb") == 0) return;
    if (!(in->library = dlopen("libedit.so.2", RTLD_NOW | RTLD_LOCAL))) return;
    find(in->library, "el_init", &el_init);
    find(in->library, "el_set", &el_set);
    find(in->library, "el_end", &in->el_end);
    find(in->library, "el_gets", &in->gets);
    find(in->library, "history", &in->history);
    find(in->library, "history_init", &history_init);
    find(in->library, "history_end", &in->history_end);
    if (!el_init || !el_set || !in->el_end || !in->gets || !in->history || !history_init || !in->history_end)
        return;
    const char *locale = setlocale(LC_CTYPE, ""); /* by which libedit reads characters */
    if (!locale || strcmp(locale, "C") == 0 || strcmp(locale, "POSIX") == 0) setlocale(LC_CTYPE, "C.UTF-8");
    in->past = history_init();
    in->el = el_init("train_gpt", stdin, stdout, stderr);
    if (!in->el || !in->past) return;
    in->history(in->past, &event, H_SETSIZE, 1000);
    el_set(in->el, EL_PROMPT, ask);
    el_set(in->el, EL_EDITOR, "emacs");
    el_set(in->el, EL_HIST, in->history, in->past);
    el_set(in->el, EL_SETTY, "-d", "-isig", (char *)NULL);
    el_set(in->el, EL_BIND, "^C", "em-kill-line", (char *)NULL);
}

struct line_input *line_input_open(void) {
    struct line_input *in = (struct line_input *)xcalloc(1, sizeof *in);
    in->terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    open_editor(in);
    return in;
}

const char *line_input_read(struct line_input *in, bool *interrupted) {
    struct history_event event;
    *interrupted = false;
    if (in->el && in->past) {
        int count;
        const char *line = in->gets(in->el, &count);
        if (!line || count <= 0) return NULL;
        if (line[0] != '\n') in->history(in->past, &event, H_ENTER, line);
        free(in->line);
        in->line = xstrdup(line);
    } else {
        if (in->terminal) fputs("> ", stdout), fflush(stdout);
        errno = 0;
        if (getline(&in->line, &in->capacity, stdin) < 0) {
            *interrupted = errno == EINTR;
            clearerr(stdin);
            return NULL;
        }
    }
    in->line[strcspn(in->line, "\r\n")] = 0;
    return in->line;
}

void line_input_close(struct line_input *in) {
    if (in->el) in->el_end(in->el);
    if (in->past) in->history_end(in->past);
    if (in->library) dlclose(in->library);
    free(in->line);
    free(in);
}

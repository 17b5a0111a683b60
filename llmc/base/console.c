/* What a program says on the terminal: see console.h. */
#include "llmc/base/console.h"

#include "llmc/base/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

void open_standard_files(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR) < 0) _exit(EXIT_FAILURE);
}

void make_printable(char *text) {
    uint8_t *p = (uint8_t *)text, *end = p + strlen(text);
    while (p < end) {
        uint32_t code = *p;
        int length = utf8_decode(p, end, &code);
        bool control = code < 0x20 ? code != '\n' && code != '\t' : code >= 0x7f && code < 0xa0;
        if (length == 0) length = 1; /* not UTF-8: the byte itself counts */
        if (control) memset(p, '?', (size_t)length);
        p += length;
    }
}

void say(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *text = xvasprintf(fmt, ap);
    va_end(ap);
    make_printable(text);
    fputs(text, stdout);
    flush_stdout();
    free(text);
}

void say_progress(const char *fmt, ...) {
    if (!isatty(STDOUT_FILENO)) return;
    va_list ap;
    va_start(ap, fmt);
    char *text = xvasprintf(fmt, ap);
    va_end(ap);
    make_printable(text);
    printf("\r\033[K%s\r", text);
    flush_stdout();
    free(text);
}

void flush_stdout(void) {
    errno = 0;
    bool ok = fflush(stdout) == 0 && !ferror(stdout);
    int reason = errno;
    if (ok) return;
    clearerr(stdout);
    if (reason == EAGAIN || reason == EINTR) return; /* this text is lost, the next may not be */
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere >= 0) {
        dup2(nowhere, STDOUT_FILENO);
        close(nowhere);
    }
    warn("standard output cannot be written: %s; nothing more is printed there",
         strerror(reason ? reason : EIO));
}

int terminal_width(void) {
    enum { LEAST = 40, USUAL = 80, MOST = 100 }; /* longer lines are hard to read */
    const char *columns = getenv("COLUMNS");
    long width = columns ? strtol(columns, NULL, 10) : 0;
    struct winsize window;
    if (width <= 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0) width = window.ws_col;
    if (width <= 0) width = USUAL;
    return width < LEAST ? LEAST : width > MOST ? MOST : (int)width;
}

int take_words(const char **text, int width) {
    const char *s = *text;
    int length = (int)strlen(s), taken = length;
    if (length > width) {
        taken = width;
        while (taken > 0 && s[taken] != ' ') taken--;
        if (taken == 0) taken = width;
    }
    const char *rest = s + taken;
    while (*rest == ' ') rest++;
    *text = rest;
    return taken;
}

void print_wrapped(FILE *out, int width, int indent, const char *text) {
    for (int column = 0; *text; column = indent) {
        const char *line = text;
        int n = take_words(&text, width - column);
        fprintf(out, "%*s%.*s\n", column, "", n, line);
    }
}

char *program_name(const char *other) {
    const char *name = program_invocation_name, *slash = strrchr(name, '/');
    char *path =
        !other ? xstrdup(name) : xasprintf("%.*s%s", slash ? (int)(slash + 1 - name) : 0, name, other);
    char *quoted = shell_quote(path);
    free(path);
    return quoted;
}

char *shell_quote(const char *text) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=:,./@%";
    if (*text && strspn(text, plain) == strlen(text)) return xstrdup(text);
    char *quoted = (char *)xmalloc(4 * strlen(text) + 3), *to = quoted;
    *to++ = '\'';
    for (; *text; text++) {
        if (*text == '\'') {
            memcpy(to, "'\\''", 4);
            to += 4;
        } else {
            *to++ = *text;
        }
    }
    *to++ = '\'';
    *to = 0;
    return quoted;
}

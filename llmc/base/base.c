#include "llmc/base/base.h"

#include "llmc/base/console.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static struct message_options message_options;

static struct die_hook *_Atomic die_hook;

void set_die_hook(struct die_hook *hook) { die_hook = hook; }

void set_message_options(const struct message_options *options) { message_options = *options; }

/* Writes the whole line at once, so that lines of several processes do not mix. On a terminal it first
 * clears the progress line. */
static void message(const char *kind, const char *fmt, va_list ap) {
    char text[8192];
    int used = snprintf(text, sizeof text, "%s%s: ", message_options.prefix, kind);
    int n = vsnprintf(text + used, sizeof text - (size_t)used - 1, fmt, ap);
    make_printable(text);
    size_t size = strlen(text);
    text[size++] = '\n';
    fflush(stdout);
    if (isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    fwrite(text, 1, size, stderr);
    if (n < 0) fputs("(this message cannot be formatted)\n", stderr);
    if (message_options.copy && write(message_options.copy, text, size) < 0) message_options.copy = 0;
}

void die_at(const char *file, int line, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    message("error", fmt, ap);
    va_end(ap);
    struct die_hook *hook = die_hook;
    if (hook) {
        struct error err;
        vsnprintf(err.message, sizeof err.message, fmt, again);
        hook->tell(hook, err.message);
    }
    va_end(again);
    if (getenv("LLMC_DEBUG")) {
        fprintf(stderr, "  at %s:%d\n", file, line);
        abort();
    }
    exit(EXIT_FAILURE);
}

void warn(const char *fmt, ...) {
    if (message_options.no_warnings) return;
    va_list ap;
    va_start(ap, fmt);
    message("warning", fmt, ap);
    va_end(ap);
}

void report_error(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    message("error", fmt, ap);
    va_end(ap);
}

bool fail(struct error *err, const char *fmt, ...) {
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->message, sizeof err->message, fmt, ap);
        va_end(ap);
        make_printable(err->message);
    }
    return false;
}

static void *or_die(void *p, size_t bytes) {
    check(p || bytes == 0, "out of host memory: asked for %s", human_bytes((double)bytes));
    return p;
}

void *xmalloc(size_t bytes) { return or_die(malloc(bytes), bytes); }
void *xcalloc(size_t count, size_t bytes) { return or_die(calloc(count, bytes), count * bytes); }
void *xrealloc(void *p, size_t bytes) { return or_die(realloc(p, bytes), bytes); }
char *xstrdup(const char *s) { return (char *)or_die(strdup(s), strlen(s) + 1); }

char *xvasprintf(const char *fmt, va_list ap) {
    char *text = NULL;
    check(vasprintf(&text, fmt, ap) >= 0, "cannot format \"%s\": %s", fmt, strerror(errno));
    return text;
}

char *xasprintf(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *text = xvasprintf(fmt, ap);
    va_end(ap);
    return text;
}

const char *temp_printf(const char *fmt, ...) {
    enum { RING = 16384, LONGEST = 1024 };
    static _Thread_local char ring[RING];
    static _Thread_local size_t next;
    if (next > RING - LONGEST) next = 0;
    char *out = ring + next;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(out, LONGEST, fmt, ap);
    va_end(ap);
    if (n < 0) out[0] = 0;
    next += strlen(out) + 1;
    return out;
}

void thread_start(pthread_t *thread, void *(*body)(void *), void *arg, const char *purpose) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = pthread_create(thread, NULL, body, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    check(status == 0, "cannot start the thread that %s: %s", purpose, strerror(status));
}

double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const char *with_prefix(double x, double base, const char *const *prefixes, int count) {
    int i = 0;
    while ((x >= base || x <= -base) && i + 1 < count) {
        x /= base;
        i++;
    }
    return temp_printf(i == 0 ? "%.0f %s" : "%.2f %s", x, prefixes[i]);
}

const char *human_bytes(double bytes) {
    static const char *const prefixes[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    return with_prefix(bytes, 1024.0, prefixes, 6);
}

const char *human_count(double n) {
    static const char *const prefixes[] = {"", "k", "M", "G", "T", "P"};
    return with_prefix(n, 1000.0, prefixes, 6);
}

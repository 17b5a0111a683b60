/* What every file uses: errors, memory that cannot be NULL, texts for messages, a clock, integer helpers.
 *
 *   check(cond, fmt, ...)   for what the process cannot go on without. Always compiled in; prints and exits.
 *   fail(err, fmt, ...)     for code that reads untrusted input. Fills `err` and returns false: the caller
 *                           decides.
 *
 * A message says what was expected, what was found, and which file or flag to look at. */
#ifndef LLMC_BASE_H
#define LLMC_BASE_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LLMC_PRINTF(fmt_index, first) __attribute__((format(printf, fmt_index, first)))
#define LLMC_NORETURN                 __attribute__((noreturn))
#else
#define LLMC_PRINTF(fmt_index, first)
#define LLMC_NORETURN
#endif

#define check(cond, ...) ((cond) ? (void)0 : die_at(__FILE__, __LINE__, __VA_ARGS__))
#define die(...)         die_at(__FILE__, __LINE__, __VA_ARGS__)

/* Prints "error: <message>" to stderr and exits with status 1. With LLMC_DEBUG set in the environment it
 * also prints the source location and aborts, so that a debugger stops there. */
void die_at(const char *file, int line, const char *fmt, ...) LLMC_NORETURN LLMC_PRINTF(3, 4);

/* "warning: <message>" and "error: <message>" to stderr; the process goes on. */
void warn(const char *fmt, ...) LLMC_PRINTF(1, 2);
void report_error(const char *fmt, ...) LLMC_PRINTF(1, 2);

/* A process that is one of several sets a hook: die_at() hands it the message, and tell() passes it on to
 * the others. One hook per process; NULL removes it. */
struct die_hook {
    void (*tell)(struct die_hook *hook, const char *message);
};
void set_die_hook(struct die_hook *hook);

/* How this process marks its messages where several processes write to one terminal. */
struct message_options {
    char prefix[96];  /* "rank 2 (node7): ", before "error: " and "warning: " */
    bool no_warnings; /* another process prints the same ones */
    int copy;         /* descriptor of a file that also receives every message; 0: none */
};
void set_message_options(const struct message_options *options);

struct error {
    char message[1024];
};
/* Formats into err->message (err may be NULL) and returns false, so that `return fail(err, ...)` reads
 * well. */
bool fail(struct error *err, const char *fmt, ...) LLMC_PRINTF(2, 3);

void *xmalloc(size_t bytes);               /* uninitialised */
void *xcalloc(size_t count, size_t bytes); /* zeroed; checks the product for overflow */
void *xrealloc(void *p, size_t bytes);
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) LLMC_PRINTF(1, 2); /* the caller frees */
char *xvasprintf(const char *fmt, va_list ap) LLMC_PRINTF(1, 0);

/* A formatted text that nobody frees, for the parts of a message. It is valid in this thread until the
 * thread has formatted 15 KiB more in this way; anything after its first 1023 bytes is cut off. */
const char *temp_printf(const char *fmt, ...) LLMC_PRINTF(1, 2);

/* Starts a thread that takes no signals: these are for the main thread, which saves and exits. A failure
 * ends the process; its message says "the thread that <purpose>". */
void thread_start(pthread_t *thread, void *(*body)(void *), void *arg, const char *purpose);

double now_seconds(void); /* monotonic clock */

/* "1.50 GiB", by temp_printf. */
const char *human_bytes(double bytes);
/* The same for counts and rates with decimal prefixes: "1.24 G". */
const char *human_count(double n);

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
/* A NaN stays. gcc 12 for AArch64 fails with an internal error on a loop that reduces with fmax(). */
static inline double max_f64(double a, double b) { return b > a || b != b ? b : a; }
#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))

#ifdef __cplusplus
}
#endif
#endif

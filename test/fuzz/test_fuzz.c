/* Every parser of untrusted input against a fixed sequence of mutated inputs: the short form of `make
 * fuzz`.
 *
 *   test_fuzz                   the seeds, then MUTATIONS inputs for each target of test/fuzz/
 *   test_fuzz --seeds DIR       writes the seeds to DIR/TARGET/N, for libFuzzer
 *   test_fuzz --show TARGET N   writes mutation N of a target, by the number in a failure, to standard output */
#include "test/test.h"

#include "llmc/base/file.h"
#include "llmc/base/rng.h"
#include "test/fuzz/fuzz.h"

#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

enum { MUTATIONS = 4000, MOST_BYTES = 1 << 16, MOST_SEEDS = 8 };

struct target {
    const char *name;
    int (*run)(const uint8_t *data, size_t size);
    void (*seeds)(fuzz_seed_fn *add, void *user);
};
#define ROW(name)                                                                                            \
    { #name, fuzz_##name, fuzz_seeds_##name }
#define ROW_COMMA(name) ROW(name),
static const struct target targets[] = {FUZZ_TARGETS(ROW_COMMA)};

struct input {
    uint8_t *data;
    size_t size;
};
struct corpus {
    struct input seed[MOST_SEEDS];
    int count;
};

static void add_seed(void *user, const void *data, size_t size) {
    struct corpus *c = user;
    check(c->count < MOST_SEEDS && size < MOST_BYTES / 2, "too many seeds, or too long ones");
    uint8_t *copy = xmalloc(size + 1);
    memcpy(copy, data, size);
    c->seed[c->count++] = (struct input){copy, size};
}

static void corpus_free(struct corpus *c) {
    for (int i = 0; i < c->count; i++) free(c->seed[i].data);
}

/* --- mutations --- */

/* Random numbers that depend only on (target, mutation). */
struct source {
    uint64_t target, index;
    uint32_t drawn;
};

static uint32_t below(struct source *s, size_t n) {
    return rng_philox(s->target, RNG_TEST | 0xF00, s->index << 20 | s->drawn++).v[0] % (uint32_t)n;
}

static void replace(struct input *in, size_t at, size_t gone, const void *with, size_t size) {
    if (in->size - gone + size > MOST_BYTES) return;
    memmove(in->data + at + size, in->data + at + gone, in->size - at - gone);
    memcpy(in->data + at, with, size);
    in->size += size - gone;
}

/* Replaces a number in decimal digits by another. */
static void change_number(struct input *in, struct source *s) {
    static const char *const numbers[] = {"0",
                                          "-1",
                                          "1",
                                          "4294967296",
                                          "9223372036854775807",
                                          "-9223372036854775808",
                                          "1e9",
                                          "0.5",
                                          "18446744073709551616",
                                          "256",
                                          "65536",
                                          "1e308",
                                          "null"};
    const char *number = numbers[below(s, ARRAY_LENGTH(numbers))];
    size_t start = below(s, in->size), end;
    while (start < in->size && !isdigit(in->data[start])) start++;
    for (end = start; end < in->size && isdigit(in->data[end]);) end++;
    if (end > start) replace(in, start, end - start, number, strlen(number));
}

static void change_bytes(struct input *in, struct source *s) {
    static const int64_t values[] = {0,     1,     -1,        127,       255,       256,
                                     32767, 65535, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN};
    size_t size = (size_t)1 << below(s, 4), at = below(s, in->size);
    int64_t value = values[below(s, ARRAY_LENGTH(values))];
    if (at + size <= in->size) memcpy(in->data + at, &value, size);
}

static void insert_token(struct input *in, struct source *s) {
    static const char *const tokens[] = {"\"",   "{",    "}",    "[",       "]",       ",",  ":",
                                         "\\",   "\n",   "\r\n", "\\u0000", "\\ud800", "{}", "[]",
                                         "\"\"", "true", "\xFF", "\xC3",    "#",       " ",  "\xEF\xBB\xBF"};
    const char *token = tokens[below(s, ARRAY_LENGTH(tokens))];
    replace(in, below(s, in->size + 1), 0, token, strlen(token));
}

static void mutate_once(struct input *in, struct source *s, const struct corpus *c) {
    if (in->size == 0) {
        insert_token(in, s);
        return;
    }
    size_t at = below(s, in->size), n = 1 + below(s, below(s, 4) ? 8 : in->size);
    n = n < in->size - at ? n : in->size - at;
    const struct input *other = &c->seed[below(s, (size_t)c->count)];
    switch (below(s, 9)) {
    case 0:
        in->data[at] ^= (uint8_t)(1u << below(s, 8));
        break;
    case 1:
        in->data[at] = (uint8_t)below(s, 256);
        break;
    case 2:
        change_bytes(in, s);
        break;
    case 3:
        change_number(in, s);
        break;
    case 4:
        insert_token(in, s);
        break;
    case 5:
        replace(in, at, n, "", 0);
        break;
    case 6:
        in->size = at;
        break;
    case 7: { /* a part twice */
        uint8_t *part = xmalloc(n);
        memcpy(part, in->data + at, n);
        replace(in, below(s, in->size + 1), 0, part, n);
        free(part);
        break;
    }
    default: /* a part of another seed */
        if (other->size) {
            size_t from = below(s, other->size), m = 1 + below(s, other->size - from);
            replace(in, at, n, other->data + from, m);
        }
    }
}

/* Writes mutation `index` of the seeds of a target; data has room for MOST_BYTES. */
static void mutation(struct input *in, const struct corpus *c, const char *target, uint64_t index) {
    struct source s = {0, index, 0};
    for (const char *p = target; *p; p++) s.target = 31 * s.target + (uint8_t)*p;
    const struct input *seed = &c->seed[below(&s, (size_t)c->count)];
    memcpy(in->data, seed->data, seed->size);
    in->size = seed->size;
    for (uint32_t n = 1 + below(&s, 4); n > 0; n--) mutate_once(in, &s, c);
}

/* --- running --- */

/* The current input, reported if the process ends during it. */
static const char *running;
static int64_t running_index;

static void name_running(void) {
    if (!running) return;
    char text[160];
    int n = snprintf(text, sizeof text, "\nthis was mutation %lld of %s: test_fuzz --show %s %lld shows it\n",
                     (long long)running_index, running, running, (long long)running_index);
    ssize_t written = write(STDERR_FILENO, text, (size_t)n);
    (void)written;
}

static void on_crash(int number) {
    name_running();
    signal(number, SIG_DFL);
    raise(number);
}

extern void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void watch(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGILL, SIGPROF};
    static bool once;
    if (!once) atexit(name_running);
    once = true;
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(name_running);
    for (size_t i = 0; i < ARRAY_LENGTH(signals); i++)
        if (!__sanitizer_set_death_callback || signals[i] == SIGPROF) signal(signals[i], on_crash);
}

/* Of CPU time: a busy machine is no fault of the parser. */
static void limit_seconds(int seconds) {
    struct itimerval limit = {.it_value.tv_sec = seconds};
    setitimer(ITIMER_PROF, &limit, NULL);
}

static void run_target(const struct target *t) {
    watch(); /* here, because cmocka sets its own handlers before each test */
    struct corpus c = {0};
    uint8_t *room = xmalloc(MOST_BYTES);
    t->seeds(add_seed, &c);
    assert_true(c.count > 0);
    int64_t before = fuzz_accepted();
    for (int i = 0; i < c.count; i++) t->run(c.seed[i].data, c.seed[i].size);
    if (fuzz_accepted() == before) fail_msg("%s: the parser takes none of its seeds", t->name);
    running = t->name;
    for (int64_t i = 0; i < MUTATIONS; i++) {
        struct input in = {room, 0};
        mutation(&in, &c, t->name, (uint64_t)i);
        uint8_t *exact = xmalloc(in.size ? in.size : 1); /* so that a sanitizer sees its end */
        memcpy(exact, in.data, in.size);
        running_index = i;
        limit_seconds(20); /* a parser that runs forever ends the test */
        t->run(exact, in.size);
        limit_seconds(0);
        free(exact);
    }
    running = NULL;
    free(room);
    corpus_free(&c);
}

/* --- the program --- */

#define TEST(name)                                                                                           \
    static void parser_##name(void **state) {                                                                \
        static const struct target target = ROW(name);                                                       \
        run_target(&target);                                                                                 \
    }
FUZZ_TARGETS(TEST)

static const struct target *target_named(const char *name) {
    for (size_t i = 0; i < ARRAY_LENGTH(targets); i++)
        if (strcmp(targets[i].name, name) == 0) return &targets[i];
    die("no fuzz target is called %s", name);
}

static int show(const char *name, int64_t index) {
    const struct target *t = target_named(name);
    struct corpus c = {0};
    struct input in = {xmalloc(MOST_BYTES), 0};
    t->seeds(add_seed, &c);
    mutation(&in, &c, t->name, (uint64_t)index);
    fwrite(in.data, 1, in.size, stdout);
    free(in.data);
    corpus_free(&c);
    return 0;
}

static int write_seeds(const char *directory) {
    struct error err;
    for (size_t i = 0; i < ARRAY_LENGTH(targets); i++) {
        struct corpus c = {0};
        char *folder = xasprintf("%s/%s", directory, targets[i].name);
        check(make_directories(folder, &err), "%s", err.message);
        targets[i].seeds(add_seed, &c);
        for (int k = 0; k < c.count; k++) {
            char *path = xasprintf("%s/seed_%d", folder, k);
            check(write_file_atomic(path, c.seed[k].data, c.seed[k].size, &err), "%s", err.message);
            free(path);
        }
        corpus_free(&c);
        free(folder);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "--seeds") == 0) return write_seeds(argv[2]);
    if (argc == 4 && strcmp(argv[1], "--show") == 0) return show(argv[2], atoll(argv[3]));
#define UNIT(name) cmocka_unit_test(parser_##name),
    const struct CMUnitTest tests[] = {FUZZ_TARGETS(UNIT)};
    return test_main(argc, argv, tests, NULL, NULL);
}

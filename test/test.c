/* The command line of every test program. */
#include "test/test.h"

#include "llmc/base/rng.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_called(const char *name, const char *pattern) {
    const char *prefix = "test_";
    size_t n = strlen(prefix);
    return fnmatch(pattern, name, 0) == 0 ||
           (strncmp(name, prefix, n) == 0 && fnmatch(pattern, name + n, 0) == 0);
}

/* The tests that one of the patterns names, or all, in `out` in their order; returns how many. */
static size_t choose(struct CMUnitTest *out, const struct CMUnitTest *tests, size_t count, int patterns,
                     char **pattern) {
    size_t chosen = 0;
    for (size_t i = 0; i < count; i++) {
        bool wanted = patterns == 0;
        for (int k = 0; k < patterns; k++) wanted |= is_called(tests[i].name, pattern[k]);
        if (wanted) out[chosen++] = tests[i];
    }
    return chosen;
}

static void swap(struct CMUnitTest *a, struct CMUnitTest *b) {
    struct CMUnitTest c = *a;
    *a = *b;
    *b = c;
}

static void reverse(struct CMUnitTest *tests, size_t count) {
    for (size_t i = 0; i < count / 2; i++) swap(&tests[i], &tests[count - 1 - i]);
}

/* The algorithm of Fisher and Yates. */
static void shuffle(struct CMUnitTest *tests, size_t count, uint64_t seed) {
    for (size_t i = count; i > 1; i--)
        swap(&tests[i - 1], &tests[(size_t)(rng_uniform(seed, 0, i) * (double)i)]);
}

int test_main_of(int argc, char **argv, const struct CMUnitTest *tests, size_t count, CMFixtureFunction setup,
                 CMFixtureFunction teardown) {
    const char *option = argc > 1 && argv[1][0] == '-' ? argv[1] : "", *seed = "";
    int first = option[0] ? 2 : 1;
    bool list = strcmp(option, "--list") == 0, reversed = strcmp(option, "--reverse") == 0;
    if (strcmp(option, "--shuffle") == 0 && argc > 2) seed = argv[first++];
    check(!option[0] || list || reversed || seed[0],
          "usage: %s [--list | --reverse | --shuffle SEED] [TEST]...", argv[0]);
    struct CMUnitTest *chosen = (struct CMUnitTest *)xcalloc(count, sizeof *chosen);
    size_t n = choose(chosen, tests, count, argc - first, argv + first);
    check(n > 0, "no test is called %s; %s --list shows the names", argv[first], argv[0]);
    if (reversed) reverse(chosen, n);
    if (seed[0]) shuffle(chosen, n, strtoull(seed, NULL, 10));
    for (size_t i = 0; list && i < n; i++) printf("%s\n", chosen[i].name);
    int failed = list ? 0 : _cmocka_run_group_tests("tests", chosen, n, setup, teardown);
    free(chosen);
    return failed;
}

/* build/bench as a user runs it: it measures and checks a variant, stores and compares results, and refuses
 * what it cannot do. Nothing here depends on how fast anything is. */
#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/ops/ops.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs bench with `arguments` ("@" stands for the scratch directory) and returns its output; the caller
 * frees. */
static char *bench(const char *arguments, int wanted_status) {
    const char *build = getenv("BUILD");
    char *command = xasprintf("%s/bench %s 2>&1", build && *build ? build : "build", arguments);
    for (char *at; (at = strchr(command, '@'));) {
        char *longer = xasprintf("%.*s%s%s", (int)(at - command), command, scratch_directory(), at + 1);
        free(command);
        command = longer;
    }
    FILE *f = popen(command, "r");
    assert_non_null(f);
    char *text = (char *)xcalloc(1, 1 << 16);
    size_t n = fread(text, 1, (1 << 16) - 1, f);
    text[n] = 0;
    int status = pclose(f);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != wanted_status)
        fail_msg("%s: status %d, not %d\n%s", command, WEXITSTATUS(status), wanted_status, text);
    free(command);
    return text;
}

static void expect(const char *arguments, int status, const char *wanted) {
    char *text = bench(arguments, status);
    if (!strstr(text, wanted)) fail_msg("bench %s: no '%s' in\n%s", arguments, wanted, text);
    free(text);
}

#define SMALL "--device cpu --seconds 0.001 --shape 2,8,16,2,30 "

static void test_measures_and_compares(void **state) {
    const char *isa = cpu_ops()->act_forward[0].name;
    char *forward = xasprintf("act_forward            %-8s fp32    model", isa);
    char *backward = xasprintf("act_backward           %-8s fp32    model", isa);
    expect(SMALL "--op act --json @/old.json", 0, backward);
    expect(SMALL "--op act_forward --json @/new.json", 0, forward);
    expect("--compare @/old.json @/new.json", 0, forward);
    free(forward);
    free(backward);
    char *text = bench("--compare @/old.json @/new.json", 0);
    assert_null(strstr(text, "act_backward")); /* in one file only */
    free(text);
    expect(SMALL "--op act_forward --caches warm --json @/warm.json", 0, " model, warm ");
    expect("--compare @/new.json @/warm.json", 1, "have no row in common");
}

static void test_refuses(void **state) {
    expect(SMALL "--op nothing", 1, "--op nothing: there is no such operation");
    expect(SMALL "--op act --dtype bf16", 1, "nothing was measured");
    expect("--device cpu --op act --shape 2,8,16,3,30", 1, "3 heads do not divide 16 channels");
    expect("--device cpu --op act --shape 0,8,16,2,30", 1, "B and T must be at least 1");
    expect("--device cpu --op act --shape elephant", 1, "--shape elephant");
    expect("--device cpu --op act --seq-len 2000", 1, "--seq-len 2000 is beyond the context of gpt2");
    expect(SMALL "--op act --json @/no/such/directory.json", 1, "there is no directory");
    expect("--compare @/old.json", 1, "give the two files");
    expect("--compare @/missing.json @/missing.json", 1, "missing.json");
    expect("some.json", 1, "only --compare takes files");
    expect(SMALL "--op act --caches hot", 2, "cold");
    expect("--shpae gpt2", 2, "--shape");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measures_and_compares),
        cmocka_unit_test(test_refuses),
    };
    return test_main(argc, argv, tests, make_scratch, remove_scratch);
}

/* The CPU as a device: how many threads it takes, and which instruction set. */
#include "test/test.h"

#include "llmc/base/file.h"
#include "llmc/ops/device.h"
#include "llmc/ops/ops.h"
#include "llmc/ops/processors.h"

#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- CPU quotas --- */

struct tree {
    char root[64];
};

static void put(const struct tree *t, const char *name, const char *text) {
    struct error err = {""};
    char *path = xasprintf("%s/%s", t->root, name), *directory = xasprintf("%s", path);
    *strrchr(directory, '/') = '\0';
    if (!make_directories(directory, &err)) fail_msg("%s", err.message);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    free(path);
    free(directory);
}

static double quota(const struct tree *t) {
    char *cgroups = xasprintf("%s/cgroup", t->root), *mounted = xasprintf("%s/fs", t->root);
    double result = cgroup_quota(cgroups, mounted);
    free(cgroups);
    free(mounted);
    return result;
}

static struct tree make_tree(const char *cgroups) {
    struct tree t;
    strcpy(t.root, "/tmp/test_cpu.XXXXXX");
    assert_non_null(mkdtemp(t.root));
    put(&t, "cgroup", cgroups);
    return t;
}

static void remove_tree_of(const struct tree *t) {
    char *command = xasprintf("rm -rf '%s'", t->root);
    assert_int_equal(system(command), 0);
    free(command);
}

static void test_quota_of_version_2(void **state) {
    struct tree t = make_tree("0::/a/b\n");
    assert_true(quota(&t) == 0.0);
    put(&t, "fs/a/b/cpu.max", "max 100000\n");
    assert_true(quota(&t) == 0.0);
    put(&t, "fs/a/b/cpu.max", "350000 100000\n");
    assert_true(quota(&t) == 3.5);
    put(&t, "fs/a/cpu.max", "150000 100000\n"); /* the group above grants less */
    assert_true(quota(&t) == 1.5);
    put(&t, "fs/cpu.max", "50000 100000\n"); /* a container sees its own group as the root */
    assert_true(quota(&t) == 0.5);
    put(&t, "fs/cpu.max", "nonsense\n");
    assert_true(quota(&t) == 1.5);
    remove_tree_of(&t);
}

static void test_quota_of_version_1(void **state) {
    struct tree t = make_tree("5:memory:/m\n4:cpu,cpuacct:/docker/x\n3:cpuset:/\n");
    put(&t, "fs/cpu,cpuacct/docker/x/cpu.cfs_quota_us", "-1\n");
    put(&t, "fs/cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n");
    assert_true(quota(&t) == 0.0);
    put(&t, "fs/cpu,cpuacct/docker/x/cpu.cfs_quota_us", "200000\n");
    assert_true(quota(&t) == 2.0);
    put(&t, "fs/memory/m/cpu.cfs_quota_us", "100\n"); /* not a group of the CPU */
    put(&t, "fs/memory/m/cpu.cfs_period_us", "100\n");
    assert_true(quota(&t) == 2.0);
    remove_tree_of(&t);
    assert_true(cgroup_quota("/nonexistent", "/nonexistent") == 0.0);
}

/* --- in a process of its own --- */

/* What `body` writes to stderr; its exit status in `status`. */
static char *in_child(void (*body)(void), int *status) {
    static char text[4096];
    int ends[2], raw;
    size_t n = 0;
    ssize_t got;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], 2);
        unsetenv("OMP_NUM_THREADS");
        body();
        _exit(0);
    }
    close(ends[1]);
    while ((got = read(ends[0], text + n, sizeof text - 1 - n)) > 0) n += (size_t)got;
    text[n] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &raw, 0), child);
    *status = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128;
    return text;
}

static void print_threads(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
    omp_set_num_threads(4); /* what OpenMP read before the mask changed */
    struct error err;
    struct device_options more = {.threads = 3};
    struct device *d = device_open("cpu", NULL, &err);
    fprintf(stderr, "%d\n", omp_get_max_threads());
    d->close(d);
    d = device_open("cpu", &more, &err);
    fprintf(stderr, "%d\n", omp_get_max_threads());
    d->close(d);
}

/* Where this process may use one processor, one thread is the default, and three are warned of. */
static void test_threads_follow_the_affinity_mask(void **state) {
    int status;
    char *text = in_child(print_threads, &status);
    assert_int_equal(status, 0);
    assert_true(strncmp(text, "1\n", 2) == 0);
    assert_non_null(strstr(text, "--threads 3: this process may use 1 processor"));
    assert_true(strcmp(text + strlen(text) - 2, "3\n") == 0);
}

/* --- instruction sets --- */

#define X(isa) #isa,
static const char *const isas[] = {LLMC_CPU_ISAS(X)};
#undef X

static const char *forced;
static void print_isa(void) {
    setenv("LLMC_VARIANT", forced, 1);
    fprintf(stderr, "%s\n", cpu_ops()->adamw[0].name);
    if (cpu_ops()->adamw[1].name) fprintf(stderr, "and another\n");
}

/* The last one in the list is what every processor has. */
static void test_an_instruction_set_is_forced(void **state) {
    int status;
    const char *plain = isas[ARRAY_LENGTH(isas) - 1];
    for (int list = 0; list < 2; list++) {
        forced = temp_printf("%scpu:%s", list ? "sum:x," : "", plain);
        char *text = in_child(print_isa, &status);
        assert_int_equal(status, 0);
        assert_string_equal(text, temp_printf("%s\n", plain));
    }
    forced = "cpu:sse17";
    char *text = in_child(print_isa, &status);
    assert_int_equal(status, 1);
    assert_non_null(strstr(text, "LLMC_VARIANT=cpu:sse17: this processor and this program have "));
    assert_non_null(strstr(text, plain));
}

/* Every operation has the same instruction sets, the fastest first. */
static void test_all_operations_have_all_instruction_sets(void **state) {
    const struct ops *ops = cpu_ops();
    int count = 0;
    while (ops->adamw[count].name) count++;
    assert_true(count >= 1 && count <= (int)ARRAY_LENGTH(isas));
    for (int i = 0; i < count; i++) {
        assert_string_equal(ops->adamw[i].name, isas[(int)ARRAY_LENGTH(isas) - count + i]);
#define X(op)                                                                                                \
    {                                                                                                        \
        bool there = false;                                                                                  \
        for (int k = 0; ops->op[k].name; k++) there |= strcmp(ops->op[k].name, ops->adamw[i].name) == 0;     \
        if (!there) fail_msg("%s has no %s variant", #op, ops->adamw[i].name);                               \
    }
        LLMC_OPS(X)
#undef X
    }
}

int main(int argc, char **argv) {
    unsetenv("LLMC_VARIANT");
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quota_of_version_2),
        cmocka_unit_test(test_quota_of_version_1),
        cmocka_unit_test(test_threads_follow_the_affinity_mask),
        cmocka_unit_test(test_an_instruction_set_is_forced),
        cmocka_unit_test(test_all_operations_have_all_instruction_sets),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

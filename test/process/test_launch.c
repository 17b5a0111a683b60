/* Runs of several processes as a user starts them: --ranks, mpirun and torchrun's variables. They compute
 * what one process computes, a process that is killed or stopped at any moment ends them all with the reason,
 * and the next start goes on where it was.
 *
 * Order: programs and processes; what runs leave; parts of the launcher; one result whatever the number of
 * processes; deaths; signals; starting again; processes that do not belong together; refusals. */
#include "test/test.h"

#include "llmc/process/rank_facts.h"
#include "llmc/base/file.h"
#include "llmc/process/launch.h"
#include "llmc/ranks/rank_timing.h"
#include "llmc/base/rng.h"
#include "llmc/format/safetensors.h"
#include "llmc/corpus/shard.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char directory[64], program[512];

/* --- programs and processes --- */

enum { WORDS = 80 };

/* A program under way. `setting` are environment variables, NAME=VALUE separated by spaces. */
struct process {
    pid_t pid;
    char *output; /* the file it writes to */
    char *what;
};

/* Words separated by spaces; $D is the test's directory. */
static void split(char *text, char **argv) {
    int n = 0;
    for (char *save, *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        assert_true(n < WORDS - 1);
        char *here = strstr(word, "$D");
        argv[n++] =
            here ? xasprintf("%.*s%s%s", (int)(here - word), word, directory, here + 2) : xstrdup(word);
    }
    argv[n] = NULL;
}

static struct process start(const char *setting, const char *fmt, ...) LLMC_PRINTF(2, 3);
static struct process start(const char *setting, const char *fmt, ...) {
    static int number;
    struct process p = {.output = xasprintf("%s/output-%d", directory, number++)};
    va_list ap;
    va_start(ap, fmt);
    assert_true(vasprintf(&p.what, fmt, ap) >= 0);
    va_end(ap);
    fflush(NULL);
    p.pid = fork();
    assert_true(p.pid >= 0);
    if (p.pid > 0) return p;
    char *argv[WORDS], *variables[WORDS], *command = xstrdup(p.what), *environment = xstrdup(setting);
    split(command, argv);
    split(environment, variables);
    for (char **v = variables; *v; v++) putenv(*v);
    int out = open(p.output, O_WRONLY | O_CREAT | O_TRUNC, 0666), in = open("/dev/null", O_RDONLY);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    execvp(argv[0], argv);
    _exit(127);
}

static char *read_text(const char *path) {
    struct mapped_file f;
    struct error err;
    if (!file_map(&f, path, &err)) return xstrdup("");
    char *text = (char *)xcalloc((size_t)f.size + 1, 1);
    if (f.size) memcpy(text, f.data, (size_t)f.size);
    file_unmap(&f);
    return text;
}

/* The exit status, or 128 + the signal; a process that goes on for a minute fails the test. */
static int finish(struct process *p, char **output) {
    double deadline = now_seconds() + 60.0;
    int status = 0;
    pid_t ended;
    while ((ended = waitpid(p->pid, &status, WNOHANG)) == 0 && now_seconds() < deadline) usleep(2000);
    if (ended == 0) {
        kill(p->pid, SIGKILL);
        waitpid(p->pid, &status, 0);
    }
    *output = read_text(p->output);
    if (ended == 0) fail_msg("%s\n  does not end\n%s", p->what, *output);
    unlink(p->output);
    free(p->output);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int occurrences(const char *text, const char *part) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)) != NULL; p += strlen(part)) n++;
    return n;
}

/* Waits for the end and its message, which must be shown `times` (-1: at least once). */
static void expect_end(struct process *p, int status, const char *message, int times) {
    char *output;
    int found = finish(p, &output), shown = occurrences(output, message);
    if (found != status || (times < 0 ? shown == 0 : shown != times))
        fail_msg("%s\n  status %d, expected %d; expected %s, shown %d times\n%s", p->what, found, status,
                 message, shown, output);
    free(output);
    free(p->what);
}

static void expect(const char *setting, int status, const char *message, int times, const char *arguments) {
    struct process p = start(setting, "%s %s", program, arguments);
    expect_end(&p, status, message, times);
}

static bool has_variable(const char *environment, size_t size, const char *setting) {
    for (const char *v = environment; v < environment + size; v += strlen(v) + 1)
        if (strcmp(v, setting) == 0) return true;
    return false;
}

/* Processes whose environment has this LLMC_LAUNCHER and RANK (-1: any); their number, and one of them. */
static int find_ranks(pid_t launcher, int rank, pid_t *found) {
    char parent[64], place[64], path[64];
    snprintf(parent, sizeof parent, "LLMC_LAUNCHER=%d", (int)launcher);
    snprintf(place, sizeof place, "RANK=%d", rank);
    DIR *dir = opendir("/proc");
    int n = 0;
    struct dirent *e;
    while ((e = readdir(dir)) != NULL) {
        static char environment[1 << 16];
        if (e->d_name[0] < '1' || e->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%.20s/environ", e->d_name);
        int fd = open(path, O_RDONLY);
        ssize_t size = fd < 0 ? 0 : read(fd, environment, sizeof environment - 1);
        if (fd >= 0) close(fd);
        if (size <= 0) continue;
        environment[size] = '\0';
        if (!has_variable(environment, (size_t)size, parent)) continue;
        if (rank >= 0 && !has_variable(environment, (size_t)size, place)) continue;
        *found = atoi(e->d_name);
        n++;
    }
    closedir(dir);
    return n;
}

static pid_t wait_for_rank(const struct process *p, int rank) {
    double deadline = now_seconds() + 30.0;
    pid_t pid = 0;
    while (find_ranks(p->pid, rank, &pid) == 0 && now_seconds() < deadline) usleep(500);
    if (!pid) fail_msg("%s: rank %d does not start", p->what, rank);
    return pid;
}

/* Nobody is left of a launcher that has ended; a killed process may take a moment. */
static void expect_nobody(pid_t launcher) {
    double deadline = now_seconds() + 10.0;
    pid_t left = 0;
    while (find_ranks(launcher, -1, &left) && now_seconds() < deadline) usleep(2000);
    if (find_ranks(launcher, -1, &left)) fail_msg("process %d is left", (int)left);
}

/* --- what runs leave --- */

/* 12 sequences a step can be divided among 1, 2 and 3 processes. A large eps, so that rounding stays
 * rounding: without it the update divides by the root of gradients that are near zero. */
#define TINY                                                                                                 \
    "--data $D/tokens.bin --val $D/val.bin --val-batches 99 --model d1 --vocab-size 32 --channels 16 "       \
    "--heads 2 --context 24 --batch-size 2 --tokens-per-step 288 --keep 1000 --schedule constant "           \
    "--warmup 0 --learning-rate 1e-2 --eps 1e-2 --device cpu"
#define SHORT TINY " --steps 40 --save-every 10 --val-every 20"
/* There is time to catch these at work: steps take half a millisecond or more. */
#define LONG    TINY " --steps 200 --save-every 20 --val-every 100"
#define ENDLESS TINY " --steps 20000 --save-every 10 --val-every 1000"
#define LAUNCH  "--comm-timeout 20 --no-bind"

static void write_tokens(const char *name, int64_t count, uint64_t seed) {
    char *path = xasprintf("%s/%s", directory, name);
    uint32_t *tokens = (uint32_t *)xmalloc((size_t)count * sizeof *tokens);
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (uint32_t)(32.0 * pow(rng_uniform(seed, RNG_TEST, (uint64_t)i), 2.0));
    struct error err;
    if (!shard_write(path, tokens, count, 32, &err)) fail_msg("%s", err.message);
    free(tokens);
    free(path);
}

static char *in_run(const char *run, const char *name) { return xasprintf("%s/%s/%s", directory, run, name); }

static int64_t log_lines(const char *run) {
    char *path = in_run(run, "log.jsonl"), *text = read_text(path);
    int64_t n = occurrences(text, "\n");
    free(text);
    free(path);
    return n;
}

static void wait_for_lines(const struct process *p, const char *run, int64_t lines) {
    double deadline = now_seconds() + 40.0;
    siginfo_t ended = {0};
    while (log_lines(run) < lines && now_seconds() < deadline && ended.si_pid == 0) {
        usleep(1000);
        waitid(P_PID, (id_t)p->pid, &ended, WEXITED | WNOHANG | WNOWAIT);
    }
    if (log_lines(run) < lines) fail_msg("%s does not get on\n%s", p->what, read_text(p->output));
}

/* Losses and gradient norms of all steps, validation losses: equal to 1e-6, and not one missing. */
static void assert_same_losses(const char *run_a, const char *run_b) {
    char *path_a = in_run(run_a, "log.jsonl"), *path_b = in_run(run_b, "log.jsonl");
    char *a = read_text(path_a), *b = read_text(path_b);
    static const char *const keys[] = {"loss\":", "grad_norm\":", "lr\":"};
    assert_true(occurrences(a, "\n") > 0);
    assert_int_equal(occurrences(a, "\n"), occurrences(b, "\n"));
    for (size_t k = 0; k < ARRAY_LENGTH(keys); k++) {
        const char *p = a, *q = b;
        while ((p = strstr(p, keys[k])) != NULL && (q = strstr(q, keys[k])) != NULL) {
            double x = atof(p += strlen(keys[k])), y = atof(q += strlen(keys[k]));
            if (!(fabs(x - y) <= 1e-6 * fabs(x)))
                fail_msg("%s and %s: %s %.9g and %.9g after %d rows", run_a, run_b, keys[k], x, y,
                         occurrences(a, "\n") - occurrences(p, "\n"));
        }
        assert_true(!p == !(q ? strstr(q, keys[k]) : NULL) || !p);
    }
    free(path_a);
    free(path_b);
    free(a);
    free(b);
}

/* The weights of two runs' checkpoints of `step`, in however many files. */
static void assert_same_weights(const char *run_a, const char *run_b, int step, double tolerance) {
    char *name = xasprintf("step-%08d", step), *path_a = in_run(run_a, name), *path_b = in_run(run_b, name);
    struct safetensors a, b;
    struct error err;
    if (!safetensors_open_directory(&a, path_a, "model", &err) ||
        !safetensors_open_directory(&b, path_b, "model", &err))
        fail_msg("%s", err.message);
    assert_true(a.count > 10 && a.count == b.count);
    for (int64_t i = 0; i < a.count; i++) {
        const struct st_view *x = &a.tensors[i], *y = safetensors_find(&b, x->name);
        if (!y || y->dtype != ST_F32 || y->count != x->count)
            fail_msg("%s: %s is not the same", path_b, x->name);
        for (int64_t k = 0; k < x->count; k++) {
            float u, v;
            memcpy(&u, (const char *)x->data + 4 * k, 4);
            memcpy(&v, (const char *)y->data + 4 * k, 4);
            if (!(fabs((double)u - (double)v) <= tolerance))
                fail_msg("%s and %s: %s[%" PRId64 "] is %.9g and %.9g", run_a, run_b, x->name, k, (double)u,
                         (double)v);
        }
    }
    safetensors_close(&a);
    safetensors_close(&b);
    free(path_a);
    free(path_b);
    free(name);
}

/* The undisturbed run on two processes, made once: what every disturbed one must come to, to the last bit. */
static void assert_equals_whole(const char *run) {
    char *whole = in_run("whole", "log.jsonl"), *log = in_run(run, "log.jsonl");
    if (!path_exists(whole)) expect("", 0, "plot      ", 1, "--ranks 2 " LAUNCH " --out $D/whole " LONG);
    char *a = read_text(whole), *b = read_text(log);
    if (strcmp(a, b) != 0) fail_msg("%s and %s differ", whole, log);
    assert_same_weights("whole", run, 200, 0.0);
    free(whole);
    free(log);
    free(a);
    free(b);
}

static void assert_nothing_unfinished(const char *run) {
    char *path = in_run(run, "");
    DIR *dir = opendir(path);
    assert_non_null(dir);
    struct dirent *e;
    while ((e = readdir(dir)) != NULL)
        if (strstr(e->d_name, ".tmp") || strstr(e->d_name, ".seen"))
            fail_msg("%s%s is left", path, e->d_name);
    closedir(dir);
    free(path);
}

/* --- parts --- */

static void first_difference_is_named(void **state) {
    struct rank_facts zero = {0}, same = {0}, other = {0}, longer = {0};
    struct error err;
    rank_facts_add(&zero, "--batch-size", "%d", 8);
    rank_facts_add(&zero, "--learning-rate", "%g", 3e-4);
    rank_facts_add(&same, "--batch-size", "%d", 8);
    rank_facts_add(&same, "--learning-rate", "%g", 3e-4);
    rank_facts_add(&other, "--batch-size", "%d", 8);
    rank_facts_add(&other, "--learning-rate", "%g", 1e-3);
    rank_facts_add(&longer, "--batch-size", "%d", 8);
    rank_facts_add(&longer, "--learning-rate", "%g", 3e-4);
    rank_facts_add(&longer, "--new", "x");
    assert_true(rank_facts_compare(&same, &zero, &err));
    assert_false(rank_facts_compare(&other, &zero, &err));
    assert_string_equal(err.message, "--learning-rate is 0.001, rank 0 has 0.0003");
    assert_false(rank_facts_compare(&longer, &zero, &err));
    assert_non_null(strstr(err.message, "has --new where rank 0 has nothing"));
    assert_false(rank_facts_compare(&zero, &longer, &err));
    rank_facts_free(&zero);
    rank_facts_free(&same);
    rank_facts_free(&other);
    rank_facts_free(&longer);
}

static void slow_ranks_are_found(void **state) {
    double even[] = {1.0, 1.02, 1.01, 0.99}, slow[] = {1.0, 1.01, 0.99, 1.14}, two[] = {1.3, 1.0};
    struct slowest_rank s = find_slowest_rank(even, 4, 1.2);
    assert_false(s.slow);
    s = find_slowest_rank(slow, 4, 1.3);
    assert_true(s.slow && s.rank == 3);
    assert_float_equal(s.excess, 0.14, 1e-9); /* of 1.00: of an even number, the smaller one in the middle */
    s = find_slowest_rank(two, 2, 1.3);
    assert_true(s.slow && s.rank == 0);
    s = find_slowest_rank(slow, 4, 100.0); /* nothing to speak of where the network takes all the time */
    assert_false(s.slow);
}

static void cores_are_divided(void **state) {
    cpu_set_t allowed;
    assert_int_equal(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    int count = CPU_COUNT(&allowed), cpus[CPU_SETSIZE];
    for (int parts = 1; parts <= count; parts++) {
        cpu_set_t seen;
        CPU_ZERO(&seen);
        for (int i = 0; i < parts; i++) {
            int n = launch_cpus(cpus, i, parts);
            assert_in_range(n, count / parts, count / parts + 1);
            for (int k = 0; k < n; k++) {
                assert_true(CPU_ISSET(cpus[k], &allowed) && !CPU_ISSET(cpus[k], &seen));
                CPU_SET(cpus[k], &seen);
            }
        }
        assert_true(CPU_EQUAL(&seen, &allowed));
    }
    assert_int_equal(launch_cpus(cpus, 0, count + 1), 0);
}

/* --- one result --- */

static void ranks_equal_one_process(void **state) {
    expect("", 0, "plot      ", 1, "--out $D/one " SHORT);
    expect("", 0, "plot      ", 1, "--ranks 2 " LAUNCH " --out $D/two " SHORT);
    assert_same_losses("one", "two");
    assert_same_weights("one", "two", 40, 1e-6);
    expect("", 0, "plot      ", 1, "--ranks 3 " LAUNCH " --zero 3 --rank-logs --out $D/three " SHORT);
    assert_same_losses("one", "three");
    assert_same_weights("one", "three", 40, 1e-6);
    char *path = in_run("three", "rank-2.log"), *text = read_text(path);
    if (!strstr(text, "rank 2 of 3, ") || !strstr(text, "  step 40  loss ")) fail_msg("%s:\n%s", path, text);
    free(path);
    free(text);
    path = in_run("three", "timing.jsonl");
    text = read_text(path);
    if (!strstr(text, "{\"step\":40,\"rank_seconds\":[")) fail_msg("%s:\n%s", path, text);
    free(path);
    free(text);
}

/* A run of two goes on with one and with three, in other portions and otherwise divided. */
static void resumed_by_another_number(void **state) {
    char *copy = xasprintf("cd %s && for n in one-more three-more; do cp -r half $n; done", directory);
    expect("", 0, "plot      ", 1,
           "--ranks 2 " LAUNCH " --out $D/half --steps 20 --save-every 10 --val-every 20 " TINY);
    assert_int_equal(system(copy), 0);
    expect("", 0, "plot      ", 1, "--resume --out $D/one-more --steps 40 --batch-size 3");
    expect("", 0, "plot      ", 1,
           "--ranks 3 " LAUNCH " --resume --out $D/three-more --steps 40 --zero 2 --batch-size 1");
    assert_same_losses("one", "one-more");
    assert_same_losses("one", "three-more");
    assert_same_weights("one", "one-more", 40, 1e-6);
    assert_same_weights("one", "three-more", 40, 1e-6);
    free(copy);
}

static void started_by_mpirun(void **state) {
    if (system("mpirun --version >/dev/null 2>&1") != 0) {
        print_message("    skipped: there is no mpirun\n");
        return;
    }
    struct process p = start("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                             "mpirun --oversubscribe -np 3 %s %s", program, "--out $D/mpi " SHORT);
    expect_end(&p, 0, "plot      ", 1);
    assert_same_losses("one", "mpi");
    assert_same_weights("one", "mpi", 40, 1e-6);
}

/* --- deaths --- */

enum moment { AT_THE_START, AT_WORK, WHILE_SAVING, AT_THE_END, MOMENTS };
static const char *const moments[] = {"start", "work", "saving", "end"};

static bool saving(const char *run) {
    char *path = in_run(run, "");
    DIR *dir = opendir(path);
    bool found = false;
    struct dirent *e;
    while (dir && !found && (e = readdir(dir)) != NULL) found = strstr(e->d_name, ".tmp") != NULL;
    if (dir) closedir(dir);
    free(path);
    return found;
}

static void wait_for_moment(const struct process *p, const char *run, enum moment when) {
    double deadline = now_seconds() + 40.0;
    if (when == AT_WORK) wait_for_lines(p, run, 15);
    if (when == AT_THE_END) wait_for_lines(p, run, 201);
    siginfo_t ended = {0};
    while (when == WHILE_SAVING && !saving(run) && now_seconds() < deadline && ended.si_pid == 0) {
        usleep(100);
        waitid(P_PID, (id_t)p->pid, &ended, WEXITED | WNOHANG | WNOWAIT);
    }
}

static void kill_and_go_on(int victim, enum moment when) {
    char *run = xasprintf("killed-%d-%s", victim, moments[when]), *log = in_run(run, "log.jsonl"), *output;
    struct process p = start("", "%s --ranks 2 " LAUNCH " --out %s/%s " LONG, program, directory, run);
    pid_t launcher = p.pid, pid = wait_for_rank(&p, victim);
    wait_for_moment(&p, run, when);
    if (find_ranks(launcher, victim, &pid)) kill(pid, SIGKILL);
    double killed = now_seconds();
    int status = finish(&p, &output);
    /* at the end it may have been too late */
    if (!(when == AT_THE_END && status == 0)) {
        char *message = xasprintf("error: rank %d was killed by signal 9", victim);
        if (status != 128 + SIGKILL || occurrences(output, message) != 1)
            fail_msg("%s: status %d\n%s", run, status, output);
        free(message);
    }
    assert_true(now_seconds() - killed < 30.0);
    expect_nobody(launcher);
    bool again = strstr(output, "go on from step") != NULL || status == 0;
    free(output);
    free(p.what);
    p = start("", "%s --ranks 2 " LAUNCH " %s --out %s/%s " LONG, program, again ? "--resume" : "--overwrite",
              directory, run);
    expect_end(&p, 0, "plot      ", 1);
    assert_equals_whole(run);
    assert_nothing_unfinished(run);
    free(run);
    free(log);
}

static void killed_at_any_moment(void **state) {
    for (enum moment when = 0; when < MOMENTS; when++)
        for (int victim = 0; victim < 2; victim++) kill_and_go_on(victim, when);
}

static void stopped_process_is_noticed(void **state) {
    struct process p =
        start("", "%s --ranks 3 --comm-timeout 2 --out %s/stopped " ENDLESS, program, directory);
    pid_t launcher = p.pid, pid = wait_for_rank(&p, 1);
    wait_for_lines(&p, "stopped", 12);
    kill(pid, SIGSTOP);
    double stopped = now_seconds();
    expect_end(&p, 75, "nothing was heard of rank 1", 2); /* once as it comes, once on the last line */
    assert_true(now_seconds() - stopped < 30.0);
    expect_nobody(launcher);
}

static void processes_die_with_the_launcher(void **state) {
    struct process p = start("", "%s --ranks 2 " LAUNCH " --out %s/orphans " ENDLESS, program, directory);
    char *output;
    pid_t launcher = p.pid;
    wait_for_rank(&p, 1);
    wait_for_lines(&p, "orphans", 12);
    kill(launcher, SIGKILL);
    assert_int_equal(finish(&p, &output), 128 + SIGKILL);
    expect_nobody(launcher);
    free(output);
    free(p.what);
}

/* --- signals --- */

static void signal_saves_once(void **state) {
    struct process p = start("", "%s --ranks 2 " LAUNCH " --out %s/term " ENDLESS, program, directory);
    pid_t launcher = p.pid;
    wait_for_lines(&p, "term", 12);
    kill(launcher, SIGTERM);
    expect_end(&p, 128 + SIGTERM, "the state is saved", 1);
    expect_nobody(launcher);
    int64_t lines = log_lines("term");
    p = start("", "%s --ranks 2 " LAUNCH " --resume --out %s/term --steps %" PRId64, program, directory,
              lines + 10);
    expect_end(&p, 0, "plot      ", 1);
}

static void second_signal_ends_at_once(void **state) {
    struct process p = start("", "%s --ranks 2 " LAUNCH " --out %s/twice " ENDLESS, program, directory);
    pid_t launcher = p.pid, pid = wait_for_rank(&p, 1);
    wait_for_lines(&p, "twice", 12);
    kill(pid, SIGSTOP); /* so that nobody can save */
    kill(launcher, SIGINT);
    usleep(200000);
    kill(launcher, SIGINT);
    expect_end(&p, 128 + SIGINT, "error: ", 0);
    expect_nobody(launcher);
}

/* --- starting again --- */

static void restart_heals(void **state) {
    struct process p =
        start("", "%s --ranks 2 --restart 2 " LAUNCH " --out %s/healed " LONG, program, directory);
    pid_t launcher = p.pid, pid = wait_for_rank(&p, 1);
    wait_for_lines(&p, "healed", 30);
    kill(pid, SIGKILL);
    char *output;
    int status = finish(&p, &output);
    if (status != 0 || occurrences(output, "; restart 1 of 2 from step ") != 1 ||
        occurrences(output, ", resumed from ") != 1)
        fail_msg("status %d\n%s", status, output);
    free(output);
    free(p.what);
    expect_nobody(launcher);
    assert_equals_whole("healed");
    assert_nothing_unfinished("healed");
}

static void restarts_are_counted(void **state) {
    struct process p =
        start("", "%s --ranks 2 --restart 1 " LAUNCH " --out %s/counted " ENDLESS, program, directory);
    pid_t launcher = p.pid, first = wait_for_rank(&p, 0), second;
    kill(first, SIGKILL); /* before there is anything to go on from */
    do second = wait_for_rank(&p, 0);
    while (second == first);
    wait_for_lines(&p, "counted", 12);
    kill(wait_for_rank(&p, 0), SIGKILL);
    expect_end(&p, 128 + SIGKILL, "; restart ", 1);
    expect_nobody(launcher);
}

/* --- processes that do not belong together --- */

static int free_port(int *listener) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    *listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(*listener, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(*listener, 4), 0);
    assert_int_equal(getsockname(*listener, (struct sockaddr *)&a, &size), 0);
    return ntohs(a.sin_port);
}

/* As torchrun would start one. */
static struct process start_rank(int rank, int world, int port, const char *token, const char *more) {
    char *setting =
        xasprintf("RANK=%d WORLD_SIZE=%d LOCAL_RANK=%d MASTER_ADDR=127.0.0.1 MASTER_PORT=%d LLMC_TOKEN=%s",
                  rank, world, rank, port, token);
    struct process p = start(setting, "%s --out %s/by-hand --steps 10 --comm-timeout 4 --overwrite %s %s",
                             program, directory, TINY, more);
    free(setting);
    return p;
}

static int port_for_ranks(void) {
    int listener, port = free_port(&listener);
    close(listener);
    return port;
}

static void torchrun_variables_work(void **state) {
    int port = port_for_ranks();
    struct process zero = start_rank(0, 2, port, "a", ""), one = start_rank(1, 2, port, "a", "");
    expect_end(&one, 0, "plot", 0); /* rank 0 alone speaks */
    expect_end(&zero, 0, "plot      ", 1);
}

static void wrong_token_is_refused(void **state) {
    int port = port_for_ranks();
    struct process zero = start_rank(0, 2, port, "right", ""), one = start_rank(1, 2, port, "wrong", "");
    expect_end(&one, 1, "token", -1);
    expect_end(&zero, 1, "rank 1", -1); /* is missing */
}

static void port_in_use_is_named(void **state) {
    int listener, port = free_port(&listener);
    struct process zero = start_rank(0, 2, port, "a", "");
    char *name = xasprintf("%d", port);
    expect_end(&zero, 1, name, -1);
    free(name);
    close(listener);
}

static void rank_that_is_started_twice_is_refused(void **state) {
    int port = port_for_ranks();
    struct process zero = start_rank(0, 3, port, "a", ""), one = start_rank(1, 3, port, "a", ""),
                   again = start_rank(1, 3, port, "a", "");
    char *a, *b;
    int status_a = finish(&one, &a), status_b = finish(&again, &b);
    if (status_a != 1 || status_b != 1 || !(strstr(a, "twice") || strstr(b, "twice")))
        fail_msg("%d: %s\n%d: %s", status_a, a, status_b, b);
    expect_end(&zero, 1, "missing 2", 1);
    free(one.what);
    free(again.what);
    free(a);
    free(b);
}

/* Of three, one never comes, and one is gone before it does. */
static void killed_while_they_meet(void **state) {
    int port = port_for_ranks();
    char *output;
    struct process zero = start_rank(0, 3, port, "a", ""), one = start_rank(1, 3, port, "a", "");
    usleep(1500000);
    kill(one.pid, SIGKILL);
    assert_int_equal(finish(&one, &output), 128 + SIGKILL);
    expect_end(&zero, 1, "rank 1 (", -1);
    free(one.what);
    free(output);
}

static void differences_are_named(void **state) {
    static const struct {
        const char *more, *message;
    } cases[] = {
        {"--weight-decay 0.2", "--weight-decay is 0.2, rank 0 has 0.1"},
        {"--no-shuffle", "--shuffle is false, rank 0 has true"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        int port = port_for_ranks();
        struct process zero = start_rank(0, 2, port, "a", ""),
                       one = start_rank(1, 2, port, "a", cases[i].more);
        expect_end(&one, 1, "error", 0);
        expect_end(&zero, 1, cases[i].message, 1);
    }
    /* the same path, other data: two machines with copies that differ */
    char *script =
        xasprintf("mkdir -p %s/other && cp %s/val.bin %s/other && cp %s/val.bin %s/other/tokens.bin",
                  directory, directory, directory, directory, directory);
    assert_int_equal(system(script), 0);
    free(script);
    int port = port_for_ranks();
    char here[64];
    strcpy(here, directory);
    char *setting = xasprintf("RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=%d LLMC_TOKEN=a", port);
    char *other = xasprintf("RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=%d LLMC_TOKEN=a", port);
    const char *relative =
        "--data tokens.bin --model d1 --vocab-size 32 --channels 16 --heads 2 --context 24 --batch-size 2 "
        "--steps 10 --device cpu --comm-timeout 4";
    struct process zero =
        start(setting, "env -C %s %s %s --out %s/differ", directory, program, relative, directory);
    struct process one =
        start(other, "env -C %s/other %s %s --out %s/differ", directory, program, relative, directory);
    expect_end(&one, 1, "error", 0);
    expect_end(&zero, 1, "the fingerprint of the training data is ", 1);
    free(setting);
    free(other);
}

static void run_directory_must_be_seen(void **state) {
    int port = port_for_ranks();
    char *setting = xasprintf("RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=%d LLMC_TOKEN=a", port);
    char *other = xasprintf("RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=%d LLMC_TOKEN=a", port);
    struct process zero = start(setting, "env -C %s %s --out unseen --steps 10 %s", directory, program, TINY);
    struct process one = start(other, "env -C /proc %s --out unseen --steps 10 %s", program, TINY);
    expect_end(&one, 1, "error", 0);
    expect_end(&zero, 1, "unseen, the run directory of rank 0: --out must be on a file system", 1);
    free(setting);
    free(other);
}

/* --- refusals --- */

static void refusals(void **state) {
    expect("OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=0", 1, "mpirun (OMPI_COMM_WORLD_SIZE=4) has already started",
           1, "--ranks 2 --out $D/r1 --steps 5 " TINY);
    expect("SLURM_STEP_NUM_TASKS=8", 1, "--restart 3: srun (SLURM_STEP_NUM_TASKS=8)", 1,
           "--restart 3 --out $D/r2 --steps 5 " TINY);
    expect("", 1, "--gpus 2 with --device cpu", 1, "--gpus 2 --out $D/r3 --steps 5 " TINY);
    expect("", 1, "--gpus 1000: ", 1, "--gpus 1000 --out $D/r4");
    expect("", 1, "--gpus 2 --ranks 3: give one of them", 1, "--gpus 2 --ranks 3 --out $D/r5");
    expect("", 2, "did you mean --ranks?", 1, "--rank 2");
    /* what is wrong from the start is said once, and not tried again */
    expect("", 1, "is not a multiple", 2,
           "--ranks 2 --restart 3 --out $D/r6 --steps 5 --tokens-per-step 48 --data $D/tokens.bin --model d1 "
           "--vocab-size 32 --channels 16 --heads 2 --context 24 --batch-size 2 --device cpu");
    expect("", 1, "restart", 0, "--ranks 2 --restart 3 --out $D/r7 --steps 5 --text $D/nowhere.txt");
    expect("", 1, "already holds a run", 2, "--ranks 2 --out $D/one " SHORT);
}

static int set_up(void **state) {
    const char *build = getenv("BUILD");
    char here[256];
    if (!getcwd(here, sizeof here)) return -1;
    snprintf(program, sizeof program, "%s/%s/train_gpt", here, build && *build ? build : "build");
    strcpy(directory, "/tmp/llmc-launch-XXXXXX");
    setenv("OMP_NUM_THREADS", "1", 1);
    setenv("GOMP_SPINCOUNT", "1000", 1);
    if (!mkdtemp(directory)) return -1;
    write_tokens("tokens.bin", 6000, 1);
    write_tokens("val.bin", 42 * 24 + 1, 2);
    return 0;
}

static int tear_down(void **state) {
    struct error err;
    return remove_tree(directory, &err) ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_difference_is_named),
        cmocka_unit_test(slow_ranks_are_found),
        cmocka_unit_test(cores_are_divided),
        cmocka_unit_test(ranks_equal_one_process),
        cmocka_unit_test(resumed_by_another_number),
        cmocka_unit_test(started_by_mpirun),
        cmocka_unit_test(killed_at_any_moment),
        cmocka_unit_test(stopped_process_is_noticed),
        cmocka_unit_test(processes_die_with_the_launcher),
        cmocka_unit_test(signal_saves_once),
        cmocka_unit_test(second_signal_ends_at_once),
        cmocka_unit_test(restart_heals),
        cmocka_unit_test(restarts_are_counted),
        cmocka_unit_test(torchrun_variables_work),
        cmocka_unit_test(wrong_token_is_refused),
        cmocka_unit_test(port_in_use_is_named),
        cmocka_unit_test(rank_that_is_started_twice_is_refused),
        cmocka_unit_test(killed_while_they_meet),
        cmocka_unit_test(differences_are_named),
        cmocka_unit_test(run_directory_must_be_seen),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

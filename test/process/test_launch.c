/* Runs of several processes as a user starts them: --ranks, mpirun, torchrun's variables. They compute
 * what one process computes. A process that is killed or stopped at any moment ends them all, with the
 * reason; the next start goes on from the last checkpoint. No process of a launcher outlives it. */
#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/base/rng.h"
#include "llmc/corpus/shard.h"
#include "llmc/process/launch.h"
#include "llmc/process/net.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char program[512];

/* --- programs and processes --- */

struct process {
    pid_t pid;
    char *what, *output; /* the arguments; the file that it writes to */
};

/* Runs the program in the scratch directory. `before` are words before the program's name: NAME=VALUE,
 * "mpirun -np 3", "env -C DIR". */
static struct process start(const char *before, const char *fmt, ...) LLMC_PRINTF(2, 3);
static struct process start(const char *before, const char *fmt, ...) {
    static int number;
    struct process p = {.output = xasprintf("output-%d", number++)};
    va_list ap;
    va_start(ap, fmt);
    p.what = xvasprintf(fmt, ap);
    va_end(ap);
    char *script = xasprintf("cd %s && exec env %s %s %s </dev/null >%s 2>&1", scratch_directory(), before,
                             program, p.what, p.output);
    fflush(NULL);
    p.pid = fork();
    assert_true(p.pid >= 0);
    if (p.pid == 0) execl("/bin/sh", "sh", "-c", script, NULL);
    free(script);
    return p;
}

/* The processes whose environment has this LLMC_LAUNCHER and RANK (-1: any); their number, and one of
 * them. */
static int find_ranks(pid_t launcher, int rank, pid_t *found) {
    static char environment[1 << 16];
    char *launched = xasprintf("\nLLMC_LAUNCHER=%d\n", (int)launcher),
         *place = xasprintf("\nRANK=%d\n", rank);
    DIR *dir = opendir("/proc");
    int n = 0;
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        int fd = atoi(e->d_name) > 0 ? open(temp_printf("/proc/%.20s/environ", e->d_name), O_RDONLY) : -1;
        if (fd < 0) continue;
        ssize_t size = read(fd, environment + 1, sizeof environment - 2);
        close(fd);
        if (size <= 0) continue;
        environment[0] = '\n';
        environment[1 + size] = '\0';
        for (ssize_t i = 1; i <= size; i++)
            if (!environment[i]) environment[i] = '\n';
        if (!strstr(environment, launched) || (rank >= 0 && !strstr(environment, place))) continue;
        *found = atoi(e->d_name);
        n++;
    }
    closedir(dir);
    free(launched);
    free(place);
    return n;
}

static pid_t wait_for_rank(const struct process *p, int rank) {
    double deadline = now_seconds() + 30.0;
    pid_t pid = 0;
    while (find_ranks(p->pid, rank, &pid) == 0 && now_seconds() < deadline) usleep(500);
    if (!pid) fail_msg("%s: rank %d does not start", p->what, rank);
    return pid;
}

/* Waits until the process has ended and none of its ranks is left. Returns the exit status, or 128 + the
 * signal. */
static int finish(struct process *p, char **output) {
    double deadline = now_seconds() + 60.0;
    int status = 0;
    pid_t ended, left = 0;
    while ((ended = waitpid(p->pid, &status, WNOHANG)) == 0 && now_seconds() < deadline) usleep(2000);
    if (ended == 0) kill(p->pid, SIGKILL);
    *output = get_text(p->output);
    if (ended == 0) fail_msg("%s\n  does not end\n%s", p->what, *output);
    deadline = now_seconds() + 10.0; /* a killed process may take a moment */
    while (find_ranks(p->pid, -1, &left) && now_seconds() < deadline) usleep(2000);
    if (find_ranks(p->pid, -1, &left)) fail_msg("%s\n  process %d is left\n%s", p->what, (int)left, *output);
    free(p->output);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int occurrences(const char *text, const char *part) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)) != NULL; p += strlen(part)) n++;
    return n;
}

/* Waits for the end. The message must be shown `times` (-1: at least once). */
static void expect_end(struct process p, int status, const char *message, int times) {
    char *output;
    int found = finish(&p, &output), shown = occurrences(output, message);
    if (found != status || (times < 0 ? shown == 0 : shown != times))
        fail_msg("%s\n  status %d, expected %d; expected %s, shown %d times\n%s", p.what, found, status,
                 message, shown, output);
    free(output);
    free(p.what);
}

/* --- what runs leave --- */

/* 12 sequences a step can be divided among 1, 2 and 3 processes. With a small eps the update would amplify
 * rounding errors, because it divides by the root of gradients near zero. */
#define TINY                                                                                                 \
    "--data tokens.bin --val val.bin --val-batches 99 --model d1 --vocab-size 32 --channels 16 "             \
    "--heads 2 --context 24 --batch-size 2 --tokens-per-step 288 --keep 1000 --schedule constant "           \
    "--warmup 0 --learning-rate 1e-2 --eps 1e-2 --device cpu "
#define SHORT TINY "--steps 40 --save-every 10 --val-every 20 "
/* steps take half a millisecond or more: these can be interrupted at work */
#define LONG    TINY "--steps 200 --save-every 20 --val-every 100 "
#define ENDLESS TINY "--steps 20000 --save-every 10 --val-every 1000 "
#define TWO     "--ranks 2 --comm-timeout 20 --no-bind "

static char *log_of(const char *run) {
    const char *path = in_scratch("%s/log.jsonl", run);
    return path_exists(path) ? get_text(path) : xstrdup("");
}

static int log_lines(const char *run) {
    char *text = log_of(run);
    int n = occurrences(text, "\n");
    free(text);
    return n;
}

static bool has_ended(const struct process *p) {
    siginfo_t ended = {0};
    return waitid(P_PID, (id_t)p->pid, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid != 0;
}

static void wait_for_lines(const struct process *p, const char *run, int lines) {
    double deadline = now_seconds() + 40.0;
    while (log_lines(run) < lines && now_seconds() < deadline && !has_ended(p)) usleep(1000);
    if (log_lines(run) < lines) fail_msg("%s does not get on\n%s", p->what, get_text(p->output));
}

/* The same rows; numbers equal to 1e-6. */
static void assert_same_losses(const char *run_a, const char *run_b) {
    char *a = log_of(run_a), *b = log_of(run_b), *p = a, *q = b, *p_end, *q_end;
    assert_true(occurrences(a, "\"loss\":") >= 40);
    while (*p || *q) {
        double x = strtod(p, &p_end), y = strtod(q, &q_end);
        bool numbers = p_end > p && q_end > q;
        if (numbers ? !(fabs(x - y) <= 1e-6 * fabs(x)) : *p != *q)
            fail_msg("%s and %s differ:\n%.80s\n%.80s", run_a, run_b, p, q);
        p = numbers ? p_end : p + 1;
        q = numbers ? q_end : q + 1;
    }
    free(a);
    free(b);
}

/* To the last bit, the log, weights and moments of an uninterrupted run on two processes, made once. */
static void assert_equals_whole(const char *run) {
    if (log_lines("whole") == 0) expect_end(start("", TWO "--out whole " LONG), 0, "plot      ", 1);
    char *script = xasprintf("cd %s && cmp whole/log.jsonl %s/log.jsonl && cd whole/step-00000200 && "
                             "for f in *.safetensors; do cmp $f ../../%s/step-00000200/$f || exit 1; done && "
                             "! ls -A ../../%s | grep -e .tmp -e .seen",
                             scratch_directory(), run, run, run);
    if (system(script) != 0) fail_msg("%s is not the uninterrupted run, or left files", run);
    free(script);
}

/* --- cores --- */

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

/* The run "one", of one process. */
static void make_one(void) {
    if (!path_exists(in_scratch("one"))) expect_end(start("", "--out one " SHORT), 0, "plot      ", 1);
}

static void ranks_equal_one_process(void **state) {
    make_one();
    expect_end(start("", TWO "--out two " SHORT), 0, "plot      ", 1);
    assert_same_losses("one", "two");
    expect_end(start("", "--ranks 3 --zero 3 --rank-logs --out three " SHORT), 0, "plot      ", 1);
    assert_same_losses("one", "three");
    char *log = get_text("three/rank-2.log"), *timing = get_text("three/timing.jsonl");
    assert_mentions(log, "rank 2 of 3, ");
    assert_mentions(log, "  step 40  loss ");
    assert_mentions(timing, "{\"step\":40,\"rank_seconds\":[");
    free(log);
    free(timing);
}

/* A run of two goes on with one, three and four, in other portions and divided otherwise. */
static void resumed_by_another_number(void **state) {
    make_one();
    expect_end(start("", TWO "--out half --steps 20 --save-every 10 --val-every 20 " TINY), 0, "plot      ",
               1);
    assert_int_equal(
        system(temp_printf("cd %s && for copy in a b c; do cp -r half $copy; done", scratch_directory())), 0);
    expect_end(start("", "--resume --out a --steps 40 --batch-size 3"), 0, "plot      ", 1);
    expect_end(start("", "--ranks 3 --resume --out b --steps 40 --zero 2 --batch-size 1"), 0, "plot      ",
               1);
    expect_end(start("", "--ranks 4 --resume --out c --steps 40 --zero-group 2 --batch-size 1"), 0,
               "plot      ", 1);
    assert_same_losses("one", "a");
    assert_same_losses("one", "b");
    assert_same_losses("one", "c");
}

static void started_by_mpirun(void **state) {
    if (system("mpirun --version >/dev/null 2>&1") != 0) {
        print_message("    skipped: there is no mpirun\n");
        return;
    }
    make_one();
    expect_end(start("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -np 3",
                     "--out mpi " SHORT),
               0, "plot      ", 1);
    assert_same_losses("one", "mpi");
}

/* --- deaths --- */

enum moment { AT_THE_START, AT_WORK, WHILE_SAVING, AT_THE_END, MOMENTS };

static bool saving(const char *run) {
    DIR *dir = opendir(in_scratch("%s", run));
    bool found = false;
    for (struct dirent *e; dir && !found && (e = readdir(dir)) != NULL;)
        found = strstr(e->d_name, ".tmp") != NULL;
    if (dir) closedir(dir);
    return found;
}

static void kill_and_go_on(int victim, enum moment when) {
    char *run = xasprintf("killed-%d-%d", victim, (int)when), *output;
    struct process p = start("", TWO "--out %s " LONG, run);
    pid_t pid = wait_for_rank(&p, victim);
    double deadline = now_seconds() + 40.0;
    if (when == AT_WORK) wait_for_lines(&p, run, 15);
    if (when == AT_THE_END) wait_for_lines(&p, run, 201);
    while (when == WHILE_SAVING && !saving(run) && now_seconds() < deadline && !has_ended(&p)) usleep(100);
    if (find_ranks(p.pid, victim, &pid)) kill(pid, SIGKILL);
    double killed = now_seconds();
    int status = finish(&p, &output);
    bool late = when == AT_THE_END && status == 0;
    const char *message = temp_printf("error: rank %d was killed by signal 9", victim);
    if (!late && (status != 128 + SIGKILL || occurrences(output, message) != 1))
        fail_msg("%s: status %d\n%s", run, status, output);
    assert_true(now_seconds() - killed < 30.0);
    bool saved = strstr(output, "go on from step") != NULL || late;
    expect_end(start("", TWO "%s --out %s " LONG, saved ? "--resume" : "--overwrite", run), 0, "plot      ",
               1);
    assert_equals_whole(run);
    free(output);
    free(p.what);
    free(run);
}

static void killed_at_any_moment(void **state) {
    for (enum moment when = 0; when < MOMENTS; when++)
        for (int victim = 0; victim < 2; victim++) kill_and_go_on(victim, when);
}

/* The other two find it; the message is shown once, and again in the last line. On a busy machine creating
 * the model can take a few seconds, which must not look like a rank that hangs. */
static void stopped_process_is_noticed(void **state) {
    struct process p = start("", "--ranks 3 --comm-timeout 6 --out stopped " ENDLESS);
    pid_t pid = wait_for_rank(&p, 1);
    wait_for_lines(&p, "stopped", 12);
    kill(pid, SIGSTOP);
    double stopped = now_seconds();
    expect_end(p, 75, "no message from rank 1", 2);
    assert_true(now_seconds() - stopped < 30.0);
}

static void processes_die_with_the_launcher(void **state) {
    struct process p = start("", TWO "--out orphans " ENDLESS);
    wait_for_rank(&p, 1);
    wait_for_lines(&p, "orphans", 12);
    kill(p.pid, SIGKILL);
    expect_end(p, 128 + SIGKILL, "error: ", 0);
}

/* --- signals --- */

static void signal_saves_once(void **state) {
    struct process p = start("", TWO "--out term " ENDLESS);
    wait_for_lines(&p, "term", 12);
    kill(p.pid, SIGTERM);
    expect_end(p, 128 + SIGTERM, "the state is saved", 1);
    expect_end(start("", TWO "--resume --out term --steps %d", log_lines("term") + 10), 0, "plot      ", 1);
}

/* Further signals do not abort what the first has begun; SIGQUIT does. */
static void only_sigquit_ends_at_once(void **state) {
    for (int quit = 0; quit < 2; quit++) {
        struct process p = start("", TWO "--out twice%d " ENDLESS, quit);
        pid_t pid = wait_for_rank(&p, 1);
        wait_for_lines(&p, quit ? "twice1" : "twice0", 12);
        kill(pid, SIGSTOP); /* so that the ranks cannot save yet */
        kill(p.pid, SIGINT);
        usleep(200000);
        kill(p.pid, quit ? SIGQUIT : SIGHUP);
        if (!quit) kill(p.pid, SIGTERM);
        usleep(200000);
        kill(pid, SIGCONT);
        if (quit)
            expect_end(p, 128 + SIGQUIT, "the state is saved", 0);
        else
            expect_end(p, 128 + SIGINT, "the state is saved", 1);
    }
}

/* --- starting again --- */

static void restart_heals(void **state) {
    struct process p = start("", TWO "--restart 2 --out healed " LONG);
    pid_t pid = wait_for_rank(&p, 1);
    wait_for_lines(&p, "healed", 30);
    kill(pid, SIGKILL);
    expect_end(p, 0, "; restart 1 of 2 from step ", 1);
    assert_equals_whole("healed");
}

static void restarts_are_counted(void **state) {
    struct process p = start("", TWO "--restart 1 --out counted " ENDLESS);
    pid_t first = wait_for_rank(&p, 0), second = first;
    kill(first, SIGKILL); /* before there is anything to go on from */
    while (second == first) second = wait_for_rank(&p, 0);
    wait_for_lines(&p, "counted", 12);
    kill(wait_for_rank(&p, 0), SIGKILL);
    expect_end(p, 128 + SIGKILL, "; restart ", 1);
    /* an error after start-up: the gradient overflows */
    p = start("", TWO "--restart 1 --out overflow --data tokens.bin --model d1 --vocab-size 32 --channels 16 "
                      "--heads 2 --context 24 --batch-size 2 --tokens-per-step 96 --steps 100 --device cpu "
                      "--learning-rate 100 --warmup 0 --weight-decay 100");
    expect_end(p, 1, "; restart 1 of 1 from the beginning", 1);
}

/* --- processes that are started one by one --- */

static int free_port(void) {
    struct error err;
    int fd = net_listen("127.0.0.1", 0, &err);
    assert_true(fd >= 0);
    struct net_address at = net_local(fd);
    close(fd);
    return net_port(&at);
}

/* As torchrun would start it; `before` may be "-C DIR". */
static struct process start_rank(int rank, int port, const char *before, const char *more) {
    char *variables =
        xasprintf("%s RANK=%d WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=%d", before, rank, port);
    struct process p = start(variables, "--steps 10 --comm-timeout 20 %s", more);
    free(variables);
    return p;
}

static void start_two(const char *before_1, const char *more_0, const char *more_1, int status,
                      const char *said) {
    int port = free_port();
    struct process zero = start_rank(0, port, "", more_0), one = start_rank(1, port, before_1, more_1);
    expect_end(one, status, status ? "error" : "plot", 0); /* rank 0 alone prints */
    expect_end(zero, status, said, 1);
}

static void torchrun_variables_work(void **state) {
    start_two("", "--out by-hand " TINY, "--out by-hand " TINY, 0, "plot      ");
}

static void differences_are_named(void **state) {
    start_two("", "--out d " TINY, "--out d --weight-decay 0.2 " TINY, 1,
              "--weight-decay is 0.2, rank 0 has 0.1");
    start_two("", "--out d " TINY, "--out d --no-shuffle " TINY, 1, "--shuffle is false, rank 0 has true");
    /* two machines whose copies of a file differ */
    assert_int_equal(
        system(temp_printf("cd %s && mkdir other && cp val.bin other/tokens.bin && cp val.bin other",
                           scratch_directory())),
        0);
    const char *options = temp_printf("--out %s " TINY, in_scratch("differ"));
    start_two("-C other", options, options, 1, "the fingerprint of the training data is ");
}

static void run_directory_must_be_seen(void **state) {
    start_two("-C /proc", "--out unseen " TINY, "--out unseen " TINY, 1,
              "unseen, the run directory of rank 0: --out must be on a file system that all machines share");
}

/* --- refusals --- */

static void refusals(void **state) {
    make_one();
    static const struct {
        const char *before, *options, *message;
        int status, times;
    } cases[] = {
        {"OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=0", "--ranks 2 " SHORT,
         "mpirun (OMPI_COMM_WORLD_SIZE=4) has already started", 1, 1},
        {"SLURM_STEP_NUM_TASKS=8", "--restart 3 " SHORT, "--restart 3: srun (SLURM_STEP_NUM_TASKS=8)", 1, 1},
        {"", "--gpus 2 " SHORT, "--gpus 2 with --device cpu", 1, 1},
        {"", "--gpus 1000", "--gpus 1000: ", 1, 1},
        {"", "--gpus 2 --ranks 3", "--gpus 2 --ranks 3: give one of them", 1, 1},
        {"", "--rank 2", "did you mean --ranks?", 2, 1},
        /* errors in options, data or files: shown once and in the last line, and not tried again */
        {"", "--ranks 2 --restart 3 --text nowhere.txt", "nowhere.txt: ", 1, 2},
        {"", "--ranks 2 --restart 3 --text nowhere.txt", "restart", 1, 0},
        {"", "--ranks 2 --out one " SHORT, "already holds a run", 1, 2},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        expect_end(start(cases[i].before, "%s", cases[i].options), cases[i].status, cases[i].message,
                   cases[i].times);
}

static void write_tokens(const char *name, int64_t count, uint64_t seed) {
    uint32_t *tokens = (uint32_t *)xmalloc((size_t)count * sizeof *tokens);
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (uint32_t)(32.0 * pow(rng_uniform(seed, RNG_TEST, (uint64_t)i), 2.0));
    struct error err;
    if (!shard_write(in_scratch("%s", name), tokens, count, 32, &err)) fail_msg("%s", err.message);
    free(tokens);
}

static int set_up(void **state) {
    const char *build = getenv("BUILD");
    char here[256];
    if (!getcwd(here, sizeof here) || make_scratch(state) != 0) return -1;
    snprintf(program, sizeof program, "%s/%s/train_gpt", here, build && *build ? build : "build");
    setenv("OMP_NUM_THREADS", "1", 1);
    setenv("GOMP_SPINCOUNT", "1000", 1);
    write_tokens("tokens.bin", 6000, 1);
    write_tokens("val.bin", 42 * 24 + 1, 2);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cores_are_divided),
        cmocka_unit_test(ranks_equal_one_process),
        cmocka_unit_test(resumed_by_another_number),
        cmocka_unit_test(started_by_mpirun),
        cmocka_unit_test(killed_at_any_moment),
        cmocka_unit_test(stopped_process_is_noticed),
        cmocka_unit_test(processes_die_with_the_launcher),
        cmocka_unit_test(signal_saves_once),
        cmocka_unit_test(only_sigquit_ends_at_once),
        cmocka_unit_test(restart_heals),
        cmocka_unit_test(restarts_are_counted),
        cmocka_unit_test(torchrun_variables_work),
        cmocka_unit_test(differences_are_named),
        cmocka_unit_test(run_directory_must_be_seen),
        cmocka_unit_test(refusals),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}

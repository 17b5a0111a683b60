/* Starting the processes of a run. Order: who else may have started this process; cores; the start of all
 * processes; starting again; what rank 0 tells. launch_watch.c sees them run and end. */
#include "llmc/process/launch_impl.h"

#include "llmc/process/group.h"

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
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- who else --- */

/* Slurm sets SLURM_PROCID also for the batch script itself, where one may well start processes; a step's
 * number of tasks only in a step. */
static const struct {
    const char *name, *size;
} launchers[] = {
    {"torchrun or the like", "WORLD_SIZE"},
    {"mpirun", "OMPI_COMM_WORLD_SIZE"},
    {"MPICH's mpiexec", "PMI_SIZE"},
    {"srun", "SLURM_STEP_NUM_TASKS"},
};

/* A launcher's word on the place of its one process must not reach the processes that are started here. */
static const char *const place_variables[] = {"GROUP_RANK",
                                              "LOCAL_WORLD_SIZE",
                                              "OMPI_COMM_WORLD_RANK",
                                              "OMPI_COMM_WORLD_SIZE",
                                              "OMPI_COMM_WORLD_LOCAL_RANK",
                                              "OMPI_COMM_WORLD_LOCAL_SIZE",
                                              "PMI_RANK",
                                              "PMI_SIZE",
                                              "PMIX_RANK",
                                              "MPI_LOCALRANKID",
                                              "MPI_LOCALNRANKS",
                                              "SLURM_PROCID",
                                              "SLURM_LOCALID",
                                              "SLURM_NTASKS",
                                              "SLURM_NPROCS",
                                              "SLURM_STEP_ID",
                                              "SLURM_STEP_NUM_TASKS",
                                              "SLURM_STEP_TASKS_PER_NODE",
                                              "TORCHELASTIC_RUN_ID"};

char *launch_foreign(void) {
    for (size_t i = 0; i < ARRAY_LENGTH(launchers); i++) {
        const char *size = getenv(launchers[i].size);
        if (size && atoi(size) > 1)
            return xasprintf("%s (%s=%s)", launchers[i].name, launchers[i].size, size);
    }
    return NULL;
}

/* --- cores --- */

struct cpu {
    int package, core, number;
};

static int read_topology(int cpu, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, name);
    FILE *f = fopen(path, "r");
    int value = -1;
    if (f && fscanf(f, "%d", &value) != 1) value = -1;
    if (f) fclose(f);
    return value;
}

static int by_place(const void *a, const void *b) {
    const struct cpu *x = (const struct cpu *)a, *y = (const struct cpu *)b;
    if (x->package != y->package) return x->package < y->package ? -1 : 1;
    if (x->core != y->core) return x->core < y->core ? -1 : 1;
    return (x->number > y->number) - (x->number < y->number);
}

int launch_cpus(int *cpus, int64_t part, int64_t parts) {
    cpu_set_t allowed;
    struct cpu all[CPU_SETSIZE];
    int count = 0, n = 0;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &allowed))
            all[count++] =
                (struct cpu){read_topology(i, "physical_package_id"), read_topology(i, "core_id"), i};
    if (count < parts) return 0;
    qsort(all, (size_t)count, sizeof *all, by_place);
    for (int64_t i = part * count / parts; i < (part + 1) * count / parts; i++) cpus[n++] = all[i].number;
    return n;
}

/* In the child: its cores, and as many threads. */
static void take_cores(const struct launch_options *o, int64_t rank) {
    int cpus[CPU_SETSIZE], n = launch_cpus(cpus, rank, o->ranks);
    const char *given = getenv("OMP_NUM_THREADS");
    int64_t total = given ? atoi(given) : 0, threads = max_i64(1, n);
    if (total > 0) threads = max_i64(1, total / o->ranks);
    if (o->threads) threads = o->threads;
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, threads);
    setenv("OMP_NUM_THREADS", text, 1);
    if (!o->bind || n == 0 || getenv("OMP_PROC_BIND") || getenv("OMP_PLACES")) return;
    cpu_set_t own;
    CPU_ZERO(&own);
    for (int i = 0; i < n; i++) CPU_SET(cpus[i], &own);
    sched_setaffinity(0, sizeof own, &own); /* the system may refuse; then it places the threads itself */
}

/* --- the start --- */

/* A socket that listens on a free port of this machine. */
static int listen_here(int *port, int64_t ranks) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    check(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0 &&
              listen(fd, (int)max_i64(128, 2 * ranks)) == 0 &&
              getsockname(fd, (struct sockaddr *)&a, &size) == 0,
          "no socket for the processes of this run to meet at (127.0.0.1): %s", strerror(errno));
    *port = ntohs(a.sin_port);
    return fd;
}

static void random_token(char token[33]) {
    uint8_t bytes[16];
    check(getrandom(bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes, "getrandom: %s", strerror(errno));
    for (size_t i = 0; i < sizeof bytes; i++) snprintf(token + 2 * i, 3, "%02x", bytes[i]);
}

static void set_number(const char *name, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    setenv(name, text, 1);
}

/* What all processes of one start have in common. */
struct meeting {
    int listener, port;
    int report; /* rank 0's end */
    char token[33];
};

static void describe_place(const struct launch_options *o, const struct meeting *m, int64_t rank,
                           pid_t parent) {
    for (size_t i = 0; i < ARRAY_LENGTH(place_variables); i++) unsetenv(place_variables[i]);
    set_number("RANK", rank);
    set_number("WORLD_SIZE", o->ranks);
    set_number("LOCAL_RANK", rank);
    set_number("LOCAL_WORLD_SIZE", o->ranks);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    set_number("MASTER_PORT", m->port);
    setenv("LLMC_TOKEN", m->token, 1);
    set_number("LLMC_LAUNCHER", parent);
    unsetenv("LLMC_LISTEN_FD");
    unsetenv("LLMC_REPORT_FD");
    if (rank != 0) return;
    set_number("LLMC_LISTEN_FD", m->listener);
    set_number("LLMC_REPORT_FD", m->report);
    fcntl(m->listener, F_SETFD, 0); /* these two stay open in the new program */
    fcntl(m->report, F_SETFD, 0);
}

/* The new process, up to the program. */
LLMC_NORETURN static void become_rank(const struct launch_options *o, const struct launch *l,
                                      const struct meeting *m, int64_t rank, int output, pid_t parent,
                                      char **argv) {
    /* A group of its own: Ctrl-C reaches the parent only, which hands it on once. */
    setpgid(0, l->group);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(EXIT_FAILURE); /* it died before that was set */
    signal(SIGTTOU, SIG_IGN); /* writes to the terminal all the same, whatever `stty tostop` says */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    describe_place(o, m, rank, parent);
    take_cores(o, rank);
    if (rank != 0) dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    execv("/proc/self/exe", argv);
    fprintf(stderr, "error: this program cannot be started a second time: %s\n", strerror(errno));
    _exit(EXIT_FAILURE);
}

static void start_all(struct launch *l, const struct launch_options *o, char **argv) {
    struct meeting m;
    m.listener = listen_here(&m.port, o->ranks);
    random_token(m.token);
    int report[2], output[2];
    check(pipe2(report, O_CLOEXEC) == 0, "no pipe for rank 0: %s", strerror(errno));
    l->report = report[0];
    m.report = report[1];
    pid_t parent = getpid();
    fflush(NULL);
    for (int64_t rank = 0; rank < o->ranks; rank++) {
        struct launch_child *c = &l->child[rank];
        check(pipe2(output, O_CLOEXEC) == 0, "no pipe for rank %" PRId64 ": %s", rank, strerror(errno));
        c->pid = fork();
        check(c->pid >= 0, "rank %" PRId64 " cannot be started: %s", rank, strerror(errno));
        if (c->pid == 0) become_rank(o, l, &m, rank, output[1], parent, argv);
        if (rank == 0) l->group = c->pid;
        setpgid(c->pid, l->group); /* whoever comes first */
        close(output[1]);
        c->output = output[0];
        fcntl(c->output, F_SETFL, O_NONBLOCK);
    }
    fcntl(l->report, F_SETFL, O_NONBLOCK);
    close(m.report);
    close(m.listener);
}

static void launch_open(struct launch *l, const struct launch_options *o) {
    *l = (struct launch){.ranks = o->ranks, .report = -1, .failed = -1, .kill_at = INFINITY};
    l->child = (struct launch_child *)xcalloc((size_t)o->ranks, sizeof *l->child);
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGTSTP);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    l->signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    check(l->signals >= 0, "signalfd: %s", strerror(errno));
}

static void launch_free(struct launch *l) {
    close(l->signals);
    free(l->directory);
    free(l->child);
}

/* --- starting again --- */

/* The newest complete checkpoint of a run by its name; -1: none. */
static int64_t last_checkpoint(const char *directory) {
    DIR *dir = directory ? opendir(directory) : NULL;
    int64_t newest = -1;
    struct dirent *e;
    while (dir && (e = readdir(dir)) != NULL) {
        const char *digits = strncmp(e->d_name, "step-", 5) == 0 ? e->d_name + 5 : "";
        if (*digits && strspn(digits, "0123456789") == strlen(digits))
            newest = max_i64(newest, strtoll(digits, NULL, 10));
    }
    if (dir) closedir(dir);
    return newest;
}

static bool is_option(const char *argument, const char *name) {
    size_t n = strlen(name);
    return strncmp(argument, name, n) == 0 && (argument[n] == '\0' || argument[n] == '=');
}

/* The arguments for going on: the same, but for this directory, and resuming or (if nothing was saved yet)
 * starting over. */
static char **arguments_again(int argc, char **argv, const char *directory, bool resume) {
    static const char *const replaced[] = {"--out", "--resume", "--no-resume", "--overwrite",
                                           "--no-overwrite"};
    char **again = (char **)xcalloc((size_t)argc + 4, sizeof *again);
    int n = 0;
    for (int i = 0; i < argc; i++) {
        bool skip = false;
        for (size_t k = 0; k < ARRAY_LENGTH(replaced); k++) skip |= is_option(argv[i], replaced[k]);
        if (!skip) again[n++] = xstrdup(argv[i]);
        if (strcmp(argv[i], "--out") == 0) i++; /* its value */
    }
    again[n++] = xstrdup(resume ? "--resume" : "--overwrite");
    again[n++] = xstrdup("--out");
    again[n++] = xstrdup(directory);
    return again;
}

static void arguments_free(char **arguments) {
    for (int i = 0; arguments[i]; i++) free(arguments[i]);
    free(arguments);
}

static int exit_status(int status) {
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* A process that was killed, or whose neighbour is gone, may find better conditions the next time. One that
 * did not like its options or its data will not; after the start all of that has been looked at. */
static bool may_heal(const struct launch *l) {
    int status = l->child[l->failed].status;
    return l->training || WIFSIGNALED(status) || exit_status(status) == GROUP_EXIT_STATUS;
}

/* The parent's last line: what became of the run. */
static void conclude(const struct launch *l, const struct launch_options *o, const char *program) {
    const struct launch_child *c = &l->child[l->failed];
    int64_t step = last_checkpoint(l->directory);
    char *end = launch_end_text(c->status), *next;
    if (!may_heal(l))
        next = xstrdup("training had not begun");
    else if (step >= 0)
        next = xasprintf("go on from step %" PRId64 " with: %s %s--resume --out %s", step, program, o->option,
                         l->directory);
    else
        next = xstrdup("nothing was saved yet, so start it again (--save-every says how often it saves)");
    fprintf(stderr, "error: rank %" PRId64 " %s%s%s%s; %s\n", l->failed, end, c->complaint[0] ? " (" : "",
            c->complaint, c->complaint[0] ? ")" : "", next);
    free(end);
    free(next);
}

/* Says what happened, waits, and gives the arguments of the next start; false if a signal came meanwhile. */
static bool prepare_again(struct launch *l, const struct launch_options *o, int64_t attempt, int argc,
                          char **argv, char ***arguments) {
    int64_t step = last_checkpoint(l->directory);
    double pause = fmin(60.0, (double)((int64_t)1 << min_i64(attempt, 6)));
    char *end = launch_end_text(l->child[l->failed].status), from[64] = "from the beginning";
    if (step >= 0) snprintf(from, sizeof from, "from step %" PRId64, step);
    fprintf(stderr, "warning: rank %" PRId64 " %s; restart %" PRId64 " of %" PRId64 " %s in %.0f s\n",
            l->failed, end, attempt + 1, o->restarts, from, pause);
    free(end);
    if (l->directory) {
        if (*arguments != argv) arguments_free(*arguments);
        *arguments = arguments_again(argc, argv, l->directory, step >= 0);
    }
    return launch_pause(l, pause);
}

int launch_run(const struct launch_options *o, int argc, char **argv) {
    char **arguments = argv;
    struct launch l;
    for (int64_t attempt = 0;; attempt++) {
        launch_open(&l, o);
        start_all(&l, o, arguments);
        launch_watch(&l);
        if (l.failed < 0 || l.stop || attempt == o->restarts || !may_heal(&l)) break;
        if (!prepare_again(&l, o, attempt, argc, argv, &arguments)) break;
        launch_free(&l);
    }
    int status = exit_status(l.child[l.failed < 0 ? 0 : l.failed].status);
    if (l.stop && status == 128 + SIGKILL) status = 128 + l.stop; /* the second signal's work */
    if (l.failed >= 0) conclude(&l, o, argv[0]);
    if (arguments != argv) arguments_free(arguments);
    launch_free(&l);
    return status;
}

/* --- what rank 0 tells --- */

bool launch_is_child(void) {
    const char *launcher = getenv("LLMC_LAUNCHER");
    return launcher && atoi(launcher) == (int)getppid();
}

static void tell(const char *fmt, const char *value) {
    const char *fd = getenv("LLMC_REPORT_FD");
    if (!fd || !launch_is_child()) return;
    dprintf(atoi(fd), fmt, value);
}

void launch_tell_run(const char *directory) { tell("run %s\n", directory); }
void launch_tell_training(void) { tell("training%s\n", ""); }

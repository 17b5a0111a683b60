/* One poll() loop over the messages of all children and a signalfd, from their start to the end of the
 * last. --restart repeats that. */
#include "llmc/process/launch.h"

#include "llmc/base/console.h"

#include "llmc/process/group.h"
#include "llmc/process/net.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE 3.0 /* seconds: for the other ranks to exit after one has failed */

enum { LINE = 2048 };

struct child {
    pid_t pid;
    int output;                   /* read end of the pipe for its messages; -1: closed */
    char line[LINE], error[LINE]; /* the incomplete line; the last "error: ..." line */
    size_t length;
    bool ended;
    int status; /* from waitpid */
};

struct launch {
    const struct launch_options *options;
    struct child *child; /* (ranks) */
    pid_t process_group; /* of the children */
    int64_t alive;
    int signals;     /* signalfd: SIGCHLD, and what stops a run */
    int report;      /* memfd that rank 0 writes to */
    char *directory; /* of the run; NULL: not known */
    bool training;   /* start-up has succeeded */
    bool error_shown, killed;
    int stop;       /* the signal that was forwarded; 0: none */
    double kill_at; /* when the children that are left are killed */
    int64_t failed; /* the rank that explains the failure best; -1: none has failed */
    int explains;   /* see failure_of() */
};

char *launch_foreign(void) {
    /* of Slurm's sizes, this one is set only inside of steps: batch scripts may start processes */
    static const char *const launchers[][2] = {{"torchrun or the like", "WORLD_SIZE"},
                                               {"mpirun", "OMPI_COMM_WORLD_SIZE"},
                                               {"MPICH's mpiexec", "PMI_SIZE"},
                                               {"srun", "SLURM_STEP_NUM_TASKS"}};
    for (size_t i = 0; i < ARRAY_LENGTH(launchers); i++) {
        const char *size = getenv(launchers[i][1]);
        if (size && atoi(size) > 1) return xasprintf("%s (%s=%s)", launchers[i][0], launchers[i][1], size);
    }
    return NULL;
}

/* --- cores --- */

static int64_t read_topology(int cpu, const char *name) {
    FILE *f = fopen(temp_printf("/sys/devices/system/cpu/cpu%d/topology/%s", cpu, name), "re");
    int value = 0;
    if (f && fscanf(f, "%d", &value) != 1) value = 0;
    if (f) fclose(f);
    return value;
}

static int compare_keys(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int launch_cpus(int *cpus, int64_t part, int64_t parts) {
    cpu_set_t allowed;
    int64_t key[CPU_SETSIZE]; /* sorts by package, core, number */
    int count = 0, n = 0;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &allowed))
            key[count++] =
                (read_topology(i, "physical_package_id") << 40) + (read_topology(i, "core_id") << 20) + i;
    if (count < parts) return 0;
    qsort(key, (size_t)count, sizeof *key, compare_keys);
    for (int64_t i = part * count / parts; i < (part + 1) * count / parts; i++)
        cpus[n++] = (int)(key[i] & 0xfffff);
    return n;
}

/* --- starting --- */

static void set_number(const char *name, int64_t value) { setenv(name, temp_printf("%" PRId64, value), 1); }

static void take_cores(const struct launch_options *o, int64_t rank) {
    int cpus[CPU_SETSIZE], n = launch_cpus(cpus, rank, o->ranks);
    const char *given = getenv("OMP_NUM_THREADS");
    int64_t threads = given && atoi(given) > 0 ? atoi(given) / o->ranks : n;
    set_number("OMP_NUM_THREADS", o->threads ? o->threads : max_i64(1, threads));
    if (!o->bind || n == 0 || getenv("OMP_PROC_BIND") || getenv("OMP_PLACES")) return;
    cpu_set_t own;
    CPU_ZERO(&own);
    for (int i = 0; i < n; i++) CPU_SET(cpus[i], &own);
    sched_setaffinity(0, sizeof own, &own); /* if this fails, the scheduler decides */
}

/* In the child: becomes the program. */
LLMC_NORETURN static void become_rank(const struct launch *l, int64_t rank, int listener, const char *token,
                                      int output, pid_t launcher, char **argv) {
    setpgid(0, l->process_group); /* so that Ctrl-C reaches the launcher only, which forwards it once */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher) _exit(EXIT_FAILURE); /* it died before that took effect */
    signal(SIGTTOU, SIG_IGN); /* after `stty tostop` this signal stops a background process that prints */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    struct net_address at = net_local(listener);
    set_number("RANK", rank);
    set_number("LOCAL_RANK", rank);
    set_number("WORLD_SIZE", l->options->ranks);
    set_number("LOCAL_WORLD_SIZE", l->options->ranks);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    set_number("MASTER_PORT", net_port(&at));
    setenv("LLMC_TOKEN", token, 1);
    set_number("LLMC_LAUNCHER", launcher);
    unsetenv("LLMC_LISTEN_FD");
    unsetenv("LLMC_REPORT_FD");
    if (rank == 0) {
        set_number("LLMC_LISTEN_FD", listener);
        set_number("LLMC_REPORT_FD", l->report);
        fcntl(listener, F_SETFD, 0); /* the program inherits both */
        fcntl(l->report, F_SETFD, 0);
    }
    take_cores(l->options, rank);
    if (rank != 0) dup2(output, STDOUT_FILENO);
    dup2(output, STDERR_FILENO);
    execv("/proc/self/exe", argv);
    fprintf(stderr, "error: cannot start this program again: %s\n", strerror(errno));
    _exit(EXIT_FAILURE);
}

static void start_all(struct launch *l, char **argv) {
    struct error err;
    uint64_t random[2];
    int output[2], listener = net_listen("127.0.0.1", 0, &err);
    check(listener >= 0, "the processes of this run need a socket to connect to: %s", err.message);
    check(getrandom(random, sizeof random, 0) == (ssize_t)sizeof random, "getrandom: %s", strerror(errno));
    char *token = xasprintf("%016" PRIx64 "%016" PRIx64, random[0], random[1]);
    pid_t launcher = getpid();
    fflush(NULL);
    for (int64_t rank = 0; rank < l->options->ranks; rank++) {
        struct child *c = &l->child[rank];
        check(pipe2(output, O_CLOEXEC) == 0, "no pipe for rank %" PRId64 ": %s", rank, strerror(errno));
        c->pid = fork();
        check(c->pid >= 0, "cannot start rank %" PRId64 ": %s", rank, strerror(errno));
        if (c->pid == 0) become_rank(l, rank, listener, token, output[1], launcher, argv);
        if (rank == 0) l->process_group = c->pid;
        setpgid(c->pid, l->process_group); /* parent and child both do this, whichever runs first */
        close(output[1]);
        c->output = output[0];
        fcntl(c->output, F_SETFL, O_NONBLOCK);
    }
    close(listener);
    free(token);
}

/* --- messages, signals, ends --- */

/* A rank names itself in its messages (run_prefix_messages); other output gets the rank here. */
static void show_line(struct launch *l, int64_t rank) {
    struct child *c = &l->child[rank];
    c->line[c->length] = '\0';
    c->length = 0;
    const char *colon = strncmp(c->line, "rank ", 5) == 0 ? strstr(c->line, ": ") : NULL;
    const char *text = colon ? colon + 2 : c->line;
    if (strncmp(text, "error: ", 7) == 0) {
        strcpy(c->error, text + 7);
        if (l->error_shown) return;
        l->error_shown = true;
    }
    fprintf(stderr, "%s%s%s\n", isatty(STDERR_FILENO) ? "\r\033[K" : "",
            rank == 0 || colon ? "" : temp_printf("rank %" PRId64 ": ", rank), c->line);
}

static void read_output(struct launch *l, int64_t rank) {
    struct child *c = &l->child[rank];
    char bytes[4096];
    ssize_t n;
    if (c->output < 0) return;
    while ((n = read(c->output, bytes, sizeof bytes)) > 0)
        for (ssize_t i = 0; i < n; i++) {
            if (bytes[i] != '\n') c->line[c->length++] = bytes[i];
            if (bytes[i] == '\n' || c->length == sizeof c->line - 1) show_line(l, rank);
        }
    if (n < 0 && !c->ended && (errno == EAGAIN || errno == EINTR)) return;
    if (c->length) show_line(l, rank);
    close(c->output);
    c->output = -1;
}

static void read_signals(struct launch *l) {
    struct signalfd_siginfo s;
    while (read(l->signals, &s, sizeof s) == (ssize_t)sizeof s) {
        int number = (int)s.ssi_signo;
        if (number == SIGCHLD) continue;
        if (number == SIGQUIT) {
            l->kill_at = now_seconds();
        } else if (number == SIGUSR1 && !l->options->usr1_stops) {
            if (l->alive) kill(-l->process_group, number);
            continue;
        } else if (l->stop) {
            if (number == SIGINT) warn("saving, then leaving; Ctrl-\\ (SIGQUIT) ends at once without saving");
            continue;
        } else if (l->alive) {
            kill(-l->process_group, number);
        }
        l->stop = number;
    }
}

/* 0: no failure. The larger number explains more: a rank that exits because of another one has the status
 * GROUP_EXIT_STATUS, and one that exits without a message leaves it to another to say what both found. */
static int failure_of(const struct launch *l, const struct child *c) {
    if (WIFSIGNALED(c->status)) {
        bool wanted = WTERMSIG(c->status) == l->stop || (l->killed && WTERMSIG(c->status) == SIGKILL);
        return wanted ? 0 : 4;
    }
    int status = WEXITSTATUS(c->status);
    if (status == 0 || status == LAUNCH_RESUME_STATUS || (l->stop && status == 128 + l->stop)) return 0;
    return 1 + (c->error[0] != 0) + 2 * (status != GROUP_EXIT_STATUS);
}

static void reap(struct launch *l) {
    for (int64_t rank = 0; rank < l->options->ranks; rank++) {
        struct child *c = &l->child[rank];
        if (c->ended || waitpid(c->pid, &c->status, WNOHANG) != c->pid) continue;
        c->ended = true;
        l->alive--;
        read_output(l, rank);
        int failure = failure_of(l, c);
        if (failure) l->kill_at = fmin(l->kill_at, now_seconds() + GRACE);
        if (failure > l->explains) {
            l->explains = failure;
            l->failed = rank;
        }
    }
}

static void watch(struct launch *l) {
    int64_t ranks = l->options->ranks;
    struct pollfd *p = (struct pollfd *)xcalloc((size_t)ranks + 1, sizeof *p);
    while (l->alive) {
        for (int64_t rank = 0; rank < ranks; rank++)
            p[rank] = (struct pollfd){l->child[rank].output, POLLIN, 0};
        p[ranks] = (struct pollfd){l->signals, POLLIN, 0};
        double left = l->kill_at - now_seconds();
        poll(p, (nfds_t)ranks + 1, isfinite(left) ? (int)ceil(1e3 * fmax(0.0, left)) : -1);
        read_signals(l);
        for (int64_t rank = 0; rank < ranks; rank++) read_output(l, rank);
        reap(l);
        if (!l->alive || now_seconds() < l->kill_at) continue;
        kill(-l->process_group, SIGKILL);
        l->killed = true;
        l->kill_at = INFINITY;
    }
    free(p);
}

/* --- what rank 0 reports --- */

bool launch_is_child(void) {
    const char *launcher = getenv("LLMC_LAUNCHER");
    return launcher && atoi(launcher) == (int)getppid();
}

double launch_begun(void) {
    const char *begun = getenv("LLMC_BEGUN"); /* the monotonic clock is the same in all processes */
    return begun && launch_is_child() ? strtod(begun, NULL) : now_seconds();
}

static void report(const char *fmt, const char *value) {
    const char *fd = getenv("LLMC_REPORT_FD");
    if (fd && launch_is_child()) dprintf(atoi(fd), fmt, value);
}
void launch_tell_run(const char *directory) { report("%s\n", directory); }
void launch_tell_training(void) { report("%s", "training"); }

static void read_report(struct launch *l) {
    char text[8192];
    ssize_t n = pread(l->report, text, sizeof text - 1, 0);
    text[max_i64(0, n)] = '\0';
    char *end = strchr(text, '\n');
    if (!end) return;
    l->training = end[1] != '\0';
    if (!l->directory) l->directory = strndup(text, (size_t)(end - text));
}

/* --- starting again --- */

/* The step of the newest complete checkpoint, from its name; -1: none. */
static int64_t last_checkpoint(const char *directory) {
    DIR *dir = directory ? opendir(directory) : NULL;
    int64_t newest = -1;
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
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

/* The arguments of the next start, which goes on in this directory, or begins anew if nothing was saved. */
static char **arguments_again(int argc, char **argv, char *directory, bool resume) {
    static char own[][16] = {"--overwrite", "--resume", "--no-overwrite", "--no-resume", "--out"};
    char **again = (char **)xcalloc((size_t)argc + 4, sizeof *again);
    int n = 0;
    for (int i = 0; i < argc; i++) {
        bool replaced = false;
        for (size_t k = 0; k < ARRAY_LENGTH(own); k++) replaced |= is_option(argv[i], own[k]);
        if (!replaced) again[n++] = argv[i];
        if (strcmp(argv[i], "--out") == 0) i++; /* its value */
    }
    again[n++] = own[resume];
    again[n++] = own[ARRAY_LENGTH(own) - 1];
    again[n++] = directory;
    return again;
}

static int exit_status(int status) {
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Errors in options or data would recur, so restart only failures after start-up, by a signal or of a
 * peer. */
static bool may_heal(const struct launch *l) {
    int status = l->child[l->failed].status;
    return l->training || WIFSIGNALED(status) || exit_status(status) == GROUP_EXIT_STATUS;
}

static const char *end_text(int status) {
    if (!WIFSIGNALED(status)) return temp_printf("ended with status %d", WEXITSTATUS(status));
    return temp_printf("was killed by signal %d (%s)%s", WTERMSIG(status), strsignal(WTERMSIG(status)),
                       WTERMSIG(status) == SIGKILL ? ", perhaps because memory ran out" : "");
}

/* The last line of the launcher. */
static void conclude(const struct launch *l, const char *program) {
    const struct child *c = &l->child[l->failed];
    int64_t step = last_checkpoint(l->directory);
    const char *next = "nothing was saved yet, so start it again (--save-every says how often it saves)";
    if (!may_heal(l)) next = "training had not begun";
    char *name = shell_quote(program), *out = l->directory ? shell_quote(l->directory) : NULL;
    if (may_heal(l) && step >= 0)
        next = temp_printf("go on from step %" PRId64 " with: %s %s--resume --out %s", step, name,
                           l->options->option, out);
    free(name);
    free(out);
    fprintf(stderr, "error: rank %" PRId64 " %s%s; %s\n", l->failed, end_text(c->status),
            c->error[0] ? temp_printf(" (%s)", c->error) : "", next);
}

static void run_once(struct launch *l, char **argv) {
    memset(l->child, 0, (size_t)l->options->ranks * sizeof *l->child);
    check(ftruncate(l->report, 0) == 0 && lseek(l->report, 0, SEEK_SET) == 0, "memfd: %s", strerror(errno));
    l->alive = l->options->ranks;
    l->kill_at = INFINITY;
    l->failed = -1;
    l->explains = 0;
    l->training = l->error_shown = l->killed = false;
    start_all(l, argv);
    watch(l);
    read_report(l);
}

/* --- telling --- */

LLMC_NORETURN static void become_notification(const struct launch *l, int status) {
    bool stopped = status == LAUNCH_RESUME_STATUS || (l->stop && status == 128 + l->stop);
    int64_t step = last_checkpoint(l->directory);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid(); /* it may outlive this process and its terminal */
    setenv("LLMC_EVENT", status == 0 ? "finished" : stopped ? "stopped" : "failed", 1);
    set_number("LLMC_STATUS", status);
    setenv("LLMC_RUN", l->directory ? l->directory : "", 1);
    setenv("LLMC_STEP", step < 0 ? "" : temp_printf("%" PRId64, step), 1);
    setenv("LLMC_MESSAGE", l->failed < 0 ? "" : l->child[l->failed].error, 1);
    execl("/bin/sh", "sh", "-c", l->options->notify, (char *)NULL);
    _exit(127);
}

static void notify(const struct launch *l, int status) {
    enum { PATIENCE = 10, PAUSE = 20000 };
    double begun = now_seconds();
    int ended = 0;
    fflush(NULL);
    pid_t pid = fork(), done = 0;
    if (pid == 0) become_notification(l, status);
    while (pid > 0 && (done = waitpid(pid, &ended, WNOHANG)) == 0 && now_seconds() - begun < PATIENCE)
        usleep(PAUSE);
    if (pid < 0)
        warn("--notify: cannot start a process: %s", strerror(errno));
    else if (done == 0)
        warn("--notify: the command has not ended after %d s; the run does not wait for it", PATIENCE);
    else if (ended != 0)
        warn("--notify: the command %s", end_text(ended));
}

int launch_run(const struct launch_options *o, int argc, char **argv) {
    struct launch l = {.options = o, .report = memfd_create("report", MFD_CLOEXEC)};
    l.child = (struct child *)xcalloc((size_t)o->ranks, sizeof *l.child);
    setenv("LLMC_BEGUN", temp_printf("%.3f", now_seconds()), 1);
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    static const int stopping[] = {SIGINT, SIGTERM, SIGUSR1, SIGQUIT, SIGHUP};
    struct sigaction action;
    for (size_t i = 0; i < ARRAY_LENGTH(stopping); i++) /* a signalfd also gets what nohup ignores */
        if (stopping[i] != SIGHUP || (sigaction(SIGHUP, NULL, &action) == 0 && action.sa_handler != SIG_IGN))
            sigaddset(&watched, stopping[i]);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    l.signals = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
    check(l.report >= 0 && l.signals >= 0, "memfd_create or signalfd: %s", strerror(errno));
    char **again = NULL;
    run_once(&l, argv);
    for (int64_t i = 1; i <= o->restarts && l.failed >= 0 && !l.stop && may_heal(&l); i++) {
        int64_t step = last_checkpoint(l.directory);
        fprintf(stderr, "warning: rank %" PRId64 " %s; restart %" PRId64 " of %" PRId64 " %s\n", l.failed,
                end_text(l.child[l.failed].status), i, o->restarts,
                step < 0 ? "from the beginning" : temp_printf("from step %" PRId64, step));
        free(again);
        again = l.directory ? arguments_again(argc, argv, l.directory, step >= 0) : NULL;
        run_once(&l, again ? again : argv);
    }
    if (l.failed >= 0) conclude(&l, argv[0]);
    int status = exit_status(l.child[max_i64(0, l.failed)].status);
    if (l.stop && status == 128 + SIGKILL) status = 128 + l.stop; /* killed after SIGQUIT */
    if (o->notify) notify(&l, status);
    close(l.report);
    close(l.signals);
    free(l.directory);
    free(l.child);
    free(again);
    return status;
}

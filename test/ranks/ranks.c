#include "test/test.h"

#include "llmc/process/net.h"
#include "test/ranks/ranks.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

void ranks_init(struct ranks *r, int64_t world, double timeout) {
    struct error err;
    memset(r, 0, sizeof *r);
    assert_in_range(world, 1, RANKS_MAX);
    r->world = world;
    r->timeout = timeout;
    strcpy(r->address, "127.0.0.1");
    r->listener = net_listen(r->address, 0, &err);
    if (r->listener < 0) fail_msg("%s", err.message);
    struct net_address at = net_local(r->listener);
    r->port = net_port(&at);
    snprintf(r->token, sizeof r->token, "test %d %d", (int)getpid(), r->port);
}

static void set_number(const char *name, int64_t n) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)n);
    setenv(name, text, 1);
}

void ranks_start_one(struct ranks *r, int64_t rank, rank_body body) {
    struct rank_process *p = &r->p[rank];
    p->output = memfd_create("stderr", MFD_CLOEXEC);
    assert_true(p->output >= 0);
    fflush(NULL);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid > 0) return;
    dup2(p->output, STDERR_FILENO);
    set_number("RANK", rank);
    set_number("WORLD_SIZE", r->world);
    set_number("LOCAL_WORLD_SIZE", r->world);
    set_number("MASTER_PORT", r->port);
    setenv("MASTER_ADDR", r->address, 1);
    setenv("LLMC_TOKEN", r->token, 1);
    if (r->listener >= 0 && rank == 0)
        set_number("LLMC_LISTEN_FD", r->listener);
    else if (r->listener >= 0)
        close(r->listener);
    exit(body(r, rank));
}

void ranks_start(struct ranks *r, rank_body body) {
    for (int64_t rank = 0; rank < r->world; rank++) ranks_start_one(r, rank, body);
    if (r->listener >= 0) close(r->listener);
    r->listener = -1;
}

struct group *ranks_open(const struct ranks *r) {
    struct group_options options = {.timeout = r->timeout};
    struct error err;
    struct group *g = group_open(&options, &err);
    if (g) return g;
    fprintf(stderr, "group_open: %s\n", err.message);
    exit(3);
}

static char *read_output(int fd) {
    off_t size = lseek(fd, 0, SEEK_END);
    char *text = (char *)xcalloc((size_t)size + 1, 1);
    assert_int_equal(pread(fd, text, (size_t)size, 0), size);
    return text;
}

void ranks_finish(struct ranks *r, double seconds) {
    double deadline = now_seconds() + seconds;
    for (int64_t running = 1; running > 0;) {
        running = 0;
        bool late = now_seconds() > deadline;
        for (int64_t rank = 0; rank < r->world; rank++) {
            struct rank_process *p = &r->p[rank];
            if (p->pid == 0) continue;
            if (late) {
                p->left = true;
                kill(p->pid, SIGKILL);
            }
            if (waitpid(p->pid, &p->status, late ? 0 : WNOHANG) == p->pid)
                p->pid = 0;
            else
                running++;
        }
        if (running) usleep(5000);
    }
    for (int64_t rank = 0; rank < r->world; rank++) {
        struct rank_process *p = &r->p[rank];
        if (p->output <= 0) continue;
        p->said = read_output(p->output);
        close(p->output);
        p->output = 0;
    }
}

void ranks_free(struct ranks *r) {
    for (int64_t rank = 0; rank < r->world; rank++) free(r->p[rank].said);
    if (r->listener >= 0) close(r->listener);
}

int rank_exit(const struct ranks *r, int64_t rank) {
    const struct rank_process *p = &r->p[rank];
    return p->left ? -1 : WIFEXITED(p->status) ? WEXITSTATUS(p->status) : 128 + WTERMSIG(p->status);
}

void rank_expect(const struct ranks *r, int64_t rank, int status, const char *text) {
    const char *said = r->p[rank].said ? r->p[rank].said : "";
    bool right = text ? strstr(said, text) != NULL : said[0] == 0;
    if (rank_exit(r, rank) == status && right) return;
    for (int64_t i = 0; i < r->world; i++)
        print_message("    rank %lld: status %d, said: %s\n", (long long)i, rank_exit(r, i),
                      r->p[i].said ? r->p[i].said : "");
    fail_msg("rank %lld: status %d, expected %d and \"%s\"", (long long)rank, rank_exit(r, rank), status,
             text ? text : "");
}

void ranks_expect_all(const struct ranks *r, int status, const char *text) {
    for (int64_t rank = 0; rank < r->world; rank++) rank_expect(r, rank, status, text);
}

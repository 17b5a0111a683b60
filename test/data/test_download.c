/* data/download.sh against a server on the loopback interface that misbehaves in the ways of real servers.
 *
 * The server runs in a child process, one connection at a time, and imitates the Hugging Face Hub: a
 * redirect that announces size and SHA-256, then the file from elsewhere. A test chooses its behaviour,
 * which concerns only paths with "train": the other file is always good. */
#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/base/rng.h"

#include <arpa/inet.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 300001, PINNED_SIZE = 1115394 };

enum behaviour {
    GOOD,
    GIT,    /* no redirect; the ETag is git's SHA-1 */
    SILENT, /* says nothing about hash or size */
    NOT_FOUND,
    WEB_PAGE, /* with status 200 */
    EMPTY,
    BUSY_ONCE,
    TRUNCATED_ONCE,
    TRUNCATED_ALWAYS,
    RESET_ONCE,
    WRONG_BYTE,
    SHORT,        /* all headers are of a shorter file, but the Hub announces the whole one */
    MIXED_ONCE,   /* the first half is of another file, which nothing tells */
    CHANGED_ONCE, /* the first half is of another file, as the ETag tells */
    NO_RANGES,    /* breaks off once, then can only send the whole */
    SLOW_ONCE     /* half of it, then nothing for a long time */
};

/* --- the server --- */

struct server {
    pid_t pid;
    int port;
};
static char sha256_announced[80], sha1_announced[80];

static uint8_t body_byte(int version, int64_t i) {
    return (uint8_t)(rng_philox((uint64_t)version, RNG_TEST, (uint64_t)i / 4).v[i % 4]);
}

static void send_text(int fd, const char *text) {
    for (size_t n = strlen(text), done = 0; done < n;) {
        ssize_t sent = send(fd, text + done, n - done, MSG_NOSIGNAL);
        if (sent <= 0) return;
        done += (size_t)sent;
    }
}

/* Bytes [from, to) of the file. */
static void send_body(int fd, int version, int64_t from, int64_t to, int64_t wrong) {
    uint8_t piece[4096];
    while (from < to) {
        int64_t n = min_i64(to - from, (int64_t)sizeof piece);
        for (int64_t i = 0; i < n; i++)
            piece[i] = (uint8_t)(body_byte(version, from + i) ^ (from + i == wrong));
        if (send(fd, piece, (size_t)n, MSG_NOSIGNAL) != n) return;
        from += n;
    }
}

static void answer_file(int fd, enum behaviour how, int hit, bool ranged, int64_t from) {
    char head[512];
    int64_t size = how == SHORT ? SIZE / 2 : how == EMPTY ? 0 : SIZE;
    bool first = hit == 1, breaks = false;
    int version = first && (how == MIXED_ONCE || how == CHANGED_ONCE) ? 2 : 1;
    if (how == TRUNCATED_ONCE || how == RESET_ONCE || how == MIXED_ONCE || how == CHANGED_ONCE ||
        how == NO_RANGES || how == SLOW_ONCE)
        breaks = first;
    if (how == TRUNCATED_ALWAYS) breaks = true;
    if (how == NO_RANGES && ranged) {
        ranged = false;
        from = 0;
    }
    if (ranged && from >= size) {
        send_text(fd, "HTTP/1.1 416 Range Not Satisfiable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 %s\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n"
                     "Content-Length: %lld\r\n",
                     ranged ? "206 Partial Content" : "200 OK", (long long)(size - from));
    if (how == GIT)
        n += snprintf(head + n, sizeof head - (size_t)n, "ETag: W/\"%s\"\r\n", sha1_announced);
    else
        n += snprintf(head + n, sizeof head - (size_t)n, "ETag: \"version-%d\"\r\n",
                      how == CHANGED_ONCE ? version : 1);
    if (ranged)
        n += snprintf(head + n, sizeof head - (size_t)n, "Content-Range: bytes %lld-%lld/%lld\r\n",
                      (long long)from, (long long)size - 1, (long long)size);
    snprintf(head + n, sizeof head - (size_t)n, "\r\n");
    send_text(fd, head);
    send_body(fd, version, from, breaks ? max_i64(from, size / 2) : size, how == WRONG_BYTE ? 1000 : -1);
    if (breaks && how == SLOW_ONCE) {
        char c; /* until the client is gone */
        while (recv(fd, &c, 1, 0) > 0) continue;
    }
    if (breaks && how == RESET_ONCE) {
        usleep(100000); /* what was sent should arrive first */
        struct linger hard = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
}

static void answer(int fd, enum behaviour how, int *hits, int log) {
    char request[4096] = "", path[1024], line[1100];
    for (size_t n = 0; n < sizeof request - 1 && !strstr(request, "\r\n\r\n");) {
        ssize_t got = recv(fd, request + n, sizeof request - 1 - n, 0);
        if (got <= 0) return;
        n += (size_t)got;
        request[n] = 0;
    }
    if (sscanf(request, "GET %1000s", path) != 1) return;
    const char *range = strstr(request, "Range: bytes=");
    int64_t from = range ? atoll(range + 13) : 0;
    snprintf(line, sizeof line, "%s from %lld\n", path, (long long)from);
    if (write(log, line, strlen(line)) < 0) return;
    if (!strstr(path, "train")) how = strstr(path, "resolve") && how == GIT ? GIT : GOOD;
    bool hub = strncmp(path, "/cdn/", 5) != 0 && how != GIT && how != SILENT;
    if (how == NOT_FOUND) {
        send_text(fd, "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Type: text/html\r\n"
                      "Content-Length: 20\r\n\r\n<html>No such</html>");
    } else if (how == WEB_PAGE) {
        send_text(fd, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/html; charset=utf-8\r\n"
                      "Content-Length: 20\r\n\r\n<html>Log in!</html>");
    } else if (how == BUSY_ONCE && strstr(path, "cdn") && ++*hits == 1) {
        send_text(fd, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    } else if (hub && strstr(path, "resolve")) {
        char head[2048];
        snprintf(head, sizeof head,
                 "HTTP/1.1 302 Found\r\nConnection: close\r\nX-Linked-Size: %d\r\nX-Linked-ETag: \"%s\"\r\n"
                 "Location: /cdn%s\r\nContent-Length: 0\r\n\r\n",
                 SIZE, sha256_announced, path);
        send_text(fd, head);
    } else {
        answer_file(fd, how, strstr(path, "train") ? ++*hits : 2, range != NULL, from);
    }
}

static struct server start_server(enum behaviour how) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(listener >= 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    struct server s = {.port = ntohs(address.sin_port), .pid = fork()};
    assert_true(s.pid >= 0);
    if (s.pid == 0) {
        FILE *log = fopen(in_scratch("log"), "w");
        int hits = 0;
        alarm(100);
        for (;;) {
            int fd = accept(listener, NULL, NULL);
            if (fd < 0) _exit(1);
            answer(fd, how, &hits, fileno(log));
            close(fd);
        }
    }
    close(listener);
    return s;
}

static void stop_server(struct server s) {
    kill(s.pid, SIGKILL);
    waitpid(s.pid, NULL, 0);
}

/* --- running the script --- */

static pid_t start_script(struct server s, const char *arguments) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char command[PATH_MAX + 512], endpoint[64];
        setpgid(0, 0);
        snprintf(endpoint, sizeof endpoint, "http://127.0.0.1:%d", s.port);
        setenv("HF_ENDPOINT", endpoint, 1);
        setenv("GITHUB_RAW", endpoint, 1);
        setenv("DOWNLOAD_TRIES", "3", 1);
        setenv("DOWNLOAD_WAIT", "0", 1);
        setenv("no_proxy", "*", 1);
        alarm(60);
        snprintf(command, sizeof command, "exec sh data/download.sh %s --to %s >%s 2>&1", arguments,
                 in_scratch("data"), in_scratch("output"));
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    return child;
}

/* The exit status; what the script said is in @/output. */
static int run_script(struct server s, const char *arguments) {
    int status;
    pid_t child = start_script(s, arguments);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect(struct server s, const char *arguments, int status, const char *mentions) {
    int got = run_script(s, arguments);
    char *output = get_file("output", NULL);
    if (got != status)
        fail_msg("download.sh %s: status %d instead of %d: %s", arguments, got, status, output);
    if (mentions && !strstr(output, mentions))
        fail_msg("download.sh %s: \"%s\" does not mention \"%s\"", arguments, output, mentions);
    free(output);
}

static bool exists(const char *name) { return path_exists(in_scratch("%s", name)); }

#define VALID "data/TinyStoriesV2-GPT4-valid.txt"
#define TRAIN "data/TinyStoriesV2-GPT4-train.txt"

static void assert_whole(const char *name) {
    size_t n = 0;
    char *content = get_file(name, &n), other[128], check_sum[PATH_MAX];
    assert_int_equal(n, SIZE);
    for (int64_t i = 0; i < SIZE; i++) assert_int_equal((uint8_t)content[i], body_byte(1, i));
    free(content);
    static const char *const left[] = {".part", ".part.headers", ".part.etag", ".sha256.tmp"};
    for (size_t i = 0; i < ARRAY_LENGTH(left); i++) {
        snprintf(other, sizeof other, "%s%s", name, left[i]);
        assert_false(exists(other));
    }
    snprintf(check_sum, sizeof check_sum, "cd %s && sha256sum --status -c %s.sha256", in_scratch("data"),
             strrchr(name, '/') + 1);
    assert_int_equal(system(check_sum), 0);
}

static void assert_absent(const char *name) {
    char other[128];
    assert_false(exists(name));
    snprintf(other, sizeof other, "%s.sha256", name);
    assert_false(exists(other));
}

/* Requests for the file itself that did not start at its beginning. */
static int resumed_requests(void) {
    char *log = get_file("log", NULL);
    int count = 0;
    for (char *line = strtok(log, "\n"); line; line = strtok(NULL, "\n"))
        count += strstr(line, "train") && !strstr(line, " from 0") &&
                 (!strstr(line, "resolve") || strstr(line, "/cdn/"));
    free(log);
    return count;
}

static int first_line(char out[80], const char *command) {
    FILE *f = popen(command, "r");
    bool ok = f && fgets(out, 80, f);
    if (ok) out[strcspn(out, " \n")] = 0;
    return f && pclose(f) == 0 && ok ? 0 : -1;
}

static int set_up(void **state) {
    char command[PATH_MAX + 128];
    if (make_scratch(state) != 0) return -1;
    FILE *f = fopen(in_scratch("body"), "wb");
    for (int64_t i = 0; i < SIZE; i++) fputc(body_byte(1, i), f);
    fclose(f);
    snprintf(command, sizeof command, "sha256sum %s/body", scratch_directory());
    if (first_line(sha256_announced, command) != 0) return -1;
    snprintf(command, sizeof command, "(printf 'blob %d\\0'; cat %s/body) | sha1sum", SIZE,
             scratch_directory());
    return first_line(sha1_announced, command);
}

static void need_curl(void) {
    if (system("command -v curl >/dev/null 2>&1") != 0) skip();
}

/* --- tests --- */

static void good_servers_give_verified_files(void **state) {
    need_curl();
    struct server s = start_server(GOOD);
    expect(s, "tinystories", 0, "SHA-256 as announced by the server");
    assert_whole(VALID);
    assert_whole(TRAIN);
    stop_server(s); /* a second time needs no server */
    expect(s, "tinystories", 0, "exists; SHA-256 as at the first download");
    assert_whole(TRAIN);
}

static void small_files_of_the_hub_are_verified_too(void **state) {
    need_curl();
    struct server s = start_server(GIT);
    expect(s, "tinystories", 0, "git SHA-1 as announced by the server");
    assert_whole(TRAIN);
    stop_server(s);
    sha1_announced[5] = sha1_announced[5] == '0' ? '1' : '0';
    assert_int_equal(unlink(in_scratch(TRAIN)), 0);
    s = start_server(GIT);
    expect(s, "tinystories", 1, "git SHA-1");
    assert_false(exists(TRAIN));
    stop_server(s);
}

static void what_nobody_vouches_for_is_recorded(void **state) {
    need_curl();
    struct server s = start_server(SILENT);
    expect(s, "tinystories", 0, "recorded for later comparison");
    assert_whole(TRAIN);
    stop_server(s);
    expect(s, "tinystories", 0, "exists");
    FILE *f = fopen(in_scratch(TRAIN), "r+b");
    fputc(body_byte(1, 0) ^ 1, f);
    fclose(f);
    expect(s, "tinystories", 1, "train.txt.sha256 says");
    assert_true(exists(TRAIN)); /* it is not ours to delete */
    /* The record also holds for a second download. */
    assert_int_equal(unlink(in_scratch(TRAIN)), 0);
    f = fopen(in_scratch(TRAIN ".sha256"), "wb");
    fprintf(f, "%064d  TinyStoriesV2-GPT4-train.txt\n", 0);
    fclose(f);
    s = start_server(SILENT);
    expect(s, "tinystories", 1, "train.txt.sha256 says");
    assert_false(exists(TRAIN));
    stop_server(s);
}

static void refusals_leave_nothing(void **state) {
    need_curl();
    static const struct {
        enum behaviour how;
        const char *mentions;
    } cases[] = {{NOT_FOUND, "the server answers 404"},
                 {WEB_PAGE, "a web page in place of the file"},
                 {WRONG_BYTE, "the server announced"},
                 {SHORT, "has 150000 bytes, the server announced 300001"},
                 {EMPTY, "is empty"}};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct server s = start_server(cases[i].how);
        expect(s, "tinystories", 1, cases[i].mentions);
        stop_server(s);
        assert_whole(VALID); /* what was good before is kept */
        assert_absent(TRAIN);
        assert_false(exists(TRAIN ".part"));
    }
}

static void interrupted_transfers_go_on(void **state) {
    need_curl();
    static const enum behaviour cases[] = {TRUNCATED_ONCE, RESET_ONCE};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct server s = start_server(cases[i]);
        expect(s, "tinystories", 0, "interrupted after");
        stop_server(s);
        assert_whole(TRAIN);
        assert_int_equal(resumed_requests(), 1);
        assert_int_equal(unlink(in_scratch(TRAIN)), 0);
        assert_int_equal(unlink(in_scratch(TRAIN ".sha256")), 0);
    }
}

static void busy_servers_are_asked_again(void **state) {
    need_curl();
    struct server s = start_server(BUSY_ONCE);
    expect(s, "tinystories", 0, NULL);
    stop_server(s);
    assert_whole(TRAIN);
}

static void hopeless_transfers_keep_what_came(void **state) {
    need_curl();
    struct server s = start_server(TRUNCATED_ALWAYS);
    expect(s, "tinystories", 1, "was interrupted 3 times");
    stop_server(s);
    assert_absent(TRAIN);
    struct stat st;
    assert_int_equal(stat(in_scratch(TRAIN ".part"), &st), 0);
    assert_int_equal(st.st_size, SIZE / 2);
    s = start_server(GOOD); /* another day */
    expect(s, "tinystories", 0, NULL);
    stop_server(s);
    assert_whole(TRAIN);
    assert_int_equal(resumed_requests(), 1);
}

static void parts_of_different_files_are_not_mixed(void **state) {
    need_curl();
    static const struct {
        enum behaviour how;
        const char *mentions;
    } cases[] = {{CHANGED_ONCE, "has changed since"}, {NO_RANGES, "cannot continue"}};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct server s = start_server(cases[i].how);
        expect(s, "tinystories", 0, cases[i].mentions);
        stop_server(s);
        assert_whole(TRAIN);
        assert_int_equal(unlink(in_scratch(TRAIN)), 0);
        assert_int_equal(unlink(in_scratch(TRAIN ".sha256")), 0);
    }
    /* Cases where only the hash shows the error, within one run and between two. */
    struct server s = start_server(MIXED_ONCE);
    expect(s, "tinystories", 0, "starting again");
    stop_server(s);
    assert_whole(TRAIN);
    assert_int_equal(unlink(in_scratch(TRAIN)), 0);
    FILE *f = fopen(in_scratch(TRAIN ".part"), "wb");
    for (int i = 0; i < 1000; i++) fputc('x', f);
    fclose(f);
    s = start_server(GOOD);
    expect(s, "tinystories", 0, "starting again");
    stop_server(s);
    assert_whole(TRAIN);
}

static void a_complete_part_is_enough(void **state) {
    need_curl();
    struct server s = start_server(GOOD);
    expect(s, "tinystories", 0, NULL);
    assert_int_equal(rename(in_scratch(TRAIN), in_scratch(TRAIN ".part")), 0);
    assert_int_equal(unlink(in_scratch(TRAIN ".sha256")), 0);
    expect(s, "tinystories", 0, NULL);
    stop_server(s);
    assert_whole(TRAIN);
}

static void killed_in_the_middle(void **state) {
    need_curl();
    struct server s = start_server(SLOW_ONCE);
    pid_t child = start_script(s, "tinystories");
    struct stat st = {0};
    for (int i = 0; i < 3000; i++) {
        if (stat(in_scratch(TRAIN ".part"), &st) == 0 && st.st_size >= 100000) break;
        usleep(10000);
    }
    assert_true(st.st_size >= 100000);
    kill(-child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_absent(TRAIN);
    expect(s, "tinystories", 0, NULL);
    stop_server(s);
    assert_whole(TRAIN);
    assert_int_equal(resumed_requests(), 1);
}

static void pinned_hashes_are_compared(void **state) {
    need_curl();
    struct server s = start_server(SILENT); /* a file of another size under that address */
    expect(s, "tinyshakespeare", 1, "has 300001 bytes, expected 1115394");
    assert_absent("data/input.txt");
    expect(s, "hellaswag", 1, "expected 0aa3b88843990f3f");
    assert_absent("data/hellaswag_val.jsonl");
    expect(s, "lambada", 1, "has 300001 bytes, expected 1819752");
    assert_absent("data/lambada_test.jsonl");
    expect(s, "gpt2", 1, "expected 548105171");
    assert_absent("data/model.safetensors");
    assert_whole("data/tokenizer.json");
    stop_server(s);
}

static void shards_by_number(void **state) {
    need_curl();
    struct server s = start_server(GOOD);
    expect(s, "fineweb10B --shards 2", 0, "fineweb_train_*.bin' --val '");
    stop_server(s);
    assert_whole("data/fineweb_val_000000.bin");
    assert_whole("data/fineweb_train_000001.bin");
    assert_whole("data/fineweb_train_000002.bin");
    assert_absent("data/fineweb_train_000003.bin");
}

static void the_command_line_is_checked(void **state) {
    struct server none = {.port = 1};
    expect(none, "tinystorys", 1, "tinystorys: no such data set or model; the names are listed above");
    expect(none, "tinystorys", 1, "fineweb-edu10B"); /* the list */
    expect(none, "GPT2", 1, "GPT2: no such data set or model");
    expect(none, "gpt2 --shards 3", 1, "--shards: gpt2 has no shards; fineweb10B and fineweb-edu10B have");
    expect(none, "fineweb10B --shards 104", 1, "--shards 104: fineweb10B has 103 training shards");
    expect(none, "fineweb10B --shards 0", 1, "--shards 0");
    expect(none, "fineweb10B --shards x", 1, "--shards x");
    expect(none, "--frobnicate", 1, "unknown option");
    expect(none, "gpt2 gpt2-xl", 1, "one name at a time");
    expect(none, "--help", 0, "usage:");
    need_curl();
    expect(none, "tinystories", 1, "was interrupted 3 times"); /* nobody listens */
    assert_absent(TRAIN);
}

int main(int argc, char **argv) {
#define SCRATCH(f) cmocka_unit_test_setup_teardown(f, set_up, remove_scratch)
    const struct CMUnitTest tests[] = {
        SCRATCH(good_servers_give_verified_files),    SCRATCH(small_files_of_the_hub_are_verified_too),
        SCRATCH(what_nobody_vouches_for_is_recorded), SCRATCH(refusals_leave_nothing),
        SCRATCH(interrupted_transfers_go_on),         SCRATCH(busy_servers_are_asked_again),
        SCRATCH(hopeless_transfers_keep_what_came),   SCRATCH(parts_of_different_files_are_not_mixed),
        SCRATCH(a_complete_part_is_enough),           SCRATCH(killed_in_the_middle),
        SCRATCH(pinned_hashes_are_compared),          SCRATCH(shards_by_number),
        SCRATCH(the_command_line_is_checked),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

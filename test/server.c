/* Starting and asking a server: see server.h. */
#include "test/server.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct server server;

void start_server(const char *arguments) {
    const char *build = getenv("BUILD");
    char *command = xasprintf("exec '%s/train_gpt' %s", build && *build ? build : "build", arguments);
    int out[2];
    assert_int_equal(pipe(out), 0);
    fflush(NULL);
    server.process = fork();
    assert_true(server.process >= 0);
    if (server.process == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* whatever becomes of the test, nothing stays behind */
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    server.out = out[0];
    free(command);
    char text[1024] = "";
    size_t size = 0;
    const char *end = NULL, *at = NULL;
    while (!end) {
        ssize_t n = read(server.out, text + size, sizeof text - 1 - size);
        if (n <= 0) fail_msg("the server ends: %s", text);
        text[size += (size_t)n] = 0;
        if ((at = strstr(text, "http://")) != NULL) end = strchr(at, '\n');
    }
    snprintf(server.url, sizeof server.url, "%.*s", (int)(end - at), at);
    server.port = atoi(strrchr(server.url, ':') + 1);
    assert_true(server.port > 0);
}

void stop_server(void) {
    int status;
    if (server.process <= 0) return;
    kill(server.process, SIGTERM);
    assert_int_equal(waitpid(server.process, &status, 0), server.process);
    server.process = 0;
    close(server.out);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int connect_server(void) {
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)server.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

char *send_text(const char *text) {
    int fd = connect_server();
    size_t size = 0, capacity = 1 << 22;
    char *answer = (char *)xcalloc(1, capacity);
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
    for (ssize_t n; (n = recv(fd, answer + size, capacity - 1 - size, 0)) > 0;) size += (size_t)n;
    close(fd);
    return answer;
}

int status_of(const char *request, const char *host, const char *more) {
    char *text = xasprintf("%s HTTP/1.1\r\n%s%s%s%sConnection: close\r\n\r\n", request, host ? "Host: " : "",
                           host ? host : "", host ? "\r\n" : "", more);
    char *answer = send_text(text);
    int status = 0;
    sscanf(answer, "HTTP/1.1 %d", &status);
    free(answer);
    free(text);
    return status;
}

static json_t *json_of(const char *request, int *status) {
    char *answer = send_text(request), *body = strstr(answer, "\r\n\r\n");
    json_error_t why;
    int got = 0;
    assert_non_null(body);
    sscanf(answer, "HTTP/1.1 %d", &got);
    if (status) *status = got;
    if (!status) assert_int_equal(got, 200);
    json_t *root = json_loads(body + 4, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (!root && got == 200) fail_msg("%s: %s", request, why.text);
    free(answer);
    return root;
}

json_t *get(const char *path) {
    char *text =
        xasprintf("GET %s HTTP/1.1\r\nHost: localhost:%d\r\nConnection: close\r\n\r\n", path, server.port);
    json_t *root = json_of(text, NULL);
    free(text);
    return root;
}

json_t *post(const char *path, const char *body, int *status) {
    char *text =
        xasprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
                  path, strlen(body), body);
    json_t *root = json_of(text, status);
    free(text);
    return root;
}

void kill_server(void) {
    if (server.process <= 0) return;
    kill(server.process, SIGKILL);
    waitpid(server.process, NULL, 0);
    server.process = 0;
}

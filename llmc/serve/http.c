/* libmicrohttpd runs in the thread that calls http_serve(). A request is judged by its headers before
 * any of its body is kept. While its answer is to come later, its connection is suspended: the library
 * asks for the answer again when it is resumed. */
#include "llmc/serve/http.h"

#include "llmc/report/page.h"

#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <microhttpd.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

/* An open connection; NULL: none. */
struct connection {
    struct MHD_Connection *mhd;
    struct http_later *later; /* the answer that it waits for; NULL: none */
    double since; /* http->waited when its next request could begin; INFINITY while one is answered */
};

struct http {
    struct MHD_Daemon *daemon;
    struct http_options o;
    int port;
    bool loopback;
    char token[33]; /* "": none is needed */
    char url[128];
    struct connection open[HTTP_CONNECTIONS];
    double waited; /* seconds for which requests could arrive: without those in which one was answered */
};

struct http_later {
    struct MHD_Connection *mhd; /* NULL: it is closed */
    bool suspended, ready, streaming, ended;
    struct http_answer answer; /* in one piece */
    char *text;                /* of a stream: what is not sent yet */
    size_t size, sent, capacity;
};

/* One request, while it arrives. */
struct arriving {
    struct http_later *later; /* the handler was called, and the answer comes later */
    int refused;              /* status; 0: it is good so far */
    const char *reason;
    char *body;
    size_t size;
};

/* --- who asks --- */

/* "localhost" and addresses in digits: of loopback, or on another interface any. None of them is a name
 * that an attacker can own. */
static bool trusted_name(const char *name, bool loopback) {
    struct in_addr four;
    struct in6_addr six;
    if (strcasecmp(name, "localhost") == 0) return true;
    if (inet_pton(AF_INET, name, &four) == 1) return !loopback || ntohl(four.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, name, &six) == 1 && (!loopback || IN6_IS_ADDR_LOOPBACK(&six));
}

/* "NAME", "NAME:PORT" or "[NAME]:PORT". The port may be another one: that of a tunnel. */
static bool trusted_host(const char *host, bool loopback) {
    char name[64], *end;
    bool bracket = host[0] == '[';
    if (strlen(host) >= sizeof name) return false;
    strcpy(name, host + bracket);
    end = strchr(name, bracket ? ']' : ':');
    if (!end && bracket) return false;
    const char *port = end ? end + bracket : "";
    if (*port && (*port != ':' || !port[1] || strspn(port + 1, "0123456789") != strlen(port + 1)))
        return false;
    if (end) *end = 0;
    return trusted_name(name, loopback);
}

bool http_same_site(const char *host, const char *origin, bool loopback) {
    if (!host || !trusted_host(host, loopback)) return false;
    return !origin || (strncmp(origin, "http://", 7) == 0 && strcasecmp(origin + 7, host) == 0);
}

static const char *header(struct MHD_Connection *c, const char *name) {
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
}

/* Takes the same time whatever the difference. */
static bool has_token(const struct http *h, struct MHD_Connection *c) {
    const char *given = header(c, "Authorization"), *wanted = temp_printf("Bearer %s", h->token);
    unsigned char different = 0;
    if (!given || strlen(given) != strlen(wanted)) return false;
    for (size_t i = 0; wanted[i]; i++) different |= (unsigned char)(given[i] ^ wanted[i]);
    return different == 0;
}

/* The page at "/", or its part of this name; NULL: the path is another one. */
static const char *part_at(const struct http *h, const char *path, size_t *size, const char **type) {
    return h->o.page && path[0] == '/' ? page_part(path[1] ? path + 1 : h->o.page, size, type) : NULL;
}

static void judge(struct arriving *a, const struct http *h, struct MHD_Connection *c, const char *method,
                  const char *path) {
    bool post = strcmp(method, "POST") == 0;
    size_t size;
    const char *type;
    if (!http_same_site(header(c, "Host"), header(c, "Origin"), h->loopback)) {
        a->refused = MHD_HTTP_FORBIDDEN;
        a->reason = "This address is not the one that the program has printed.\n";
    } else if (!post && strcmp(method, "GET") != 0) {
        a->refused = MHD_HTTP_METHOD_NOT_ALLOWED;
        a->reason = "Only GET and POST.\n";
    } else if (h->token[0] && (post || !part_at(h, path, &size, &type)) && !has_token(h, c)) {
        a->refused = MHD_HTTP_UNAUTHORIZED;
        a->reason = "The token is missing: open the whole address that the program has printed.\n";
    }
}

static struct connection *connection_of(struct http *h, const struct MHD_Connection *c) {
    int i = 0;
    while (i < HTTP_CONNECTIONS && h->open[i].mhd != c) i++;
    check(i < HTTP_CONNECTIONS, "a connection of the web server is not in its list");
    return &h->open[i];
}

/* --- requests --- */

const char *http_parameter(const struct http_request *q, const char *name) {
    return MHD_lookup_connection_value((struct MHD_Connection *)q->connection, MHD_GET_ARGUMENT_KIND, name);
}

double http_number(const struct http_request *q, const char *name, double otherwise) {
    const char *text = http_parameter(q, name);
    char *end;
    double v = text ? strtod(text, &end) : NAN;
    return text && *text && !*end && isfinite(v) ? v : otherwise;
}

/* --- answers --- */

void http_answer_json(struct http_answer *a, char *text) {
    *a = (struct http_answer){
        .status = MHD_HTTP_OK, .type = "application/json", .body = text, .size = strlen(text)};
}

void http_answer_wrong(struct http_answer *a, int status, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *text = xvasprintf(fmt, ap);
    va_end(ap);
    *a = (struct http_answer){.status = status, .type = "text/plain", .body = text, .size = strlen(text)};
}

/* The page may load its own scripts and styles from here, and nothing from elsewhere. */
static const char *const answer_headers[][2] = {
    {"Content-Security-Policy",
     "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
     "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
    {"X-Content-Type-Options", "nosniff"},
    {"Cross-Origin-Resource-Policy", "same-origin"},
    {"Cross-Origin-Opener-Policy", "same-origin"},
    {"Referrer-Policy", "no-referrer"},
    {"Cache-Control", "no-store"},
};

static enum MHD_Result queue(struct MHD_Connection *c, struct MHD_Response *r, int status, const char *type) {
    for (size_t i = 0; i < ARRAY_LENGTH(answer_headers); i++)
        MHD_add_response_header(r, answer_headers[i][0], answer_headers[i][1]);
    MHD_add_response_header(r, "Content-Type", temp_printf("%s; charset=utf-8", type));
    enum MHD_Result sent = MHD_queue_response(c, (unsigned)status, r);
    MHD_destroy_response(r);
    return sent;
}

static enum MHD_Result send_answer(struct MHD_Connection *c, struct http_answer *a) {
    struct MHD_Response *r = a->body
                                 ? MHD_create_response_from_buffer(a->size, a->body, MHD_RESPMEM_MUST_FREE)
                                 : MHD_create_response_from_buffer(a->size, (void *)(uintptr_t)a->constant,
                                                                   MHD_RESPMEM_PERSISTENT);
    return r ? queue(c, r, a->status, a->type) : MHD_NO;
}

/* --- answers that come later --- */

struct http_later *http_answer_later(const struct http_request *q) {
    struct http_later *l = (struct http_later *)xcalloc(1, sizeof *l);
    l->mhd = (struct MHD_Connection *)q->connection;
    ((struct arriving *)q->arriving)->later = l;
    return l;
}

/* When neither the library nor the program needs it. */
static void free_later(struct http_later *l) {
    if (l->mhd || !l->ended) return;
    free(l->text);
    free(l->answer.body);
    free(l);
}

static void suspend(struct http_later *l) {
    l->suspended = true;
    MHD_suspend_connection(l->mhd);
}

static void resume(struct http_later *l) {
    if (!l->suspended) return;
    l->suspended = false;
    MHD_resume_connection(l->mhd);
}

void http_finish(struct http_later *l, const struct http_answer *answer) {
    l->answer = *answer;
    l->ready = l->ended = true;
    if (l->mhd) resume(l);
    free_later(l);
}

void http_stream(struct http_later *l, const char *text) {
    size_t length = strlen(text);
    if (!l->mhd) return;
    if (l->size + length > l->capacity) {
        l->capacity = 2 * (l->size + length);
        l->text = (char *)xrealloc(l->text, l->capacity);
    }
    memcpy(l->text + l->size, text, length);
    l->size += length;
    l->ready = l->streaming = true;
    resume(l);
}

void http_stream_end(struct http_later *l) {
    l->ready = l->streaming = l->ended = true;
    if (l->mhd) resume(l);
    free_later(l);
}

bool http_gone(const struct http_later *l) {
    if (!l->mhd) return true;
    const union MHD_ConnectionInfo *fd = MHD_get_connection_info(l->mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    char byte;
    ssize_t n = fd ? recv(fd->connect_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) : 0;
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

static ssize_t read_stream(void *user, uint64_t at, char *to, size_t room) {
    struct http_later *l = (struct http_later *)user;
    size_t n = l->size - l->sent < room ? l->size - l->sent : room;
    if (n > 0) {
        memcpy(to, l->text + l->sent, n);
        l->sent += n;
        if (l->sent == l->size) l->sent = l->size = 0;
        return (ssize_t)n;
    }
    if (l->ended) return MHD_CONTENT_READER_END_OF_STREAM;
    suspend(l);
    return 0;
}

static enum MHD_Result send_later(struct MHD_Connection *c, struct http_later *l) {
    if (!l->ready) {
        suspend(l);
        return MHD_YES;
    }
    if (!l->streaming) {
        enum MHD_Result sent = send_answer(c, &l->answer);
        l->answer.body = NULL; /* the library's */
        return sent;
    }
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_stream, l, NULL);
    return r ? queue(c, r, MHD_HTTP_OK, "text/event-stream") : MHD_NO;
}

/* --- arriving --- */

/* What does not fit is not kept. */
static void take_body(struct arriving *a, size_t most, const char *data, size_t size) {
    if (a->size + size > most && !a->refused) {
        a->refused = MHD_HTTP_CONTENT_TOO_LARGE;
        a->reason = "The text is too long.\n";
    }
    if (a->refused) return;
    a->body = (char *)xrealloc(a->body, a->size + size + 1);
    memcpy(a->body + a->size, data, size);
    a->size += size;
    a->body[a->size] = 0;
}

static enum MHD_Result refuse(const struct http *h, struct MHD_Connection *c, int status,
                              const char *reason) {
    struct http_answer answer = {
        .status = status, .type = "text/plain", .constant = reason, .size = strlen(reason)};
    if (h->o.refuse) h->o.refuse(&answer, status, temp_printf("%.*s", (int)strcspn(reason, "\n"), reason));
    return send_answer(c, &answer);
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *c, const char *path, const char *method,
                                  const char *version, const char *data, size_t *size, void **state) {
    struct http *h = (struct http *)user;
    struct arriving *a = (struct arriving *)*state;
    if (!a) {
        *state = a = (struct arriving *)xcalloc(1, sizeof *a);
        judge(a, h, c, method, path);
        return a->refused ? refuse(h, c, a->refused, a->reason) : MHD_YES; /* without waiting for a body */
    }
    if (a->later) return send_later(c, a->later);
    if (*size > 0) {
        take_body(a, h->o.body_max ? h->o.body_max : HTTP_BODY_MAX, data, *size);
        *size = 0;
        return MHD_YES;
    }
    if (a->refused) return refuse(h, c, a->refused, a->reason);
    struct http_answer answer = {.status = MHD_HTTP_NOT_FOUND};
    struct http_request q = {path, strcmp(method, "POST") == 0, a->body ? a->body : "", a->size, c, a};
    size_t length;
    const char *type, *part = q.post ? NULL : part_at(h, path, &length, &type);
    connection_of(h, c)->since = INFINITY;
    if (part)
        answer = (struct http_answer){.status = MHD_HTTP_OK, .type = type, .constant = part, .size = length};
    else
        h->o.handle(h->o.user, &q, &answer);
    if (a->later) {
        connection_of(h, c)->later = a->later;
        return send_later(c, a->later);
    }
    if (answer.status == MHD_HTTP_NOT_FOUND && !answer.body && !answer.constant)
        return refuse(h, c, MHD_HTTP_NOT_FOUND, "Not found.\n");
    return send_answer(c, &answer);
}

static void on_end(void *user, struct MHD_Connection *c, void **state, enum MHD_RequestTerminationCode why) {
    struct http *h = (struct http *)user;
    struct arriving *a = (struct arriving *)*state;
    if (a && a->later) {
        a->later->mhd = NULL;
        free_later(a->later);
    }
    if (a) free(a->body);
    free(a);
    *state = NULL;
    connection_of(h, c)->since = h->waited;
    connection_of(h, c)->later = NULL;
}

static void on_connection(void *user, struct MHD_Connection *c, void **state,
                          enum MHD_ConnectionNotificationCode what) {
    struct http *h = (struct http *)user;
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        *connection_of(h, NULL) = (struct connection){c, NULL, h->waited};
    else
        connection_of(h, c)->mhd = NULL;
}

/* Clients that send a byte now and then would keep others out. */
static void drop_slow_clients(struct http *h) {
    for (int i = 0; i < HTTP_CONNECTIONS; i++) {
        if (!h->open[i].mhd || h->waited - h->open[i].since < HTTP_ARRIVAL) continue;
        const union MHD_ConnectionInfo *fd =
            MHD_get_connection_info(h->open[i].mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        if (fd) shutdown(fd->connect_fd, SHUT_RDWR); /* MHD then closes it */
    }
}

/* --- opening --- */

static bool is_loopback(const struct sockaddr *a) {
    if (a->sa_family == AF_INET) return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static int port_of(int fd) {
    struct sockaddr_storage a;
    socklen_t size = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &size) != 0) return 0;
    return ntohs(a.ss_family == AF_INET ? ((struct sockaddr_in *)&a)->sin_port
                                        : ((struct sockaddr_in6 *)&a)->sin6_port);
}

/* A listening socket, or -1 with errno. */
static int listen_at(const char *address, int64_t port, struct http *h) {
    struct addrinfo *found, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    if (getaddrinfo(address, temp_printf("%d", (int)port), &hints, &found) != 0) {
        errno = EADDRNOTAVAIL;
        return -1;
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), yes = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (fd >= 0 && (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, HTTP_CONNECTIONS) != 0)) {
        int why = errno;
        close(fd);
        errno = why;
        fd = -1;
    }
    h->loopback = is_loopback(found->ai_addr);
    freeaddrinfo(found);
    return fd;
}

static bool make_token(char token[33]) {
    unsigned char bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) return false;
    for (size_t i = 0; i < sizeof bytes; i++) snprintf(token + 2 * i, 3, "%02x", bytes[i]);
    return true;
}

/* A listening socket on the first free port, or -1. */
static int find_port(struct http *h, struct error *err) {
    const struct http_options *o = &h->o;
    int64_t last = o->port ? min_i64(65535, o->port + HTTP_PORTS - 1) : 0;
    for (int64_t port = o->port; port <= last; port++) {
        int fd = listen_at(o->address, port, h);
        if (fd >= 0 && port != o->port) warn("port %d is in use; this is port %d", (int)o->port, (int)port);
        if (fd >= 0) return fd;
        if (errno != EADDRINUSE) break;
    }
    fail(err, "--bind %s --port %d: cannot listen there: %s", o->address, (int)o->port, strerror(errno));
    return -1;
}

static void make_url(struct http *h) {
    bool six = strchr(h->o.address, ':') != NULL;
    snprintf(h->url, sizeof h->url, "http://%s%s%s:%d/%s%s", six ? "[" : "", h->o.address, six ? "]" : "",
             h->port, h->token[0] ? "#token=" : "", h->token);
}

struct http *http_open(const struct http_options *options, struct error *err) {
    struct http *h = (struct http *)xcalloc(1, sizeof *h);
    h->o = *options;
    int fd = find_port(h, err);
    if (fd < 0) {
        free(h);
        return NULL;
    }
    h->port = port_of(fd);
    if ((h->loopback && !options->token) || make_token(h->token))
        h->daemon = MHD_start_daemon(
            MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request, h, MHD_OPTION_LISTEN_SOCKET, fd,
            MHD_OPTION_NOTIFY_COMPLETED, on_end, h, MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
            MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
            (unsigned)HTTP_TIMEOUT, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)(32 << 10), MHD_OPTION_END);
    if (!h->daemon) {
        close(fd);
        free(h);
        fail(err, "the web server cannot be started");
        return NULL;
    }
    make_url(h);
    return h;
}

const char *http_url(const struct http *h) { return h->url; }
int http_port(const struct http *h) { return h->port; }

static volatile sig_atomic_t stop;
static void on_signal(int number) { stop = number; }

void http_serve(struct http *h) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal};
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++) sigaction(numbers[i], &action, NULL);
    bool busy = false;
    for (double before = now_seconds(), now; !stop && MHD_run_wait(h->daemon, busy ? 0 : 500) == MHD_YES;
         before = now) {
        busy = h->o.work && h->o.work(h->o.user);
        now = now_seconds();
        h->waited += fmin(0.5, now - before);
        drop_slow_clients(h);
    }
}

void http_close(struct http *h) {
    if (!h) return;
    for (int i = 0; i < HTTP_CONNECTIONS; i++) /* MHD cannot close what is suspended */
        if (h->open[i].mhd && h->open[i].later) resume(h->open[i].later);
    MHD_stop_daemon(h->daemon);
    free(h);
}

/* A small web server for pages that show this machine's files, and for answers of a model, to the person
 * who started the program.
 *
 * What it guards against: other web sites, which a browser lets send requests to any address (the
 * headers Host and Origin must name this server; DNS rebinding changes them), other machines (it listens
 * on the loopback interface, or asks for a random token), and clients that send too much, too slowly or
 * too often. libmicrohttpd parses HTTP. A request chooses among what the program offers, by path and
 * number; no part of it is ever used as the name of a file. */
#ifndef LLMC_HTTP_H
#define LLMC_HTTP_H

#include "llmc/base/base.h"

enum {
    HTTP_BODY_MAX = 1 << 17, /* bytes of a request's body */
    HTTP_CONNECTIONS = 32,
    HTTP_TIMEOUT = 20, /* seconds without progress, then the connection is closed */
    HTTP_ARRIVAL = 10, /* seconds in which a request must have arrived */
    HTTP_PORTS = 64    /* ports that are tried, if some are in use */
};

struct http_request {
    const char *path; /* "/series", decoded */
    bool post;        /* else GET */
    const char *body; /* of a POST; a NUL follows */
    size_t body_size;
    void *connection, *arriving; /* private to http.c */
};
/* A parameter of the address, decoded; NULL if it is not there. */
const char *http_parameter(const struct http_request *request, const char *name);
/* The same as a number; `otherwise` if it is not there, or is no finite number. */
double http_number(const struct http_request *request, const char *name, double otherwise);

struct http_answer {
    int status;           /* 404 unless the handler sets it */
    const char *type;     /* "application/json" */
    const void *constant; /* a body that outlives the answer, or */
    char *body;           /* one that the server frees */
    size_t size;
};
/* Answers with JSON text, which the server frees. */
void http_answer_json(struct http_answer *answer, char *text);
/* Answers a request with a sentence about what is wrong with it. */
void http_answer_wrong(struct http_answer *answer, int status, const char *fmt, ...) LLMC_PRINTF(3, 4);

/* Answers what is no part of a page. */
typedef void http_handle_fn(void *user, const struct http_request *request, struct http_answer *answer);

/* An answer that comes after the handler has returned, in one piece or as a stream of text that is sent
 * as it comes. The handler calls http_answer_later(); the program ends each by http_finish() or
 * http_stream_end(), also of a client that has gone, and forgets it then. */
struct http_later;
struct http_later *http_answer_later(const struct http_request *request);
void http_finish(struct http_later *later, const struct http_answer *answer);
/* More of a stream of server-sent events; the first call begins it, with status 200. */
void http_stream(struct http_later *later, const char *text);
void http_stream_end(struct http_later *later);
/* Whether the client has hung up, so that nobody waits for more. */
bool http_gone(const struct http_later *later);

struct http;
struct http_options {
    const char *address; /* numeric */
    int64_t port;        /* the first that is tried; 0: any */
    bool token;          /* ask for the token on loopback, too, where others may have accounts */
    /* "watch.html", the answer to "/". It and its parts, "/page.css" and the like (report/page.h), hold no
     * data and need no token. */
    const char *page; /* NULL: there is none */
    http_handle_fn *handle;
    void *user;
    size_t body_max; /* bytes of a request's body; 0: HTTP_BODY_MAX */
    /* What the program does between requests; false: it has nothing to do until the next one. Or NULL. */
    bool (*work)(void *user);
    /* Words the server's own refusals, given as sentences; NULL: as plain text. */
    void (*refuse)(struct http_answer *answer, int status, const char *sentence);
};
struct http *http_open(const struct http_options *options, struct error *err);
/* "http://127.0.0.1:8100/", with the token behind "#" if there is one. */
const char *http_url(const struct http *http);
int http_port(const struct http *http);
/* Answers requests in the calling thread, until SIGINT, SIGTERM or SIGHUP. */
void http_serve(struct http *http);
void http_close(struct http *http);

/* Whether a browser that sends these two headers (NULL: missing) looks at this server, and not at another
 * site's page. `loopback`: the server listens there only; else Host may be any address that is a number. */
bool http_same_site(const char *host, const char *origin, bool loopback);

#endif

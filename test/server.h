/* A command of train_gpt that serves a page, started and asked as a browser would, on the loopback
 * interface. */
#ifndef LLMC_TEST_SERVER_H
#define LLMC_TEST_SERVER_H

#include "test/test.h"

#include <jansson.h>
#include <sys/types.h>

struct server {
    pid_t process; /* 0: none */
    int out;       /* its standard output */
    char url[256]; /* as it has printed it */
    int port;
};
extern struct server server;

/* Runs `train_gpt ARGUMENTS` and waits for the address that it prints. */
void start_server(const char *arguments);
/* Tells it to end; fails the test unless it does so with status 0. */
void stop_server(void);
/* After a test that has failed. */
void kill_server(void);

int connect_server(void);
/* The answer to these bytes, up to the end of the connection; the caller frees. */
char *send_text(const char *text);
/* The status of "GET /path" or another request line, from this Host (NULL: none), with more header lines. */
int status_of(const char *request, const char *host, const char *more);
/* The JSON behind a path, and what comes back for a body; *status may be NULL, which wants 200. */
json_t *get(const char *path);
json_t *post(const char *path, const char *body, int *status);

#endif

/* Every wait is a poll() until the deadline, so that no peer can block the caller for longer. */
#include "llmc/process/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* --- addresses --- */

struct net_address net_local(int fd) {
    struct net_address a = {.size = sizeof a.addr};
    check(getsockname(fd, (struct sockaddr *)&a.addr, &a.size) == 0, "getsockname: %s", strerror(errno));
    return a;
}

struct net_address net_remote(int fd) {
    struct net_address a = {.size = sizeof a.addr};
    if (getpeername(fd, (struct sockaddr *)&a.addr, &a.size) != 0)
        memset(&a, 0, sizeof a); /* already closed */
    return a;
}

int net_port(const struct net_address *a) {
    return ntohs(a->addr.ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)&a->addr)->sin6_port
                                               : ((const struct sockaddr_in *)&a->addr)->sin_port);
}

bool net_is_loopback(const struct net_address *a) {
    if (a->addr.ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)&a->addr)->sin_addr.s_addr) >> 24 == 127;
    if (a->addr.ss_family != AF_INET6) return false;
    const struct in6_addr *v6 = &((const struct sockaddr_in6 *)&a->addr)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == 127);
}

const char *net_text(const struct net_address *a) {
    char host[INET6_ADDRSTRLEN + 8], port[8];
    if (getnameinfo((const struct sockaddr *)&a->addr, a->size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return "an unknown address";
    return temp_printf(a->addr.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* The addresses of host:port; the caller frees. NULL with the reason. */
static struct addrinfo *resolve(const char *host, int port, struct error *err) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *list = NULL;
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    int status = getaddrinfo(host, service, &hints, &list);
    if (status == 0) return list;
    fail(err, "%s: %s", host, status == EAI_SYSTEM ? strerror(errno) : gai_strerror(status));
    return NULL;
}

/* --- listening --- */

static int listen_at(const struct sockaddr *addr, socklen_t size, struct error *err) {
    struct net_address a = {.size = size};
    memcpy(&a.addr, addr, size);
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1, off = 0;
    if (fd >= 0) {
        /* otherwise a restart would have to wait a minute for the port */
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (addr->sa_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        if (bind(fd, addr, size) == 0 && listen(fd, SOMAXCONN) == 0) return fd;
    }
    int reason = errno;
    if (reason == EADDRINUSE)
        fail(err, "%s: the port is in use by another program or run; set MASTER_PORT to a free one",
             net_text(&a));
    else
        fail(err, "%s: cannot listen: %s", net_text(&a), strerror(reason));
    if (fd >= 0) close(fd);
    errno = reason;
    return -1;
}

int net_listen_any(int port, struct error *err) {
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    int fd = listen_at((struct sockaddr *)&v6, sizeof v6, err);
    if (fd >= 0 || errno == EADDRINUSE) return fd;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    return listen_at((struct sockaddr *)&v4, sizeof v4, err);
}

int net_listen(const char *host, int port, struct error *err) {
    struct addrinfo *list = resolve(host, port, err);
    if (!list) return -1;
    int fd = -1, reason = 0;
    for (struct addrinfo *a = list; a && fd < 0 && reason != EADDRINUSE; a = a->ai_next) {
        fd = listen_at(a->ai_addr, a->ai_addrlen, err);
        reason = errno;
    }
    freeaddrinfo(list);
    return fd;
}

/* Messages are small and wait for answers. */
static int send_at_once(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

void net_adopt(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
}

int net_accept(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return fd < 0 ? -1 : send_at_once(fd);
}

/* --- waiting --- */

/* False: the deadline has passed. */
static bool wait_for(int fd, short events, double deadline) {
    for (;;) {
        double left = deadline - now_seconds();
        if (left <= 0) return false;
        struct pollfd p = {fd, events, 0};
        int n = poll(&p, 1, (int)(1000.0 * fmin(left, 1000.0)) + 1);
        if (n > 0) return true;
        check(n == 0 || errno == EINTR, "poll: %s", strerror(errno));
    }
}

/* --- connecting --- */

/* One attempt at one address. -1 with the reason. */
static int connect_to(const struct net_address *a, double deadline, struct error *err) {
    int fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), reason = 0;
    socklen_t size = sizeof reason;
    if (fd < 0) {
        fail(err, "%s: %s", net_text(a), strerror(errno));
        return -1;
    }
    if (connect(fd, (const struct sockaddr *)&a->addr, a->size) != 0) {
        reason = errno;
        if (reason == EINPROGRESS || reason == EINTR)
            reason = !wait_for(fd, POLLOUT, deadline)                            ? ETIMEDOUT
                     : getsockopt(fd, SOL_SOCKET, SO_ERROR, &reason, &size) == 0 ? reason
                                                                                 : errno;
    }
    if (reason == 0) {
        /* If nobody listens there, and the system gave this socket that very port, it connects to
         * itself. */
        struct net_address here = net_local(fd);
        if (here.size != a->size || memcmp(&here.addr, &a->addr, a->size) != 0) return send_at_once(fd);
        reason = ECONNREFUSED;
    }
    fail(err, "%s: %s", net_text(a), strerror(reason));
    close(fd);
    return -1;
}

int net_connect(const char *host, int port, double deadline, struct error *err) {
    struct addrinfo *list = resolve(host, port, err);
    int fd = -1;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        struct net_address at = {.size = a->ai_addrlen};
        memcpy(&at.addr, a->ai_addr, a->ai_addrlen);
        fd = connect_to(&at, fmin(deadline, now_seconds() + 5.0), err);
    }
    if (list) freeaddrinfo(list);
    return fd;
}

/* --- sending and receiving --- */

enum net_result net_send(int fd, const void *data, size_t bytes, double deadline) {
    const char *p = (const char *)data;
    while (bytes > 0) {
        ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL);
        if (n >= 0) {
            p += n;
            bytes -= (size_t)n;
        } else if (errno == EAGAIN) {
            if (!wait_for(fd, POLLOUT, deadline)) return NET_TIMEOUT;
        } else if (errno != EINTR) {
            return NET_CLOSED;
        }
    }
    return NET_OK;
}

enum net_result net_receive(int fd, void *data, size_t bytes, double deadline) {
    char *p = (char *)data;
    while (bytes > 0) {
        ssize_t n = recv(fd, p, bytes, 0);
        if (n > 0) {
            p += n;
            bytes -= (size_t)n;
        } else if (n == 0) {
            return NET_CLOSED;
        } else if (errno == EAGAIN) {
            if (!wait_for(fd, POLLIN, deadline)) return NET_TIMEOUT;
        } else if (errno != EINTR) {
            return NET_CLOSED;
        }
    }
    return NET_OK;
}

/* TCP sockets with deadlines, for the connections between the processes of a run. All sockets are
 * non-blocking and close-on-exec. A deadline is a time of now_seconds(). */
#ifndef LLMC_NET_H
#define LLMC_NET_H

#include "llmc/base/base.h"

#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

struct net_address {
    struct sockaddr_storage addr;
    socklen_t size;
};
enum net_result { NET_OK, NET_CLOSED, NET_TIMEOUT };

/* The address of this end, and of the other end. */
struct net_address net_local(int fd), net_remote(int fd);
int net_port(const struct net_address *a);
bool net_is_loopback(const struct net_address *a);
/* "10.0.0.1:29500", "[fd00::1]:29500": by temp_printf. */
const char *net_text(const struct net_address *a);

/* Listens at host:port; port 0 is any free port. -1 with the reason. */
int net_listen(const char *host, int port, struct error *err);
/* Listens on all interfaces, for IPv6 and IPv4. */
int net_listen_any(int port, struct error *err);
/* Makes an inherited socket non-blocking and close-on-exec. */
void net_adopt(int fd);
/* -1: no connection is waiting. */
int net_accept(int listener);
/* Tries all addresses of host:port in turn until one answers. -1 with the reason. */
int net_connect(const char *host, int port, double deadline, struct error *err);
enum net_result net_send(int fd, const void *data, size_t bytes, double deadline);
enum net_result net_receive(int fd, void *data, size_t bytes, double deadline);

#ifdef __cplusplus
}
#endif
#endif

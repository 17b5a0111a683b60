/* The headers Host and Origin, each up to a NUL. What is trusted on loopback is trusted everywhere, and a
 * site that is not this one never is. */
#include "test/fuzz/fuzz.h"

#include "llmc/serve/http.h"

#include <stdlib.h>
#include <string.h>

FUZZ_TARGET(http_site) {
    char *text = (char *)xcalloc(1, size + 2);
    memcpy(text, data, size);
    const char *host = text, *origin = strlen(text) < size ? text + strlen(text) + 1 : NULL;
    bool loopback = http_same_site(host, origin, true);
    check(!loopback || http_same_site(host, origin, false), "trusted on loopback only: %s", host);
    check(!http_same_site(host, "http://evil.example", false), "another site: %s", host);
    if (loopback) fuzz_accept();
    free(text);
    return 0;
}

FUZZ_SEEDS(http_site) {
    static const char *const hosts[] = {"localhost:8100", "[::1]:1", "127.0.0.1", "192.168.1.2:80"};
    for (size_t i = 0; i < ARRAY_LENGTH(hosts); i++) add(user, hosts[i], strlen(hosts[i]));
    add(user, "localhost:1\0http://localhost:1", 30);
}

/* The DevTools protocol: JSON messages, each with a NUL behind it, on descriptors 3 and 4 of the browser. */
#include "test/browser.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
    pid_t process;
    int to, from;
    int64_t id;
    char *held; /* what has arrived and is no whole message yet */
    size_t size;
    char session[64];
    bool loaded;
    char *wrong;     /* exceptions and refusals so far */
    char *addresses; /* that were asked, a line each */
    int width, height;
    bool dark;
} b;

static void append(char **text, const char *line) {
    char *longer = xasprintf("%s%s\n", *text ? *text : "", line);
    free(*text);
    *text = longer;
}

static const char *text_at(const json_t *value, const char *path) {
    char key[64];
    while (*path) {
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        value = json_object_get(value, key);
        path += n + (path[n] == '.');
    }
    return json_is_string(value) ? json_string_value(value) : "";
}

static void take_event(const json_t *m) {
    const char *method = text_at(m, "method");
    const json_t *p = json_object_get(m, "params");
    if (strcmp(method, "Page.loadEventFired") == 0) b.loaded = true;
    if (strcmp(method, "Runtime.exceptionThrown") == 0) {
        append(&b.wrong, text_at(p, "exceptionDetails.text"));
        append(&b.wrong, text_at(p, "exceptionDetails.exception.description"));
    }
    if (strcmp(method, "Log.entryAdded") == 0 && strcmp(text_at(p, "entry.level"), "error") == 0)
        append(&b.wrong, text_at(p, "entry.text"));
    if (strcmp(method, "Network.requestWillBeSent") == 0) append(&b.addresses, text_at(p, "request.url"));
}

/* The next message, or NULL after so many seconds. */
static json_t *receive(double seconds) {
    for (double end = now_seconds() + seconds;;) {
        char *nul = b.size ? (char *)memchr(b.held, 0, b.size) : NULL;
        if (nul) {
            json_error_t why;
            json_t *m = json_loads(b.held, 0, &why);
            if (!m) fail_msg("the browser says what is no JSON: %s", why.text);
            b.size -= (size_t)(nul + 1 - b.held);
            memmove(b.held, nul + 1, b.size);
            return m;
        }
        double left = end - now_seconds();
        struct pollfd ready = {b.from, POLLIN, 0};
        if (left <= 0 || poll(&ready, 1, (int)(1000 * left) + 1) <= 0) return NULL;
        b.held = (char *)xrealloc(b.held, b.size + (1 << 16));
        ssize_t n = read(b.from, b.held + b.size, 1 << 16);
        if (n <= 0) fail_msg("the browser has ended");
        b.size += (size_t)n;
    }
}

/* Sends a command and waits for its answer. */
static json_t *call(const char *method, json_t *parameters) {
    int64_t id = ++b.id;
    json_t *m = json_pack("{s:I, s:s, s:o}", "id", (json_int_t)id, "method", method, "params",
                          parameters ? parameters : json_object());
    if (b.session[0]) json_object_set_new(m, "sessionId", json_string(b.session));
    char *text = json_dumps(m, JSON_COMPACT);
    assert_non_null(text);
    for (size_t done = 0, size = strlen(text) + 1; done < size;) {
        ssize_t n = write(b.to, text + done, size - done);
        if (n <= 0) fail_msg("the browser does not listen");
        done += (size_t)n;
    }
    free(text);
    json_decref(m);
    for (;;) {
        m = receive(60);
        if (!m) fail_msg("the browser does not answer %s", method);
        if (json_integer_value(json_object_get(m, "id")) == id) break;
        take_event(m);
        json_decref(m);
    }
    if (json_object_get(m, "error")) fail_msg("%s: %s", method, text_at(m, "error.message"));
    json_t *result = json_incref(json_object_get(m, "result"));
    json_decref(m);
    return result;
}

static void tell(const char *method, json_t *parameters) { json_decref(call(method, parameters)); }

/* --- opening --- */

static const char *find_chromium(void) {
    static const char *const places[] = {"/usr/bin/chromium", "/usr/bin/chromium-browser",
                                         "/usr/bin/google-chrome"};
    for (size_t i = 0; i < ARRAY_LENGTH(places); i++)
        if (access(places[i], X_OK) == 0) return places[i];
    return NULL;
}

bool browser_open(void) {
    const char *program = find_chromium();
    int in[2], out[2];
    if (!program) return false;
    memset(&b, 0, sizeof b);
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    char *profile = xasprintf("--user-data-dir=%s", in_scratch("chromium"));
    fflush(NULL);
    b.process = fork();
    assert_true(b.process >= 0);
    if (b.process == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int null = open("/dev/null", O_RDWR);
        dup2(fcntl(in[0], F_DUPFD, 10), 3);
        dup2(fcntl(out[1], F_DUPFD, 10), 4);
        for (int i = 0; i < 3; i++) dup2(null, i);
        setenv("HOME", scratch_directory(), 1);
        execl(program, "chromium", "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
              "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
              "--disable-sync", "--disable-component-update", "--disable-extensions", "--hide-scrollbars",
              "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", profile,
              "about:blank", (char *)NULL);
        _exit(127);
    }
    setpgid(b.process, b.process);
    close(in[0]);
    close(out[1]);
    b.to = in[1];
    b.from = out[0];
    free(profile);
    json_t *made = call("Target.createTarget", json_pack("{s:s}", "url", "about:blank"));
    json_t *attached = call("Target.attachToTarget",
                            json_pack("{s:s, s:b}", "targetId", text_at(made, "targetId"), "flatten", 1));
    snprintf(b.session, sizeof b.session, "%s", text_at(attached, "sessionId"));
    json_decref(made);
    json_decref(attached);
    tell("Page.enable", NULL);
    tell("Runtime.enable", NULL);
    tell("Log.enable", NULL);
    tell("Network.enable", NULL);
    browser_view(1000, 800, false);
    return true;
}

void browser_close(void) {
    if (b.process <= 0) return;
    close(b.to);
    close(b.from);
    kill(-b.process, SIGKILL);
    waitpid(b.process, NULL, 0);
    free(b.held);
    free(b.wrong);
    free(b.addresses);
    memset(&b, 0, sizeof b);
}

/* --- using it --- */

void browser_view(int width, int height, bool dark) {
    b.width = width;
    b.height = height;
    b.dark = dark;
    tell("Emulation.setDeviceMetricsOverride", json_pack("{s:i, s:i, s:i, s:b}", "width", width, "height",
                                                         height, "deviceScaleFactor", 1, "mobile", 0));
    tell("Emulation.setEmulatedMedia", json_pack("{s:[{s:s, s:s}]}", "features", "name",
                                                 "prefers-color-scheme", "value", dark ? "dark" : "light"));
}

void browser_go(const char *url) {
    b.loaded = false;
    json_t *answer = call("Page.navigate", json_pack("{s:s}", "url", url));
    if (*text_at(answer, "errorText")) fail_msg("%s: %s", url, text_at(answer, "errorText"));
    json_decref(answer);
    for (double end = now_seconds() + 60; !b.loaded;) {
        json_t *m = receive(end - now_seconds());
        if (!m) fail_msg("%s is not loaded after a minute", url);
        take_event(m);
        json_decref(m);
    }
}

static json_t *evaluate(const char *code) {
    json_t *answer = call("Runtime.evaluate", json_pack("{s:s, s:b, s:b}", "expression", code,
                                                        "returnByValue", 1, "awaitPromise", 1));
    if (json_object_get(answer, "exceptionDetails"))
        fail_msg("%s: %s", code, text_at(answer, "exceptionDetails.exception.description"));
    json_t *value = json_incref(json_object_get(json_object_get(answer, "result"), "value"));
    json_decref(answer);
    return value;
}

#define FORMAT(text, fmt)                                                                                    \
    va_list ap;                                                                                              \
    va_start(ap, fmt);                                                                                       \
    char *text = xvasprintf(fmt, ap);                                                                        \
    va_end(ap)

json_t *browser_value(const char *fmt, ...) {
    FORMAT(code, fmt);
    json_t *value = evaluate(code);
    free(code);
    return value;
}

double browser_number(const char *fmt, ...) {
    FORMAT(code, fmt);
    json_t *value = evaluate(code);
    if (!json_is_number(value)) fail_msg("%s is no number", code);
    double number = json_number_value(value);
    json_decref(value);
    free(code);
    return number;
}

char *browser_text(const char *fmt, ...) {
    FORMAT(code, fmt);
    json_t *value = evaluate(code);
    if (!json_is_string(value)) fail_msg("%s is no text", code);
    char *text = xstrdup(json_string_value(value));
    json_decref(value);
    free(code);
    return text;
}

double browser_wait(double seconds, const char *fmt, ...) {
    FORMAT(condition, fmt);
    double start = now_seconds();
    for (;;) {
        char *code = xasprintf("!!(%s)", condition);
        json_t *value = evaluate(code);
        bool is = json_is_true(value);
        json_decref(value);
        free(code);
        if (is) break;
        if (now_seconds() - start > seconds) fail_msg("not true after %g s: %s", seconds, condition);
        usleep(20000);
    }
    free(condition);
    return now_seconds() - start;
}

static void mouse(const char *type, double x, double y) {
    tell("Input.dispatchMouseEvent",
         json_pack("{s:s, s:f, s:f, s:s, s:i, s:i}", "type", type, "x", x, "y", y, "button",
                   strcmp(type, "mouseMoved") == 0 ? "none" : "left", "buttons", 1, "clickCount", 1));
}

void browser_drag(const char *selector, double from, double to) {
    json_t *box = browser_value(
        "(() => { const e = document.querySelector(%s); e.scrollIntoView({block: 'center'}); "
        "const r = e.getBoundingClientRect(); return [r.left, r.top + r.height / 2, r.width]; })()",
        selector);
    double left = json_number_value(json_array_get(box, 0)), y = json_number_value(json_array_get(box, 1)),
           width = json_number_value(json_array_get(box, 2));
    json_decref(box);
    mouse("mouseMoved", left + from * width, y);
    mouse("mousePressed", left + from * width, y);
    if (from != to) mouse("mouseMoved", left + to * width, y);
    mouse("mouseReleased", left + to * width, y);
}

void browser_click(const char *selector) { browser_drag(selector, 0.5, 0.5); }

void browser_key(const char *key) {
    bool text = strlen(key) == 1;
    json_t *down = json_pack("{s:s, s:s}", "type", text ? "keyDown" : "rawKeyDown", "key", key);
    if (text) json_object_set_new(down, "text", json_string(key));
    tell("Input.dispatchKeyEvent", down);
    tell("Input.dispatchKeyEvent", json_pack("{s:s, s:s}", "type", "keyUp", "key", key));
}

void browser_picture(const char *name) {
    const char *directory = getenv("LLMC_SCREENSHOTS");
    if (!directory || !*directory) return;
    json_t *answer =
        call("Page.captureScreenshot", json_pack("{s:s, s:b}", "format", "png", "captureBeyondViewport", 1));
    char *path = xasprintf("%s/%s-%d-%s.png", directory, name, b.width, b.dark ? "dark" : "light");
    char *command = xasprintf("base64 -d >'%s'", path);
    FILE *decoder = popen(command, "w");
    assert_non_null(decoder);
    fputs(text_at(answer, "data"), decoder);
    assert_int_equal(pclose(decoder), 0);
    free(command);
    free(path);
    json_decref(answer);
}

void browser_expect_width(double width) {
    double is = browser_number(
        "Math.max(document.documentElement.scrollWidth, ...[...document.querySelectorAll('.whole')]"
        ".map(e => e.getBoundingClientRect().left + e.scrollWidth))");
    if (is > width) fail_msg("at %g pixels the page is %g wide", width, is);
}

void browser_expect_no_errors(const char *allowed) {
    json_decref(evaluate("0")); /* so that all events before it have arrived */
    if (b.wrong) fail_msg("in the page: %s", b.wrong);
    for (char *line = b.addresses; line && *line; line += strcspn(line, "\n") + 1) {
        bool good = strncmp(line, "data:", 5) == 0 || strncmp(line, "about:", 6) == 0 ||
                    strncmp(line, "file:", 5) == 0 ||
                    (allowed && strncmp(line, allowed, strlen(allowed)) == 0);
        if (!good) fail_msg("the page asked %.*s", (int)strcspn(line, "\n"), line);
    }
    free(b.addresses);
    b.addresses = NULL;
}

/* `train_gpt watch` as a user runs it: what the server refuses, what it says of runs that grow, end, are
 * damaged or deleted, and what a real browser shows of it. */
#include "test/browser.h"
#include "test/report/logged_run.h"
#include "test/server.h"

#include "llmc/report/history.h"
#include "llmc/serve/http.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static json_t *run_of(json_t *state, size_t i) { return json_array_get(json_object_get(state, "runs"), i); }

static int end(void **state) {
    kill_server();
    browser_close();
    return remove_scratch(state);
}
#define WATCH_TEST(f) cmocka_unit_test_setup_teardown(f, make_scratch, end)

static void serve(const char *const *runs) {
    char *arguments = xstrdup("watch --port 0");
    for (; *runs; runs++) {
        char *longer = xasprintf("%s '%s'", arguments, in_scratch("%s", *runs));
        free(arguments);
        arguments = longer;
    }
    start_server(arguments);
    free(arguments);
}

/* --- what the server refuses --- */

static void only_its_own_pages_may_ask(void **state) {
    const char *host, *tunnel = "localhost:9999";
    make_run("a", 20, "1e-3");
    serve((const char *const[]){"a", NULL});
    host = temp_printf("127.0.0.1:%d", server.port);
    char *own = xasprintf("Origin: http://%s\r\n", host);
    assert_int_equal(status_of("GET /state", host, ""), 200);
    assert_int_equal(status_of("GET /state", host, own), 200);
    assert_int_equal(status_of("GET /state", tunnel, ""), 200);
    assert_int_equal(status_of("GET /state", "evil.example", ""), 403);
    assert_int_equal(status_of("GET /state", temp_printf("evil.example:%d", server.port), ""), 403);
    assert_int_equal(status_of("GET /state", "127.0.0.1.evil.example", ""), 403);
    assert_int_equal(status_of("GET /state", "10.1.2.3:80", ""), 403);
    assert_int_equal(status_of("GET /", "evil.example", ""), 403);
    assert_int_equal(status_of("GET /state", host, "Origin: http://evil.example\r\n"), 403);
    assert_int_equal(status_of("GET /state", host, "Origin: null\r\n"), 403);
    assert_int_equal(status_of("GET /state", host, "Origin: http://localhost:1\r\n"), 403);
    assert_int_equal(status_of("GET /state", NULL, ""), 403);
    free(own);
    stop_server();
}

static void a_path_is_no_file(void **state) {
    static const char *const paths[] = {"/../../etc/passwd",
                                        "/..%2f..%2fetc%2fpasswd",
                                        "/log.jsonl",
                                        "/a/log.jsonl",
                                        "//etc/passwd",
                                        "/page.css/",
                                        "/.",
                                        "/%2e%2e",
                                        "/watch.c"};
    make_run("a", 20, "1e-3");
    serve((const char *const[]){"a", NULL});
    for (size_t i = 0; i < ARRAY_LENGTH(paths); i++)
        assert_int_equal(status_of(temp_printf("GET %s", paths[i]), "localhost", ""), 404);
    assert_int_equal(status_of("GET /page.css", "localhost", ""), 200);
    assert_int_equal(status_of("DELETE /", "localhost", ""), 405);
    assert_int_equal(status_of("POST /state", "localhost", "Content-Length: 0\r\n"), 404);
    assert_int_equal(status_of("GET /series?points=1e99&from=nan&to=-inf&axis=%27", "localhost", ""), 200);
    assert_int_equal(status_of("GET /series?points=-5&from=1e308&to=-1e308&axis=time", "localhost", ""), 200);
    stop_server();
}

/* A body that is too long is refused; a client that says nothing holds up nobody. */
static void clients_cannot_fill_it(void **state) {
    int idle[8];
    make_run("a", 20, "1e-3");
    serve((const char *const[]){"a", NULL});
    for (size_t i = 0; i < ARRAY_LENGTH(idle); i++) idle[i] = connect_server();
    size_t size = 3 * HTTP_BODY_MAX;
    char *body = (char *)xmalloc(size + 1);
    memset(body, 'x', size);
    body[size] = 0;
    char *request = xasprintf(
        "POST /state HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", size,
        body);
    char *answer = send_text(request);
    assert_non_null(strstr(answer, " 413 "));
    free(answer);
    free(request);
    body[80000] = 0; /* a header that is longer than the memory of a connection */
    request = xasprintf("GET / HTTP/1.1\r\nHost: localhost\r\nX: %s\r\nConnection: close\r\n\r\n", body);
    answer = send_text(request);
    assert_null(strstr(answer, " 200 "));
    free(answer);
    free(request);
    free(body);
    assert_int_equal(status_of("GET /state", "localhost", ""), 200);
    for (size_t i = 0; i < ARRAY_LENGTH(idle); i++) close(idle[i]);
    stop_server();
}

/* A byte now and then is progress, but no request. */
static void a_slow_client_is_dropped(void **state) {
    char byte;
    make_run("a", 20, "1e-3");
    serve((const char *const[]){"a", NULL});
    int slow = connect_server();
    double start = now_seconds(), seconds = 0.0;
    const char *next = "GET /state HTTP/1.1\r\nHost: localhost\r\nX: ";
    while (recv(slow, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN && seconds < 60.0) {
        send(slow, *next ? next++ : "x", 1, MSG_NOSIGNAL);
        usleep(200000);
        seconds = now_seconds() - start;
    }
    close(slow);
    if (seconds < HTTP_ARRIVAL - 1 || seconds >= 60.0) fail_msg("dropped after %.1f s", seconds);
    assert_int_equal(status_of("GET /state", "localhost", ""), 200);
    stop_server();
}

static void a_token_is_asked_for(void **state) {
    make_run("a", 20, "1e-3");
    start_server(temp_printf("watch --port 0 --token '%s'", in_scratch("a")));
    const char *token = strstr(server.url, "#token=");
    assert_non_null(token);
    assert_int_equal(strlen(token += 7), 32);
    assert_int_equal(status_of("GET /", "localhost", ""), 200); /* no data in it */
    assert_int_equal(status_of("GET /state", "localhost", ""), 401);
    assert_int_equal(status_of("GET /series", "localhost", "Authorization: Bearer \r\n"), 401);
    assert_int_equal(
        status_of("GET /state", "localhost", "Authorization: Bearer 00000000000000000000000000000000\r\n"),
        401);
    char *good = xasprintf("Authorization: Bearer %s\r\n", token);
    assert_int_equal(status_of("GET /state", "localhost", good), 200);
    free(good);
    stop_server();
}

static void the_rule_for_headers(void **state) {
    assert_true(http_same_site("localhost:1", NULL, true));
    assert_true(http_same_site("[::1]:8100", "http://[::1]:8100", true));
    assert_true(http_same_site("127.0.0.1", "http://127.0.0.1", true));
    assert_false(http_same_site("192.168.0.2:8100", NULL, true));
    assert_false(http_same_site("localhost:1", "http://evil.example", true));
    assert_false(http_same_site("localhost:1", "https://localhost:1", true));
    assert_true(http_same_site("192.168.0.2:8100", NULL, false));
    static const char *const bad[] = {"",           ":",           "[",     "[::1",      "[::1]8100",
                                      "localhost:", "localhost:x", "a:b:c", "host.name", "127.0.0.1:1:1",
                                      "0x7f.1:80",  "localhost.:1"};
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++)
        if (http_same_site(bad[i], NULL, false)) fail_msg("accepted: %s", bad[i]);
}

static void wrong_use(void **state) {
    static const struct {
        const char *arguments, *part;
    } wrong[] = {{"/no/such/run", "/no/such/run"},
                 {"--html /no/such/place/x.html .", "/no/such/place"},
                 {"--bind example.com .", "example.com"},
                 {"--port 70000 .", "70000"}};
    const char *build = getenv("BUILD");
    for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
        char *command = xasprintf("'%s/train_gpt' watch %s >'%s' 2>&1", build && *build ? build : "build",
                                  wrong[i].arguments, in_scratch("said"));
        assert_int_not_equal(system(command), 0);
        char *said = get_text(in_scratch("said"));
        assert_mentions(said, wrong[i].part);
        free(said);
        free(command);
    }
}

static void a_port_that_is_in_use(void **state) {
    make_run("a", 20, "1e-3");
    serve((const char *const[]){"a", NULL});
    int first = server.port;
    struct server other = server;
    start_server(temp_printf("watch --port %d '%s' 2>'%s'", first, in_scratch("a"), in_scratch("said")));
    assert_true(server.port > first);
    char *said = get_text(in_scratch("said"));
    assert_mentions(said, temp_printf("port %d is in use; this is port %d", first, server.port));
    free(said);
    assert_int_equal(status_of("GET /state", "localhost", ""), 200);
    stop_server();
    server = other;
    stop_server();
}

/* --- what it says of a run --- */

static void a_run_that_grows(void **state) {
    make_run("a", 100, "1e-3");
    serve((const char *const[]){"a", NULL});
    json_t *s = get("/state"), *run = run_of(s, 0);
    assert_int_equal(json_integer_value(json_object_get(run, "step")), 100);
    assert_true(fabs(json_number_value(json_object_get(run, "eta")) - 50.0) < 1e-6);
    assert_true(fabs(json_number_value(json_object_get(run, "seconds")) - 50.0) < 1e-6);
    assert_true(fabs(json_number_value(json_object_get(run, "rate")) - 2048.0) < 1e-6);
    assert_int_equal(json_array_size(json_object_get(run, "samples")), 2); /* the third is half written */
    assert_int_equal(json_array_size(json_object_get(run, "checkpoints")), 1);
    json_decref(s);
    FILE *log = open_log("a", "log.jsonl", "a");
    fputs("{\"step\":101,\"epoch\":1,\"loss\":9.5,", log);
    fflush(log);
    usleep(250000);
    s = get("/state");
    assert_int_equal(json_integer_value(json_object_get(run_of(s, 0), "step")), 100);
    assert_int_equal(json_integer_value(json_object_get(run_of(s, 0), "unreadable")), 0);
    json_decref(s);
    fputs("\"lr\":1,\"grad_norm\":1,\"skipped\":false}\n", log);
    fclose(log);
    usleep(250000);
    s = get("/state");
    assert_int_equal(json_integer_value(json_object_get(run_of(s, 0), "step")), 101);
    assert_true(json_number_value(json_object_get(json_object_get(run_of(s, 0), "last"), "loss")) == 9.5);
    json_decref(s);
    stop_server();
}

static void a_run_that_is_deleted_or_begun_again(void **state) {
    make_run("a", 100, "1e-3");
    serve((const char *const[]){"a", NULL});
    json_decref(get("/state"));
    assert_true(remove_tree(in_scratch("a")));
    usleep(250000);
    json_t *s = get("/state");
    assert_true(json_is_false(json_object_get(run_of(s, 0), "there")));
    assert_int_equal(json_integer_value(json_object_get(run_of(s, 0), "step")),
                     100); /* what was read stays */
    assert_true(json_is_object(json_object_get(run_of(s, 0), "options")));
    assert_int_equal(json_array_size(json_object_get(run_of(s, 0), "samples")), 2);
    assert_true(json_number_value(json_object_get(run_of(s, 0), "seconds")) == 50.0);
    json_decref(s);
    /* a run in its place, of which there is only a log: nothing else of the old one is shown as its own */
    put_text("a/log.jsonl", "{\"step\":1,\"loss\":2}\n");
    usleep(250000);
    s = get("/state");
    assert_int_equal(json_integer_value(json_object_get(run_of(s, 0), "step")), 1);
    assert_true(json_is_null(json_object_get(run_of(s, 0), "options")));
    assert_true(json_is_null(json_object_get(run_of(s, 0), "facts")));
    assert_true(json_is_null(json_object_get(run_of(s, 0), "seconds")));
    assert_int_equal(json_array_size(json_object_get(run_of(s, 0), "samples")), 0);
    assert_true(json_is_true(json_object_get(json_object_get(run_of(s, 0), "has"), "loss")));
    assert_true(json_is_false(json_object_get(json_object_get(run_of(s, 0), "has"), "flops_share")));
    json_decref(s);
    put_text("a/log.jsonl", "");
    make_run("a", 7, "1e-3");
    usleep(250000);
    s = get("/state");
    assert_true(json_is_true(json_object_get(run_of(s, 0), "there")));
    assert_int_equal(json_integer_value(json_object_get(run_of(s, 0), "step")), 7);
    json_decref(s);
    /* resumed from an earlier checkpoint: the file is cut, and goes on */
    char *text = get_text(in_scratch("a/log.jsonl"));
    char *third = strstr(text, "{\"step\":4,");
    assert_int_equal(truncate(in_scratch("a/log.jsonl"), third - text), 0);
    free(text);
    usleep(250000);
    s = get("/state");
    assert_int_equal(json_integer_value(json_object_get(run_of(s, 0), "step")), 3);
    json_decref(s);
    stop_server();
}

static void logs_of_other_versions(void **state) {
    put_text(
        "b/log.jsonl",
        "{\"step\":1,\"loss\":2.5,\"novel\":{\"a\":[1,\"}\"]},\"lr\":1e-3}\n" /* other keys, others missing */
        "{\"loss\":3.5,\"step\":2}\n"                                         /* another order */
        "# a comment\n\n{}\n{\"step\":-1,\"loss\":1}\n{\"step\":3,\"loss\":}\n{\"step\":1e300,\"loss\":1}\n"
        "{\"step\":4,\"loss\":null,\"grad_norm\":1e400}\n{\"step\":5,\"loss\":nan}\n"
        "{\"step\":6,\"loss\":null,\"lr\":-2.5e-3}\n");
    serve((const char *const[]){"b", NULL});
    json_t *s = get("/state"), *run = run_of(s, 0), *series, *loss;
    assert_int_equal(json_integer_value(json_object_get(run, "step")), 6);
    assert_int_equal(json_integer_value(json_object_get(run, "unreadable")), 7);
    assert_true(json_is_null(json_object_get(run, "steps")));
    series = get("/series");
    loss = json_object_get(json_object_get(run_of(series, 0), "series"), "loss");
    json_t *mean = json_object_get(loss, "mean");
    assert_int_equal(json_array_size(mean), 3);
    assert_true(json_number_value(json_array_get(mean, 0)) == 2.5);
    assert_true(json_number_value(json_array_get(mean, 1)) == 3.5);
    assert_true(json_is_null(json_array_get(mean, 2)));
    assert_true(fabs(json_number_value(json_object_get(json_object_get(run, "last"), "lr")) + 2.5e-3) <
                1e-15);
    json_decref(series);
    json_decref(s);
    stop_server();
}

/* --- in a browser --- */

/* What a chart shows of a line at the cursor, as a number. */
#define SHOWN(chart, line)                                                                                   \
    "Number(document.querySelector('[data-title=\"" chart "\"] [data-line=\"" line "\"] b').textContent)"

static void compare_with_file(const char *run, const char *line) {
    struct history h;
    history_open(&h, in_scratch("%s", run));
    history_update(&h);
    double shown = browser_number(
        "Number(document.querySelector('[data-title=\"Loss\"] [data-line=\"%s\"] b').textContent)", line);
    double wanted = history_last(&h, strstr(line, "validation") ? HISTORY_VAL_LOSS : HISTORY_LOSS);
    if (!(fabs(shown - wanted) <= 0.5001e-4))
        fail_msg("%s: %g on the screen, %g in the file", line, shown, wanted);
    history_close(&h);
}

static void the_page_of_two_runs(void **state) {
    NEED_BROWSER();
    make_run("a", 100, "1e-3");
    make_run("b", 140, "3e-4");
    serve((const char *const[]){"a", "b", NULL});
    browser_go(server.url);
    browser_wait(10, "document.querySelectorAll('.chart-box').length === 9");
    compare_with_file("a", "a");
    compare_with_file("b", "b");
    compare_with_file("a", "a, validation");
    char *text = browser_text("$('runs').tBodies[0].rows[1].innerText");
    assert_mentions(text, "140 / 200");
    assert_mentions(text, "<b>CPU</b>");
    free(text);
    /* what a text of a run says is text */
    assert_true(
        browser_number(
            "document.querySelectorAll('img').length + [...document.scripts].filter(s => !s.src).length") ==
        0);
    text = browser_text("$('samples').innerText");
    assert_mentions(text, "<img src=x onerror=alert(2)>");
    free(text);
    /* options: the two that differ */
    assert_true(browser_number("$('options').tBodies[0].rows.length") == 4);
    assert_true(browser_number("document.querySelectorAll('#options tr.differs').length") == 1);
    browser_click("'#differing'");
    assert_true(browser_number("$('options').tBodies[0].rows.length") == 1);
    /* an axis, a run that is hidden, smoothing, logarithms */
    json_decref(browser_value("$('axis').value = 'tokens', $('axis').onchange()"));
    browser_wait(5, "view.axis === 'tokens' && charts.get('loss').x.to === 140 * 1024");
    json_decref(browser_value("$('axis').value = 'time', $('axis').onchange()"));
    browser_wait(5, "charts.get('loss').x.to === 70");
    browser_click("'#runs tbody tr:nth-child(2) input'");
    browser_wait(5, "charts.get('loss').x.to === 50 && charts.get('loss').lines.length === 2");
    json_decref(browser_value("$('smooth').value = 4, $('smooth').oninput()"));
    browser_wait(5, "charts.get('loss').lines.length === 3");
    /* the average at the end, a second time */
    double sum = 0.0, weight = 0.0;
    for (int64_t s = 1; s <= 100; s++) {
        sum = 0.95 * sum + 0.05 * loss_at(s);
        weight = 0.95 * weight + 0.05;
    }
    assert_true(fabs(browser_number(SHOWN("Loss", "a")) - sum / weight) < 1e-4);
    browser_click("'#logy'");
    browser_wait(5, "charts.get('loss').logY === true");
    text = browser_text("location.hash");
    assert_mentions(text, "hide=1");
    assert_mentions(text, "smooth=4");
    free(text);
    browser_expect_no_errors(server.url);
    stop_server();
}

static void a_pointer_and_keys_zoom(void **state) {
    NEED_BROWSER();
    make_run("a", 200, "1e-3");
    serve((const char *const[]){"a", NULL});
    browser_go(server.url);
    browser_wait(10, "charts.size === 9");
    browser_drag("'[data-title=\"Loss\"] svg'", 0.3, 0.6);
    browser_wait(5, "view.from > 40 && view.from < 70 && view.to > 100 && view.to < 130");
    browser_wait(5, "series.runs[0].series.loss.step.length < 100");
    browser_click("'#zoom-all'");
    browser_wait(5, "view.from === null && charts.get('loss').x.to === 200");
    json_decref(browser_value("charts.get('loss').picture.focus()"));
    browser_key("Home");
    browser_key("ArrowRight");
    browser_wait(5, SHOWN("Loss", "a") " > 4"); /* the loss of the first steps */
    double at = browser_number("charts.get('loss').at");
    assert_true(at == 1.0);
    assert_true(fabs(browser_number(SHOWN("Loss", "a")) - loss_at(1)) < 1e-4);
    assert_true(browser_number("charts.get('grad_norm').at") == 1.0); /* all charts read the same place */
    browser_key("End");
    browser_key("+");
    browser_wait(5, "view.from === 100 && view.to === 200");
    browser_key("0");
    browser_wait(5, "view.from === null");
    browser_expect_no_errors(server.url);
    stop_server();
}

static void the_page_follows_a_run(void **state) {
    NEED_BROWSER();
    make_run("a", 50, "1e-3");
    serve((const char *const[]){"a", NULL});
    browser_go(server.url);
    browser_wait(10, "charts.size === 9 && charts.get('loss').x.to === 50");
    write_rows("a", 50, 120);
    double seconds = browser_wait(10, "charts.get('loss').x.to === 120");
    if (seconds > 2.0) fail_msg("the page shows new rows after %.1f s", seconds);
    compare_with_file("a", "a");
    FILE *samples =
        open_log("a", "samples.jsonl", "w"); /* what was shut stays shut, and the newest is open */
    fputs("{\"step\":50,\"text\":\"Once upon\"}\n{\"step\":120,\"text\":\"quite new\"}\n", samples);
    fclose(samples);
    browser_wait(5, "$('samples').innerText.includes('quite new')");
    assert_true(browser_number("document.querySelectorAll('#samples details').length") == 2);
    assert_true(browser_number("document.querySelectorAll('#samples details[open]').length") == 1);
    assert_true(remove_tree(in_scratch("a")));
    browser_wait(5, "document.querySelector('.state.gone')");
    stop_server();
    browser_wait(10, "$('news').classList.contains('wrong')");
}

/* A million steps: the page is there within a second of the program's start, thinned out. */
static void a_million_steps(void **state) {
    NEED_BROWSER();
    put_text("m/options.json", "{\"steps\": 1000000, \"tokens-per-step\": 1024}");
    put_text("m/log.jsonl", "");
    write_rows("m", 0, 1000000);
    double start = now_seconds();
    serve((const char *const[]){"m", NULL});
    double ready = now_seconds() - start;
    browser_go(server.url);
    browser_wait(20, "charts.size === 9");
    double shown = now_seconds() - start;
    print_message("# a million steps: server ready after %.2f s, page drawn after %.2f s\n", ready, shown);
    assert_true(browser_number("series.runs[0].series.loss.step.length") <= 1500);
    assert_true(browser_number("series.runs[0].series.loss.rows.reduce((a, b) => a + b, 0)") == 1e6);
    assert_true(browser_number("Math.max(...series.runs[0].series.loss.max)") > loss_at(2));
    json_decref(browser_value("zoom(499000, 499100)"));
    browser_wait(10, "series.runs[0].series.loss.step.length < 110 && !series.runs[0].series.loss.rows");
    browser_expect_no_errors(server.url);
    stop_server();
}

static void the_page_as_a_file(void **state) {
    NEED_BROWSER();
    const char *build = getenv("BUILD");
    make_run("a", 100, "1e-3");
    make_run("b", 140, "3e-4");
    char *command =
        xasprintf("'%s/train_gpt' watch --html '%s' '%s' '%s' 2>/dev/null", build && *build ? build : "build",
                  in_scratch("page.html"), in_scratch("a"), in_scratch("b"));
    assert_int_equal(system(command), 0);
    free(command);
    browser_go(temp_printf("file://%s", in_scratch("page.html")));
    browser_wait(10, "charts.size === 9");
    compare_with_file("a", "a");
    compare_with_file("b", "b, validation");
    json_decref(browser_value("zoom(20, 40)"));
    browser_wait(5, "charts.get('loss').x.to === 40");
    assert_true(browser_number("document.querySelectorAll('img').length") == 0);
    browser_expect_no_errors(NULL);
}

/* Nothing is cut off on a narrow screen. With LLMC_SCREENSHOTS=DIR, pictures of the page. */
static void the_page_on_screens(void **state) {
    static const int widths[] = {360, 800, 1400};
    NEED_BROWSER();
    make_run("first", 200, "1e-3");
    make_run("second", 140, "3e-4");
    serve((const char *const[]){"first", "second", NULL});
    for (size_t i = 0; i < ARRAY_LENGTH(widths); i++)
        for (int dark = 0; dark < 2; dark++) {
            browser_view(widths[i], 900, dark);
            browser_go(server.url);
            browser_wait(10, "charts.size === 9");
            browser_picture("watch");
            browser_expect_width(widths[i]);
        }
    stop_server();
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        WATCH_TEST(only_its_own_pages_may_ask),
        WATCH_TEST(a_path_is_no_file),
        WATCH_TEST(clients_cannot_fill_it),
        WATCH_TEST(a_slow_client_is_dropped),
        WATCH_TEST(a_token_is_asked_for),
        WATCH_TEST(the_rule_for_headers),
        WATCH_TEST(wrong_use),
        WATCH_TEST(a_port_that_is_in_use),
        WATCH_TEST(a_run_that_grows),
        WATCH_TEST(a_run_that_is_deleted_or_begun_again),
        WATCH_TEST(logs_of_other_versions),
        WATCH_TEST(the_page_of_two_runs),
        WATCH_TEST(a_pointer_and_keys_zoom),
        WATCH_TEST(the_page_follows_a_run),
        WATCH_TEST(a_million_steps),
        WATCH_TEST(the_page_as_a_file),
        WATCH_TEST(the_page_on_screens),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* The helpers of base.h and json_file.h. */
#include "test/test.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/base/file.h"
#include "llmc/base/json_file.h"

/* Texts stay valid while the next 15 KiB are formatted, also where the ring wraps. */
static void test_temp_printf(void **state) {
    const char *kept[10];
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 10; i++) kept[i] = temp_printf("%d %01000d", i, round);
        for (int i = 0; i < 10; i++) {
            char wanted[1100];
            snprintf(wanted, sizeof wanted, "%d %01000d", i, round);
            assert_string_equal(kept[i], wanted);
        }
    }
    const char *text = "";
    for (int i = 0; i < 300; i++) text = temp_printf("%s%d", text, i % 10); /* its own argument */
    assert_int_equal(strlen(text), 300);
    for (int i = 0; i < 300; i++) assert_int_equal(text[i], '0' + i % 10);
    assert_int_equal(strlen(temp_printf("%2000d", 1)), 1023);
    assert_string_equal(temp_printf("%s, %s", human_bytes(1536), human_bytes(3)), "1.50 KiB, 3 B");
}

static void *blocked_signals(void *arg) {
    pthread_sigmask(SIG_SETMASK, NULL, (sigset_t *)arg);
    return NULL;
}

static void test_thread_takes_no_signals(void **state) {
    sigset_t before, inside, after;
    pthread_t thread;
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    thread_start(&thread, blocked_signals, &inside, "looks at its signals");
    pthread_join(thread, NULL);
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    assert_true(sigismember(&inside, SIGINT) && sigismember(&inside, SIGTERM) &&
                sigismember(&inside, SIGUSR1));
    assert_false(sigismember(&before, SIGINT) || sigismember(&after, SIGINT));
}

static void test_json_file(void **state) {
    char path[] = "/tmp/llmc-json-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct error err;
    json_t *root = json_pack("{s:f, s:[i,i]}", "eps", 1e-05, "list", 1, 2);
    assert_true(json_file_write(path, json_incref(root), &err));
    json_t *back = json_file_load(path, &err);
    assert_true(json_equal(root, back));
    json_decref(root);
    json_decref(back);
    assert_true(write_file_atomic(path, "{\"a\": 1,\n\"a\": 2}", 16, &err));
    assert_null(json_file_load(path, &err));
    assert_non_null(strstr(err.message, path));
    assert_non_null(strstr(err.message, "in line 2"));
    assert_true(write_file_atomic(path, "", 0, &err));
    assert_null(json_file_load(path, &err));
    assert_int_equal(unlink(path), 0);
    assert_null(json_file_load(path, &err));
    assert_false(json_file_write("/dev/full", json_pack("[i]", 1), &err));
    assert_non_null(strstr(err.message, "/dev/full"));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_temp_printf),
                                       cmocka_unit_test(test_thread_takes_no_signals),
                                       cmocka_unit_test(test_json_file)};
    return test_main(argc, argv, tests, NULL, NULL);
}

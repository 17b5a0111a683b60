/* Checkpoints on disks and in processes that fail: finding the newest intact one, damage of every kind,
 * deleting, full disks, kill -9 while saving (the program runs itself with "save-forever DIR"). Order as in
 * main(). */
#include "test/format/checkpoint.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* --- finding, damage, deleting --- */

static void the_newest_is_found(void **state) {
    struct model *painted = *state;
    struct error err = {""};
    assert_finds(in_scratch("missing"), -1);
    assert_finds(scratch_directory(), -1);
    assert_null(checkpoint_find(scratch_directory(), &err));
    assert_mentions(err.message, "has no checkpoint");
    const int64_t steps[] = {9, 100000000, 10, 99999999, 0}; /* not the order of the names */
    for (size_t i = 0; i < ARRAY_LENGTH(steps); i++) save(scratch_directory(), painted, steps[i]);
    assert_finds(scratch_directory(), 100000000);
    assert_finds(in_scratch("step-00000009"), 9); /* a checkpoint itself */
    char *with_slash = xasprintf("%s/", scratch_directory());
    assert_finds(with_slash, 100000000);
    free(with_slash);
    /* Names that are not exactly those of complete checkpoints. */
    static const char *const others[] = {
        "step-200000000.tmp",           "step-0000000300000000", "step-",          "step-4000000000x",
        "step-99999999999999999999999", "Step-500000000",        "step- 600000000"};
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++)
        copy_directory(in_scratch("step-00000009"), in_scratch("%s", others[i]));
    put_text(in_scratch("step-700000000"), "a file");
    capture_start();
    char *found = checkpoint_find(scratch_directory(), &err);
    capture_end();
    assert_string_equal(found, in_scratch("step-100000000"));
    free(found);
    put_text(in_scratch("weights.bin"), "x");
    found = checkpoint_find(in_scratch("weights.bin"), &err); /* a file is for others to judge */
    assert_string_equal(found, in_scratch("weights.bin"));
    free(found);
}

/* The damaged newest checkpoint is named and the older one taken. */
static void assert_passed_over(const char *file) {
    struct error err;
    capture_start();
    char *found = checkpoint_find(scratch_directory(), &err);
    const char *text = capture_end();
    if (!found || strcmp(found, in_scratch("step-00000001")) != 0)
        fail_msg("damage in %s is not noticed: found %s", file, found ? found : err.message);
    if (!strstr(text, "step-00000002") || !strstr(text, "passed over"))
        fail_msg("damage in %s: the warning is \"%s\"", file, text);
    if (!strstr(text, file)) fail_msg("damage in %s: the warning does not name it: \"%s\"", file, text);
    free(found);
    /* Asked for by name it is refused, except that without trainer.json it is a model to start from. */
    if (!path_exists(in_scratch("step-00000002/trainer.json"))) return;
    assert_null(checkpoint_find(in_scratch("step-00000002"), &err));
    assert_mentions(err.message, file);
}

static void every_damage_is_noticed(void **state) {
    struct model *painted = *state;
    struct tokenizer *t = tokenizer_bytes();
    struct train_state at = state_at(2);
    struct error err;
    save(scratch_directory(), painted, 1);
    ASSERT_OK(checkpoint_save(scratch_directory(), &painted->zero, t, &at, &err), err);
    train_state_free(&at);
    tokenizer_free(t);
    static const char *const files[] = {
        "config.json",    "generation_config.json", "model.safetensors", "optimizer.safetensors",
        "tokenizer.json", "tokenizer_config.json",  "trainer.json"};
    assert_int_equal(count_entries(in_scratch("step-00000002")), ARRAY_LENGTH(files));
    assert_finds(scratch_directory(), 2);
    for (size_t f = 0; f < ARRAY_LENGTH(files); f++) {
        const char *path = in_scratch("step-00000002/%s", files[f]);
        size_t size;
        char *data = get_file(path, &size);
        /* One flipped bit: everywhere in a small file, at scattered places in a large one. */
        size_t stride = size / 60 + 1;
        for (size_t i = 0; i < size; i += i + stride < size || i == size - 1 ? stride : size - 1 - i) {
            data[i] ^= (uint8_t)(1 << i % 8);
            put_file(path, data, size);
            assert_passed_over(files[f]);
            data[i] ^= (uint8_t)(1 << i % 8);
        }
        const size_t lengths[] = {0, 1, size / 2, size - 1};
        for (size_t i = 0; i < ARRAY_LENGTH(lengths); i++) {
            put_file(path, data, lengths[i]);
            assert_passed_over(files[f]);
        }
        data[size] = 0;
        put_file(path, data, size + 1); /* over-long */
        assert_passed_over(files[f]);
        unlink(path);
        assert_passed_over(files[f]);
        mkdir(path, 0700);
        assert_passed_over(files[f]);
        rmdir(path);
        put_file(path, data, size);
        free(data);
        assert_finds(scratch_directory(), 2); /* whole again */
    }
    unlink(in_scratch("step-00000001/model.safetensors"));
    unlink(in_scratch("step-00000002/config.json"));
    capture_start();
    char *found = checkpoint_find(scratch_directory(), &err);
    capture_end();
    assert_null(found);
    assert_mentions(err.message, "none of its 2 checkpoints");
}

static void old_ones_are_pruned(void **state) {
    struct model *painted = *state;
    struct error err;
    for (int64_t step = 1; step <= 6; step++) save(scratch_directory(), painted, step * 5);
    copy_directory(in_scratch("step-00000030"), in_scratch("step-00000040.tmp"));
    copy_directory(in_scratch("step-00000030"), in_scratch("mine"));
    put_text(in_scratch("log.jsonl"), "{}");
    unlink(in_scratch("step-00000025/model.safetensors")); /* damaged: does not count, and is not deleted */
    ASSERT_OK(checkpoint_prune(scratch_directory(), 3, -1, &err), err);
    assert_int_equal(count_entries(scratch_directory()), 6);
    static const char *const left[] = {"step-00000030", "step-00000025", "step-00000020",
                                       "step-00000015", "mine",          "log.jsonl"};
    for (size_t i = 0; i < ARRAY_LENGTH(left); i++) assert_true(path_exists(in_scratch("%s", left[i])));
    ASSERT_OK(checkpoint_prune(scratch_directory(), 1, 15, &err), err); /* the best one stays, too */
    assert_int_equal(count_entries(scratch_directory()), 5);
    assert_true(path_exists(in_scratch("step-00000015")));
    ASSERT_OK(checkpoint_prune(scratch_directory(), 1, -1, &err), err);
    assert_int_equal(count_entries(scratch_directory()), 4);
    assert_finds(scratch_directory(), 30);
    ASSERT_OK(checkpoint_prune(scratch_directory(), 1, -1, &err), err);
    assert_int_equal(count_entries(scratch_directory()), 4);
    assert_false(checkpoint_prune(in_scratch("missing"), 1, -1, &err));
    assert_mentions(err.message, "missing");
}

static void the_same_step_is_replaced(void **state) {
    struct model *painted = *state;
    save(scratch_directory(), painted, 7);
    put_text(in_scratch("step-00000007/left over"), "x");
    /* What a killed process leaves behind is in nobody's way. */
    copy_directory(in_scratch("step-00000007"), in_scratch("step-00000007.tmp"));
    paint_model(painted, 50);
    save(scratch_directory(), painted, 7);
    assert_int_equal(count_entries(scratch_directory()), 1);
    assert_int_equal(count_entries(in_scratch("step-00000007")), 6); /* somebody's file stays */
    free(get_text("step-00000007/left over"));
    assert_finds(scratch_directory(), 7);
    assert_loads_as(in_scratch("step-00000007"), painted);
}

/* --- failing disks --- */

/* Saving step 2 has failed: nothing is left of it, step 1 is as it was. */
static void assert_untouched(const char *run, const struct model *m, const struct error *err) {
    if (count_entries(run) != 1)
        fail_msg("%d entries in %s after: %s", count_entries(run), run, err->message);
    assert_finds(run, 1);
    char *dir = xasprintf("%s/step-00000001", run);
    assert_loads_as(dir, m);
    free(dir);
}

/* A limit on the size of files makes the first write beyond it fail, in each of the files in turn. The
 * state is large enough to make trainer.json, the last file, the largest. */
static void a_file_that_cannot_grow(void **state) {
    const char *run = in_scratch("run");
    struct model m;
    model_make(&m, &least, DTYPE_F32, false);
    paint_model(&m, 9);
    save(run, &m, 1);
    struct train_state st = state_at(2);
    static char text[300000];
    memset(text, 'x', sizeof text - 1);
    json_object_set_new(st.options, "text", json_string(text));
    struct rlimit unlimited;
    getrlimit(RLIMIT_FSIZE, &unlimited);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    int failures = 0, trainer = 0, optimizer = 0, weights = 0, config = 0;
    for (rlim_t limit = 0;; limit += limit < 16384 ? 1021 : 50000) {
        struct rlimit small_files = {limit, unlimited.rlim_max};
        struct error err = {""};
        setrlimit(RLIMIT_FSIZE, &small_files);
        bool ok = checkpoint_save(run, &m.zero, NULL, &st, &err);
        setrlimit(RLIMIT_FSIZE, &unlimited);
        if (ok) break;
        failures++;
        assert_mentions(err.message, "File too large");
        assert_mentions(err.message, "step-00000002.tmp/");
        trainer += strstr(err.message, "trainer.json") != NULL;
        optimizer += strstr(err.message, "optimizer.safetensors") != NULL;
        weights += strstr(err.message, "model.safetensors") != NULL;
        config += strstr(err.message, "config.json") != NULL;
        assert_untouched(run, &m, &err);
    }
    signal(SIGXFSZ, handler);
    assert_true(trainer > 3 && optimizer > 3 && weights > 3 && config > 0);
    assert_int_equal(failures, trainer + optimizer + weights + config);
    assert_finds(run, 2);
    train_state_free(&st);
    model_free(&m);
}

/* A real full disk, page by page larger until the checkpoint fits. */
static void a_full_disk(void **state) {
    const char *disk = in_scratch("disk"), *run = in_scratch("disk/run");
    assert_int_equal(mkdir(disk, 0700), 0);
    if (mount("tmpfs", disk, "tmpfs", 0, "size=1m") != 0) skip(); /* needs root */
    struct model m;
    model_make(&m, &least, DTYPE_F32, false);
    paint_model(&m, 9);
    struct tokenizer *t = tokenizer_bytes();
    struct train_state one = state_at(1), two = state_at(2);
    int failures = 0, used = -1;
    bool done = false;
    for (int pages = 1; !done && pages < 200; pages++) {
        char size[64];
        snprintf(size, sizeof size, "size=%dk", pages * 4);
        umount(disk);
        if (mount("tmpfs", disk, "tmpfs", 0, size) != 0) fail_msg("cannot mount %s", size);
        assert_int_equal(mkdir(run, 0777), 0);
        struct error err = {""};
        if (!checkpoint_save(run, &m.zero, t, &one, &err)) {
            assert_mentions(err.message, "No space left on device");
            if (path_exists(run)) assert_int_equal(count_entries(run), 0);
            failures++;
            continue;
        }
        if (used < 0) used = pages;
        done = checkpoint_save(run, &m.zero, t, &two, &err);
        if (done) continue;
        assert_mentions(err.message, "No space left on device");
        assert_untouched(run, &m, &err);
        failures++;
    }
    assert_true(done);
    assert_finds(run, 2);
    assert_true(failures >= 16);
    umount(disk);
    train_state_free(&one);
    train_state_free(&two);
    tokenizer_free(t);
    model_free(&m);
}

static void a_directory_that_cannot_be_written(void **state) {
    struct model *painted = *state;
    struct error err;
    struct train_state st = state_at(1);
    put_text(in_scratch("file"), "x");
    assert_false(checkpoint_save(in_scratch("file"), &painted->zero, NULL, &st, &err));
    assert_mentions(err.message, "file");
    assert_false(checkpoint_save(in_scratch("file/run"), &painted->zero, NULL, &st, &err));
    assert_mentions(err.message, "file");
    assert_false(checkpoint_save("/proc/run", &painted->zero, NULL, &st, &err));
    assert_mentions(err.message, "/proc/run");
    /* A file has the checkpoint's name. */
    put_text(in_scratch("step-00000001"), "x");
    assert_false(checkpoint_save(scratch_directory(), &painted->zero, NULL, &st, &err));
    assert_mentions(err.message, "is in the way");
    assert_false(path_exists(in_scratch("step-00000001.tmp")));
    free(get_text("step-00000001"));
    train_state_free(&st);
}

/* A link among the checkpoints: neither it nor what it points to is the run's. */
static void links_are_left_alone(void **state) {
    struct model *painted = *state;
    struct error err;
    for (int step = 2; step < 5; step++) save(in_scratch("run"), painted, step);
    save(in_scratch("elsewhere"), painted, 1);
    assert_int_equal(symlink("../elsewhere/step-00000001", in_scratch("run/step-00000001")), 0);
    assert_int_equal(symlink("../elsewhere/step-00000001", in_scratch("run/step-00000009.tmp")), 0);
    ASSERT_OK(checkpoint_prune(in_scratch("run"), 1, -1, &err), err);
    assert_int_equal(count_entries(in_scratch("run")), 3);
    assert_true(path_exists(in_scratch("run/step-00000001")));
    assert_loads_as(in_scratch("elsewhere/step-00000001"), painted);
}

/* --- killed processes --- */

static const struct gpt_config killed_config = GPT2_CONFIG("killed", 16, 257, 2, 2, 32);

/* Saves steps 1, 2, ..., each painted with its number, keeping two. Ends only when killed. */
static int save_forever(const char *run) {
    struct model m;
    struct error err;
    check(make_directories(run, &err), "%s", err.message);
    model_make(&m, &killed_config, DTYPE_F32, false);
    for (int64_t step = 1;; step++) {
        paint_model(&m, (uint64_t)step);
        struct train_state st = state_at(step);
        check(checkpoint_save(run, &m.zero, NULL, &st, &err), "%s", err.message);
        check(checkpoint_prune(run, 2, -1, &err), "%s", err.message);
        train_state_free(&st);
    }
}

static void killed_while_saving(void **state) {
    const char *run = in_scratch("run");
    int interrupted = 0;
    int64_t last = 0;
    for (int round = 0; round < 12; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            execl("/proc/self/exe", "test_checkpoint", "save-forever", run, (char *)NULL);
            _exit(127);
        }
        /* Until it has saved something, and then for a time that differs from round to round. */
        struct error err;
        for (int i = 0; i < 5000 && !path_exists(in_scratch("run/step-00000001")) && !last; i++) usleep(1000);
        usleep((useconds_t)(20000 + round * 2713 % 30000));
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* and not by an error of its own */
        DIR *d = opendir(run);
        struct dirent *e;
        while (d && (e = readdir(d)) != NULL) interrupted += strstr(e->d_name, ".tmp") != NULL;
        if (d) closedir(d);
        capture_start();
        char *found = checkpoint_find(run, &err);
        const char *text = capture_end();
        if (!found) fail_msg("round %d: %s", round, err.message);
        if (text[0]) fail_msg("round %d: %s", round, text); /* no named checkpoint is ever damaged */
        struct train_state st;
        ASSERT_OK(checkpoint_load_state(&st, found, &err), err);
        struct model m;
        model_make(&m, &killed_config, DTYPE_F32, false);
        paint_model(&m, (uint64_t)st.step);
        assert_loads_as(found, &m);
        last = st.step;
        model_free(&m);
        train_state_free(&st);
        free(found);
    }
    assert_true(interrupted > 0);
    struct error err;
    ASSERT_OK(checkpoint_prune(run, 1, -1, &err), err);
    assert_int_equal(count_entries(run), 1);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "save-forever") == 0) return save_forever(argv[2]);
    const struct CMUnitTest tests[] = {
        FIXTURE_TEST(the_newest_is_found),
        FIXTURE_TEST(every_damage_is_noticed),
        FIXTURE_TEST(old_ones_are_pruned),
        FIXTURE_TEST(the_same_step_is_replaced),
        FIXTURE_TEST(a_file_that_cannot_grow),
        FIXTURE_TEST(a_full_disk),
        FIXTURE_TEST(a_directory_that_cannot_be_written),
        FIXTURE_TEST(links_are_left_alone),
        FIXTURE_TEST(killed_while_saving),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

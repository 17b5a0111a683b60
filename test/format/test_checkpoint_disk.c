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
    struct scratch *s = *state;
    struct error err = {""};
    assert_finds(path_of(s, "missing"), -1);
    assert_finds(s->dir, -1);
    assert_null(checkpoint_find(s->dir, &err));
    assert_mentions(&err, "has no checkpoint");
    const int64_t steps[] = {9, 100000000, 10, 99999999, 0}; /* not the order of the names */
    for (size_t i = 0; i < ARRAY_LENGTH(steps); i++) save(s->dir, &s->m, steps[i]);
    assert_finds(s->dir, 100000000);
    assert_finds(path_of(s, "step-00000009"), 9); /* a checkpoint itself */
    char *with_slash = xasprintf("%s/", s->dir);
    assert_finds(with_slash, 100000000);
    free(with_slash);
    /* Names that are not exactly those of complete checkpoints. */
    static const char *const others[] = {
        "step-200000000.tmp",           "step-0000000300000000", "step-",          "step-4000000000x",
        "step-99999999999999999999999", "Step-500000000",        "step- 600000000"};
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++)
        copy_directory(path_of(s, "step-00000009"), path_of(s, "%s", others[i]));
    put_text(path_of(s, "step-700000000"), "a file");
    capture_start(s);
    char *found = checkpoint_find(s->dir, &err);
    capture_end(s);
    assert_string_equal(found, path_of(s, "step-100000000"));
    free(found);
    put_text(path_of(s, "weights.bin"), "x");
    found = checkpoint_find(path_of(s, "weights.bin"), &err); /* a file is for others to judge */
    assert_string_equal(found, path_of(s, "weights.bin"));
    free(found);
}

/* The damaged newest checkpoint is named and the older one taken. */
static void assert_passed_over(struct scratch *s, const char *file) {
    struct error err;
    capture_start(s);
    char *found = checkpoint_find(s->dir, &err);
    const char *text = capture_end(s);
    if (!found || strcmp(found, path_of(s, "step-00000001")) != 0)
        fail_msg("damage in %s is not noticed: found %s", file, found ? found : err.message);
    if (!strstr(text, "step-00000002") || !strstr(text, "passed over"))
        fail_msg("damage in %s: the warning is \"%s\"", file, text);
    if (!strstr(text, file)) fail_msg("damage in %s: the warning does not name it: \"%s\"", file, text);
    free(found);
    /* Asked for by name it is refused, except that without trainer.json it is a model to start from. */
    if (!path_exists(path_of(s, "step-00000002/trainer.json"))) return;
    assert_null(checkpoint_find(path_of(s, "step-00000002"), &err));
    assert_mentions(&err, file);
}

static void every_damage_is_noticed(void **state) {
    struct scratch *s = *state;
    struct tokenizer *t = tokenizer_bytes();
    struct train_state at = state_at(2);
    struct error err;
    save(s->dir, &s->m, 1);
    ASSERT_OK(checkpoint_save(s->dir, &s->m.zero, t, &at, &err), err);
    train_state_free(&at);
    tokenizer_free(t);
    static const char *const files[] = {"config.json",       "generation_config.json",
                                        "model.safetensors", "optimizer.safetensors",
                                        "tokenizer.json",    "trainer.json"};
    assert_int_equal(count_entries(path_of(s, "step-00000002")), ARRAY_LENGTH(files));
    assert_finds(s->dir, 2);
    for (size_t f = 0; f < ARRAY_LENGTH(files); f++) {
        const char *path = path_of(s, "step-00000002/%s", files[f]);
        char kept[PATH_MAX];
        snprintf(kept, sizeof kept, "%s", path);
        size_t size;
        uint8_t *data = get_file(kept, &size);
        /* One flipped bit: everywhere in a small file, at scattered places in a large one. */
        size_t stride = size / 60 + 1;
        for (size_t i = 0; i < size; i += i + stride < size || i == size - 1 ? stride : size - 1 - i) {
            data[i] ^= (uint8_t)(1 << i % 8);
            put_file(kept, data, size);
            assert_passed_over(s, files[f]);
            data[i] ^= (uint8_t)(1 << i % 8);
        }
        const size_t lengths[] = {0, 1, size / 2, size - 1};
        for (size_t i = 0; i < ARRAY_LENGTH(lengths); i++) {
            put_file(kept, data, lengths[i]);
            assert_passed_over(s, files[f]);
        }
        data[size] = 0;
        put_file(kept, data, size + 1); /* over-long */
        assert_passed_over(s, files[f]);
        unlink(kept);
        assert_passed_over(s, files[f]);
        mkdir(kept, 0700);
        assert_passed_over(s, files[f]);
        rmdir(kept);
        put_file(kept, data, size);
        free(data);
        assert_finds(s->dir, 2); /* whole again */
    }
    unlink(path_of(s, "step-00000001/model.safetensors"));
    unlink(path_of(s, "step-00000002/config.json"));
    capture_start(s);
    char *found = checkpoint_find(s->dir, &err);
    capture_end(s);
    assert_null(found);
    assert_mentions(&err, "none of its 2 checkpoints");
}

static void old_ones_are_pruned(void **state) {
    struct scratch *s = *state;
    struct error err;
    for (int64_t step = 1; step <= 6; step++) save(s->dir, &s->m, step * 5);
    copy_directory(path_of(s, "step-00000030"), path_of(s, "step-00000040.tmp"));
    copy_directory(path_of(s, "step-00000030"), path_of(s, "mine"));
    put_text(path_of(s, "log.jsonl"), "{}");
    unlink(path_of(s, "step-00000025/model.safetensors")); /* damaged: does not count, and is not deleted */
    ASSERT_OK(checkpoint_prune(s->dir, 3, &err), err);
    assert_int_equal(count_entries(s->dir), 6);
    static const char *const left[] = {"step-00000030", "step-00000025", "step-00000020",
                                       "step-00000015", "mine",          "log.jsonl"};
    for (size_t i = 0; i < ARRAY_LENGTH(left); i++) assert_true(path_exists(path_of(s, "%s", left[i])));
    ASSERT_OK(checkpoint_prune(s->dir, 1, &err), err);
    assert_int_equal(count_entries(s->dir), 4);
    assert_finds(s->dir, 30);
    ASSERT_OK(checkpoint_prune(s->dir, 1, &err), err);
    assert_int_equal(count_entries(s->dir), 4);
    assert_false(checkpoint_prune(path_of(s, "missing"), 1, &err));
    assert_mentions(&err, "missing");
}

static void the_same_step_is_replaced(void **state) {
    struct scratch *s = *state;
    save(s->dir, &s->m, 7);
    put_text(path_of(s, "step-00000007/left over"), "x");
    /* What a killed process leaves behind is in nobody's way. */
    copy_directory(path_of(s, "step-00000007"), path_of(s, "step-00000007.tmp"));
    paint_model(&s->m, 50);
    save(s->dir, &s->m, 7);
    assert_int_equal(count_entries(s->dir), 1);
    assert_int_equal(count_entries(path_of(s, "step-00000007")), 5);
    assert_finds(s->dir, 7);
    assert_loads_as(path_of(s, "step-00000007"), &s->m);
}

/* --- failing disks --- */

/* Saving step 2 has failed: nothing is left of it, step 1 is as it was. */
static void assert_untouched(struct scratch *s, const char *run, const struct model *m,
                             const struct error *err) {
    if (count_entries(run) != 1)
        fail_msg("%d entries in %s after: %s", count_entries(run), run, err->message);
    assert_finds(run, 1);
    char *dir = xasprintf("%s/step-00000001", run);
    assert_loads_as(dir, m);
    free(dir);
}

/* A limit on the size of files makes the first write beyond it fail, in each of the files in turn. The state
 * is large enough to make trainer.json, the last file, the largest. */
static void a_file_that_cannot_grow(void **state) {
    struct scratch *s = *state;
    const char *run = path_of(s, "run");
    char kept[PATH_MAX];
    snprintf(kept, sizeof kept, "%s", run);
    struct model m;
    model_make(&m, &least, DTYPE_F32, false);
    paint_model(&m, 9);
    save(kept, &m, 1);
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
        bool ok = checkpoint_save(kept, &m.zero, NULL, &st, &err);
        setrlimit(RLIMIT_FSIZE, &unlimited);
        if (ok) break;
        failures++;
        assert_mentions(&err, "File too large");
        assert_mentions(&err, "step-00000002.tmp/");
        trainer += strstr(err.message, "trainer.json") != NULL;
        optimizer += strstr(err.message, "optimizer.safetensors") != NULL;
        weights += strstr(err.message, "model.safetensors") != NULL;
        config += strstr(err.message, "config.json") != NULL;
        assert_untouched(s, kept, &m, &err);
    }
    signal(SIGXFSZ, handler);
    assert_true(trainer > 3 && optimizer > 3 && weights > 3 && config > 0);
    assert_int_equal(failures, trainer + optimizer + weights + config);
    assert_finds(kept, 2);
    train_state_free(&st);
    model_free(&m);
}

/* A real full disk, page by page larger until the checkpoint fits. */
static void a_full_disk(void **state) {
    struct scratch *s = *state;
    char disk[PATH_MAX], run[PATH_MAX + 8];
    snprintf(disk, sizeof disk, "%s", path_of(s, "disk"));
    snprintf(run, sizeof run, "%s/run", disk);
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
        struct error err = {""};
        if (!checkpoint_save(run, &m.zero, t, &one, &err)) {
            assert_mentions(&err, "No space left on device");
            if (path_exists(run)) assert_int_equal(count_entries(run), 0);
            failures++;
            continue;
        }
        if (used < 0) used = pages;
        done = checkpoint_save(run, &m.zero, t, &two, &err);
        if (done) continue;
        assert_mentions(&err, "No space left on device");
        assert_untouched(s, run, &m, &err);
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
    struct scratch *s = *state;
    struct error err;
    struct train_state st = state_at(1);
    put_text(path_of(s, "file"), "x");
    assert_false(checkpoint_save(path_of(s, "file"), &s->m.zero, NULL, &st, &err));
    assert_mentions(&err, "file");
    assert_false(checkpoint_save(path_of(s, "file/run"), &s->m.zero, NULL, &st, &err));
    assert_mentions(&err, "file");
    assert_false(checkpoint_save("/proc/run", &s->m.zero, NULL, &st, &err));
    assert_mentions(&err, "/proc/run");
    /* A file has the checkpoint's name. */
    put_text(path_of(s, "step-00000001"), "x");
    bool ok = checkpoint_save(s->dir, &s->m.zero, NULL, &st, &err);
    if (!ok) assert_false(path_exists(path_of(s, "step-00000001.tmp")));
    train_state_free(&st);
}

/* --- killed processes --- */

static const struct gpt_config killed_config = {
    .name = "killed", .context = 16, .vocab_size = 257, .layers = 2, .heads = 2, .channels = 32};

/* Saves steps 1, 2, ..., each painted with its number, keeping two. Ends only when killed. */
static int save_forever(const char *run) {
    struct model m;
    struct error err;
    model_make(&m, &killed_config, DTYPE_F32, false);
    for (int64_t step = 1;; step++) {
        paint_model(&m, (uint64_t)step);
        struct train_state st = state_at(step);
        check(checkpoint_save(run, &m.zero, NULL, &st, &err), "%s", err.message);
        check(checkpoint_prune(run, 2, &err), "%s", err.message);
        train_state_free(&st);
    }
}

static void killed_while_saving(void **state) {
    struct scratch *s = *state;
    char run[PATH_MAX];
    snprintf(run, sizeof run, "%s", path_of(s, "run"));
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
        for (int i = 0; i < 5000 && !path_exists(path_of(s, "run/step-00000001")) && !last; i++) usleep(1000);
        usleep((useconds_t)(20000 + round * 2713 % 30000));
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL); /* and not by an error of its own */
        DIR *d = opendir(run);
        struct dirent *e;
        while (d && (e = readdir(d)) != NULL) interrupted += strstr(e->d_name, ".tmp") != NULL;
        if (d) closedir(d);
        capture_start(s);
        char *found = checkpoint_find(run, &err);
        const char *text = capture_end(s);
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
    ASSERT_OK(checkpoint_prune(run, 1, &err), err);
    assert_int_equal(count_entries(run), 1);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "save-forever") == 0) return save_forever(argv[2]);
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(the_newest_is_found),
        SCRATCH_TEST(every_damage_is_noticed),
        SCRATCH_TEST(old_ones_are_pruned),
        SCRATCH_TEST(the_same_step_is_replaced),
        SCRATCH_TEST(a_file_that_cannot_grow),
        SCRATCH_TEST(a_full_disk),
        SCRATCH_TEST(a_directory_that_cannot_be_written),
        SCRATCH_TEST(killed_while_saving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

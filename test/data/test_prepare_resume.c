/* build/prepare interrupted by SIGKILL, by a full disk and by bad input, and resumed; two runs at once. */
#include "test/data/prepare.h"

#define LONG_RUN                                                                                             \
    " --tokenizer train:300 --batch-size 16k --shard-tokens 4k --validation-fraction 0.1 @/long.txt "        \
    "@/more.txt.gz"

/* Every file with a final name is a shard of the uninterrupted run. */
static void assert_final_names_are_whole(const char *dir, const char *reference) {
    int n;
    char **paths = list(dir, &n);
    for (int i = 0; i < n; i++) {
        const char *name = strrchr(paths[i], '/') + 1;
        if (strcmp(name + strlen(name) - 4, ".bin") != 0) continue;
        char other[256];
        snprintf(other, sizeof other, "%s/%s", reference, name);
        struct mapped_file x, y;
        struct error err = {""};
        assert_true(file_map(&x, paths[i], &err));
        if (!file_map(&y, in_scratch("%s", other), &err)) fail_msg("%s", err.message);
        if (x.size != y.size || memcmp(x.data, y.data, (size_t)x.size) != 0)
            fail_msg("%s is not whole", paths[i]);
        file_unmap(&x);
        file_unmap(&y);
    }
    free_list(paths, n);
}

/* Killed early, then at various moments after a further shard got its name. */
static void killed_and_resumed_equals_uninterrupted(void **state) {
    make_long_input();
    prepare("--out @/whole" LONG_RUN);
    const int shards = count_final_shards("whole");
    assert_true(shards > 50);
    int kills = 0, reached = 0;
    for (int round = 0;; round++) {
        if (round > 20) fail_msg("after 20 rounds the run is not complete");
        struct rng4 r4 = rng_philox(9, RNG_TEST, (uint64_t)round);
        char goal[64];
        reached += (int)(r4.v[0] % 11) + 1;
        snprintf(goal, sizeof goal, "parts/data_train_%06d.bin", reached);
        struct how how = {.kill_after = round < 8 ? 1 + (int64_t)(r4.v[1] % 6000) : 0};
        if (round > 0 && round < 8) how.kill_at = in_scratch("%s", goal);
        struct result r = run_how(how, "--resume --threads 2 --out @/parts" LONG_RUN);
        bool killed = WIFSIGNALED(r.status) && WTERMSIG(r.status) == SIGKILL;
        if (!killed && (!WIFEXITED(r.status) || WEXITSTATUS(r.status) != 0))
            fail_msg("round %d: status %#x: %s", round, (unsigned)r.status, r.err);
        close_result(&r);
        if (!killed) break;
        kills++;
        if (!exists("parts")) continue;
        assert_final_names_are_whole("parts", "whole");
        assert_false(exists("parts/manifest.json"));
        if (round == 3) { /* killed after the manifest was written and before the first of two renames */
            assert_true(exists("parts/manifest.json.partial"));
            assert_int_equal(rename(in_scratch("parts/data_train_000001.bin"),
                                    in_scratch("parts/data_train_000001.bin.partial")),
                             0);
        }
        reached = max_i64(reached, count_final_shards("parts") * 9 / 10);
    }
    assert_true(kills >= 3);
    assert_same_directories("whole", "parts");
    prepare("--resume --out @/parts" LONG_RUN); /* once more: all is there */
    assert_same_directories("whole", "parts");
}

/* Finished work is not repeated: its files stay the same. */
static void finished_shards_are_kept(void **state) {
    make_long_input();
    prepare("--out @/whole" LONG_RUN);
    struct how full = {.file_limit = 9500};
    /* The limit allows tokenizer and manifest at first, and stops the run when the manifest has grown. */
    struct result r = run_how(full, "--out @/parts" LONG_RUN);
    assert_true(WIFEXITED(r.status) && WEXITSTATUS(r.status) == 1);
    assert_mentions(r.err, "File too large");
    close_result(&r);
    int before = count_final_shards("parts");
    if (before == 0) fail_msg("nothing was finished under the limit");
    struct stat first, again;
    assert_int_equal(stat(in_scratch("parts/data_train_000000.bin"), &first), 0);
    assert_final_names_are_whole("parts", "whole");
    prepare("--resume --out @/parts" LONG_RUN);
    assert_int_equal(stat(in_scratch("parts/data_train_000000.bin"), &again), 0);
    assert_int_equal(first.st_ino, again.st_ino);
    assert_int_equal(first.st_mtim.tv_nsec, again.st_mtim.tv_nsec);
    assert_same_directories("whole", "parts");
}

static void a_full_disk_leaves_no_half_shard(void **state) {
    make_long_input();
    expect((struct how){.file_limit = 200000}, 1,
           "--tokenizer bytes --validation-fraction 0.1 --out @/out @/long.txt", "File too large");
    assert_int_equal(count_final_shards("out"), 0);
    assert_false(exists("out/manifest.json"));
    prepare(
        "--tokenizer bytes --validation-fraction 0.1 --out @/out @/long.txt"); /* nothing stands in the way */
    assert_manifest_is_true("out", 100000000);
}

static void flip_byte(const char *name, int64_t offset) {
    int fd = open(in_scratch("%s", name), O_RDWR);
    char byte = 0;
    assert_true(fd >= 0 && pread(fd, &byte, 1, offset) == 1);
    byte = (char)(byte ^ 1);
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

/* An interrupted run in @/parts. */
static void interrupt(void) {
    assert_true(remove_tree(in_scratch("parts")));
    refuses("--overwrite --out @/parts --strict --tokenizer bytes --batch-size 16k --shard-tokens 10k "
            "--format text @/long.txt @/cut.gz",
            "--resume continues");
    assert_true(exists("parts/manifest.json.partial"));
    assert_true(count_final_shards("parts") > 2);
}

#define AGAIN " --tokenizer bytes --batch-size 16k --shard-tokens 10k --format text @/long.txt @/cut.gz"

static void resuming_what_does_not_fit_is_refused(void **state) {
    make_long_input();
    struct mapped_file f;
    struct error err = {""};
    assert_true(file_map(&f, in_scratch("more.txt.gz"), &err));
    put_file("cut.gz", f.data, (size_t)f.size / 2); /* an error that stops the run in its middle */
    interrupt();
    refuses("--out @/parts" AGAIN, "--resume");
    refuses("--resume --out @/parts --tokenizer bytes --batch-size 16k --shard-tokens 20k --format text "
            "@/long.txt @/cut.gz",
            "--shard-tokens is 20480 now, but was 10240");
    refuses("--resume --out @/parts --tokenizer bytes --batch-size 16k --shard-tokens 10k --format text "
            "@/long.txt",
            "1 input files now");
    refuses("--resume --out @/parts --tokenizer bytes --batch-size 16k --shard-tokens 10k --format text "
            "@/long.txt @/more.txt.gz",
            "more.txt.gz now");
    put_file("cut.gz", f.data, (size_t)f.size); /* the input was repaired: it is another one */
    refuses("--resume --out @/parts" AGAIN, "bytes now, but had");
    put_file("cut.gz", f.data, (size_t)f.size / 2);
    flip_byte("parts/data_train_000001.bin", 5000);
    refuses("--resume --out @/parts" AGAIN, "data_train_000001.bin: its checksum is");
    flip_byte("parts/data_train_000001.bin", 5000);
    assert_int_equal(truncate(in_scratch("parts/data_train_000000.bin"), 5000), 0);
    refuses("--resume --out @/parts" AGAIN, "has 5000 bytes, but had 21504");
    put_file("parts/manifest.json.partial", "{", 1);
    refuses("--resume --out @/parts" AGAIN, "manifest.json.partial: not valid JSON in line 1");
    put_text("parts/manifest.json.partial", "{\"format\": \"llmc token shards\", \"version\": 2}");
    refuses("--resume --out @/parts" AGAIN, "version 2, expected 1");
    static const char *const damaged[] = {
        "{\"format\": \"llmc token shards\", \"version\": 1}",
        "{\"format\": \"llmc token shards\", \"version\": 1, \"options\": 3, \"sources\": \"x\"}"};
    for (int i = 0; i < 2; i++) {
        put_text("parts/manifest.json.partial", damaged[i]);
        refuses("--resume --out @/parts" AGAIN, "--resume");
    }
    assert_int_equal(unlink(in_scratch("parts/manifest.json.partial")), 0);
    refuses("--resume --out @/parts" AGAIN, "is there already, and no manifest.json");
    put_file("cut.gz", f.data, (size_t)f.size);
    prepare("--overwrite --out @/parts" AGAIN);
    assert_manifest_is_true("parts", 10240);
    refuses("--out @/parts" AGAIN, "holds finished shards");
    file_unmap(&f);
}

static void unfinished_shards_are_checked(void **state) {
    make_long_input();
    struct mapped_file f;
    struct error err = {""};
    assert_true(file_map(&f, in_scratch("more.txt.gz"), &err));
    put_file("cut.gz", f.data, (size_t)f.size / 2);
    file_unmap(&f);
    interrupt();
    char name[64];
    int n;
    char **paths = list("parts", &n);
    bool found = false;
    for (int i = 0; i < n; i++)
        if (strstr(paths[i], "_train_") && strstr(paths[i], ".partial")) {
            snprintf(name, sizeof name, "parts%s", strrchr(paths[i], '/'));
            found = true;
        }
    free_list(paths, n);
    assert_true(found);
    flip_byte(name, 1024);
    refuses("--resume --out @/parts" AGAIN, "are not those that were written");
    flip_byte(name, 1024);
    refuses("--resume --out @/parts" AGAIN, "truncated"); /* as before */
    assert_int_equal(truncate(in_scratch("%s", name), 1024), 0);
    refuses("--resume --out @/parts" AGAIN, "the file ends there");
}

static void one_run_at_a_time(void **state) {
    make_long_input();
    assert_int_equal(mkdir(in_scratch("out"), 0700), 0);
    pid_t child = fork();
    if (child == 0) {
        char *argv[] = {(char *)(uintptr_t) "prepare",
                        (char *)(uintptr_t) "--tokenizer",
                        (char *)(uintptr_t) "bytes",
                        (char *)(uintptr_t) "--out",
                        xstrdup(in_scratch("out")),
                        (char *)(uintptr_t) "-",
                        NULL};
        int ends[2]; /* it waits for input that does not come */
        if (pipe(ends) != 0) _exit(1);
        dup2(ends[0], 0);
        execv(program(), argv);
        _exit(127);
    }
    usleep(300000);
    struct result r = {0};
    for (int i = 0; i < 20; i++) { /* until the other has started, on a busy machine */
        r = run_how((struct how){0}, "--overwrite --tokenizer bytes --out @/out @/long.txt");
        if (WEXITSTATUS(r.status) == 1) break;
        close_result(&r);
        usleep(100000);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_int_equal(WEXITSTATUS(r.status), 1);
    assert_mentions(r.err, "another build/prepare");
    close_result(&r);
    prepare("--overwrite --tokenizer bytes --out @/out @/long.txt"); /* the lock is gone with it */
}

int main(int argc, char **argv) {
    /* In memory: most of the time would go into flushing hundreds of small shards to a disk. */
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 0);
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(killed_and_resumed_equals_uninterrupted),
        SCRATCH_TEST(finished_shards_are_kept),
        SCRATCH_TEST(a_full_disk_leaves_no_half_shard),
        SCRATCH_TEST(resuming_what_does_not_fit_is_refused),
        SCRATCH_TEST(unfinished_shards_are_checked),
        SCRATCH_TEST(one_run_at_a_time),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

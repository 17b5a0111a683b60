/* Whether what a run will write fits on the disk: the forecast, and what is said of it. */
#include "test/program.h"

#include "llmc/run/disk.h"

#include <string.h>

#define RUN                                                                                                  \
    "$T --text text.txt --tokenizer bytes --layers 1 --channels 16 --heads 2 --context 16 --batch-size 2 "   \
    "--threads 1 --device cpu "

static void the_forecast_counts_what_is_kept(void **state) {
    struct disk_need need = {.checkpoint = 100, .saves = 50, .kept = 2, .logs = 30};
    assert_int_equal(disk_need_bytes(&need), 330);
    assert_int_equal(disk_forecast(&need, 330), DISK_ENOUGH);
    assert_int_equal(disk_forecast(&need, 329), DISK_WARN);
    assert_int_equal(disk_forecast(&need, 200), DISK_WARN);
    assert_int_equal(disk_forecast(&need, 199),
                     DISK_REFUSE); /* a second one is written before the first goes */
    need.saves = 1;
    assert_int_equal(disk_need_bytes(&need), 130);
    assert_int_equal(disk_forecast(&need, 130), DISK_ENOUGH);
    assert_int_equal(disk_forecast(&need, 100), DISK_WARN);
    assert_int_equal(disk_forecast(&need, 99), DISK_REFUSE);
    need.saves = 0; /* a run that has ended */
    assert_int_equal(disk_forecast(&need, 30), DISK_ENOUGH);
}

static void put_words(void) {
    char text[2000] = "";
    for (int i = 0; i < 100; i++) strcat(text, i % 3 ? "the cat " : "a dog ran ");
    put_text("text.txt", text);
}

static void a_run_that_outgrows_the_disk_is_warned_about(void **state) {
    put_words();
    struct ran r = run_command(RUN "--steps 900000000000 --save-every 100 --max-time 0.001s --out run");
    assert_int_equal(r.status, 85);
    assert_mentions(r.err, "warning: run: the run will need ");
    assert_mentions(r.err, "up to 3 checkpoints of ");
    r = run_command(RUN "--steps 20 --save-every 10 --out small");
    assert_int_equal(r.status, 0);
    assert_string_equal(r.err, "");
    expect_command(0, "", "rm -r run small");
}

/* A checkpoint takes about 110 KB, 90 of them weights and moments. */
#define ON_DISK(size, command)                                                                               \
    "mkdir -p disk && unshare -rm sh -c 'mount -t tmpfs -o size=" size " none disk && " command "'"

static void small_disks(void **state) {
    if (run_command(ON_DISK("1m", "true")).status != 0) {
        print_message("left out: no file systems may be mounted here\n");
        return;
    }
    put_words();
    expect_command(
        1, "disk/run: a checkpoint of this run takes ",
        ON_DISK("64k", RUN "--steps 20 --save-every 10 --out disk/run; s=$?; ls disk | grep . || exit $s"));
    expect_command(1, "room for two is needed",
                   ON_DISK("150k", RUN "--steps 20 --save-every 10 --out disk/run"));
    expect_command(0, "less than two more checkpoints",
                   ON_DISK("280k", RUN "--steps 20 --save-every 20 --out disk/run"));
    /* a run that is overwritten gives its room back */
    expect_command(0, "",
                   ON_DISK("330k", RUN "--steps 20 --save-every 10 --out disk/run && " RUN
                                       "--steps 20 --save-every 10 --overwrite --out disk/run"));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_forecast_counts_what_is_kept),
        SCRATCH_TEST(a_run_that_outgrows_the_disk_is_warned_about),
        SCRATCH_TEST(small_disks),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* Signals, standard files and what happens to a run's directory while it trains: nothing costs work that
 * was done, and what cannot be saved is said. */
#include "test/program.h"

#include "llmc/base/console.h"
#include "llmc/base/file.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL                                                                                                \
    "--layers 1 --channels 16 --heads 2 --context 32 --vocab-size 300 --batch-size 2 --threads 1 "           \
    "--device cpu "
#define RUN "$T --text text.txt " MODEL
/* Waits until the command succeeds, or the program of `pid` has ended. */
#define UNTIL(command) "until " command "; do kill -0 $(cat pid) || break; sleep 0.02; done; "
/* In the background: its pid in `pid`, what it says in `output`; waits for the first 20 steps. */
#define BEGIN(out, options)                                                                                  \
    RUN "--out " out " " options " >output 2>&1 & echo $! >pid; " UNTIL(                                     \
        "[ -f " out "/log.jsonl ] && [ $(wc -l <" out "/log.jsonl) -gt 20 ]")
#define ENDLESS "--steps 100000000 --save-every 100000000 "
/* A checkpoint every 300 steps. MEANWHILE stops the program between two of them, does something, and lets it
 * go on. */
#define SAVING "--steps 100000000 --save-every 300 "
#define MEANWHILE(something)                                                                                 \
    "until kill -STOP $(cat pid); until grep -q '^State:.[TZ]' /proc/$(cat pid)/status; do :; done; "        \
    "n=$(($(wc -l <run/log.jsonl) %% 300)); [ $n -gt 20 -a $n -lt 280 ]; do "                                \
    "kill -CONT $(cat pid); sleep 0.01; done; " something "; kill -CONT $(cat pid); "
/* The rows of the steps are all there, once, and nothing else is in the log. */
#define WHOLE(run)                                                                                           \
    "grep -o '^{\"step\":[0-9]*,\"epoch' " run "/log.jsonl | grep -o '[0-9]*' >steps && "                    \
    "seq $(wc -l <steps) | cmp - steps && ! grep -v '^{\"step\":[0-9]*,\"[ev].*}$' " run "/log.jsonl "

static int set_up(void **state) {
    static const char *const words[] = {"the", "cat", "saw", "a", "dog", "and", "ran", "home"};
    if (make_scratch(state) != 0) return -1;
    FILE *f = fopen(in_scratch("text.txt"), "w");
    for (int i = 0; i < 4000; i++) fprintf(f, "%s%s", words[(i * i + i / 7) % 8], i % 12 == 11 ? ".\n" : " ");
    fclose(f);
    return 0;
}

static void every_signal_saves(void **state) {
    static const int numbers[] = {SIGHUP, SIGINT, SIGTERM};
    for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++) {
        expect_command(128 + numbers[i], "", BEGIN("run", ENDLESS) "kill -%d $(cat pid); wait $(cat pid)",
                       numbers[i]);
        expect_command(0, "", "grep -q 'the state is saved' output && ls -d run/step-* && " WHOLE("run"));
        expect_command(
            0, "", "$T --resume --out run --steps $(($(wc -l <steps) + 3)) && " WHOLE("run") "&& rm -r run");
    }
}

static void nohup_is_respected(void **state) {
    expect_command(
        128 + SIGTERM, "",
        "trap '' HUP; " BEGIN(
            "run", ENDLESS) "kill -HUP $(cat pid); n=$(wc -l <run/log.jsonl); "
                            "until [ $(wc -l <run/log.jsonl) -gt $((n + 500)) ]; do sleep 0.02; done; "
                            "kill -TERM $(cat pid); wait $(cat pid)");
    expect_command(0, "", "rm -r run");
}

/* Signals that arrive while the first one's checkpoint is written, by the hundred. */
static void further_signals_abort_nothing(void **state) {
    for (int i = 0; i < 5; i++) {
        expect_command(128 + SIGTERM, "",
                       BEGIN("run", ENDLESS) "kill -TERM $(cat pid); "
                                             "for i in 1 2 3 4 5 6 7 8; do for s in HUP INT USR1 TERM; do "
                                             "kill -$s $(cat pid); done; done 2>/dev/null; wait $(cat pid)");
        expect_command(0, "",
                       "grep -q 'the state is saved' output && ls -d run/step-* && ! ls -d run/*.tmp && "
                       "rm -r run");
    }
    expect_command(128 + SIGQUIT, "",
                   "ulimit -c 0; " BEGIN("run", ENDLESS) "kill -QUIT $(cat pid); wait $(cat pid)");
    expect_command(0, "", "! ls -d run/step-* && rm -r run");
}

static void a_broken_pipe_ends_no_training(void **state) {
    expect_command(
        0, "", "(" RUN "--steps 200 --save-every 50 --out run 2>err; echo $? >status) | head -3 >/dev/null");
    expect_command(0, "0\n",
                   "cat status && ls run/step-00000200/model.safetensors run/loss.svg && " WHOLE("run"));
    expect_command(0, "1\n", "grep -c 'standard output cannot be written' err && rm -r run");
    expect_command(0, "standard output cannot be written: No space",
                   RUN "--steps 5 --out run >/dev/full && rm -r run");
    expect_command(0, "", "(" RUN "--ranks 2 --steps 50 --out run 2>&1; echo $? >status) | head -3");
    expect_command(0, "0\n", "cat status && ls run/step-00000050/trainer.json && rm -r run");
}

/* Files of the run must not get the numbers of closed standard files. */
static void missing_descriptors(void **state) {
    static const char *const closed[] = {">&-", "<&- >&-", "<&- >&- 2>&-", "2>&-"};
    for (size_t i = 0; i < ARRAY_LENGTH(closed); i++) {
        expect_command(0, "", RUN "--steps 6 --save-every 3 --sample-every 2 --out run %s && " WHOLE("run"),
                       closed[i]);
        expect_command(
            0, "",
            "$T --resume --out run --steps 9 %s && " WHOLE(
                "run") "&& "
                       "! grep -qv '^{.*}$' run/timing.jsonl && cp run/step-*9/tokenizer.json . && rm -r run",
            closed[i]);
        expect_command(
            0, "",
            "$P --tokenizer bytes --out shards text.txt %s && $P --tokenizer bytes --out other text.txt && "
            "for f in shards/*; do cmp $f other/${f##*/} || exit 1; done; rm -r shards other",
            closed[i]);
    }
    expect_command(1, "cannot be written to standard output", "$T --help >/dev/full");
}

static void failed_saves_decide_the_exit_status(void **state) {
    struct ran r = run_command("ulimit -f 40; " RUN "--steps 6 --save-every 3 --out run");
    assert_int_equal(r.status, 1);
    assert_mentions(r.err, "checkpoint of step 3 not saved");
    assert_mentions(r.err, "File too large");
    assert_mentions(r.err, "checkpoint of step 6 not saved");
    assert_mentions(r.out, "COULD NOT BE SAVED");
    assert_null(strstr(r.out, "sample    "));
    expect_command(0, "", "! ls -d run/step-* && " WHOLE("run") "&& rm -r run");
    /* no checkpoint: none is promised */
    r = run_command(RUN "--learning-rate 100 --grad-clip 0 --steps 2000 --save-every 2000 --out run");
    if (r.status) {
        assert_mentions(r.err, "no checkpoint was saved");
        expect_command(0, "", "! ls -d run/step-*");
    }
    expect_command(0, "", "rm -r run");
}

static void killed_before_the_first_checkpoint(void **state) {
#define STEPS "--steps 3000 --save-every 3000 --learning-rate 2e-3 --seed 3 "
    expect_command(0, "", RUN STEPS "--out whole");
    expect_command(128 + SIGKILL, "", BEGIN("run", STEPS) "kill -KILL $(cat pid); wait $(cat pid)");
    expect_command(0, "begins again", "ls -d run/step-* || $T --resume --out run");
    expect_command(0, "",
                   "cmp whole/log.jsonl run/log.jsonl && cd whole/step-00003000 && "
                   "for f in *.safetensors; do cmp $f ../../run/step-00003000/$f || exit 1; done");
    /* without its options a run cannot be repeated */
    expect_command(1, "neither a checkpoint nor run/options.json",
                   "rm -r run/step-* run/options.json && $T --resume --out run");
    expect_command(0, "", "test -f run/log.jsonl && rm -r run whole");
}

static void a_directory_that_goes_away(void **state) {
    static const char *const fates[] = {"rm -r run", "mv run moved", "mv run moved; mkdir run",
                                        "rm run/log.jsonl run/run.json"};
    for (size_t i = 0; i < ARRAY_LENGTH(fates); i++) {
        expect_command(
            128 + SIGTERM, "",
            BEGIN("run", SAVING) "cp run/run.json facts; " MEANWHILE("%s") UNTIL(
                "ls -d run/step-*[0-9] || grep 'not saved' output") "kill -TERM $(cat pid); wait $(cat pid)",
            fates[i]);
        expect_command(0, "",
                       "%s " WHOLE("run") "&& cmp facts run/run.json && ls run/options.json run/loss.svg",
                       i < 3 ? "grep 'is made anew' output &&" : "! grep anew output &&");
        expect_command(0, "", "$T --resume --out run --steps $(($(wc -l <steps) + 3)) && rm -rf run moved");
    }
    /* Something else is there now: it is left alone, and the run goes on without. */
    expect_command(1, "",
                   BEGIN("run", SAVING) MEANWHILE("mv run moved; mkdir run; echo precious >run/log.jsonl")
                       UNTIL("grep -q 'not saved' output") "kill -TERM $(cat pid); wait $(cat pid)");
    expect_command(0, "precious\n", "cat run/* && rm -r run moved");
}

/* Names and texts from files do not act on the terminal. */
static void assert_printable(const char *text) {
    for (const char *p = text; *p; p++)
        if (((unsigned char)*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7f)
            fail_msg("control character %02x in: %s", *p, text);
}

static void control_characters_are_not_printed(void **state) {
    char text[] = "a\x1b]0;x\x07 b\tc\n\xc2\x9b"
                  "31m \xc3\xa9 \x7f \x9b \xe2\x82\xac";
    make_printable(text);
    assert_string_equal(text, "a?]0;x? b\tc\n??31m \xc3\xa9 ? ? \xe2\x82\xac");
    expect_command(0, "", RUN "--steps 2 --out run");
    put_text("q\x1b[2J.jsonl",
             "{\"context\": \"the\", \"choices\": [\"\x1b[2J\", \"ran\"], \"answer\": 7}\n");
    put_text("n\x1b[2J.txt", "the cat\n");
    static const char *const commands[] = {
        "$T eval --from run --tasks q*.jsonl",
        "$T eval --from run --text n*.txt",
        "$T eval --from run/q*",
        "$T eval --from n*.txt --text text.txt",
        "$T export --from run --to \"$(printf 'x\\033[2J')\"",
        "$T --text n*.txt --steps 1 --out run2",
        "cp -r run \"$(printf 'r\\033[2J')\" && $T --resume --steps 3 --out r?*2J",
        "$P --tokenizer bytes --out shards q*.jsonl",
        ("sed -i 's/\"wpe/\"\\\\u001b[2J/' run/step-00000002/model.safetensors; "
         "$T eval --from run/step-00000002 --text text.txt"),
    };
    for (size_t i = 0; i < ARRAY_LENGTH(commands); i++) {
        struct ran r = run_command("%s", commands[i]);
        assert_true(*r.out || *r.err);
        assert_printable(r.out);
        assert_printable(r.err);
    }
    expect_command(0, "", "rm -rf run* shards x* r?*2J [qn]*");
}

/* Printed commands can be pasted. */
static void assert_quoted(const char *text, const char *quoted) {
    char *found = shell_quote(text);
    assert_string_equal(found, quoted);
    free(found);
}

static void printed_commands_work(void **state) {
    assert_quoted("runs/a-1", "runs/a-1");
    assert_quoted("", "''");
    assert_quoted("my run", "'my run'");
    assert_quoted("it's $HOME", "'it'\\''s $HOME'");
    assert_quoted("a*b", "'a*b'");
    /* in a directory with a blank and a quote, called by another name from elsewhere */
    expect_command(
        0, "",
        "mkdir -p \"it's here/bin\" && ln -s $T \"it's here/bin/my trainer\" && cd \"it's here\" && "
        "'bin/my trainer' --text ../text.txt " MODEL "--steps 3 --out 'a run' >said && "
        "sed -n 's/^sample  *//p' said >command && test -s command && sh command");
    expect_command(0, "",
                   "cd \"it's here\"; 'bin/my trainer' --text ../text.txt " MODEL ENDLESS
                   "--out 'b run' >said & echo $! >pid; "
                   "until [ -s 'b run/log.jsonl' ]; do sleep 0.02; done; kill -TERM $(cat pid); "
                   "wait $(cat pid); sed -n 's/^continue  *//p' said >command && "
                   "grep -qx \"'bin/my trainer' --resume --out 'b run'\" command && "
                   "sed -i 's/$/ --steps 100000/' command && (sh command >said & echo $! >pid; "
                   "until grep -q 'resumed from' said; do sleep 0.02; done; kill -TERM $(cat pid))");
    expect_command(0, "weights",
                   "$P --tokenizer bytes --out 'my shards' text.txt | tail -1 >command && "
                   "sed -i 's/$/ --layers 1 --channels 16 --heads 2 --context 32 --steps 2/' command && "
                   "sh command && rm -r 'my shards' \"it's here\" runs");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_signal_saves),
        cmocka_unit_test(nohup_is_respected),
        cmocka_unit_test(further_signals_abort_nothing),
        cmocka_unit_test(a_broken_pipe_ends_no_training),
        cmocka_unit_test(missing_descriptors),
        cmocka_unit_test(failed_saves_decide_the_exit_status),
        cmocka_unit_test(killed_before_the_first_checkpoint),
        cmocka_unit_test(a_directory_that_goes_away),
        cmocka_unit_test(control_characters_are_not_printed),
        cmocka_unit_test(printed_commands_work),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}

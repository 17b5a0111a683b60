/* Runs that stop before their last step because their time is over, or save because they are asked: what is
 * saved goes on as if nothing had happened, and the exit status says what to do. */
#include "test/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL                                                                                                \
    "--layers 1 --channels 16 --heads 2 --context 32 --vocab-size 300 --batch-size 2 --threads 1 "           \
    "--device cpu "
#define RUN     "$T --text text.txt " MODEL
#define ENDLESS "--steps 100000000 --save-every 100000000 "
#define LINES(n)                                                                                             \
    "until [ -f run/log.jsonl ] && [ $(wc -l <run/log.jsonl) -gt " n " ]; do kill -0 $! || break; "          \
    "sleep 0.02; done; "
/* Weights, moments and log are those of an uninterrupted run of 400 steps. */
#define SAME                                                                                                 \
    "cmp whole/log.jsonl run/log.jsonl && for f in model optimizer; do "                                     \
    "cmp whole/step-00000400/$f.safetensors run/step-00000400/$f.safetensors || exit 1; done"
#define WHOLE_OPTIONS "--steps 400 --val-every 40 --learning-rate 2e-3 --seed 3 "

static char script[4096];

static int set_up(void **state) {
    static const char *const words[] = {"the", "cat", "saw", "a", "dog", "and", "ran", "home"};
    if (!getcwd(script, sizeof script - 32) || make_scratch(state) != 0) return -1;
    strcat(script, "/dev/slurm/train.sbatch");
    FILE *f = fopen(in_scratch("text.txt"), "w");
    for (int i = 0; i < 4000; i++) fprintf(f, "%s%s", words[(i * i + i / 7) % 8], i % 12 == 11 ? ".\n" : " ");
    fclose(f);
    expect_command(0, "weights", RUN WHOLE_OPTIONS "--out whole");
    return 0;
}

/* --- SIGUSR1 --- */

static void usr1_saves_and_goes_on(void **state) {
    static const char *const ranks[] = {"", "--ranks 2 "};
    for (size_t i = 0; i < ARRAY_LENGTH(ranks); i++) {
        expect_command(128 + 15, "",
                       RUN ENDLESS "%s--out run >output 2>&1 & " LINES(
                           "20") "kill -USR1 $!; until ls -d run/step-*[0-9]; do kill -0 $! || break; "
                                 "sleep 0.02; done; n=$(wc -l <run/log.jsonl); " LINES(
                                     "$((n + 20))") "kill -TERM $!; wait $!",
                       ranks[i]);
        expect_command(0, "1\n", "grep -c '^saved .*run/step-0.*, on SIGUSR1' output");
        expect_command(0, "(SIGTERM); the state is saved",
                       "cat output; ls -d run/step-* | wc -l | grep -qx 2");
        expect_command(0, "", "rm -r run");
    }
}

static void usr1_with_requeue_ends(void **state) {
    static const char *const ranks[] = {"", "--ranks 2 "};
    for (size_t i = 0; i < ARRAY_LENGTH(ranks); i++) {
        expect_command(
            85, "", RUN ENDLESS "%s--requeue --out run >output 2>&1 & " LINES("20") "kill -USR1 $!; wait $!",
            ranks[i]);
        expect_command(0, "(SIGUSR1); the state is saved", "cat output; ! grep error: output");
        expect_command(0, "", "ls -d run/step-* && rm -r run");
    }
    /* before there is anything to save, it must not be lost */
    expect_command(85, "stopped at step 0",
                   "mkfifo pipe; $T --text - " MODEL "--steps 50 --requeue --out run <pipe & "
                   "exec 3>pipe; until grep -q '^SigCgt:.*[2367abef]..$' /proc/$!/status; do sleep 0.02; "
                   "done; kill -USR1 $!; cat text.txt >&3; exec 3>&-; wait $!");
    expect_command(0, "", "rm -r run");
}

/* --- --max-time --- */

static void a_time_limit_ends_the_run(void **state) {
    static const char *const ranks[] = {"", "--ranks 2 "};
    for (size_t i = 0; i < ARRAY_LENGTH(ranks); i++) {
        double begun = now_seconds();
        expect_command(85, "(--max-time 2s); the state is saved", RUN ENDLESS "%s--max-time 2s --out run",
                       ranks[i]);
        double took = now_seconds() - begun;
        if (took < 1.0 || took > 10.0) fail_msg("--max-time 2s: %g seconds", took);
        expect_command(0, "", "ls -d run/step-* && rm -r run");
    }
    /* the limit is of this start: it is neither stored nor taken over */
    expect_command(85, "",
                   RUN WHOLE_OPTIONS "--max-time 0.001s --out run >/dev/null || s=$?; "
                                     "$T --resume --out run >output && ! grep max-time output && exit $s");
    expect_command(0, "", SAME);
    expect_command(0, "", "rm -r run");
}

/* A limit that is too short for anything still makes a step with each start. */
static void each_start_makes_progress(void **state) {
    expect_command(0, "",
                   "short='" MODEL
                   "--steps 5 --val-every 2 --max-time 0.001s'; $T --text text.txt $short --out run; "
                   "n=1; until $T --resume --max-time 0.001s --out run; do "
                   "[ $? -eq 85 ] || exit 1; n=$((n+1)); [ $n -lt 9 ] || exit 2; done");
    expect_command(0, "", RUN "--steps 5 --val-every 2 --out short && cmp short/log.jsonl run/log.jsonl");
    expect_command(0, "", "rm -r run short");
}

static void times_that_are_none(void **state) {
    static const char *const values[][2] = {
        {"0", "not a time such as 90s"}, {"5", "not a time such as"},     {"5x", "not a time such as"},
        {"h", "not a time such as"},     {"0s", "must be above 0"},       {"-3h", "must be above 0"},
        {"1e300d", "below 300 years"},   {"'3h '", "not a time such as"}, {"''", "not a time such as"}};
    for (size_t i = 0; i < ARRAY_LENGTH(values); i++)
        expect_command(2, values[i][1], RUN "--steps 1 --out run --max-time=%s", values[i][0]);
    expect_command(0, "", "! test -e run");
}

/* --- telling --- */

/* The command writes down what it is told. */
static void the_end_is_told(void **state) {
    put_text("tell",
             "#!/bin/sh\necho \"$LLMC_EVENT,$LLMC_STATUS,$LLMC_RUN,$LLMC_STEP,$LLMC_MESSAGE\" >told\n");
    expect_command(0, "weights", "chmod +x tell; " RUN "--steps 3 --out run --notify ./tell");
    expect_command(0, "finished,0,run,3,\n", "cat told");
    expect_command(
        0, "", RUN WHOLE_OPTIONS "--out told_run --notify true && cmp whole/log.jsonl told_run/log.jsonl");
    expect_command(
        85, "",
        "timeout 120 $T --resume --steps 100000000 --out run --notify ./tell --max-time 1s --restart 2");
    expect_command(0, "stopped,85,run,", "cat told; rm told");
    expect_command(128 + 15, "",
                   "rm -r run; " RUN ENDLESS
                   "--out run --notify ./tell >output 2>&1 & " LINES("20") "kill -TERM $!; wait $!");
    expect_command(0, "stopped,143,run,", "cat told; rm told");
    /* by the kernel, for want of memory: the one rank, not who watches it */
    expect_command(128 + 9, "",
                   "rm -r run; " RUN ENDLESS "--out run --notify ./tell >output 2>&1 & " LINES(
                       "20") "kill -KILL $(cat /proc/$!/task/$!/children); wait $!");
    expect_command(0, "failed,137,run,,\n", "cat told; rm told");
    expect_command(1, "no-such-file", RUN "--steps 3 --out new --tokenizer no-such-file --notify ./tell");
    expect_command(0, "failed,1,new,,no-such-file: cannot open", "cat told; rm told");
    /* what goes wrong with the command is said, and changes nothing else */
    expect_command(0, "warning: --notify: the command ended with status 3",
                   "rm -r run; " RUN "--steps 3 --out run --notify 'exit 3'");
    expect_command(0, "warning: --notify: the command has not ended after 10 s",
                   "rm -r run; " RUN "--steps 3 --out run --notify 'exec sleep 15'");
    expect_command(1, "--notify: mpirun (OMPI_COMM_WORLD_SIZE=2) has started the processes",
                   "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 " RUN "--steps 3 --out no --notify true");
    expect_command(2, "--notify: empty value", RUN "--steps 3 --out no --notify=");
    expect_command(0, "", "rm -r run told_run; ! test -e no");
}

/* --- Slurm --- */

/* srun that runs one task, and scontrol that notes what it is told. After $AFTER steps the batch system
 * announces the end. */
static const char srun[] = "#!/bin/sh\n"
                           "while case $1 in --*) ;; *) false ;; esac; do shift; done\n"
                           "\"$@\" & pid=$!\n"
                           "if [ \"$AFTER\" ]; then\n"
                           "  until [ -f run/log.jsonl ] && [ $(wc -l <run/log.jsonl) -gt $AFTER ]; do\n"
                           "    kill -0 $pid || break; sleep 0.02; done\n"
                           "  kill -${SIGNAL:-USR1} $pid\n"
                           "fi\n"
                           "wait $pid\n";
#define JOB "PATH=\"$PWD/stubs:$PATH\" OUT=run SLURM_JOB_ID=17 sh %s --text text.txt " MODEL WHOLE_OPTIONS

static void slurm_jobs_are_requeued(void **state) {
    put_text("stubs/srun", srun);
    put_text("stubs/scontrol", "#!/bin/sh\necho \"$@\" >>told\n");
    expect_command(0, "", "chmod +x stubs/*; mkdir build; ln -s $T build/train_gpt; sh -n %s", script);
    expect_command(0, "status 85: job 17 goes back", "AFTER=60 " JOB, script);
    expect_command(0, "status 85: job 17 goes back", "AFTER=200 " JOB, script);
    expect_command(0, "resumed from run/step-", JOB, script);
    expect_command(0, "requeue 17\nrequeue 17\n", "cat told; " SAME);
    /* scancel and errors end it; a process that was lost does so after 20 times */
    expect_command(143, "", "rm -r run told; AFTER=20 SIGNAL=TERM " JOB, script);
    expect_command(1, "no-such-file", "sh -c '" JOB "--tokenizer no-such-file'", script);
    expect_command(137, "", "SLURM_RESTART_COUNT=20 AFTER=40 SIGNAL=KILL " JOB, script);
    expect_command(0, "", "! test -e told");
    expect_command(0, "status 137: job 17", "SLURM_RESTART_COUNT=19 AFTER=40 SIGNAL=KILL " JOB, script);
    expect_command(0, "", "grep -qx 'requeue 17' told; rm -r run");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(usr1_saves_and_goes_on),    cmocka_unit_test(usr1_with_requeue_ends),
        cmocka_unit_test(a_time_limit_ends_the_run), cmocka_unit_test(each_start_makes_progress),
        cmocka_unit_test(times_that_are_none),       cmocka_unit_test(the_end_is_told),
        cmocka_unit_test(slurm_jobs_are_requeued),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}

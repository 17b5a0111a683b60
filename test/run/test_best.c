/* --keep-best and --early-stop: which checkpoint is the best, that it stays, and where a run ends. A text
 * whose second half has other words is learned by heart: the validation loss falls, and then rises. */
#include "test/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL                                                                                                \
    "--text text.txt --tokenizer bytes --layers 1 --channels 16 --heads 2 --context 16 --batch-size 2 "      \
    "--threads 1 --device cpu --learning-rate 5e-3 --warmup 0 --schedule constant --validation-fraction 0.3 "
#define RUN "$T " MODEL "--steps 200 --save-every 25 --val-every 10 --keep 2 --seed 3 "
/* "STEP LOSS" of the validation with the lowest loss, the first one if several have it */
#define LOWEST(run)                                                                                          \
    "sed -n 's/.*step\":\\([0-9]*\\),\"val_loss\":\\([^}]*\\)}/\\1 \\2/p' " run                              \
    "/log.jsonl | sort -s -g -k 2 | head -1 "
#define LINKED(run)                                                                                          \
    "test $(readlink " run "/best) = $(printf 'step-%%08d' $(" LOWEST(run) "| cut -d ' ' -f 1))"

static int set_up(void **state) {
    if (make_scratch(state) != 0) return -1;
    FILE *f = fopen(in_scratch("text.txt"), "w");
    for (int i = 0; i < 90; i++) fprintf(f, "%s", i < 63 ? "aab abb " : "aabb ab ");
    fclose(f);
    expect_command(0, "", RUN "--out plain >/dev/null");
    expect_command(0, "lowest in between",
                   "set -- $(" LOWEST("plain") "); [ $1 -gt 10 -a $1 -lt 150 ] && echo lowest in between");
    return 0;
}

static void the_best_checkpoint_stays(void **state) {
    expect_command(0, "best      run/best, after step ", RUN "--keep-best --out run");
    expect_command(0, "", LINKED("run"));
    expect_command(0, "3\n", "cmp plain/log.jsonl run/log.jsonl; ls -d run/step-* | wc -l");
    /* it is the model of that validation */
    expect_command(
        0, "",
        "set -- $(" LOWEST(
            "run") "); $T " MODEL "--steps 200 --save-every $1 --val-every 10 --seed 3 "
                   "--keep 100 --out every >/dev/null && "
                   "cmp run/best/model.safetensors every/step-$(printf '%%08d' $1)/model.safetensors");
    expect_command(0, "", "$T sample --from run/best --prompt aab --tokens 8");
    expect_command(0, "", "$T --text text.txt --model run/best --steps 1 --device cpu --out tuned");
    /* without the option nothing is kept besides */
    expect_command(0, "2\n", "! test -e plain/best && ls -d plain/step-* | wc -l");
    expect_command(0, "", "rm -r run every tuned");
}

/* Killed after each of the first steps, and resumed: the same link, the same checkpoints. */
static void resumed_runs_keep_the_same(void **state) {
    expect_command(0, "", RUN "--keep-best --early-stop 4 --out whole >/dev/null");
    expect_command(
        0, "",
        RUN "--keep-best --early-stop 4 --max-time 0.001s --out run >/dev/null; "
            "for i in 1 2 3 4; do "
            "$T --resume --out run >/dev/null & "
            "until [ $(wc -l <run/log.jsonl) -gt $((i * 13)) ]; do kill -0 $! || break; done 2>/dev/null; "
            "kill -KILL $!; wait $!; done; $T --resume --out run >/dev/null");
    expect_command(0, "", "cmp whole/log.jsonl run/log.jsonl && " LINKED("run"));
    expect_command(0, "",
                   "ls -d whole/step-* | sed s/whole/run/ >want; ls -d run/step-* | cmp - want; "
                   "test $(readlink whole/best) = $(readlink run/best)");
    expect_command(0, "", "rm -r run whole");
}

static void early_stop_ends_the_run(void **state) {
    struct ran r = run_command(RUN "--early-stop 3 --ranks 2 --keep-best --out run");
    assert_int_equal(r.status, 0);
    assert_mentions(r.out, "early stop: 3 validations have brought no loss below ");
    assert_mentions(r.out, "weights   run/step-");
    expect_command(0, "", "set -- $(" LOWEST("run") "); test -d run/step-$(printf '%%08d' $(($1 + 30)))");
    expect_command(0, "", "set -- $(" LOWEST("run") "); ! grep '\"step\":'$(($1 + 31)) run/log.jsonl");
    /* resumed, it is at its end; with more patience it goes on */
    expect_command(0, "early stop: 3 validations", "$T --resume --out run");
    expect_command(0, "early stop: 5 validations", "$T --resume --early-stop 5 --out run");
    expect_command(0, "", "set -- $(" LOWEST("run") "); test -d run/step-$(printf '%%08d' $(($1 + 50)))");
    expect_command(0, "", LINKED("run") " && rm -r run");
    expect_command(0, "--early-stop has no effect: there is no validation data",
                   "$T --text text.txt --layers 1 --channels 16 --heads 2 --context 16 --device cpu "
                   "--validation-fraction 0 --steps 2 --early-stop 2 --keep-best --out run");
    expect_command(0, "", "! test -e run/best && rm -r run");
}

/* The name belongs to the run only as a link to a checkpoint. */
static void other_things_of_that_name_stay(void **state) {
    expect_command(0, "", RUN "--keep-best --out run >/dev/null && " RUN "--overwrite --out run >/dev/null");
    expect_command(0, "", "! test -e run/best");
    expect_command(1, "run/best is no symbolic link to a checkpoint",
                   "mkdir run/best && echo precious >run/best/mine && " RUN "--overwrite --out run");
    expect_command(0, "precious\n", "cat run/best/mine; rm -r run");
    expect_command(1, "new/best is there, which a run would replace",
                   "mkdir new && echo precious >new/best && " RUN "--keep-best --out new");
    expect_command(0, "precious\n", "cat new/best; rm -r new");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_best_checkpoint_stays),
        cmocka_unit_test(resumed_runs_keep_the_same),
        cmocka_unit_test(early_stop_ends_the_run),
        cmocka_unit_test(other_things_of_that_name_stay),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}

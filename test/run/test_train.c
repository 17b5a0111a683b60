/* The trainer as a user runs it. A run that is interrupted (SIGKILL, SIGTERM, a full disk) and resumed must
 * equal an uninterrupted one byte for byte; a model must reach the entropy of a known source; every mistake
 * must get its message. */
#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/base/rng.h"
#include "llmc/corpus/dataloader.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char program[512];

/* --- running the program --- */

enum { MAX_ARGS = 48 };

struct result {
    int status; /* exit status, or 128 + signal */
    char *output;
};

/* Words separated by single spaces; "$D" is the scratch directory; no quoting. */
static int split(char *text, char **argv) {
    int n = 0;
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) {
        assert_true(n < MAX_ARGS - 1);
        argv[n++] =
            strncmp(word, "$D", 2) == 0 ? xasprintf("%s%s", scratch_directory(), word + 2) : xstrdup(word);
    }
    argv[n] = NULL;
    return n;
}

static pid_t start(const char *arguments, const char *output, int64_t file_limit) {
    char *text = xasprintf("%s %s", program, arguments), *argv[MAX_ARGS];
    int n = split(text, argv);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int out = open(output, O_WRONLY | O_CREAT | O_TRUNC, 0666), in = open("/dev/null", O_RDONLY);
        if (out < 0 || in < 0) _exit(126);
        dup2(in, 0);
        dup2(out, 1);
        dup2(out, 2);
        if (file_limit > 0) {
            signal(SIGXFSZ, SIG_IGN); /* writing fails with EFBIG, as it would with ENOSPC */
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)file_limit, (rlim_t)file_limit});
        }
        execv(argv[0], argv);
        _exit(127);
    }
    for (int i = 0; i < n; i++) free(argv[i]);
    free(text);
    return pid;
}

static int wait_for(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0) assert_int_equal(errno, EINTR);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static struct result run_limited(const char *arguments, int64_t file_limit) {
    int status = wait_for(start(arguments, in_scratch("output"), file_limit));
    return (struct result){status, get_text("output")};
}

static void expect(const char *arguments, int status, const char *in_output) {
    struct result r = run_limited(arguments, 0);
    if (r.status != status || !strstr(r.output, in_output))
        fail_msg("train_gpt %s\n  exit status %d, wanted %d; wanted in the output: %s\n%s", arguments,
                 r.status, status, in_output, r.output);
    free(r.output);
}

/* --- comparing runs --- */

/* A tiny model on a few hundred stories: about a second. */
#define SMALL_BUT_BATCH                                                                                         \
    "--layers 2 --heads 2 --channels 32 --context 48 --stories 300 --vocab-size 300 --steps 40 --save-every 7 " \
    "--val-every 10 --val-batches 2 --keep 3 --learning-rate 3e-3 --device cpu "
#define SMALL SMALL_BUT_BATCH "--batch-size 4"

static void assert_same_file(const char *a, const char *b, const char *name) {
    const char *path_a = in_scratch("%s/%s", a, name), *path_b = in_scratch("%s/%s", b, name);
    struct mapped_file x, y;
    struct error err;
    if (!file_map(&x, path_a, &err) || !file_map(&y, path_b, &err)) fail_msg("%s", err.message);
    if (x.size != y.size || memcmp(x.data, y.data, (size_t)x.size))
        fail_msg("%s and %s differ", path_a, path_b);
    file_unmap(&x);
    file_unmap(&y);
}

/* Compares weights, moments and log with those of $D/whole, an uninterrupted run that is trained once. */
static void assert_equals_uninterrupted(const char *run) {
    if (!path_exists(in_scratch("whole"))) expect("--out $D/whole " SMALL, 0, "weights");
    assert_same_file("whole", run, "log.jsonl");
    assert_same_file("whole", run, "step-00000040/model.safetensors");
    assert_same_file("whole", run, "step-00000040/optimizer.safetensors");
    assert_same_file("whole", run, "step-00000040/tokenizer.json");
}

static void test_same_seed_same_run(void **state) {
    expect("--out $D/again " SMALL, 0, "weights");
    assert_equals_uninterrupted("again");
    expect("--out $D/other --seed 2 " SMALL, 0, "weights");
    char *a = get_text("again/log.jsonl"), *b = get_text("other/log.jsonl");
    assert_string_not_equal(a, b);
    free(a);
    free(b);
}

/* --- interruptions --- */

static int64_t lines_of(const char *path) {
    if (!path_exists(path)) return 0;
    char *text = get_text(path);
    int64_t n = 0;
    for (char *p = text; *p; p++) n += *p == '\n';
    free(text);
    return n;
}

/* Starts a run, sends it signal `number` when the log has `lines` lines, and returns the exit status. */
static int interrupt(const char *run, int number, int64_t lines) {
    char *arguments = xasprintf("--out $D/%s " SMALL, run);
    const char *log = in_scratch("%s/log.jsonl", run);
    pid_t pid = start(arguments, in_scratch("output"), 0);
    double deadline = now_seconds() + 60.0;
    siginfo_t ended = {0};
    while (lines_of(log) < lines && now_seconds() < deadline && ended.si_pid == 0) {
        usleep(500);
        waitid(P_PID, (id_t)pid, &ended, WEXITED | WNOHANG | WNOWAIT);
    }
    kill(pid, number);
    int status = wait_for(pid);
    free(arguments);
    return status;
}

static void test_killed_and_resumed(void **state) {
    static const int64_t after[] = {9, 16, 23, 31}; /* lines of the log: near checkpoints and validations */
    for (size_t i = 0; i < ARRAY_LENGTH(after); i++) {
        char *run = xasprintf("killed%zu", i), *resume = xasprintf("--resume --out $D/%s", run);
        assert_int_equal(interrupt(run, SIGKILL, after[i]), 128 + SIGKILL);
        expect(resume, 0, "weights");
        assert_equals_uninterrupted(run);
        free(run);
        free(resume);
    }
}

static void test_terminated_and_resumed(void **state) {
    static const int numbers[] = {SIGTERM, SIGINT};
    for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++) {
        char *run = xasprintf("stopped%zu", i), *resume = xasprintf("--resume --out $D/%s", run);
        assert_int_equal(interrupt(run, numbers[i], 12), 128 + numbers[i]);
        char *output = get_text("output");
        if (!strstr(output, "the state is saved") || !strstr(output, "--resume --out"))
            fail_msg("%s", output);
        free(output);
        expect(resume, 0, "weights");
        assert_equals_uninterrupted(run);
        free(run);
        free(resume);
    }
}

/* The losses of a run's steps; returns how many. */
static int losses_of(const char *run, double *loss, int most) {
    char *text = get_text(temp_printf("%s/log.jsonl", run)), *line = text, *at;
    int n = 0;
    for (; n < most && (at = strstr(line, "\"loss\":")); line = at + 1) loss[n++] = strtod(at + 7, NULL);
    free(text);
    return n;
}

/* The run with these options depends on neither a restart nor the number of processes, and is another one
 * than without. */
static void check_resumed_and_divided(const char *name, const char *options) {
    double one[64], two[64], without[64];
    char *again = xasprintf("%s2", name);
    expect(temp_printf("--out $D/%s %s --tokens-per-step 192 " SMALL, name, options), 0, "weights");
    expect(temp_printf("--out $D/%s %s --tokens-per-step 192 " SMALL, again, options), 0, "weights");
    assert_true(remove_tree(in_scratch("%s/step-00000040", again)));
    expect(temp_printf("--resume --out $D/%s", again), 0, "weights");
    assert_same_file(name, again, "log.jsonl");
    assert_same_file(name, again, "step-00000040/model.safetensors");
    expect(temp_printf("--out $D/%s3 %s --tokens-per-step 192 --batch-size 2 --ranks 2 " SMALL_BUT_BATCH,
                       name, options),
           0, "weights");
    expect(temp_printf("--out $D/%s4 --tokens-per-step 192 " SMALL, name), 0, "weights");
    int n = losses_of(name, one, 64);
    assert_int_equal(n, losses_of(temp_printf("%s3", name), two, 64));
    assert_int_equal(n, losses_of(temp_printf("%s4", name), without, 64));
    assert_true(n >= 40);
    double furthest = 0.0;
    for (int i = 0; i < n; i++) {
        if (!(fabs(one[i] - two[i]) <= 1e-3))
            fail_msg("%s: loss %d: %g, of two processes %g", options, i, one[i], two[i]);
        furthest = fmax(furthest, fabs(one[i] - without[i]));
    }
    assert_true(furthest > 1e-2);
    free(again);
}

static void test_dropout_resumed_and_divided(void **state) {
    check_resumed_and_divided("drop", "--dropout 0.2");
}
static void test_packed_rows_resumed_and_divided(void **state) {
    check_resumed_and_divided("packed", "--samples packed");
}

/* No checkpoint fits on the disk: the run reports it, continues, and exits with 1. Later there is room
 * again. */
static void test_full_disk(void **state) {
    struct result r = run_limited("--out $D/full " SMALL, 60000);
    if (r.status != 1 || !strstr(r.output, "not saved")) fail_msg("exit status %d\n%s", r.status, r.output);
    free(r.output);
    assert_int_equal(interrupt("half", SIGTERM, 20), 128 + SIGTERM);
    r = run_limited("--resume --out $D/half", 60000);
    if (r.status != 1 || !strstr(r.output, "not saved")) fail_msg("exit status %d\n%s", r.status, r.output);
    free(r.output);
    expect("--resume --out $D/half", 0, "weights");
    assert_equals_uninterrupted("half");
}

static void test_damaged_checkpoint_is_passed_over(void **state) {
    assert_int_equal(interrupt("damaged", SIGTERM, 30), 128 + SIGTERM);
    char *command =
        xasprintf("cd %s/damaged && d=$(ls -d step-* | tail -1) && truncate -s -1 $d/model.safetensors",
                  scratch_directory());
    assert_int_equal(system(command), 0);
    free(command);
    expect("--resume --out $D/damaged", 0, "warning: ");
    assert_equals_uninterrupted("damaged");
}

/* --- what a run learns --- */

/* Writes a shard from a first-order Markov chain over V tokens, and returns the entropy rate, which no
 * model can go below and a model of one layer must come close to. */
static double write_markov(const char *path, int64_t count, uint64_t seed) {
    enum { V = 12 };
    double p[V][V], stationary[V], next[V], entropy = 0.0;
    for (int i = 0; i < V; i++) {
        double sum = 0.0;
        for (int j = 0; j < V; j++)
            sum += p[i][j] = pow(rng_uniform(5, RNG_TEST, (uint64_t)(i * V + j)), 6.0) + 1e-3;
        for (int j = 0; j < V; j++) p[i][j] /= sum;
        stationary[i] = 1.0 / V;
    }
    for (int round = 0; round < 2000; round++) {
        for (int j = 0; j < V; j++) {
            next[j] = 0.0;
            for (int i = 0; i < V; i++) next[j] += stationary[i] * p[i][j];
        }
        memcpy(stationary, next, sizeof stationary);
    }
    for (int i = 0; i < V; i++)
        for (int j = 0; j < V; j++) entropy -= stationary[i] * p[i][j] * log(p[i][j]);
    uint32_t *tokens = (uint32_t *)xmalloc((size_t)count * sizeof *tokens);
    tokens[0] = 0;
    for (int64_t n = 1; n < count; n++) {
        double u = rng_uniform(seed, RNG_TEST, (uint64_t)n);
        uint32_t j = 0;
        while (j < V - 1 && (u -= p[tokens[n - 1]][j]) >= 0.0) j++;
        tokens[n] = j;
    }
    struct error err;
    if (!shard_write(path, tokens, count, V, &err)) fail_msg("%s", err.message);
    free(tokens);
    return entropy;
}

static void test_reaches_the_entropy_of_a_known_source(void **state) {
    double entropy = write_markov(in_scratch("markov_train_000.bin"), 200000, 7);
    write_markov(in_scratch("markov_val.bin"), 50000, 8);
    struct result r =
        run_limited("--out $D/markov --data $D/markov_train_*.bin --val $D/markov_val.bin --model d1 "
                    "--vocab-size 12 --channels 32 --heads 2 --context 32 --batch-size 32 --steps 300 "
                    "--learning-rate 1e-2 --val-batches 40 --device cpu",
                    0);
    const char *line = strstr(r.output, "loss      ");
    double loss = line ? atof(line + 10) : NAN;
    /* below: three standard errors of the mean over 40,960 validation targets; above: 2 % */
    if (r.status || !(loss < 1.02 * entropy && loss > entropy - 0.015))
        fail_msg("loss %g on a source of entropy %g\n%s", loss, entropy, r.output);
    free(r.output);
}

static void test_plan_and_sample(void **state) {
    expect("plan --model gpt2-xl --batch-size 8 --device cpu", 1, "model gpt2-xl: 1.56 Gparameters");
    expect("plan --batch-size 2 --device cpu", 0, "This fits.");
    expect("plan --batch-size 2 --device cpu --ranks 3 --zero 3", 0, "This fits with --zero 3.");
    expect("plan --batch-size 2 --seq-len 128 --device cpu --ranks 3 --tokens-per-step 1000", 1,
           "768 and 1536");
    expect("plan --batch-size 2 --seq-len 128 --device cpu --ranks 3 --tokens-per-step 100", 1,
           "the smallest is 768");
    expect("plan --device cpu --ranks 6 --zero-group 4", 1, "the next smaller size that fits is 3");
    expect("plan --device cpu --ranks 6 --zero-group 3 --zero 0", 1, "--zero 0 divides nothing");
    char *variant = getenv("LLMC_VARIANT") ? xstrdup(getenv("LLMC_VARIANT")) : NULL;
    setenv("LLMC_VARIANT", "cast:plain,attn:naive", 1);
    expect("plan --batch-size 2 --device cpu", 1, "\"attn:naive\" should be OPERATION:VARIANT");
    setenv("LLMC_VARIANT", "attn_forward:nope", 1);
    expect("plan --batch-size 2 --device cpu", 1, "; its variants are ");
    if (variant)
        setenv("LLMC_VARIANT", variant, 1);
    else
        unsetenv("LLMC_VARIANT");
    free(variant);
    expect("--out $D/sampled " SMALL, 0, "sample    ");
    struct result a = run_limited(
        "sample --from $D/sampled --prompt Once --tokens 60 --top-k 20 --top-p 0.9 --no-stats", 0);
    struct result b = run_limited(
        "sample --from $D/sampled --prompt Once --tokens 60 --top-k 20 --top-p 0.9 --no-stats", 0);
    struct result c =
        run_limited("sample --from $D/sampled --prompt Once --tokens 60 --seed 2 --no-stats", 0);
    assert_int_equal(a.status, 0);
    assert_string_equal(a.output, b.output);
    assert_string_not_equal(a.output, c.output);
    assert_int_equal(strncmp(a.output, "Once", 4), 0);
    free(a.output);
    free(b.output);
    free(c.output);
}

static void test_fine_tuning(void **state) {
    expect("--out $D/base " SMALL, 0, "weights");
    expect("--out $D/tuned --model $D/base --stories 300 --batch-size 4 --steps 3 --device cpu", 0,
           "starting from");
    expect("--out $D/tuned2 --model $D/base --layers 3 --steps 3", 1, "has a shape of its own");
}

/* --- mistakes --- */

static void test_wrong_options(void **state) {
    static const struct {
        const char *arguments;
        int status;
        const char *message;
    } cases[] = {
        {"--batchsize 3", 2, "did you mean --batch-size?"},
        {"--batch-size -3", 2, "--batch-size"},
        {"--batch-size x", 2, "not an integer"},
        {"--learning-rate nan", 2, "--learning-rate"},
        {"--steps 99999999999999999999", 2, "--steps"},
        {"--schedule cosin", 2, "did you mean cosine?"},
        {"--optimizer muom", 2, "did you mean muon?"},
        {"--momentum 1", 2, "--momentum"},
        {"plan --optimizer muon --momentum -0.5", 1, "must be 0 or more, and below 1"},
        {"plan --optimizer adamw --momentum 0.9", 1, "--momentum is Muon's"},
        {"plan --embedding-lr-factor 0", 1, "--embedding-lr-factor 0: must be above 0"},
        {"plan --muon-lr-factor 2", 1, "--muon-lr-factor is Muon's"},
        {"plan --optimizer lion --eps 1e-8", 1, "--eps is AdamW's"},
        {"--label-smoothing 1", 2, "--label-smoothing"},
        {"--z-loss -1", 2, "--z-loss"},
        {"--help", 0, "  plan      prints the memory"},
        {"train --help", 0, "--tokens-per-step N"},
        {"plan --help", 0, "train_gpt plan [options of training]"},
        {"help plan", 0, "train_gpt plan [options of training]"},
        {"help", 0, "compares a device with the CPU reference"},
        {"help plam", 2, "did you mean plan?"},
        {"--version", 0, "OpenBLAS"},
        {"--n_layer 3", 2, "--n_layer: unknown option; did you mean --layers?"},
        {"smaple", 2, "did you mean sample?"},
        {"--out $D/x1 --model gpt5", 1, "neither a directory nor a preset"},
        {"--out $D/x2 --model $D/nowhere", 1, "nowhere"},
        {"--out $D/x3 --heads 3", 1, "3 heads do not divide 128 channels"},
        {"--out $D/x4 --seq-len 4096", 1, "longer than the context"},
        {"--out $D/x5 --batch-size 4 --tokens-per-step 1000", 1, "is not a multiple of --batch-size 4 times"},
        {"--out $D/x5 --tokens-per-step 1000", 1,
         "is not a multiple of --seq-len 464 = 464; the nearest are"},
        {"plan --device cpu --seq-len 100 --tokens-per-step 1200", 0, "in 2 micro-batches of 6 x 100"},
        {"plan --device cpu --seq-len 100", 0, "in 1 micro-batch of 8 x 100)"},
        {"plan --device cpu --context 300", 0,
         "8 x 116, as long as the built-in stories need; --seq-len 300 fills"},
        {"--out $D/x6 --text $D/missing.txt", 1, "missing.txt"},
        {"--out $D/x7 --text a --data b", 1, "exclude each other"},
        {"--out $D/x8 --device cuda:7", 1, "cuda"},
        {"--out $D/x9 --device tpu", 1, "not a device"},
        {"--out $D/x10 --vocab-size 100", 1, "at least 257"},
        {"--out /proc/nowhere/x", 1, "/proc/nowhere"},
        {"--out $D/none --resume", 1, "none"},
        {"sample", 2, "--from: required"},
        {"sample --from $D/none", 1, "none"},
        {"plan --model gpt2 --heads 7", 1, "7 heads do not divide 768 channels"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        expect(cases[i].arguments, cases[i].status, cases[i].message);
}

static void test_wrong_files(void **state) {
    put_text("empty.txt", "");
    put_text("short.txt", "Too short.");
    put_text("garbage.bin", "this is not a shard of tokens");
    expect("--out $D/y1 --text $D/empty.txt", 1, "empty");
    expect("--out $D/y2 --text $D/short.txt", 1, "short.txt");
    expect("--out $D/y3 --data $D/garbage.bin --model d1", 1, "garbage.bin");
    expect("--out $D/y4 --data $D/nothing_*.bin --model d1", 1, "nothing_*.bin");
    uint32_t tokens[400] = {0};
    tokens[123] = 70;
    struct error err;
    assert_true(shard_write(in_scratch("high.bin"), tokens, 400, 100, &err));
    expect("--out $D/y5 --data $D/high.bin --model d1 --vocab-size 64 --channels 32 --heads 1 --context 16 "
           "--steps 40 --no-shuffle --device cpu",
           1, "high.bin");
    expect("--out $D/y6 --text $D/garbage.bin --tokenizer $D/garbage.bin", 1, "garbage.bin");
}

/* A vocabulary may be padded: the model keeps its rows, the tokenizer its tokens. */
static void test_more_rows_than_tokens(void **state) {
    uint32_t tokens[4000];
    for (int i = 0; i < 4000; i++) tokens[i] = (uint32_t)(i * 7 % 257);
    struct error err;
    assert_true(shard_write(in_scratch("bytes.bin"), tokens, 4000, 257, &err));
    char *text = (char *)xcalloc(1, 3001);
    for (int i = 0; i < 3000; i++) text[i] = "ten green bottles hanging on the wall\n"[i % 38];
    put_text("bottles.txt", text);
    free(text);
    expect(
        "--out $D/rows --data $D/bytes.bin --model d1 --vocab-size 300 --channels 32 --heads 1 --context 16 "
        "--steps 2 --device cpu",
        0, "weights");
    expect("--out $D/padded --model $D/rows --text $D/bottles.txt --tokenizer bytes --steps 2 --device cpu",
           0, "weights");
    char *config = get_text("padded/step-00000002/config.json");
    assert_mentions(config, "\"vocab_size\": 300");
    assert_mentions(config, "\"bos_token_id\": 256");
    free(config);
    expect("--out $D/padded2 --model $D/padded --text $D/bottles.txt --steps 2 --device cpu", 0, "weights");
    expect("sample --from $D/padded2 --tokens 3 --no-stats", 0, "");
    expect("--out $D/cut --model $D/rows --data $D/bytes.bin --vocab-size 257 --steps 2", 1,
           "has a vocabulary of 300 tokens");
}

static void test_a_run_is_not_overwritten(void **state) {
    expect("--out $D/mine " SMALL, 0, "weights");
    expect("--out $D/mine " SMALL, 1, "already holds a run");
    expect("--out $D/mine --overwrite " SMALL, 0, "weights");
    assert_equals_uninterrupted("mine");
    expect("--out $D/mine --resume --stories 301", 1, "not what the run was started on");
}

static int set_up(void **state) {
    const char *build = getenv("BUILD");
    char here[256];
    if (!getcwd(here, sizeof here)) return -1;
    snprintf(program, sizeof program, "%s/%s/train_gpt", here, build && *build ? build : "build");
    return make_scratch(state);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_seed_same_run),
        cmocka_unit_test(test_killed_and_resumed),
        cmocka_unit_test(test_terminated_and_resumed),
        cmocka_unit_test(test_dropout_resumed_and_divided),
        cmocka_unit_test(test_packed_rows_resumed_and_divided),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_damaged_checkpoint_is_passed_over),
        cmocka_unit_test(test_reaches_the_entropy_of_a_known_source),
        cmocka_unit_test(test_plan_and_sample),
        cmocka_unit_test(test_fine_tuning),
        cmocka_unit_test(test_wrong_options),
        cmocka_unit_test(test_more_rows_than_tokens),
        cmocka_unit_test(test_wrong_files),
        cmocka_unit_test(test_a_run_is_not_overwritten),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}

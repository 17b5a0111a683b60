/* Evaluation: scores and losses against a plain forward pass in double, the command.
 *
 * The plain forward pass below is written from the formulas in gpt.h, one position and one number at a
 * time. */
#include "test/scratch.h"
#include "test/model/model.h"

#include "llmc/format/checkpoint.h"
#include "llmc/cli/commands.h"
#include "llmc/model/eval.h"
#include "llmc/base/file.h"
#include "llmc/base/rng.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- the plain forward pass --- */

enum { V = 257, T_MAX = 24, CHANNELS = 12, HEADS = 3, LAYERS = 2, HEAD_SIZE = CHANNELS / HEADS };

static float weight(const struct gpt *g, enum param_id id, int64_t layer, int64_t i) {
    return ((const float *)gpt_param(g, id, layer).data)[i];
}

static void plain_norm(const struct gpt *g, enum param_id w, enum param_id b, int layer, double *out,
                       const double *x) {
    double mean = 0, variance = 0;
    for (int c = 0; c < CHANNELS; c++) mean += x[c] / CHANNELS;
    for (int c = 0; c < CHANNELS; c++) variance += (x[c] - mean) * (x[c] - mean) / CHANNELS;
    for (int c = 0; c < CHANNELS; c++)
        out[c] = (x[c] - mean) / sqrt(variance + 1e-5) * (double)weight(g, w, layer, c) +
                 (double)weight(g, b, layer, c);
}

static void plain_linear(const struct gpt *g, enum param_id w, enum param_id b, int layer, double *out, int n,
                         const double *x, int m) {
    for (int o = 0; o < n; o++) {
        out[o] = (double)weight(g, b, layer, o);
        for (int c = 0; c < m; c++) out[o] += (double)weight(g, w, layer, o * m + c) * x[c];
    }
}

/* Log-probability of ids[i + 1] after ids[0..i], into out[i], and the most probable token there, into best[i]
 * (best may be NULL); count - 1 numbers. */
static void plain_predictions(const struct gpt *g, double *out, uint32_t *best, const uint32_t *ids,
                              int count) {
    static double x[T_MAX][CHANNELS], qkv[T_MAX][3 * CHANNELS];
    double n[CHANNELS], a[CHANNELS], wide[4 * CHANNELS], logits[V];
    int T = count - 1;
    assert_true(T <= T_MAX);
    for (int t = 0; t < T; t++)
        for (int c = 0; c < CHANNELS; c++)
            x[t][c] = (double)weight(g, P_WTE, 0, ids[t] * CHANNELS + c) +
                      (double)weight(g, P_WPE, 0, t * CHANNELS + c);
    for (int l = 0; l < LAYERS; l++) {
        for (int t = 0; t < T; t++) {
            plain_norm(g, P_LN1_W, P_LN1_B, l, n, x[t]);
            plain_linear(g, P_QKV_W, P_QKV_B, l, qkv[t], 3 * CHANNELS, n, CHANNELS);
        }
        for (int t = 0; t < T; t++) {
            for (int h = 0; h < HEADS; h++) {
                double p[T_MAX], sum = 0, *q = qkv[t] + h * HEAD_SIZE;
                for (int s = 0; s <= t; s++) {
                    double dot = 0;
                    for (int c = 0; c < HEAD_SIZE; c++) dot += q[c] * qkv[s][CHANNELS + h * HEAD_SIZE + c];
                    sum += p[s] = exp(dot / sqrt(HEAD_SIZE));
                }
                for (int c = 0; c < HEAD_SIZE; c++) {
                    a[h * HEAD_SIZE + c] = 0;
                    for (int s = 0; s <= t; s++)
                        a[h * HEAD_SIZE + c] += p[s] / sum * qkv[s][2 * CHANNELS + h * HEAD_SIZE + c];
                }
            }
            plain_linear(g, P_PROJ_W, P_PROJ_B, l, n, CHANNELS, a, CHANNELS);
            for (int c = 0; c < CHANNELS; c++) x[t][c] += n[c];
        }
        for (int t = 0; t < T; t++) {
            plain_norm(g, P_LN2_W, P_LN2_B, l, n, x[t]);
            plain_linear(g, P_FC_W, P_FC_B, l, wide, 4 * CHANNELS, n, CHANNELS);
            for (int c = 0; c < 4 * CHANNELS; c++) {
                double u = wide[c];
                wide[c] = 0.5 * u * (1 + tanh(sqrt(2 / M_PI) * (u + 0.044715 * u * u * u)));
            }
            plain_linear(g, P_FCPROJ_W, P_FCPROJ_B, l, n, CHANNELS, wide, 4 * CHANNELS);
            for (int c = 0; c < CHANNELS; c++) x[t][c] += n[c];
        }
    }
    for (int t = 0; t < T; t++) {
        double sum = 0;
        plain_norm(g, P_LNF_W, P_LNF_B, 0, n, x[t]);
        for (int v = 0; v < V; v++) {
            logits[v] = 0;
            for (int c = 0; c < CHANNELS; c++)
                logits[v] += (double)weight(g, P_WTE, 0, v * CHANNELS + c) * n[c];
            sum += exp(logits[v]);
        }
        out[t] = logits[ids[t + 1]] - log(sum);
        for (uint32_t v = best ? (uint32_t)(best[t] = 0) : V; v < V; v++)
            if (logits[v] > logits[best[t]]) best[t] = v;
    }
}

static void plain_log_probabilities(const struct gpt *g, double *out, const uint32_t *ids, int count) {
    plain_predictions(g, out, NULL, ids, count);
}

/* --- a small model --- */

/* Weights large enough that every part of the network matters. */
static void open_model(struct model *m, int64_t B, int64_t T) {
    struct gpt_config config = GPT2_CONFIG("small", T_MAX, V, LAYERS, HEADS, CHANNELS);
    struct gpt_options options = {.B = B, .T = T, .head_chunks = B > 2 ? 3 : 1};
    model_open(m, &config, options, 3);
    float *p = (float *)m->gpt.params.data;
    for (int64_t i = 0; i < m->gpt.layout.total; i++)
        if (p[i] != 0.0f || i >= m->gpt.layout.matrices)
            p[i] += (float)(0.8 * rng_uniform(5, RNG_TEST, (uint64_t)i) - 0.4);
}

/* --- multiple choice --- */

/* Written by hand: what has to come out of encoding with bytes and T inputs. */
struct expected_row {
    const char *context, *choice; /* as joined */
};

static const char tasks[] =
    "{\"ctx\": \"The cat\", \"endings\": [\"sat down\", \"is\", \"a\\u00e9\\u00e9\\u00e9\\u00e9\"], "
    "\"label\": 1}\n"
    "{\"context\": \"\", \"choices\": [\"x\", \"yy\"], \"answer\": 1}\n"
    "{\"context\": \"0123456789abcdefghijkl\", \"choices\": [\"m\", \"nopq\"], \"answer\": 0}\n"
    "{\"context\": \"c \", \"choices\": [\"this choice is longer than all that fits\", \"z\"], \"answer\": "
    "1}\n";
static const struct expected_row rows[] = {{"The cat", " sat down"},
                                           {"The cat", " is"},
                                           {"The cat", " a\xC3\xA9\xC3\xA9\xC3\xA9\xC3\xA9"},
                                           {NULL, "x"},
                                           {NULL, "yy"},
                                           {"0123456789abcdefghijkl", " m"},
                                           {"0123456789abcdefghijkl", " nopq"},
                                           {"c ", "this choice is longer than all that fits"},
                                           {"c ", "z"}};

static double plain_score(const struct gpt *g, const struct expected_row *row, int T, int *scored) {
    uint32_t ids[256];
    double p[256], sum = 0;
    int n = 0, choice = (int)strlen(row->choice);
    if (!row->context) ids[n++] = 256;
    for (const char *c = row->context ? row->context : ""; *c; c++) ids[n++] = (unsigned char)*c;
    for (const char *c = row->choice; *c; c++) ids[n++] = (unsigned char)*c;
    int first = n > T + 1 ? n - (T + 1) : 0;
    plain_log_probabilities(g, p, ids + first, n - first);
    *scored = choice > T ? T : choice;
    for (int i = 0; i < *scored; i++) sum += p[n - first - 2 - i];
    return sum;
}

struct seen {
    int rows;
    double score[32];
    int tokens[32];
};

static void see(void *user, const struct eval_answer *a) {
    static const int counts[] = {3, 2, 2, 2}, answers[] = {1, 1, 0, 1};
    struct seen *s = user;
    assert_int_equal(a->count, counts[a->question]);
    assert_int_equal(a->answer, answers[a->question]);
    for (int k = 0; k < a->count; k++) {
        s->score[s->rows] = a->score[k];
        s->tokens[s->rows++] = a->tokens[k];
    }
}

static struct eval_task *open_task(const char *path, const struct tokenizer *t, int64_t T) {
    struct error err = {""};
    struct eval_task *task = eval_task_open(path, t, T, NULL, &err);
    if (!task) fail_msg("%s", err.message);
    return task;
}

static bool wins(const double *score, const double *length, int count, int answer) {
    for (int k = 0; k < count; k++)
        if (k != answer && !(score[answer] / length[answer] > score[k] / length[k])) return false;
    return true;
}

static void scores_equal_the_plain_computation(void **state) {
    struct tokenizer *t = tokenizer_bytes();
    const char *path = put_text("own.jsonl", tasks);
    struct eval_task *task = open_task(path, t, 20);
    assert_string_equal(eval_task_name(task), "own.jsonl");
    assert_int_equal(eval_task_questions(task), 4);
    assert_int_equal(eval_task_cut(task), 2);
    assert_int_equal(eval_task_longest(task), 20);
    for (int64_t B = 1; B <= 10; B += 3) {
        struct model m;
        struct seen seen = {0};
        struct eval_answers answers = {see, &seen};
        open_model(&m, B, B == 1 ? 20 : 22); /* more room than needed changes nothing */
        struct eval_result r = eval_task_run(task, &m.gpt, &answers, NULL);
        assert_int_equal(seen.rows, ARRAY_LENGTH(rows));
        double score[16], one[16], tokens[16], characters[16] = {8, 2, 5, 1, 2, 1, 4, 40, 1};
        for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
            int scored;
            score[i] = plain_score(&m.gpt, &rows[i], 20, &scored);
            one[i] = 1;
            tokens[i] = scored;
            assert_int_equal(seen.tokens[i], scored);
            if (!(fabs(seen.score[i] - score[i]) <= 1e-5 * fabs(score[i])))
                fail_msg("row %zu, B %d: score %.9g, expected %.9g", i, (int)B, seen.score[i], score[i]);
        }
        static const int first[] = {0, 3, 5, 7}, count[] = {3, 2, 2, 2}, right[] = {1, 1, 0, 1};
        double shares[3] = {0};
        for (int q = 0; q < 4; q++) {
            shares[0] += wins(score + first[q], one, count[q], right[q]) / 4.0;
            shares[1] += wins(score + first[q], tokens + first[q], count[q], right[q]) / 4.0;
            shares[2] += wins(score + first[q], characters + first[q], count[q], right[q]) / 4.0;
        }
        assert_int_equal(r.questions, 4);
        assert_float_equal(r.accuracy, shares[0], 1e-12);
        assert_float_equal(r.per_token, shares[1], 1e-12);
        assert_float_equal(r.per_character, shares[2], 1e-12);
        assert_float_equal(r.chance, (1.0 / 3 + 3 * 0.5) / 4, 1e-12);
        /* The golden question: the three ways of counting do not agree on these weights. */
        assert_true(shares[0] != shares[1] && shares[1] != shares[2] && shares[0] != shares[2]);
        model_close(&m);
    }
    eval_task_free(task);
    tokenizer_free(t);
}

static void nan_never_wins_and_the_first_of_equals_does(void **state) {
    struct tokenizer *t = tokenizer_bytes();
    static const char text[] = "{\"context\": \"a\", \"choices\": [\"b\", \"b\"], \"answer\": 0}\n"
                               "{\"context\": \"a\", \"choices\": [\"b\", \"b\", \"b\"], \"answer\": 1}\n";
    struct eval_task *task = open_task(put_text("equal.jsonl", text), t, 8);
    struct model m;
    open_model(&m, 2, 8);
    struct eval_result r = eval_task_run(task, &m.gpt, NULL, NULL);
    assert_float_equal(r.accuracy, 0.5, 0);
    assert_float_equal(r.per_character, 0.5, 0);
    struct tensor w = gpt_param(&m.gpt, P_LNF_W, 0);
    ((float *)w.data)[0] = NAN;
    r = eval_task_run(task, &m.gpt, NULL, NULL);
    assert_float_equal(r.accuracy, 0, 0);
    model_close(&m);
    eval_task_free(task);
    tokenizer_free(t);
}

/* --- examples --- */

struct drawn {
    const double *score; /* (6) of a question with each order of its examples */
    int times[6];
};

static void see_draw(void *user, const struct eval_answer *a) {
    struct drawn *d = user;
    int order = 0;
    while (order < 6 && !(fabs(a->score[0] - d->score[order]) <= 1e-5 * fabs(d->score[order]))) order++;
    if (order == 6)
        fail_msg("question %d: no order of the examples has score %g", (int)a->question, a->score[0]);
    d->times[order]++;
}

/* The same question many times, with two examples drawn from three and from the question itself, which is
 * none of its own: each ordered pair comes about as often as the others. */
static void examples_are_drawn_without_replacement(void **state) {
    enum { TIMES = 120 };
    static const char *const example[] = {"p 1\n\n", "q 2\n\n", "r 3\n\n"};
    char text[TIMES * 64] = "";
    double score[6];
    struct error err = {""};
    struct tokenizer *t = tokenizer_bytes();
    struct model m;
    for (int i = 0; i < TIMES; i++)
        strcat(text, "{\"context\": \"z\", \"choices\": [\"y\", \"x\"], \"answer\": 0}\n");
    put_text("same.jsonl", text);
    put_text("examples.jsonl", "{\"context\": \"p\", \"choices\": [\"1\", \"0\"], \"answer\": 0}\n"
                               "{\"context\": \"z\", \"choices\": [\"y\", \"x\"], \"answer\": 0}\n"
                               "{\"context\": \"q\", \"choices\": [\"0\", \"2\"], \"answer\": 1}\n"
                               "{\"context\": \"r\", \"choices\": [\"3\", \"0\"], \"answer\": 0}\n");
    open_model(&m, 7, T_MAX);
    for (int i = 0; i < 6; i++) {
        static const int first[] = {0, 0, 1, 1, 2, 2}, second[] = {1, 2, 0, 2, 0, 1};
        int scored;
        struct expected_row row = {temp_printf("%s%sz", example[first[i]], example[second[i]]), " y"};
        score[i] = plain_score(&m.gpt, &row, T_MAX, &scored);
    }
    for (uint64_t seed = 1; seed <= 2; seed++) {
        struct eval_shots shots = {.count = 2, .order = SHOTS_RANDOM, .seed = seed};
        struct drawn drawn = {.score = score};
        struct eval_answers answers = {see_draw, &drawn};
        assert_true(eval_shots_open(&shots, in_scratch("examples.jsonl"), &err));
        struct eval_task *task = eval_task_open(in_scratch("same.jsonl"), t, T_MAX, &shots, &err);
        if (!task) fail_msg("%s", err.message);
        eval_task_run(task, &m.gpt, &answers, NULL);
        for (int i = 0; i < 6; i++)
            assert_in_range(drawn.times[i], TIMES / 6 - 12, TIMES / 6 + 12); /* 3 sigma */
        eval_task_free(task);
        eval_shots_free(&shots);
    }
    model_close(&m);
    tokenizer_free(t);
}

/* --- completions --- */

enum { TEXTS = 60, CONTEXTS = 12 }; /* contexts of 1 to 12 bytes, then " x" */

/* What the plain computation makes of text i. */
struct completed {
    bool right;
    double score;
};

static void see_completion(void *user, const struct eval_answer *a) {
    const struct completed *expected = (const struct completed *)user + a->question;
    assert_true(a->completion && a->count == 1 && a->answer == 0 && a->tokens[0] == 2);
    assert_float_equal(a->score[0], expected->score, 1e-5 * fabs(expected->score));
    assert_int_equal(a->right, expected->right);
}

/* The model prefers " " and "x", but which of them follows from the context: some texts are right, some wrong
 * at the first token of their last word " x", some at the second. */
static void completions_equal_the_plain_computation(void **state) {
    static char text[TEXTS][CONTEXTS + 3], file[TEXTS * 40];
    struct completed expected[TEXTS];
    struct tokenizer *t = tokenizer_bytes();
    struct model m;
    int kinds[4] = {0}, right = 0;
    double sum = 0;
    for (int i = 0; i < TEXTS; i++) {
        for (int k = 0; k <= i % CONTEXTS; k++)
            text[i][k] = (char)('a' + rng_philox(9, RNG_TEST, (uint64_t)(i * 99 + k)).v[0] % 26);
        strcat(text[i], " x");
        sprintf(file + strlen(file), "{\"text\": \"%s\"}\n", text[i]);
    }
    struct eval_task *task = open_task(put_text("lambada.jsonl", file), t, 20);
    assert_true(eval_task_completes(task));
    open_model(&m, 5, CONTEXTS + 1);
    float *bias = (float *)gpt_param(&m.gpt, P_LNF_B, 0).data,
          *wte = (float *)gpt_param(&m.gpt, P_WTE, 0).data, *space = wte + ' ' * CHANNELS,
          *x = wte + 'x' * CHANNELS;
    for (int64_t c = 0; c < CHANNELS; c++) bias[c] += (space[c] *= 2.0f) + (x[c] *= 2.0f);
    for (int i = 0; i < TEXTS; i++) {
        uint32_t ids[CONTEXTS + 2], best[CONTEXTS + 2];
        double p[CONTEXTS + 2];
        int n = (int)strlen(text[i]);
        for (int k = 0; k < n; k++) ids[k] = (unsigned char)text[i][k];
        plain_predictions(&m.gpt, p, best, ids, n);
        bool first = best[n - 3] == ' ', second = best[n - 2] == 'x';
        expected[i] = (struct completed){first && second, p[n - 3] + p[n - 2]};
        kinds[2 * first + second]++;
        right += expected[i].right;
        sum += expected[i].score;
    }
    assert_true(kinds[1] > 0 && kinds[2] > 0 && kinds[3] > 0);
    struct eval_answers answers = {see_completion, expected};
    struct eval_result r = eval_task_run(task, &m.gpt, &answers, NULL);
    assert_true(r.completions && r.questions == TEXTS);
    assert_float_equal(r.accuracy, (double)right / TEXTS, 1e-12);
    assert_float_equal(r.perplexity, exp(-sum / TEXTS), 1e-4 * exp(-sum / TEXTS));
    model_close(&m);
    eval_task_free(task);
    tokenizer_free(t);
}

/* --- loss --- */

static void losses_equal_the_plain_computation(void **state) {
    enum { N = 103, T = 16, B = 3 };
    struct model m;
    struct error err;
    struct tokenizer *t = tokenizer_bytes();
    uint32_t *ids = xmalloc(N * sizeof *ids);
    double p[T], sum = 0;
    int64_t targets = 0, bytes = 0;
    for (uint32_t i = 0; i < N; i++) ids[i] = i % 29 == 0 ? 256 : rng_philox(1, RNG_TEST, i).v[0] % 256;
    open_model(&m, B, T);
    for (int first = 0; first + 1 < N; first += T) {
        int count = (int)min_i64(T + 1, N - first);
        plain_log_probabilities(&m.gpt, p, ids + first, count);
        for (int i = 0; i + 1 < count; i++) {
            sum -= p[i];
            targets++;
            bytes += ids[first + i + 1] != 256;
        }
    }
    struct dataset *d = dataset_from_tokens("test", ids, N, V);
    struct loader_options o = {.B = B, .T = T, .order = SAMPLES_DOCUMENTS, .world = 1, .end_of_text = -1};
    struct dataloader *l = dataloader_open(d, &o, &err);
    assert_non_null(l);
    int64_t batches = dataloader_samples(l) / B;
    assert_int_equal(batches, 3); /* 6 windows of 16 and one of 6 targets, in threes */
    for (int with = 0; with < 2; with++) {
        struct eval_loss r = eval_loss(&m.gpt, l, batches, with ? t : NULL, NULL, NULL);
        assert_int_equal(r.targets, targets);
        assert_int_equal(r.bytes, with ? bytes : 0);
        assert_float_equal(r.loss, sum / (double)targets, 1e-5);
        assert_float_equal(r.perplexity, exp(sum / (double)targets), 1e-3);
        if (with)
            assert_float_equal(r.bits_per_byte, sum / log(2) / (double)bytes, 1e-5);
        else
            assert_true(isnan(r.bits_per_byte));
    }
    dataloader_close(l);
    dataset_free(d);
    model_close(&m);
    tokenizer_free(t);
}

/* --- the command --- */

/* Runs this program as `eval ...` (OpenMP's threads do not survive a fork alone); returns the status, and
 * stdout and stderr in `out`. */
static int run_eval(char out[8192], int argc, const char *const *argv) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        char *args[16] = {(char *)(uintptr_t) "eval"};
        for (int i = 0; i < argc && i < 14; i++) args[i + 1] = (char *)(uintptr_t)argv[i];
        execv("/proc/self/exe", args);
        _exit(99);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got; (got = read(ends[0], out + n, 8191 - n)) > 0;) n += (size_t)got;
    out[n] = 0;
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#define RUN(...) run_eval(out, ARRAY_LENGTH(((const char *[]){__VA_ARGS__})), (const char *[]){__VA_ARGS__})

static void the_command(void **state) {
    struct model m;
    struct optimizer opt;
    struct error err = {""};
    struct tokenizer *t = tokenizer_bytes();
    struct train_state train = {.step = 7, .best_val_loss = NAN};
    char out[8192];
    const char *run = in_scratch("run"), *path = in_scratch("some.txt");
    assert_true(make_directories(run, &err));
    open_model(&m, 1, T_MAX);
    optimizer_create(&opt, &m.gpt, (struct optimizer_options){0});
    struct zero zero = {.gpt = &m.gpt, .optimizer = &opt};
    if (!checkpoint_save(run, &zero, t, &train, &err)) fail_msg("%s", err.message);
    model_close(&m);
    put_text("own.jsonl", tasks);
    put_text("maths_test.csv", "Why?,a,b,c,d,D\n");
    put_text("some.txt", "A text of some words.\n<|endoftext|>\nAnother one.");
    char *list = xasprintf("%s,,%s", in_scratch("*.csv"), in_scratch("own.jsonl"));

    assert_int_equal(
        RUN("--from", run, "--tasks", list, "--details", in_scratch("details"), "--seq-len", "20"), 0);
    assert_mentions(out,
                    "warning: 3 of 5 questions are longer than 20 tokens: their beginnings are left out");
    assert_mentions(out, "\nown.jsonl              4 ");
    assert_mentions(out, "\nmaths_test.csv         1 ");
    assert_mentions(out, "\nall questions          5 ");
    struct mapped_file f;
    assert_true(file_map(&f, in_scratch("details"), &err));
    static const char begins[] = "{\"task\":\"maths_test.csv\",\"question\":0,\"answer\":3,\"scores\":[-";
    assert_true(f.size > (int64_t)sizeof begins && memcmp(f.data, begins, sizeof begins - 1) == 0);
    file_unmap(&f);

    assert_int_equal(RUN("--from", run, "--text", path), 0);
    assert_mentions(out, "some.txt: loss ");
    assert_mentions(out, " nats per token over 35 tokens, perplexity "); /* 21 + 12 bytes, two ends */
    assert_mentions(out, " bits per byte\n");

    assert_int_equal(RUN("--from", run), 2);
    assert_mentions(out, "error: nothing to evaluate on: give --data, --text, --chat, --tasks or --pairs");
    assert_int_equal(RUN("--from", run, "--text", path, "--data", path), 2);
    assert_mentions(out, "--data, --text and --chat exclude each other");
    assert_int_equal(RUN("--from", run, "--tasks", "/nonexistent/*.csv"), 1);
    assert_mentions(out, "error: --tasks: no file is named /nonexistent/*.csv");
    assert_int_equal(RUN("--from", run, "--tasks", path), 1);
    assert_mentions(out, "some.txt:1: not JSON");
    assert_int_equal(RUN("--from", run, "--text", path, "--seq-len", "25"), 1);
    assert_mentions(out, "--seq-len 25 is longer than the model's context of 24");
    assert_int_equal(RUN("--from", run, "--data", path), 1);
    assert_mentions(out, "some.txt");
    assert_int_equal(RUN("--from", scratch_directory(), "--tasks", list), 1);
    tokenizer_free(t);
    free(list);
}

int main(int argc, char **argv) {
    if (argc > 0 && strcmp(argv[0], "eval") == 0) return cmd_eval(argc - 1, argv + 1);
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(scores_equal_the_plain_computation),
        SCRATCH_TEST(nan_never_wins_and_the_first_of_equals_does),
        SCRATCH_TEST(examples_are_drawn_without_replacement),
        SCRATCH_TEST(completions_equal_the_plain_computation),
        cmocka_unit_test(losses_equal_the_plain_computation),
        SCRATCH_TEST(the_command),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* The exercises of dev/learn can be solved, and what is empty or slightly wrong is refused, with the case
 * that shows it: a solution of each, and mistakes that learners make. */
#include "dev/learn/learn.h"
#include "test/program.h"

#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What a wrong solution does otherwise; each belongs to one chapter. A function cannot be told, so it looks
 * here. */
static enum mistake {
    RIGHT,
    EMPTY,
    LAST_PAIR,     /* the rightmost pair */
    ANY_MERGE,     /* the first pair of any merge, whatever its rank */
    NEIGHBOURS,    /* 2i and 2i+1 are a pair, as in the paper */
    FORWARD_ONLY,  /* rotates the gradient the wrong way */
    NO_SCALE,      /* of the scores */
    ONE_KEY_LESS,  /* the last key is left out */
    NO_MAXIMUM,    /* exp of the score itself */
    MAXIMUM_ZERO,  /* a maximum that starts at 0 */
    FUTURE,        /* sees everything */
    OTHER_GROUPS,  /* heads h, h + NKV, ... share keys */
    VALUES_FIRST,  /* values where keys are */
    C_MINUS_ONE,   /* the unbiased variance */
    EPS_OUTSIDE,   /* 1/(sqrt(var) + eps) */
    NO_SECOND,     /* GELU's slope without the part of tanh */
    CUBE_ONCE,     /* the derivative of x^3 as x^2 */
    NO_TARGET,     /* softmax alone is the gradient */
    LOG_OF_SUM,    /* the loss without the maximum that was subtracted */
    NO_CORRECTION, /* of the bias of m and v */
    DECAY_FIRST,   /* of w, before the step, and then by the old rate again */
    EPS_IN_ROOT,
    NO_SHRINK, /* the sums keep their old maximum */
    SUM_ONLY   /* only the sum shrinks, not the output */
} mistake;

/* --- the solutions --- */

static int64_t merge_word(uint32_t *ids, int64_t n, const struct merge *merge, int64_t merges) {
    if (mistake == EMPTY) return n;
    for (;;) {
        int64_t best = merges, at = -1;
        for (int64_t i = 0; i + 1 < n; i++)
            for (int64_t r = 0; r < (mistake == ANY_MERGE && at >= 0 ? 0 : best + (mistake == LAST_PAIR));
                 r++)
                if (r < merges && merge[r].left == ids[i] && merge[r].right == ids[i + 1]) {
                    best = r;
                    at = i;
                    break;
                }
        if (at < 0) return n;
        ids[at] = merge[best].id;
        n--;
        for (int64_t i = at + 1; i < n; i++) ids[i] = ids[i + 1];
    }
}

static void rotate(float *x, int64_t HS, int64_t t, float theta, bool backward) {
    if (mistake == EMPTY) return;
    for (int64_t i = 0; i < HS / 2; i++) {
        double a = (double)t * pow((double)theta, -2.0 * (double)i / (double)HS);
        if (backward && mistake != FORWARD_ONLY) a = -a;
        float *p = mistake == NEIGHBOURS ? &x[2 * i] : &x[i],
              *q = mistake == NEIGHBOURS ? p + 1 : &x[i + HS / 2];
        float first = *p, second = *q, c = (float)cos(a), s = (float)sin(a);
        *p = first * c - second * s;
        *q = second * c + first * s;
    }
}

static float attend(float *out, float *p, const float *q, const float *k, const float *v, int64_t stride,
                    int64_t n, int64_t HS) {
    if (mistake == EMPTY) return 0.0f;
    if (mistake == ONE_KEY_LESS && n > 1) n--;
    for (int64_t s = 0; s < n; s++) {
        p[s] = 0.0f;
        for (int64_t i = 0; i < HS; i++) p[s] += q[i] * k[s * stride + i];
        if (mistake != NO_SCALE) p[s] /= sqrtf((float)HS);
    }
    float lse = softmax(p, n);
    for (int64_t i = 0; i < HS; i++) {
        out[i] = 0.0f;
        for (int64_t s = 0; s < n; s++) out[i] += p[s] * v[s * stride + i];
    }
    return lse;
}

static float masked_softmax(float *p, const float *score, const bool *seen, int64_t n) {
    if (mistake == EMPTY) return 0.0f;
    float max = mistake == MAXIMUM_ZERO || mistake == NO_MAXIMUM ? 0.0f : -INFINITY, sum = 0.0f;
    for (int64_t s = 0; s < n; s++)
        if (mistake != NO_MAXIMUM && (seen[s] || mistake == FUTURE)) max = fmaxf(max, score[s]);
    for (int64_t s = 0; s < n; s++) sum += p[s] = seen[s] || mistake == FUTURE ? expf(score[s] - max) : 0.0f;
    for (int64_t s = 0; s < n; s++) p[s] /= sum;
    return max + logf(sum);
}

static struct head find_head(int64_t h, int64_t NH, int64_t NKV, int64_t HS) {
    if (mistake == EMPTY) return (struct head){0, 0, 0};
    int64_t kv = mistake == OTHER_GROUPS ? h % NKV : h / (NH / NKV);
    struct head at = {h * HS, (NH + kv) * HS, (NH + NKV + kv) * HS};
    return mistake == VALUES_FIRST ? (struct head){at.q, at.v, at.k} : at;
}

static void layer_norm(float *out, float *mean, float *rstd, const float *x, const float *weight,
                       const float *bias, int64_t C, float eps) {
    if (mistake == EMPTY) return;
    double sum = 0.0, square = 0.0;
    for (int64_t c = 0; c < C; c++) sum += (double)x[c];
    *mean = (float)(sum / (double)C);
    for (int64_t c = 0; c < C; c++) square += pow((double)x[c] - sum / (double)C, 2.0);
    double variance = square / (double)(mistake == C_MINUS_ONE && C > 1 ? C - 1 : C);
    *rstd = (float)(mistake == EPS_OUTSIDE ? 1.0 / (sqrt(variance) + (double)eps)
                                           : 1.0 / sqrt(variance + (double)eps));
    for (int64_t c = 0; c < C; c++) out[c] = (x[c] - *mean) * *rstd * weight[c] + bias[c];
}

static float gelu_slope(float at) {
    if (mistake == EMPTY) return 0.0f;
    const double root = 0.79788456080286536, x = (double)at;
    double th = tanh(root * (x + 0.044715 * x * x * x));
    double slope = root * (1.0 + (mistake == CUBE_ONCE ? 1.0 : 3.0) * 0.044715 * x * x);
    return (float)(0.5 * (1.0 + th) + (mistake == NO_SECOND ? 0.0 : 0.5 * x * (1.0 - th * th) * slope));
}

static float cross_entropy(float *dlogit, const float *logit, int64_t V, int64_t target) {
    if (mistake == EMPTY) return 0.0f;
    float max = mistake == NO_MAXIMUM ? 0.0f : -INFINITY, sum = 0.0f;
    for (int64_t v = 0; v < V && mistake != NO_MAXIMUM; v++) max = fmaxf(max, logit[v]);
    for (int64_t v = 0; v < V; v++) sum += dlogit[v] = expf(logit[v] - max);
    for (int64_t v = 0; v < V; v++) dlogit[v] /= sum;
    if (mistake != NO_TARGET) dlogit[target] -= 1.0f;
    return (mistake == LOG_OF_SUM ? 0.0f : max) + logf(sum) - logit[target];
}

static void adamw_step(float *w, float *m, float *v, float g, const struct update_args *a) {
    if (mistake == EMPTY) return;
    *m = a->beta1 * *m + (1.0f - a->beta1) * g;
    *v = a->beta2 * *v + (1.0f - a->beta2) * g * g;
    float mean = *m, square = *v;
    if (mistake != NO_CORRECTION) {
        mean /= (float)(1.0 - pow((double)a->beta1, (double)a->step));
        square /= (float)(1.0 - pow((double)a->beta2, (double)a->step));
    }
    float root = mistake == EPS_IN_ROOT ? sqrtf(square + a->eps) : sqrtf(square) + a->eps;
    if (mistake == DECAY_FIRST) *w -= a->lr * a->weight_decay * *w;
    *w -= a->lr * (mean / root + a->weight_decay * *w);
}

static void take_tile(struct online *r, const float *score, const float *v, int64_t stride, int64_t n,
                      int64_t HS) {
    if (mistake == EMPTY) return;
    float before = r->max;
    for (int64_t s = 0; s < n; s++) r->max = fmaxf(r->max, score[s]);
    float shrink = mistake == NO_SHRINK ? 1.0f : expf(before - r->max);
    r->sum *= shrink;
    for (int64_t i = 0; i < HS && mistake != SUM_ONLY; i++) r->out[i] *= shrink;
    for (int64_t s = 0; s < n; s++) {
        float p = expf(score[s] - r->max);
        r->sum += p;
        for (int64_t i = 0; i < HS; i++) r->out[i] += p * v[s * stride + i];
    }
}

/* --- what is wrong in which chapter --- */

static const struct {
    struct exercise exercise;
    enum mistake mistakes[4]; /* beside EMPTY */
    int cases;                /* at least so many */
} chapters[] = {
    {{.chapter = 1, .merge_word = merge_word}, {LAST_PAIR, ANY_MERGE}, 20},
    {{.chapter = 2, .rotate = rotate}, {NEIGHBOURS, FORWARD_ONLY}, 15},
    {{.chapter = 3, .attend = attend}, {NO_SCALE, ONE_KEY_LESS}, 20},
    {{.chapter = 4, .masked_softmax = masked_softmax}, {NO_MAXIMUM, MAXIMUM_ZERO, FUTURE}, 60},
    {{.chapter = 5, .find_head = find_head}, {OTHER_GROUPS, VALUES_FIRST}, 20},
    {{.chapter = 6, .layer_norm = layer_norm}, {C_MINUS_ONE, EPS_OUTSIDE}, 10},
    {{.chapter = 7, .gelu_slope = gelu_slope}, {NO_SECOND, CUBE_ONCE}, 5},
    {{.chapter = 8, .cross_entropy = cross_entropy}, {NO_TARGET, LOG_OF_SUM, NO_MAXIMUM}, 10},
    {{.chapter = 9, .adamw_step = adamw_step}, {NO_CORRECTION, DECAY_FIRST, EPS_IN_ROOT}, 10},
    {{.chapter = 10, .take_tile = take_tile}, {NO_SHRINK, SUM_ONLY}, 20},
};

static struct grade grade_with(const struct exercise *e, enum mistake with) {
    struct grade g;
    mistake = with;
    exercise_grade(&g, e);
    return g;
}

static void test_exercises_can_be_solved(void **state) {
    assert_int_equal(ARRAY_LENGTH(chapters), CHAPTERS);
    for (size_t i = 0; i < ARRAY_LENGTH(chapters); i++) {
        struct grade g = grade_with(&chapters[i].exercise, RIGHT);
        if (*g.wrong) fail_msg("chapter %zu: %s", i + 1, g.wrong);
        assert_true(g.right >= chapters[i].cases);
        assert_int_equal(chapters[i].exercise.chapter, i + 1);
    }
}

static void test_wrong_answers_are_refused(void **state) {
    for (size_t i = 0; i < ARRAY_LENGTH(chapters); i++)
        for (int k = -1; k < (int)ARRAY_LENGTH(chapters[i].mistakes); k++) {
            enum mistake with = k < 0 ? EMPTY : chapters[i].mistakes[k];
            if (with == RIGHT) continue;
            struct grade g = grade_with(&chapters[i].exercise, with);
            if (!*g.wrong) fail_msg("chapter %zu: mistake %d passes", i + 1, (int)with);
        }
}

/* The files of the learner: they compile, and say how far they are. */
static void test_programs(void **state) {
    const char *build = getenv("BUILD");
    for (int chapter = 1; chapter <= CHAPTERS; chapter++) {
        char *command = xasprintf("%s/learn/ch%02d 2>&1", build && *build ? build : "build", chapter),
             said[512];
        FILE *f = popen(command, "r");
        assert_non_null(f);
        said[fread(said, 1, sizeof said - 1, f)] = 0;
        int status = pclose(f);
        assert_mentions(said, temp_printf("chapter %d: ", chapter));
        assert_mentions(said, exercise_name(chapter));
        bool not_yet = strstr(said, "not yet. Write ") != NULL,
             right = strstr(said, "is right in all") != NULL;
        assert_true((status == 0) == right);
        if (not_yet) assert_mentions(said, temp_printf("dev/learn/ch%02d.c", chapter));
        free(command);
    }
}

/* --- the chapters --- */

static char working_directory[PATH_MAX];

/* The next `word` in backticks at or behind *at, which moves behind it; NULL at the end. */
static const char *next_quoted(const char **at) {
    const char *from = strchr(*at, '`'), *to = from ? strchr(from + 1, '`') : NULL;
    if (!to) return NULL;
    *at = to + 1;
    return temp_printf("%.*s", (int)(to - from - 1), from + 1);
}

/* In a row of the table "In the engine" every file exists, and every function() is in one of the row's
 * files. */
static int check_row(const char *chapter, const char *row) {
    char *text = xstrdup("");
    const char *at = row, *word;
    int functions = 0;
    while ((word = next_quoted(&at))) {
        if (!strchr(word, '/') || !strchr(word, '.') || strchr(word, '<')) continue;
        if (access(word, R_OK) != 0) fail_msg("%s: there is no %s", chapter, word);
        char *file = get_text(temp_printf("%s/%s", working_directory, word)),
             *both = xasprintf("%s%s", text, file);
        free(text);
        free(file);
        text = both;
    }
    for (at = row; (word = next_quoted(&at));) {
        size_t size = strlen(word);
        if (size < 3 || strcmp(word + size - 2, "()") != 0) continue;
        if (!strstr(text, temp_printf("%.*s(", (int)size - 2, word)))
            fail_msg("%s: %s is not in the files of its row", chapter, word);
        functions++;
    }
    free(text);
    return functions;
}

static void test_chapters_name_what_exists(void **state) {
    glob_t found;
    int functions = 0;
    assert_int_equal(glob("dev/learn/[0-9]*.md", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char *text = get_text(temp_printf("%s/%s", working_directory, found.gl_pathv[i]));
        char *engine = strstr(text, "## In the engine"), *rest;
        assert_non_null(engine);
        assert_mentions(text,
                        temp_printf("make learn CH=%d", atoi(found.gl_pathv[i] + strlen("dev/learn/"))));
        for (char *row = strtok_r(engine, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest))
            if (*row == '|') functions += check_row(found.gl_pathv[i], row);
        free(text);
    }
    assert_true(functions > 25);
    globfree(&found);
}

int main(int argc, char **argv) {
    if (!getcwd(working_directory, sizeof working_directory)) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exercises_can_be_solved),
        cmocka_unit_test(test_wrong_answers_are_refused),
        cmocka_unit_test(test_programs),
        cmocka_unit_test(test_chapters_name_what_exists),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* The exercises of dev/learn. Each chapter asks for one function, in dev/learn/chNN.c, and `make learn
 * CH=N` grades it. Where the function is the heart of an operation of the engine, it becomes a variant of
 * that operation, and the operation's own tests (test/ops/op_<stem>.c) compare it with the CPU reference:
 * the same shapes, inputs and tolerances as for every kernel. */
#ifndef LLMC_LEARN_H
#define LLMC_LEARN_H

#include "llmc/ops/ops.h"

#include <math.h>

/* --- what the exercises use --- */

/* Chapter 1: the pair (left, right) becomes the token `id`. */
struct merge {
    uint32_t left, right, id;
};

/* Chapter 3: replaces the n scores in p by their softmax, and returns the logarithm of its denominator. */
float softmax(float *p, int64_t n);

/* Chapter 5: where a query head finds its numbers in a row of qkv. */
struct head {
    int64_t q, k, v; /* index of the first of HS columns */
};

/* Chapter 10: attention of one query over the keys that it has met so far. */
struct online {
    float max, sum; /* of its scores; of exp(score - max). At first -INFINITY and 0 */
    float *out;     /* (HS) sum of exp(score - max) * value, at first 0 */
};

/* --- the functions to write: their contracts stand in chNN.c --- */

typedef int64_t merge_word_fn(uint32_t *ids, int64_t n, const struct merge *merge, int64_t merges);
typedef void rotate_fn(float *x, int64_t HS, int64_t t, float theta, bool backward);
typedef float attend_fn(float *out, float *p, const float *q, const float *k, const float *v, int64_t stride,
                        int64_t n, int64_t HS);
typedef float masked_softmax_fn(float *p, const float *score, const bool *seen, int64_t n);
typedef struct head find_head_fn(int64_t h, int64_t NH, int64_t NKV, int64_t HS);
typedef void layer_norm_fn(float *out, float *mean, float *rstd, const float *x, const float *weight,
                           const float *bias, int64_t C, float eps);
typedef float gelu_slope_fn(float x);
typedef float cross_entropy_fn(float *dlogit, const float *logit, int64_t V, int64_t target);
typedef void adamw_step_fn(float *w, float *m, float *v, float g, const struct update_args *a);
typedef void take_tile_fn(struct online *r, const float *score, const float *v, int64_t stride, int64_t n,
                          int64_t HS);

/* What a chapter's file hands in: its function, and whether it is written. */
struct exercise {
    int chapter;
    bool done;
    merge_word_fn *merge_word;
    rotate_fn *rotate;
    attend_fn *attend;
    masked_softmax_fn *masked_softmax;
    find_head_fn *find_head;
    layer_norm_fn *layer_norm;
    gelu_slope_fn *gelu_slope;
    cross_entropy_fn *cross_entropy;
    adamw_step_fn *adamw_step;
    take_tile_fn *take_tile;
};
extern const struct exercise exercise;

/* --- grading --- */

struct grade {
    int right;        /* cases, up to the first that is wrong */
    double worst;     /* their largest error as a share of what is allowed */
    char wrong[1024]; /* what is wrong in that case; empty if all are right */
};
enum { CHAPTERS = 10 };
const char *exercise_name(int chapter); /* of the function */
void exercise_grade(struct grade *grade, const struct exercise *e);

#endif

/* Rotary position embedding. Contract in ops.h.
 *
 * An angle can reach 131071 radians, where fp32 numbers are 1/128 apart, so cosines and sines are computed
 * in double. Calling libm for each would take longer than all the rotations. A thread therefore calls it
 * for the first of CHUNK positions and steps to the others by the addition theorems, which lose 2^-53 per
 * step. The cosines and sines of a position serve all heads of all sequences. */
#include "llmc/cpu/cpu.h"

enum { CHUNK = 16, PAIRS = 64 };

/* For up to PAIRS pairs: cosine and sine of the angle at a position, and of the step to the next position. */
struct turn {
    double cos[PAIRS], sin[PAIRS], step_cos[PAIRS], step_sin[PAIRS];
};

static void turn_to(struct turn *a, int64_t t, int64_t first_pair, int64_t count, int64_t HS,
                    struct rope_rule rule) {
    for (int64_t i = 0; i < count; i++) {
        double step = rope_frequency(rule, first_pair + i, HS), angle = (double)t * step;
        a->cos[i] = cos(angle);
        a->sin[i] = sin(angle);
        a->step_cos[i] = cos(step);
        a->step_sin[i] = sin(step);
    }
}

static void turn_on(struct turn *a, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        double c = a->cos[i], s = a->sin[i];
        a->cos[i] = c * a->step_cos[i] - s * a->step_sin[i];
        a->sin[i] = s * a->step_cos[i] + c * a->step_sin[i];
    }
}

static void rotate(float *x, float *y, const float *c, const float *s, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float xi = x[i], yi = y[i];
        x[i] = xi * c[i] - yi * s[i];
        y[i] = yi * c[i] + xi * s[i];
    }
}

static void rope_run(const struct op_env *env, struct tensor *qkv, int NH, int NKV, int t0,
                     const struct rope_rule *rule, bool backward) {
    int64_t B = qkv->dim[0], T = qkv->dim[1], width = qkv->dim[2], HS = width / (NH + 2 * NKV), half = HS / 2;
#pragma omp parallel for schedule(static)
    for (int64_t chunk = t0; chunk < T; chunk += CHUNK)
        for (int64_t pair = 0; pair < half; pair += PAIRS) {
            int64_t count = min_i64(PAIRS, half - pair);
            struct turn a;
            float c[PAIRS], s[PAIRS];
            turn_to(&a, chunk, pair, count, HS, *rule);
            for (int64_t t = chunk; t < min_i64(T, chunk + CHUNK); t++, turn_on(&a, count)) {
                for (int64_t i = 0; i < count; i++) {
                    c[i] = (float)a.cos[i];
                    s[i] = (float)(backward ? -a.sin[i] : a.sin[i]);
                }
                for (int64_t b = 0; b < B; b++)
                    for (int64_t h = 0; h < NH + NKV; h++) {
                        float *x = f32(qkv) + (b * T + t) * width + h * HS + pair;
                        rotate(x, x + half, c, s, count);
                    }
            }
        }
}

CPU_VARIANT(rope, NULL);

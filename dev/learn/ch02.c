/* Chapter 2. Rotary positions for one head of one row: x[i] and x[i + HS/2] are a pair, for i < HS/2, and
 * the pair is turned by the angle a = t * theta^(-2i/HS), backwards by -a:
 *     x[i]        becomes  x[i]*cos(a) - x[i + HS/2]*sin(a)
 *     x[i + HS/2] becomes  x[i + HS/2]*cos(a) + x[i]*sin(a)
 * Compute the angle in double: t reaches 131,071, and a float keeps 24 bits. */
#include "dev/learn/learn.h"

static void rotate(float *x, int64_t HS, int64_t t, float theta, bool backward) { /* your lines */
}

const struct exercise exercise = {
    .chapter = 2,
    .done = false, /* set this to true when the function is written */
    .rotate = rotate,
};

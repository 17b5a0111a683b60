/* Chapter 7. The derivative of GELU at x, where
 *     gelu(x) = 0.5*x*(1 + tanh(u)),  u = sqrt(2/pi) * (x + 0.044715*x^3).
 * Compute in double: some x are so large that x*x is infinite as a float. */
#include "dev/learn/learn.h"

static float gelu_slope(float x) {
    /* your lines */
    return 0.0f;
}

const struct exercise exercise = {
    .chapter = 7,
    .done = false, /* set this to true when the function is written */
    .gelu_slope = gelu_slope,
};

/* Chapter 9. One step of AdamW for one parameter w, its moments m and v, and its gradient g, which is
 * clipped already. `a` has lr, beta1, beta2, eps, weight_decay and step, which is 1 for the first update:
 *     m = beta1*m + (1 - beta1)*g,  v = beta2*v + (1 - beta2)*g^2
 *     w -= lr * (m/(1 - beta1^step) / (sqrt(v/(1 - beta2^step)) + eps) + weight_decay*w) */
#include "dev/learn/learn.h"

static void adamw_step(float *w, float *m, float *v, float g, const struct update_args *a) {
    /* your lines */
}

const struct exercise exercise = {
    .chapter = 9,
    .done = false, /* set this to true when the function is written */
    .adamw_step = adamw_step,
};

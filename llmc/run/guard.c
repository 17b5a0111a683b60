/* Outliers among the steps of a run: see guard.h. */
#include "llmc/run/guard.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

static void enter(struct guard *g, const struct guard_step *s) {
    int64_t at = (g->oldest + g->count) % GUARD_WINDOW;
    g->loss[at] = s->loss;
    g->norm[at] = s->norm;
    if (g->count < GUARD_WINDOW)
        g->count++;
    else
        g->oldest = (g->oldest + 1) % GUARD_WINDOW;
}

/* From the oldest to the newest, so that the sums do not depend on where the window begins. */
static void moments(const struct guard *g, const double *values, double *mean, double *std) {
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < g->count; i++) sum += values[(g->oldest + i) % GUARD_WINDOW];
    *mean = sum / (double)g->count;
    for (int64_t i = 0; i < g->count; i++) {
        double d = values[(g->oldest + i) % GUARD_WINDOW] - *mean;
        squares += d * d;
    }
    *std = sqrt(squares / (double)g->count);
}

/* Values that are all the same have no outliers. */
static float limit(double mean, double std, double z) {
    return std > 0.0 ? (float)(mean + z * std) : INFINITY;
}

struct guard_limits guard_limits_of(struct guard *g, int64_t step, double z) {
    struct guard_limits l = {.max_loss = INFINITY, .max_norm = INFINITY};
    while (g->waiting_count && g->waiting[0].step <= step - GUARD_LAG) {
        enter(g, &g->waiting[0]);
        memmove(g->waiting, g->waiting + 1, (size_t)--g->waiting_count * sizeof *g->waiting);
    }
    if (g->count < GUARD_WINDOW) return l;
    moments(g, g->loss, &l.mean_loss, &l.std_loss);
    moments(g, g->norm, &l.mean_norm, &l.std_norm);
    l.max_loss = limit(l.mean_loss, l.std_loss, z);
    l.max_norm = limit(l.mean_norm, l.std_norm, z);
    return l;
}

void guard_add(struct guard *g, int64_t step, double loss, double norm) {
    check(g->waiting_count < GUARD_LAG, "guard_add: step %lld, but the limits have not been asked for",
          (long long)step);
    g->waiting[g->waiting_count++] = (struct guard_step){step, loss, norm};
}

/* --- in checkpoints --- */

static json_t *numbers(const struct guard *g, const double *values) {
    json_t *list = json_array();
    for (int64_t i = 0; i < g->count; i++)
        json_array_append_new(list, json_real(values[(g->oldest + i) % GUARD_WINDOW]));
    return list;
}

json_t *guard_to_json(const struct guard *g) {
    json_t *waiting = json_array();
    for (int64_t i = 0; i < g->waiting_count; i++)
        json_array_append_new(waiting, json_pack("[I, f, f]", (json_int_t)g->waiting[i].step,
                                                 g->waiting[i].loss, g->waiting[i].norm));
    return json_pack("{s:o, s:o, s:o, s:I, s:I}", "loss", numbers(g, g->loss), "norm", numbers(g, g->norm),
                     "waiting", waiting, "bad", (json_int_t)g->bad, "rollbacks", (json_int_t)g->rollbacks);
}

static bool read_numbers(double *values, int64_t count, const json_t *list) {
    bool ok = json_is_array(list) && (int64_t)json_array_size(list) == count;
    for (int64_t i = 0; ok && i < count; i++) {
        const json_t *v = json_array_get(list, (size_t)i);
        values[i] = json_number_value(v);
        ok = json_is_number(v);
    }
    return ok;
}

bool guard_from_json(struct guard *g, const json_t *json) {
    *g = (struct guard){0};
    if (!json) return true;
    const json_t *waiting = json_object_get(json, "waiting"), *bad = json_object_get(json, "bad"),
                 *rollbacks = json_object_get(json, "rollbacks"), *loss = json_object_get(json, "loss");
    g->count = (int64_t)json_array_size(loss);
    g->waiting_count = (int64_t)json_array_size(waiting);
    if (g->count > GUARD_WINDOW || g->waiting_count > GUARD_LAG || !json_is_integer(bad) ||
        !json_is_integer(rollbacks) || !read_numbers(g->loss, g->count, loss) ||
        !read_numbers(g->norm, g->count, json_object_get(json, "norm")))
        return false;
    for (int64_t i = 0; i < g->waiting_count; i++) {
        double v[3];
        if (!read_numbers(v, 3, json_array_get(waiting, (size_t)i))) return false;
        g->waiting[i] = (struct guard_step){(int64_t)v[0], v[1], v[2]};
    }
    g->bad = json_integer_value(bad);
    g->rollbacks = json_integer_value(rollbacks);
    return true;
}

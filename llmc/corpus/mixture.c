/* Weighted mixtures of data: see mixture.h. */
#include "llmc/corpus/mixture.h"

#include "llmc/base/file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { DIGITS = 6, UNIT = 1000000 }; /* behind the point */

/* --- reading --- */

/* The length of the part that the text begins with: up to a comma that is in no braces. */
static size_t part_length(const char *text) {
    int depth = 0;
    size_t n = 0;
    for (; text[n] && (text[n] != ',' || depth > 0); n++) depth += (text[n] == '{') - (text[n] == '}');
    return n;
}

/* What stands behind the last colon of a part; NULL: there is none. */
static const char *weight_of(const char *part) {
    const char *colon = strrchr(part, ':');
    return colon ? colon + 1 : NULL;
}

static bool looks_like_number(const char *weight) {
    return weight && *weight && !weight[strspn(weight, "0123456789.+-eE")];
}

/* A decimal as a multiple of 1/UNIT. */
static bool read_weight(int64_t *units, const char *part, struct error *err) {
    const char *weight = weight_of(part), *p = weight;
    int64_t value = 0, scale = UNIT;
    if (!weight || strchr(weight, '/'))
        return fail(err, "%s: has no weight; every part of a mixture needs one: %s:0.3", part, part);
    for (; *p >= '0' && *p <= '9' && value < (int64_t)UNIT * UNIT; p++)
        value = value * 10 + (*p - '0') * UNIT;
    if (*p == '.' && p[1])
        for (p++; *p >= '0' && *p <= '9' && scale > 1; p++) value += (*p - '0') * (scale /= 10);
    *units = value;
    if (*p || !*weight)
        return fail(err, "%s: \"%s\" is no weight; expected a number with at most %d digits behind the point",
                    part, weight, DIGITS);
    return value > 0 || fail(err, "%s: a weight must be above 0; leave the part out", part);
}

static int64_t common_divisor(int64_t a, int64_t b) {
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static bool find_period(struct mixture *m, const char *text, struct error *err) {
    int64_t divisor = 0;
    for (int64_t k = 0; k < m->count; k++) divisor = common_divisor(m->share[k], divisor);
    for (int64_t k = 0; k < m->count; k++) m->period += m->share[k] /= divisor;
    return m->period <= MIXTURE_PERIOD ||
           fail(err,
                "%s: these weights repeat after %" PRId64 " samples only, and %d is the limit: round them to "
                "fewer digits",
                text, m->period, MIXTURE_PERIOD);
}

/* A sample goes to the part that is furthest behind, the first one of several. */
static void spread(struct mixture *m) {
    int64_t *taken = (int64_t *)xcalloc((size_t)m->count, sizeof *taken);
    m->part = (uint8_t *)xmalloc((size_t)m->period * sizeof *m->part);
    m->nth = (int32_t *)xmalloc((size_t)m->period * sizeof *m->nth);
    for (int64_t i = 0; i < m->period; i++) {
        int64_t furthest = 0, most = INT64_MIN;
        for (int64_t k = 0; k < m->count; k++) {
            int64_t behind = (i + 1) * m->share[k] - taken[k] * m->period;
            if (behind > most) furthest = k;
            if (behind > most) most = behind;
        }
        m->part[i] = (uint8_t)furthest;
        m->nth[i] = (int32_t)taken[furthest]++;
    }
    free(taken);
}

static bool read_parts(struct mixture *m, const char *text, struct error *err) {
    bool weighted = false, ok = true;
    m->pattern = (char **)xcalloc(MIXTURE_PARTS, sizeof *m->pattern);
    m->share = (int64_t *)xcalloc(MIXTURE_PARTS, sizeof *m->share);
    for (const char *p = text; p; p += p[part_length(p)] ? part_length(p) + 1 : strlen(p)) {
        if (m->count == MIXTURE_PARTS) return fail(err, "%s: more than %d parts", text, MIXTURE_PARTS);
        char *part = m->pattern[m->count++] = xasprintf("%.*s", (int)part_length(p), p);
        weighted = weighted || looks_like_number(weight_of(part));
        if (!p[part_length(p)]) break;
    }
    m->count *= weighted;
    for (int64_t k = 0; ok && k < m->count; k++) {
        ok = read_weight(&m->share[k], m->pattern[k], err);
        if (ok) *strrchr(m->pattern[k], ':') = '\0';
        if (ok && !m->pattern[k][0]) ok = fail(err, "%s: a part of the mixture has no files", text);
    }
    return ok;
}

bool mixture_parse(struct mixture *m, const char *text, struct error *err) {
    *m = (struct mixture){.count = 0};
    if (path_exists(text)) return true;
    bool ok = read_parts(m, text, err) && (m->count == 0 || find_period(m, text, err));
    if (ok && m->count > 0)
        spread(m);
    else
        mixture_free(m);
    return ok;
}

void mixture_free(struct mixture *m) {
    for (int64_t k = 0; m->pattern && k < MIXTURE_PARTS; k++) free(m->pattern[k]);
    free(m->pattern);
    free(m->share);
    free(m->part);
    free(m->nth);
    *m = (struct mixture){.count = 0};
}

/* --- samples --- */

int64_t mixture_part(const struct mixture *m, int64_t i, int64_t *of_part) {
    int64_t part = m->part[i % m->period];
    if (of_part) *of_part = i / m->period * m->share[part] + m->nth[i % m->period];
    return part;
}

int64_t mixture_taken(const struct mixture *m, int64_t part, int64_t samples) {
    int64_t taken = samples / m->period * m->share[part];
    for (int64_t i = 0; i < samples % m->period; i++) taken += m->part[i] == part;
    return taken;
}

/* How attention turns queries and keys into weights: the score of a query and a key, and which keys a query
 * sees. The operations attn_forward and attn_backward (ops.h) follow such a rule.
 *
 * Every score here depends on three numbers only: the dot product q.k and the squares |q|^2 and |k|^2.
 * Every mask lets a query see one stretch of keys, and a key one stretch of queries. So one loop over a
 * stretch, with one function for the score, computes all rules. */
#ifndef LLMC_ATTN_RULE_H
#define LLMC_ATTN_RULE_H

#include "llmc/ops/dropout.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The score of a query q and a key k of HS numbers. In a cosine, 1e-6 is added to |q|^2 and |k|^2, so that a
 * vector of zeros has one, too. Its factor sqrt(HS) gives random vectors scores of variance 1, as in nGPT. */
enum attn_score {
    ATTN_SCALED_DOT, /* q.k / sqrt(HS) (Vaswani et al. 2017, arXiv 1706.03762) */
    ATTN_DOT,        /* q.k (Luong et al. 2015, arXiv 1508.04025) */
    ATTN_COSINE,     /* sqrt(HS) * q.k / (|q||k|) (Loshchilov et al. 2024, arXiv 2410.01131) */
    ATTN_L2,         /* -|q-k|^2 / sqrt(HS) (Kim et al. 2021, arXiv 2006.04710) */
    ATTN_DOT2,       /* (q.k / sqrt(HS))^2: keys opposite to the query count as those along it */
    ATTN_SCORES
};

/* The keys s that query t sees. It always sees itself, so no row of the softmax is empty. */
enum attn_mask {
    ATTN_CAUSAL,      /* s <= t */
    ATTN_ANTI_CAUSAL, /* s >= t */
    ATTN_FULL,        /* all */
    ATTN_WINDOW, /* t - window < s <= t (Beltagy et al. 2020, arXiv 2004.05150; Mistral, arXiv 2310.06825) */
    ATTN_PREFIX, /* s <= t, and within the first tokens of a sequence all (Raffel et al. 2020, arXiv
                         1910.10683) */
    ATTN_MASKS
};

/* All zero but the heads: causal attention by scaled dot products. */
struct attn_rule {
    int heads, kv_heads; /* NH, NKV; NH % NKV == 0 */
    enum attn_score score;
    enum attn_mask mask;
    int window;    /* N of ATTN_WINDOW, >= 1; otherwise 0 */
    float softcap; /* X > 0: a score s becomes X * tanh(s/X) (Gemma 2, arXiv 2408.00118); 0: it stays */
    const struct dropout_rule *dropout; /* of the weights P (NH,T,T) of a sample (or NULL) */
    /* (B,T) int32 (or NULL): the first key that query t may see, where its document begins. 0 <= first[t]
     * <= t, and it never falls from t to t+1. It narrows ATTN_CAUSAL and ATTN_WINDOW; other masks have
     * none. */
    const struct tensor *first;
};

/* Scaled dot products under the causal mask, which the fastest kernels are made for. */
static inline bool attn_rule_is_plain(const struct attn_rule *r) {
    return r->score == ATTN_SCALED_DOT && r->mask == ATTN_CAUSAL && r->softcap == 0.0f && !r->dropout &&
           !r->first;
}

/* --- masks --- */

struct attn_range {
    int64_t first, end;
};

/* The keys that query t sees in a sequence of T tokens, and the queries that see key s. `prefix` is the
 * number of first tokens that see each other, of ATTN_PREFIX; above T it counts as T. */
static inline LLMC_HD struct attn_range attn_keys(struct attn_rule r, int64_t prefix, int64_t T, int64_t t) {
    struct attn_range keys = {0, t + 1};
    if (r.mask == ATTN_ANTI_CAUSAL) keys.first = t;
    if (r.mask == ATTN_WINDOW && t >= r.window) keys.first = t - r.window + 1;
    if (r.mask == ATTN_ANTI_CAUSAL || r.mask == ATTN_FULL) keys.end = T;
    if (r.mask == ATTN_PREFIX && t < prefix) keys.end = prefix < T ? prefix : T;
    return keys;
}
static inline LLMC_HD struct attn_range attn_queries(struct attn_rule r, int64_t prefix, int64_t T,
                                                     int64_t s) {
    struct attn_range queries = {s, T};
    if (r.mask == ATTN_ANTI_CAUSAL || r.mask == ATTN_FULL) queries.first = 0;
    if (r.mask == ATTN_PREFIX && s < prefix) queries.first = 0;
    if (r.mask == ATTN_ANTI_CAUSAL) queries.end = s + 1;
    if (r.mask == ATTN_WINDOW && s + r.window < T) queries.end = s + r.window;
    return queries;
}

/* What documents leave of these ranges. `first` (T) is the row of attn_rule.first for the sequence, or
 * NULL. It never falls, so the queries that see key s end where it passes s, which bisection finds. */
static inline LLMC_HD struct attn_range attn_keys_in_document(struct attn_range keys, const int32_t *first,
                                                              int64_t t) {
    if (first && keys.first < first[t]) keys.first = first[t];
    return keys;
}
static inline LLMC_HD struct attn_range attn_queries_in_document(struct attn_range queries,
                                                                 const int32_t *first, int64_t s) {
    for (int64_t low = s + 1; first && low < queries.end;) {
        int64_t middle = low + (queries.end - low) / 2;
        if (first[middle] <= s)
            low = middle + 1;
        else
            queries.end = middle;
    }
    return queries;
}

/* --- scores --- */

/* A score from x = attn_factor() * q.k, and from what attn_norm() makes of |q|^2 and |k|^2. The scale is
 * 1/sqrt(HS). Where attn_needs_norms() is false, the norms have no effect. */
static inline LLMC_HD bool attn_needs_norms(enum attn_score score) {
    return score == ATTN_COSINE || score == ATTN_L2;
}
static inline LLMC_HD float attn_factor(enum attn_score score, float scale) {
    return score == ATTN_SCALED_DOT ? scale : 1.0f;
}
static inline LLMC_HD float attn_norm(enum attn_score score, float squares) {
    return score == ATTN_COSINE ? 1.0f / sqrtf(squares + 1e-6f) : squares;
}
static inline LLMC_HD float attn_score_of(enum attn_score score, float scale, float x, float q_norm,
                                          float k_norm) {
    return score == ATTN_COSINE ? x * q_norm * k_norm / scale
           : score == ATTN_L2   ? scale * (2.0f * x - q_norm - k_norm)
           : score == ATTN_DOT2 ? scale * x * (scale * x)
                                : x;
}

/* With a gradient g of the score, and d = attn_slope() * g, the gradient of q is attn_factor() * d * k plus
 * attn_own_slope() * d * q. That of k is the same with q and k exchanged. */
static inline LLMC_HD float attn_slope(enum attn_score score, float scale, float x, float q_norm,
                                       float k_norm) {
    return score == ATTN_COSINE ? q_norm * k_norm / scale
           : score == ATTN_L2   ? 2.0f * scale
           : score == ATTN_DOT2 ? 2.0f * scale * scale * x
                                : 1.0f;
}
static inline LLMC_HD float attn_own_slope(enum attn_score score, float x, float own_norm) {
    return score == ATTN_COSINE ? -x * own_norm * own_norm : score == ATTN_L2 ? -1.0f : 0.0f;
}

#ifdef __cplusplus
}
#endif
#endif

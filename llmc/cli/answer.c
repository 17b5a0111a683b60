#include "llmc/cli/answer.h"

#include "llmc/format/model_config.h"
#include "llmc/model/sampler.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void answer_free(struct answer *a) {
    free(a->text);
    free(a->place);
    free(a->logprob);
    free(a->top);
    token_buffer_free(&a->ids);
    *a = (struct answer){.o = a->o};
}

/* --- the text --- */

static void add_bytes(struct answer *a, const char *bytes, int64_t size) {
    if (a->size + size + 1 > a->capacity) {
        a->capacity = 2 * (a->size + size) + 64;
        a->text = (char *)xrealloc(a->text, (size_t)a->capacity);
    }
    if (size) memcpy(a->text + a->size, bytes, (size_t)size);
    a->size += size;
    a->text[a->size] = 0;
}

/* Cuts the text before the first stop text in it, of which the last `added` bytes complete one. */
static bool cut_at_stop(struct answer *a, int64_t added) {
    const char *first = NULL;
    for (int64_t i = 0; i < a->o.stop_count; i++) {
        int64_t length = (int64_t)strlen(a->o.stop[i]), from = max_i64(0, a->size - added - length + 1);
        const char *at =
            (const char *)memmem(a->text + from, (size_t)(a->size - from), a->o.stop[i], (size_t)length);
        if (at && (!first || at < first)) first = at;
    }
    if (!first) return false;
    a->size = a->sure = first - a->text;
    a->text[a->size] = 0;
    return true;
}

/* The longest end of the text that a stop text may begin with. */
static int64_t begun_stop(const struct answer *a) {
    int64_t longest = 0;
    for (int64_t i = 0; i < a->o.stop_count; i++) {
        int64_t n = min_i64((int64_t)strlen(a->o.stop[i]) - 1, a->size);
        while (n > longest && memcmp(a->text + a->size - n, a->o.stop[i], (size_t)n) != 0) n--;
        longest = max_i64(longest, n);
    }
    return longest;
}

/* --- log-probabilities --- */

static void make_room(struct answer *a) {
    if (a->ids.count < a->room) return;
    a->room = 2 * a->room + 16;
    size_t n = (size_t)a->room;
    a->place = (int64_t *)xrealloc(a->place, n * sizeof *a->place);
    if (!a->o.logprobs) return;
    a->logprob = (double *)xrealloc(a->logprob, n * sizeof *a->logprob);
    if (a->o.top) a->top = (struct token_logprob *)xrealloc(a->top, n * (size_t)a->o.top * sizeof *a->top);
}

/* Of equal ones the first token comes first. */
static void take_logprobs(struct answer *a, int64_t token, const float *logits) {
    double lse = log_sum_exp(logits, a->o.V);
    struct token_logprob *top = a->top + a->ids.count * a->o.top;
    int64_t kept = 0;
    a->logprob[a->ids.count] = logits[token] - lse;
    for (int64_t v = 0; v < a->o.V && a->o.top; v++) {
        double x = logits[v] - lse;
        if (kept == a->o.top && x <= top[kept - 1].logprob) continue;
        int64_t i = kept < a->o.top ? kept++ : kept - 1;
        for (; i > 0 && top[i - 1].logprob < x; i--) top[i] = top[i - 1];
        top[i] = (struct token_logprob){v, x};
    }
    for (; kept < a->o.top; kept++) top[kept] = (struct token_logprob){-1, -INFINITY};
}

/* --- tokens --- */

bool answer_add(void *user, int64_t token, const float *logits) {
    struct answer *a = (struct answer *)user;
    const struct tokenizer *t = a->o.tokenizer;
    a->stopped = t && (token == a->o.end || (!a->o.past_end && model_ends_text(a->o.model, t, token)));
    if (a->stopped) {
        a->sure = a->size;
        return false;
    }
    make_room(a);
    if (a->o.logprobs) take_logprobs(a, token, logits);
    a->place[a->ids.count] = a->size;
    token_buffer_reserve(&a->ids, 1);
    a->ids.ids[a->ids.count++] = (uint32_t)token;
    char number[32];
    int size = t ? 0 : snprintf(number, sizeof number, "%" PRId64 " ", token);
    const char *bytes = t ? tokenizer_token_bytes(t, token, &size) : number;
    add_bytes(a, bytes, size);
    a->stopped = cut_at_stop(a, size);
    if (!a->stopped) a->sure = a->size - begun_stop(a);
    return !a->stopped;
}

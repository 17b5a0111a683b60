/* The built-in stories as a corpus. */
#include "llmc/corpus/corpus.h"
#include "llmc/stories/stories.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void corpus_stories(struct corpus *c, uint64_t seed, int64_t count, double validation_fraction) {
    check(count >= 2, "%lld stories, expected at least 2: one for training and one for validation",
          (long long)count);
    memset(c, 0, sizeof *c);
    c->docs = (struct text_span *)xcalloc((size_t)count, sizeof *c->docs);
    c->validation = (bool *)xcalloc((size_t)count, sizeof *c->validation);
    c->files = (struct corpus_file *)xcalloc((size_t)count, sizeof *c->files);
    c->count = c->file_count = count;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) {
        c->files[i].copy = story_make(seed, (uint64_t)i);
        c->docs[i] = (struct text_span){c->files[i].copy, (int64_t)strlen(c->files[i].copy)};
    }
    /* Evenly spread, and the number is the share rounded, but at least one on each side. */
    int64_t kept = max_i64(1, min_i64(count - 1, llround((double)count * validation_fraction)));
    for (int64_t k = 0; k < kept; k++) c->validation[(2 * k + 1) * count / (2 * kept)] = true;
    for (int64_t i = 0; i < count; i++) {
        c->bytes += c->docs[i].size;
        if (c->validation[i]) c->validation_bytes += c->docs[i].size;
    }
}

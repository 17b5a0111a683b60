/* What `train_gpt view` shows: facts (a JSON object) and arrays of numbers, written as JSON or as a page
 * for a browser. The page (view.html) is one file with its script, style and numbers; it loads nothing. */
#ifndef LLMC_VIEW_PAGE_H
#define LLMC_VIEW_PAGE_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

struct view_array {
    const char *name, *about; /* `about`: shape and meaning, for readers of the JSON */
    int rank;
    int64_t dim[4];
    const float *floats; /* one of the two, row-major; the other is NULL */
    const int32_t *integers;
    bool by_layer;      /* the page unpacks one index of the first dimension at a time, when it shows it */
    bool only_for_json; /* the page computes it from others */
};

/* {facts..., "arrays": {name: {"about", "shape", "data"}, ...}}. A file is written under a temporary name
 * and renamed. A number that is not finite is an error. */
bool view_write_json(const char *path, struct json_t *facts, const struct view_array *array, int count,
                     struct error *err);
bool view_write_page(const char *path, struct json_t *facts, const struct view_array *array, int count,
                     struct error *err);
/* The same for a page that is served: {"facts", "arrays": {name: {"kind", "parts": [base64, ...]}},
 * "milliseconds"}. The caller frees. */
char *view_answer(struct json_t *facts, const struct view_array *array, int count, double milliseconds,
                  struct error *err);

#ifdef __cplusplus
}
#endif
#endif

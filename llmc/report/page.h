/* The pages of this program: HTML, styles and scripts that the build makes part of it. A server hands them
 * out one by one (serve/http.h); a page in a file has everything in it, its data too, and needs no
 * network. */
#ifndef LLMC_PAGE_H
#define LLMC_PAGE_H

#include "llmc/base/file.h"

#ifdef __cplusplus
extern "C" {
#endif

struct json_t;

/* The content of "watch.html", "page.css" and so on, or NULL; *type is its media type. */
const char *page_part(const char *name, size_t *size, const char **type);

/* Writes what stands in a page's place for data. */
typedef void page_data_fn(struct writer *w, void *user);
/* Writes a page, complete in one file, under a temporary name and renames it; to a pipe or device, directly.
 * `data` may be NULL. */
bool page_write(const char *path, const char *name, page_data_fn *data, void *user, struct error *err);
/* The same steps for any file. */
bool page_open_output(struct writer *w, const char *path, struct error *err);
bool page_close_output(struct writer *w, const char *path, struct error *err);

/* A script element with JSON, which no browser runs. */
void page_put_json(struct writer *w, const char *id, struct json_t *value);

#ifdef __cplusplus
}
#endif
#endif

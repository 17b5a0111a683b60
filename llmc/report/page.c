/* A page names its styles and scripts as any page does, which is how a server hands them out. In a file, each
 * takes the place of its reference; a policy in the head then forbids the browser to load anything, so that
 * the page is what it was when it was written. */
#include "llmc/report/page.h"

#include "llmc/report/json_text.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The build makes these of the files. */
#define PART(name, kind, type)                                                                               \
    extern const unsigned char name##_##kind[];                                                              \
    extern const size_t name##_##kind##_size;
#define PARTS                                                                                                \
    PART(view, html, "text/html")                                                                            \
    PART(watch, html, "text/html")                                                                           \
    PART(profile, html, "text/html")                                                                         \
    PART(plan, html, "text/html")                                                                            \
    PART(eval, html, "text/html")                                                                            \
    PART(page, css, "text/css")                                                                              \
    PART(view, css, "text/css")                                                                              \
    PART(watch, css, "text/css")                                                                             \
    PART(page, js, "text/javascript")                                                                        \
    PART(chart, js, "text/javascript")                                                                       \
    PART(pass, js, "text/javascript")                                                                        \
    PART(view, js, "text/javascript")                                                                        \
    PART(next_token, js, "text/javascript")                                                                  \
    PART(what_if, js, "text/javascript")                                                                     \
    PART(heads, js, "text/javascript")                                                                       \
    PART(watch, js, "text/javascript")                                                                       \
    PART(profile, js, "text/javascript")                                                                     \
    PART(plan, js, "text/javascript")                                                                        \
    PART(eval, js, "text/javascript")
PARTS
#undef PART

const char *page_part(const char *name, size_t *size, const char **type) {
#define PART(stem, kind, media)                                                                              \
    if (strcmp(name, #stem "." #kind) == 0) {                                                                \
        *size = stem##_##kind##_size;                                                                        \
        *type = media;                                                                                       \
        return (const char *)stem##_##kind;                                                                  \
    }
    PARTS
#undef PART
    return NULL;
}

/* --- writing --- */

bool page_open_output(struct writer *w, const char *path, struct error *err) {
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) return writer_open(w, path, err);
    char *temporary = xasprintf("%s.tmp", path);
    bool ok = writer_open(w, temporary, err);
    free(temporary);
    return ok;
}

bool page_close_output(struct writer *w, const char *path, struct error *err) {
    char *written = xstrdup(w->path);
    bool ok = writer_close(w, err) && (strcmp(written, path) == 0 || rename_synced(written, path, err));
    free(written);
    return ok;
}

void page_put_json(struct writer *w, const char *id, json_t *value) {
    char *text = json_for_page(value, 9);
    writer_printf(w, "<script type=\"application/json\" id=\"%s\">", id);
    writer_put(w, text, strlen(text));
    writer_printf(w, "</script>\n");
    free(text);
}

/* The part that a line of a page refers to: <link ... href="NAME"> or <script src="NAME">. */
static bool put_reference(struct writer *w, const char *line, size_t size) {
    static const char link[] = "<link rel=\"stylesheet\" href=\"", script[] = "<script src=\"";
    const char *name = NULL, *type;
    bool is_link = size > sizeof link && memcmp(line, link, sizeof link - 1) == 0;
    if (is_link) name = line + sizeof link - 1;
    if (size > sizeof script && memcmp(line, script, sizeof script - 1) == 0) name = line + sizeof script - 1;
    if (!name) return false;
    size_t part_size;
    const char *part = page_part(temp_printf("%.*s", (int)strcspn(name, "\""), name), &part_size, &type);
    check(part != NULL, "a page refers to %.*s", (int)strcspn(name, "\""), name);
    writer_printf(w, is_link ? "<style>\n" : "<script>\n");
    writer_put(w, part, part_size);
    writer_printf(w, is_link ? "</style>\n" : "</script>\n");
    return true;
}

static bool is_mark(const char *line, size_t size, const char *mark) {
    return size == strlen(mark) && memcmp(line, mark, size) == 0;
}

bool page_write(const char *path, const char *name, page_data_fn *data, void *user, struct error *err) {
    struct writer w;
    size_t size;
    const char *type, *page = page_part(name, &size, &type), *end = page + size;
    check(page != NULL, "there is no page %s", name);
    if (!page_open_output(&w, path, err)) return false;
    while (page < end) {
        const char *newline = (const char *)memchr(page, '\n', (size_t)(end - page));
        size_t line = (size_t)((newline ? newline : end) - page);
        if (is_mark(page, line, "<!-- POLICY -->")) {
            writer_printf(&w,
                          "<meta http-equiv=\"Content-Security-Policy\"\n      content=\"default-src 'none'; "
                          "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n");
        } else if (is_mark(page, line, "<!-- DATA -->")) {
            if (data) data(&w, user);
        } else if (!put_reference(&w, page, line)) {
            writer_put(&w, page, line);
            writer_printf(&w, "\n");
        }
        page += line + 1;
    }
    return page_close_output(&w, path, err);
}

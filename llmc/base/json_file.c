#include "llmc/base/json_file.h"

#include <jansson.h>
#include <stdlib.h>

#include "llmc/base/file.h"

json_t *json_file_load(const char *path, struct error *err) {
    struct mapped_file f;
    if (!file_map(&f, path, err)) return NULL;
    json_error_t why;
    const char *text = f.data ? (const char *)f.data : "";
    json_t *root = json_loadb(text, (size_t)f.size, JSON_REJECT_DUPLICATES, &why);
    if (!root)
        fail(err, "%s: not valid JSON in line %d, near byte %d: %s", path, why.line, why.position, why.text);
    file_unmap(&f);
    return root;
}

bool json_file_write(const char *path, json_t *root, struct error *err) {
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    json_decref(root);
    check(text != NULL, "%s: cannot be written as JSON", path);
    struct writer w;
    bool ok = writer_open(&w, path, err);
    if (ok) {
        writer_printf(&w, "%s\n", text);
        ok = writer_close(&w, err);
    }
    free(text);
    return ok;
}

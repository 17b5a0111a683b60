/* A slim Hugging Face directory from any model that can be read. */
#include "llmc/format/export.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "llmc/format/checkpoint.h"
#include "llmc/format/model_config.h"
#include "llmc/format/model_file.h"

const char *export_type_name(enum export_type type) {
    static const char *const names[] = {"f32", "f16", "bf16", "q8_0"};
    return names[type];
}

static bool read_weights(float *out, const void *source, enum param_id id, int64_t layer, int64_t first,
                         int64_t count, struct error *err) {
    return weights_read(out, (const struct weights *)source, id, layer, first, count, err);
}

static bool write_weights(const char *dir, const struct weights *weights, enum st_dtype dtype,
                          struct error *err) {
    char *path = xasprintf("%s/model.safetensors", dir);
    struct safetensors_writer w;
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "format", "pt");
    weights_declare(&w, &weights->config, "", dtype, WEIGHTS_ALL);
    bool ok = safetensors_writer_open(&w, path, err);
    if (ok) {
        weights_put(&w, &weights->config, "", dtype, WEIGHTS_ALL, read_weights, weights);
        ok = safetensors_writer_close(&w, err);
    }
    free(path);
    return ok;
}

static bool write_directory(const char *dir, const struct weights *weights, const struct tokenizer *tok,
                            enum st_dtype dtype, struct error *err) {
    return model_config_write(dir, &weights->config, dtype, tok, err) &&
           write_weights(dir, weights, dtype, err) && sync_path(dir, err);
}

/* Whether a directory is there, and holds an exported model and nothing else. */
static bool is_export(const char *dir, struct error *err) {
    DIR *d = opendir(dir);
    if (!d) return fail(err, "%s: exists and is not a directory; name a new one", dir);
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(d)) != NULL;) {
        const char *name = e->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        bool state = strcmp(name, "trainer.json") == 0 || strncmp(name, "optimizer", 9) == 0;
        if (state || !checkpoint_owns(name))
            ok = fail(err, "%s: holds %s, which no export has made: name another directory", dir, name);
    }
    closedir(d);
    return ok;
}

static bool is_empty(const char *dir) {
    DIR *d = opendir(dir);
    int entries = 0;
    while (d && readdir(d)) entries++;
    if (d) closedir(d);
    return d && entries <= 2;
}

static bool check_target(const char *from, const char *to, bool overwrite, struct error *err) {
    struct stat a, b;
    if (!path_exists(to) || is_empty(to)) return true;
    if (path_is_directory(to) && !overwrite)
        return fail(
            err,
            "%s: exists and is not empty; name a new directory, or --overwrite to replace the model in it",
            to);
    if (stat(from, &a) == 0 && stat(to, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return fail(err, "%s: is the model that is to be exported; name another directory", to);
    return is_export(to, err);
}

/* What a killed export has left. */
static bool clear_temporary(const char *temporary, struct error *err) {
    if (!path_exists(temporary)) return true;
    if (!is_export(temporary, err) || !checkpoint_remove(temporary, err)) return false;
    return !path_exists(temporary) || fail(err, "%s: is in the way; move it away", temporary);
}

bool export_huggingface(const char *from, const char *adapter, const char *to, enum export_type type,
                        bool overwrite, struct error *err) {
    static const enum st_dtype dtypes[] = {
        [EXPORT_F32] = ST_F32, [EXPORT_F16] = ST_F16, [EXPORT_BF16] = ST_BF16};
    struct model_file m;
    if (type == EXPORT_Q8_0)
        return fail(err, "%s: q8_0 is a type of GGUF files; a Hugging Face directory holds f32, f16 or bf16",
                    to);
    size_t length = strlen(to);
    while (length > 1 && to[length - 1] == '/') length--;
    char *final = xasprintf("%.*s", (int)length, to), *temporary = xasprintf("%s.tmp", final);
    bool ok = check_target(from, final, overwrite, err) && model_file_open_adapted(&m, from, adapter, err);
    if (ok) {
        struct error why = {""};
        struct tokenizer *tok = checkpoint_load_tokenizer(adapter_tokenizer_directory(adapter, from), &why);
        if (!tok && why.message[0]) ok = fail(err, "%s", why.message);
        if (adapter && tok) model_add_end_of_turn(&m.weights.config, tok);
        ok = ok && clear_temporary(temporary, err) && make_directories(temporary, err);
        if (ok) {
            ok = write_directory(temporary, &m.weights, tok, dtypes[type], err) &&
                 (is_empty(final) ? rename_synced(temporary, final, err)
                                  : checkpoint_put_in_place(temporary, final, err));
            if (!ok) (void)checkpoint_remove(temporary, NULL);
        }
        tokenizer_free(tok);
        model_file_close(&m);
    }
    free(temporary);
    free(final);
    return ok;
}

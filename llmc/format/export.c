/* A slim Hugging Face directory from any model that can be read. */
#include "llmc/format/export.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    int64_t end_of_text = tok ? tokenizer_end_of_text(tok) : weights->config.vocab_size == 50257 ? 50256 : -1;
    if (!model_config_write(dir, &weights->config, dtype, end_of_text, err) ||
        !write_weights(dir, weights, dtype, err))
        return false;
    char *path = xasprintf("%s/tokenizer.json", dir);
    bool ok = !tok || tokenizer_save(tok, path, err);
    free(path);
    return ok && sync_path(dir, err);
}

/* rename() refuses to replace a directory with something in it, but only after everything has been
 * written. */
static bool check_target(const char *to, struct error *err) {
    if (!path_exists(to)) return true;
    DIR *dir = opendir(to);
    if (!dir) return fail(err, "%s: exists and is not a directory; name a new one", to);
    int entries = 0;
    while (readdir(dir)) entries++;
    closedir(dir);
    return entries <= 2 || fail(err, "%s: exists and is not empty; name a new directory", to);
}

bool export_huggingface(const char *from, const char *to, enum export_type type, struct error *err) {
    static const enum st_dtype dtypes[] = {
        [EXPORT_F32] = ST_F32, [EXPORT_F16] = ST_F16, [EXPORT_BF16] = ST_BF16};
    struct model_file m;
    if (type == EXPORT_Q8_0)
        return fail(err, "%s: q8_0 is a type of GGUF files; a Hugging Face directory holds f32, f16 or bf16",
                    to);
    size_t length = strlen(to);
    while (length > 1 && to[length - 1] == '/') length--;
    char *final = xasprintf("%.*s", (int)length, to), *temporary = xasprintf("%s.tmp", final);
    bool ok = check_target(final, err) && model_file_open(&m, from, err);
    if (ok) {
        struct error why = {""};
        struct tokenizer *tok = checkpoint_load_tokenizer(from, &why);
        if (!tok && why.message[0]) ok = fail(err, "%s", why.message);
        ok = ok && remove_tree(temporary, err) && make_directories(temporary, err);
        if (ok) {
            ok = write_directory(temporary, &m.weights, tok, dtypes[type], err) &&
                 rename_synced(temporary, final, err);
            if (!ok) (void)remove_tree(temporary, NULL);
        }
        tokenizer_free(tok);
        model_file_close(&m);
    }
    free(temporary);
    free(final);
    return ok;
}

/* The tokenizer of token shards: see shard_manifest.h. A manifest speaks for a shard if it lists its name
 * with its number of tokens; whatever else lies in the directory is not its business. */
#include "llmc/corpus/shard_manifest.h"

#include "llmc/base/json_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* NULL with err->message "" if there is none, or one of another program. */
static json_t *load_manifest(const char *directory, struct error *err) {
    char *path = xasprintf("%s/manifest.json", directory);
    json_t *root = NULL;
    fail(err, "%s", "");
    if (path_exists(path) && (root = json_file_load(path, NULL)) != NULL) {
        const char *format = json_string_value(json_object_get(root, "format"));
        if (!format || strcmp(format, SHARD_MANIFEST_FORMAT) != 0) {
            json_decref(root);
            root = NULL;
        } else if (!json_string_value(json_object_get(json_object_get(root, "tokenizer"), "hash"))) {
            fail(err, "%s: has no \"hash\" of its \"tokenizer\": make the shards anew", path);
            json_decref(root);
            root = NULL;
        }
    }
    free(path);
    return root;
}

static bool lists(const json_t *manifest, const char *side, const char *name, int64_t tokens) {
    const json_t *shards = json_object_get(json_object_get(manifest, side), "shards");
    for (size_t i = 0; i < json_array_size(shards); i++) {
        const json_t *shard = json_array_get(shards, i);
        const char *file = json_string_value(json_object_get(shard, "file"));
        if (file && strcmp(file, name) == 0 && json_integer_value(json_object_get(shard, "tokens")) == tokens)
            return true;
    }
    return false;
}

static bool take(struct shard_tokenizer *s, const json_t *manifest, const char *directory,
                 struct error *err) {
    const char *hash = json_string_value(json_object_get(json_object_get(manifest, "tokenizer"), "hash"));
    uint64_t found = strtoull(hash, NULL, 16);
    if (!s->known) *s = (struct shard_tokenizer){true, found, xstrdup(directory)};
    return found == s->hash ||
           fail(err, "%s and %s: the shards in them were made with different tokenizers (manifest.json)",
                s->directory, directory);
}

bool shard_tokenizer_find(struct shard_tokenizer *s, const struct dataset *d, struct error *err) {
    char *directory = xstrdup("");
    json_t *manifest = NULL;
    bool ok = true;
    *s = (struct shard_tokenizer){.known = false};
    for (int64_t i = 0; ok && i < dataset_shards(d); i++) {
        int64_t tokens;
        const char *path = dataset_shard(d, i, &tokens), *slash = strrchr(path, '/');
        char *parent = path_parent(path);
        if (strcmp(parent, directory) != 0) {
            json_decref(manifest);
            manifest = load_manifest(parent, err);
            ok = manifest || !err->message[0];
            free(directory);
            directory = xstrdup(parent);
        }
        const char *name = slash ? slash + 1 : path;
        if (lists(manifest, "train", name, tokens) || lists(manifest, "validation", name, tokens))
            ok = take(s, manifest, directory, err);
        free(parent);
    }
    json_decref(manifest);
    free(directory);
    if (!ok) shard_tokenizer_free(s);
    return ok;
}

void shard_tokenizer_free(struct shard_tokenizer *s) {
    free(s->directory);
    *s = (struct shard_tokenizer){.known = false};
}

struct tokenizer *shard_tokenizer_load(const struct shard_tokenizer *s, struct error *err) {
    fail(err, "%s", "");
    if (!s->known) return NULL;
    char *path = xasprintf("%s/tokenizer.json", s->directory);
    struct tokenizer *t = path_exists(path) ? tokenizer_load(path, err) : NULL;
    if (t && tokenizer_hash(t) != s->hash) {
        fail(err,
             "%s: is not the tokenizer that the shards beside it were made with, as manifest.json says; "
             "--tokenizer names the right one",
             path);
        tokenizer_free(t);
        t = NULL;
    }
    free(path);
    return t;
}

bool shard_tokenizer_is(const struct shard_tokenizer *s, const struct tokenizer *t, const char *shards,
                        const char *whose, struct error *err) {
    return !s->known || !t || s->hash == tokenizer_hash(t) ||
           fail(err,
                "%s: these shards were made with another tokenizer (%s/manifest.json has the hash %016" PRIx64
                ") than %s (%016" PRIx64 "): the same numbers are other tokens",
                shards, s->directory, s->hash, whose, tokenizer_hash(t));
}

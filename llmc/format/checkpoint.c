/* The checkpoints of a run: finding the newest that is whole, and deleting old ones. checkpoint_save.c
 * writes a checkpoint, checkpoint_load.c brings it to the device, checkpoint_manifest.c says whether it is
 * whole.
 *
 * A directory named step-NNNNNNNN is complete, since it got its name last; one named step-NNNNNNNN.tmp is
 * not. Whoever looks for a checkpoint takes the highest number whose checksums match, and warns about those
 * that it passes over.
 *
 * A file that somebody has put into a checkpoint stays when the checkpoint goes: checkpoint_owns() knows
 * the names of its own files, and nothing else is ever deleted. */
#include "llmc/format/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "llmc/format/checkpoint_manifest.h"
#include "llmc/format/gguf.h"
#include "llmc/format/llmc_bin.h"
#include "llmc/format/model_file.h"

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* --- names --- */

int64_t checkpoint_step(const char *name) {
    char again[64];
    if (strncmp(name, "step-", 5) != 0 || strspn(name + 5, "0123456789") != strlen(name + 5)) return -1;
    int64_t step = strtoll(name + 5, NULL, 10);
    snprintf(again, sizeof again, "step-%08" PRId64, step);
    return strcmp(again, name) == 0 ? step : -1;
}

/* Drops `end` from the name if it ends so. */
static bool drop_end(char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    if (n <= m || strcmp(name + n - m, end) != 0) return false;
    name[n - m] = 0;
    return true;
}

bool checkpoint_unfinished(const char *name) {
    char step[64];
    snprintf(step, sizeof step, "%.63s", name);
    if (!drop_end(step, ".tmp")) return false;
    (void)drop_end(step, ".old");
    return checkpoint_step(step) >= 0;
}

bool checkpoint_owns(const char *name) {
    static const char *const names[] = {"config.json",    "generation_config.json",
                                        "tokenizer.json", "tokenizer_config.json",
                                        "trainer.json",   "adapter_config.json"};
    static const char *const stems[] = {"model", "optimizer", "adapter_model"};
    char own[64];
    int end = 0;
    snprintf(own, sizeof own, "%.63s", name);
    (void)drop_end(own, ".tmp");
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
        if (strcmp(own, names[i]) == 0) return true;
    if (!drop_end(own, ".safetensors") && !drop_end(own, ".safetensors.index.json")) return false;
    for (size_t i = 0; i < ARRAY_LENGTH(stems); i++) {
        size_t n = strlen(stems[i]);
        if (strncmp(own, stems[i], n) != 0) continue;
        if (!own[n]) return true;
        sscanf(own + n, "-%*5[0-9]-of-%*5[0-9]%n", &end);
        return end == (int)strlen("-00001-of-00004") && !own[n + (size_t)end];
    }
    return false;
}

/* --- finding --- */

/* With `clean`, removes unfinished ones on the way. */
static bool list_steps(struct checkpoint_list *list, const char *run, bool clean, struct error *err) {
    memset(list, 0, sizeof *list);
    DIR *dir = opendir(run);
    if (!dir) return fail(err, "%s: cannot list directory: %s", run, strerror(errno));
    int64_t capacity = 0;
    bool ok = true;
    struct dirent *e;
    while (ok && (e = readdir(dir)) != NULL) {
        int64_t step = checkpoint_step(e->d_name);
        if (clean && checkpoint_unfinished(e->d_name)) {
            char *path = xasprintf("%s/%s", run, e->d_name);
            ok = checkpoint_remove(path, err);
            free(path);
        }
        if (step < 0) continue;
        if (list->count == capacity) {
            capacity = 2 * capacity + 16;
            list->step = (int64_t *)xrealloc(list->step, (size_t)capacity * sizeof *list->step);
        }
        list->step[list->count++] = step;
    }
    closedir(dir);
    if (list->count) qsort(list->step, (size_t)list->count, sizeof *list->step, newest_first);
    return ok;
}

bool checkpoint_list(struct checkpoint_list *list, const char *run, struct error *err) {
    return list_steps(list, run, false, err);
}

/* `path` holds a model itself. Without trainer.json it is somebody else's and there is nothing to
 * verify. */
static char *find_itself(const char *path, struct error *err) {
    char *trainer = xasprintf("%s/trainer.json", path);
    bool good = !path_exists(trainer) || checkpoint_verify(path, true, err);
    free(trainer);
    return good ? xstrdup(path) : NULL;
}

/* The directory in `path` with the newest log, if `path` is one of runs. The caller frees. */
static char *newest_run(const char *path) {
    DIR *dir = opendir(path);
    char *newest = NULL;
    struct timespec time = {0};
    for (struct dirent *e; dir && (e = readdir(dir)) != NULL;) {
        char *log = xasprintf("%s/%s/log.jsonl", path, e->d_name);
        struct stat st;
        if (e->d_name[0] != '.' && stat(log, &st) == 0 &&
            (!newest || st.st_mtim.tv_sec > time.tv_sec ||
             (st.st_mtim.tv_sec == time.tv_sec && st.st_mtim.tv_nsec > time.tv_nsec))) {
            free(newest);
            newest = xasprintf("%s/%s", path, e->d_name);
            time = st.st_mtim;
        }
        free(log);
    }
    if (dir) closedir(dir);
    return newest;
}

static char *find_newest(const char *run, struct error *err) {
    struct checkpoint_list list;
    char *found = NULL;
    if (!checkpoint_list(&list, run, err)) return NULL;
    for (int64_t i = 0; !found && i < list.count; i++) {
        struct error why;
        found = xasprintf("%s/step-%08" PRId64, run, list.step[i]);
        if (checkpoint_verify(found, true, &why)) break;
        warn("%s: the checkpoint is passed over", why.message);
        free(found);
        found = NULL;
    }
    if (!found && list.count)
        fail(err, "%s: none of its %" PRId64 " checkpoints is complete and undamaged", run, list.count);
    else if (!found) {
        char *below = newest_run(run);
        fail(err,
             "%s: has no checkpoint (no directory named like step-00001000) and is no model directory%s%s",
             run, below ? "; the newest run in it is " : "", below ? below : "");
        free(below);
    }
    free(list.step);
    return found;
}

static bool has_file(const char *directory, const char *name) {
    char *path = xasprintf("%s/%s", directory, name);
    bool has = path_exists(path);
    free(path);
    return has;
}

/* A file. One of llm.c's or a GGUF file is a model; of the others the message says what to give instead. */
static char *find_file(const char *path, struct error *err) {
    struct mapped_file f;
    if (!file_map(&f, path, err)) return NULL;
    bool gguf = f.size >= 4 && memcmp(f.data, "GGUF", 4) == 0,
         zip = f.size >= 4 && memcmp(f.data, "PK\3\4", 4) == 0;
    file_unmap(&f);
    const char *slash = strrchr(path, '/');
    char *dir = slash ? xasprintf("%.*s", slash == path ? 1 : (int)(slash - path), path) : xstrdup(".");
    char *config = xasprintf("%s/config.json", dir), *found = NULL;
    if (gguf)
        found = xstrdup(path);
    else if (path_exists(config))
        fail(err, "%s: is one file of a model; give its directory, %s", path, dir);
    else if (zip)
        fail(err,
             "%s: PyTorch's own files are not read; save the model with save_pretrained(DIR) and give DIR "
             "(dev/reference/nanogpt_to_hf.py does that for nanoGPT's ckpt.pt)",
             path);
    else
        found = xstrdup(path);
    free(config);
    free(dir);
    return found;
}

char *checkpoint_find(const char *path, struct error *err) {
    if (!path_exists(path)) {
        fail(err, "%s: has no checkpoint: no such file or directory", path);
        return NULL;
    }
    if (!path_is_directory(path)) return find_file(path, err);
    return has_file(path, "config.json") || has_file(path, "trainer.json") ? find_itself(path, err)
                                                                           : find_newest(path, err);
}

bool checkpoint_holds_model(const char *path) {
    static const char *const weights[] = {"model.safetensors", "model.safetensors.index.json",
                                          "pytorch_model.bin"};
    struct checkpoint_list list;
    if (!path_is_directory(path)) return llmc_bin_is_one(path) || gguf_is_one(path);
    for (size_t i = 0; i < ARRAY_LENGTH(weights); i++)
        if (has_file(path, "config.json") && has_file(path, weights[i])) return true;
    bool has = checkpoint_list(&list, path, NULL) && list.count > 0;
    free(list.step);
    return has;
}

/* --- removing --- */

/* Every entry that a checkpoint owns, or the first one it does not own with `foreign`. The caller frees. */
static char *next_entry(DIR *dir, bool foreign) {
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (checkpoint_owns(e->d_name) != foreign) return xstrdup(e->d_name);
    }
    return NULL;
}

static bool only_own_files(const char *dir) {
    DIR *d = opendir(dir);
    char *other = d ? next_entry(d, true) : NULL;
    if (d) closedir(d);
    free(other);
    return d && !other;
}

/* A symbolic link to a directory is none: it is somebody's, and so is what it points to. */
static bool is_directory(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool in_the_way(const char *path, struct error *err) {
    return fail(err, "%s: is in the way, and no directory; move it away", path);
}

static bool remove_own_files(const char *dir, struct error *err) {
    if (!is_directory(dir)) return true;
    DIR *d = opendir(dir);
    if (!d) return errno == ENOENT || fail(err, "%s: cannot list directory: %s", dir, strerror(errno));
    bool ok = true;
    /* without it, what is left is no checkpoint */
    if (unlinkat(dirfd(d), "trainer.json", 0) != 0 && errno != ENOENT)
        ok = fail(err, "%s/trainer.json: cannot remove: %s", dir, strerror(errno));
    for (char *name; ok && (name = next_entry(d, false)) != NULL; free(name))
        if (unlinkat(dirfd(d), name, 0) != 0 && errno != ENOENT)
            ok = fail(err, "%s/%s: cannot remove: %s", dir, name, strerror(errno));
    closedir(d);
    if (ok && rmdir(dir) != 0 && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST)
        ok = fail(err, "%s: cannot remove directory: %s", dir, strerror(errno));
    return ok;
}

/* The name goes first: a directory that is only half deleted must not look like a checkpoint. With
 * somebody's files in it, the directory keeps its name. */
bool checkpoint_remove(const char *dir, struct error *err) {
    const char *slash = strrchr(dir, '/');
    if (!is_directory(dir)) return true;
    if (checkpoint_step(slash ? slash + 1 : dir) < 0 || !only_own_files(dir))
        return remove_own_files(dir, err);
    char *temporary = xasprintf("%s.tmp", dir);
    bool ok = remove_own_files(temporary, err) && rename_synced(dir, temporary, err) &&
              remove_own_files(temporary, err);
    free(temporary);
    return ok;
}

bool checkpoint_prune(const char *run, int64_t keep, int64_t also, struct error *err) {
    check(keep >= 1, "checkpoint_prune: keep %" PRId64 " checkpoints, at least 1", keep);
    struct checkpoint_list list;
    bool ok = list_steps(&list, run, true, err);
    for (int64_t i = 0; ok && i < list.count; i++) {
        char *path = xasprintf("%s/step-%08" PRId64, run, list.step[i]);
        if (checkpoint_verify(path, false, NULL) && keep-- <= 0 && list.step[i] != also)
            ok = checkpoint_remove(path, err);
        free(path);
    }
    free(list.step);
    return ok;
}

/* --- putting in place --- */

bool checkpoint_begin(const char *temporary, struct error *err) {
    if (!checkpoint_remove(temporary, err)) return false;
    if (path_exists(temporary)) return is_directory(temporary) || in_the_way(temporary, err);
    return mkdir(temporary, 0777) == 0 ||
           fail(err, "%s: cannot create directory: %s", temporary, strerror(errno));
}

/* Moves what a checkpoint does not own from the old directory to the new one. */
static bool move_foreign(const char *from, const char *to, struct error *err) {
    DIR *a = opendir(from), *b = opendir(to);
    bool ok = (a && b) || fail(err, "%s: cannot list directory: %s", a ? to : from, strerror(errno));
    for (char *name; ok && (name = next_entry(a, true)) != NULL; free(name))
        if (renameat(dirfd(a), name, dirfd(b), name) != 0)
            ok = fail(err, "%s/%s: cannot be moved to %s: %s", from, name, to, strerror(errno));
    if (a) closedir(a);
    if (b) closedir(b);
    return ok;
}

bool checkpoint_put_in_place(const char *temporary, const char *final, struct error *err) {
    if (!path_exists(final)) return rename_synced(temporary, final, err);
    if (!is_directory(final)) return in_the_way(final, err);
    char *parent = path_parent(final), *old = NULL;
    bool ok;
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, final, RENAME_EXCHANGE) == 0) {
        ok = sync_path(parent, err) && move_foreign(temporary, final, err) &&
             checkpoint_remove(temporary, err);
    } else if (errno != EINVAL && errno != ENOSYS) {
        ok = fail(err, "%s: cannot be replaced by %s: %s", final, temporary, strerror(errno));
    } else {
        old = xasprintf("%s.old.tmp", final);
        ok = checkpoint_remove(old, err) && rename_synced(final, old, err);
        if (ok && !rename_synced(temporary, final, err)) {
            ok = false;
            (void)rename_synced(old, final, NULL);
        }
        ok = ok && move_foreign(old, final, err) && checkpoint_remove(old, err);
    }
    free(parent);
    free(old);
    return ok;
}

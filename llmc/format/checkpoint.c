/* The checkpoints of a run: finding the newest that is whole, and deleting old ones. checkpoint_save.c writes a
 * checkpoint, checkpoint_load.c brings it to the device, checkpoint_manifest.c says whether it is whole.
 *
 * A directory named step-NNNNNNNN is complete, since it got its name last; one named step-NNNNNNNN.tmp is not. Whoever
 * looks for a checkpoint takes the highest number whose checksums match, and warns about those that it passes over. */
#include "llmc/format/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "llmc/format/checkpoint_manifest.h"
#include "llmc/format/model_file.h"

struct step_list {
    int64_t *step; /* newest first */
    int64_t count;
};

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* The step of a checkpoint's name as checkpoint_save makes it, or -1. */
static int64_t step_of_name(const char *name) {
    char again[64];
    if (strncmp(name, "step-", 5) != 0 || strspn(name + 5, "0123456789") != strlen(name + 5)) return -1;
    int64_t step = strtoll(name + 5, NULL, 10);
    snprintf(again, sizeof again, "step-%08" PRId64, step);
    return strcmp(again, name) == 0 ? step : -1;
}

static bool is_unfinished(const char *name) {
    size_t n = strlen(name);
    return strncmp(name, "step-", 5) == 0 && n > 9 && strcmp(name + n - 4, ".tmp") == 0;
}

/* The checkpoints of `run` by name, undamaged or not. With `clean`, removes unfinished ones on the way. */
static bool list_steps(struct step_list *list, const char *run, bool clean, struct error *err) {
    memset(list, 0, sizeof *list);
    DIR *dir = opendir(run);
    if (!dir) return fail(err, "%s: cannot list directory: %s", run, strerror(errno));
    int64_t capacity = 0;
    bool ok = true;
    struct dirent *e;
    while (ok && (e = readdir(dir)) != NULL) {
        int64_t step = step_of_name(e->d_name);
        if (clean && is_unfinished(e->d_name)) {
            char *path = xasprintf("%s/%s", run, e->d_name);
            ok = remove_tree(path, err);
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

/* `path` holds a model itself. Without trainer.json it is somebody else's and there is nothing to verify. */
static char *find_itself(const char *path, struct error *err) {
    char *trainer = xasprintf("%s/trainer.json", path);
    bool good = !path_exists(trainer) || checkpoint_verify(path, true, err);
    free(trainer);
    return good ? xstrdup(path) : NULL;
}

static char *find_newest(const char *run, struct error *err) {
    struct step_list list;
    char *found = NULL;
    if (!list_steps(&list, run, false, err)) return NULL;
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
    else if (!found)
        fail(err, "%s: has no checkpoint (no directory named like step-00001000) and is no model directory",
             run);
    free(list.step);
    return found;
}

char *checkpoint_find(const char *path, struct error *err) {
    if (!path_exists(path)) {
        fail(err, "%s: has no checkpoint: no such file or directory", path);
        return NULL;
    }
    if (!path_is_directory(path)) return xstrdup(path);
    char *config = xasprintf("%s/config.json", path), *trainer = xasprintf("%s/trainer.json", path);
    bool is_model = path_exists(config) || path_exists(trainer);
    free(config);
    free(trainer);
    return is_model ? find_itself(path, err) : find_newest(path, err);
}

/* The name goes first: a directory that is only half deleted must not look like a checkpoint. */
static bool delete_checkpoint(const char *path, struct error *err) {
    char *temporary = xasprintf("%s.tmp", path);
    bool ok =
        remove_tree(temporary, err) && rename_synced(path, temporary, err) && remove_tree(temporary, err);
    free(temporary);
    return ok;
}

bool checkpoint_prune(const char *run, int64_t keep, struct error *err) {
    check(keep >= 1, "checkpoint_prune: keep %" PRId64 " checkpoints, at least 1", keep);
    struct step_list list;
    bool ok = list_steps(&list, run, true, err);
    for (int64_t i = 0; ok && i < list.count; i++) {
        char *path = xasprintf("%s/step-%08" PRId64, run, list.step[i]);
        if (checkpoint_verify(path, false, NULL) && keep-- <= 0) ok = delete_checkpoint(path, err);
        free(path);
    }
    free(list.step);
    return ok;
}

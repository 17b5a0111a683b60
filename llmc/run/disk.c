/* Whether a run's files fit on its disk: see disk.h. */
#include "llmc/run/disk.h"

#include "llmc/base/file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/statvfs.h>

/* Of log.jsonl and timing.jsonl together. */
enum { BYTES_OF_A_STEP = 200 };

int64_t disk_need_bytes(const struct disk_need *n) {
    return min_i64(n->saves, n->kept + 1) * n->checkpoint + n->logs;
}

enum disk_verdict disk_forecast(const struct disk_need *n, int64_t bytes) {
    if (min_i64(n->saves, 2) * n->checkpoint > bytes) return DISK_REFUSE;
    return disk_need_bytes(n) > bytes ? DISK_WARN : DISK_ENOUGH;
}

/* What anybody may write; -1 if the file system does not say. */
static int64_t free_bytes(const char *path) {
    struct statvfs s;
    return statvfs(path, &s) == 0 && s.f_blocks > 0 ? (int64_t)s.f_bavail * (int64_t)s.f_frsize : -1;
}

/* Of the checkpoints that a resumed run deletes one by one, or --overwrite all at once. */
static int64_t replaced_bytes(const struct run *r) {
    struct checkpoint_list list;
    int64_t bytes = 0;
    if (!checkpoint_list(&list, r->out, NULL)) return 0;
    for (int64_t i = 0; i < list.count; i++) {
        char *path = xasprintf("%s/step-%08" PRId64, r->out, list.step[i]);
        bytes += directory_bytes(path);
        free(path);
    }
    free(list.step);
    return bytes;
}

static struct disk_need need_of(const struct run *r) {
    const struct run_config *c = &r->config;
    int64_t steps = c->steps - r->state.step;
    return (struct disk_need){.checkpoint = checkpoint_size(&r->zero),
                              .saves =
                                  ceil_div(steps, c->save_every) + (c->keep_best ? steps / c->val_every : 0),
                              .kept = c->keep + c->keep_best,
                              .logs = steps * BYTES_OF_A_STEP};
}

bool run_check_disk(const struct run *r, struct error *err) {
    struct disk_need need = need_of(r);
    char *existing = owner_existing(&r->owner);
    int64_t there = free_bytes(existing), bytes = there + replaced_bytes(r);
    enum disk_verdict verdict = there < 0 ? DISK_ENOUGH : disk_forecast(&need, bytes);
    bool ok = true;
    if (verdict == DISK_REFUSE)
        ok = fail(err,
                  "%s: a checkpoint of this run takes %s, and %s is free: %s needed; --out on another disk",
                  r->out, human_bytes((double)need.checkpoint), human_bytes((double)bytes),
                  need.saves > 1 ? "room for two is" : "more is");
    if (verdict == DISK_WARN)
        warn("%s: the run will need %s (up to %" PRId64
             " checkpoints of %s, and %s of logs), but %s is free: a "
             "smaller --keep takes less",
             r->out, human_bytes((double)disk_need_bytes(&need)), min_i64(need.saves, need.kept + 1),
             human_bytes((double)need.checkpoint), human_bytes((double)need.logs),
             human_bytes((double)bytes));
    free(existing);
    return ok;
}

void run_watch_disk(struct run *r) {
    int64_t there = free_bytes(r->out), checkpoint = checkpoint_size(&r->zero);
    bool low = there >= 0 && there < 2 * checkpoint;
    if (low && !r->disk_low)
        warn("%s: %s is free on this disk, less than two more checkpoints of %s take", r->out,
             human_bytes((double)there), human_bytes((double)checkpoint));
    r->disk_low = low;
}

/* The files of a run as `watch` reads them: once whole, and once in two parts, as they grow. */
#include "test/fuzz/fuzz.h"

#include "llmc/base/file.h"
#include "llmc/report/history.h"

#include <stdlib.h>
#include <string.h>

static bool same(const struct history *a, const struct history *b) {
    bool same = a->unreadable == b->unreadable;
    for (int t = 0; t < HISTORY_TABLES; t++)
        same = same && a->table[t].count == b->table[t].count &&
               (a->table[t].count == 0 ||
                memcmp(a->table[t].step, b->table[t].step, (size_t)a->table[t].count * sizeof(int64_t)) == 0);
    return same;
}

FUZZ_TARGET(history) {
    struct history whole, grown;
    char *directory = path_parent(fuzz_path("log.jsonl"));
    size_t half = size / 2;
    fuzz_file("timing.jsonl", data, size);
    fuzz_file("log.jsonl", data, half);
    history_open(&grown, directory);
    history_update(&grown);
    fuzz_file("log.jsonl", data, size);
    history_update(&grown);
    history_open(&whole, directory);
    history_update(&whole);
    check(same(&whole, &grown), "a log that is read in two parts is another one");
    for (int s = 0; s < HISTORY_SERIES; s++) {
        struct history_points p;
        history_points(&p, &whole, (enum history_series)s, 1.0, 1e9, 3);
        check(p.count <= 3, "%d points", (int)p.count);
        history_points_free(&p);
    }
    if (whole.table[HISTORY_STEPS].count) fuzz_accept();
    history_close(&whole);
    history_close(&grown);
    free(directory);
    return 0;
}

FUZZ_SEEDS(history) {
    static const char *const texts[] = {
        "{\"step\":1,\"epoch\":0.5,\"loss\":2.25,\"lr\":0.0003,\"grad_norm\":null,\"skipped\":true}\n"
        "{\"step\":2,\"epoch\":1,\"loss\":null,\"lr\":1e-05,\"grad_norm\":1.5,\"skipped\":false}\n"
        "{\"step\":2,\"val_loss\":2.5}\n",
        "{\"step\":1,\"seconds\":0.5,\"tokens_per_second\":2048,\"flops_per_second\":1e9,\"flops_share\":0.25}\n"
        "{\"step\":1,\"gpu_watts\":300,\"gpu_celsius\":60.5,\"gpu_sm_mhz\":1700,\"gpu_utilisation\":0.9,"
        "\"gpu_slowed\":null}\n{\"step\":1,\"rank_seconds\":[0.5,0.5]}\n",
        "{\"step\":9,\"val_loss\":1}\n{\"step\":3,\"val_loss\":-2e-300}\n{\"a\":{\"b\":\"\\\"}\"},\"step\":4}\n{\"step\":5"};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) add(user, texts[i], strlen(texts[i]));
}

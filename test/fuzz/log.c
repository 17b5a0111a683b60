/* log.jsonl, plotted as it is and cut as for a resumed run. */
#include "test/fuzz/fuzz.h"

#include "llmc/report/log_file.h"
#include "llmc/report/plot.h"

#include <math.h>
#include <string.h>

FUZZ_TARGET(log) {
    struct error err;
    struct log_file f;
    const char *log = fuzz_file("log.jsonl", data, size);
    double floor = size % 3 == 0 ? NAN : size % 3 == 1 ? 1.5 : -1e308;
    check(plot_log(fuzz_path("loss.svg"), log, "fuzz", floor, &err), "%s", err.message);
    check(log_file_open(&f, log, 5, &err), "%s", err.message);
    check(f.size <= (int64_t)size, "a cut file that is longer");
    if (f.size == (int64_t)size && size) fuzz_accept();
    log_file_close(&f);
    return 0;
}

FUZZ_SEEDS(log) {
    static const char *const texts[] = {
        "{\"step\":1,\"epoch\":0.5,\"loss\":2.25,\"lr\":0.0003,\"grad_norm\":null,\"skipped\":true}\n"
        "{\"step\":2,\"epoch\":1,\"loss\":null,\"lr\":1e-05,\"grad_norm\":1.5,\"skipped\":false}\n"
        "{\"step\":2,\"val_loss\":2.5}\n",
        "{\"step\":3,\"val_loss\":-1e300}\n{\"step\":5,\"epoch\":1,\"loss\":1e300,\"lr\":0,\"grad_norm\":0,"
        "\"skipped\":false}\n"
        "{\"step\":7,\"val_loss\":2.5}\n"};
    char line[1000]; /* longer than any row */
    memset(line, '1', sizeof line);
    memcpy(line, "{\"step\":1", 9);
    add(user, line, sizeof line);
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) add(user, texts[i], strlen(texts[i]));
}

#include "test/report/logged_run.h"

#include "test/scratch.h"

#include <math.h>

double loss_at(int64_t step) { return 2.0 + 3.0 * exp(-(double)step / 50.0) + 0.01 * sin((double)step); }

FILE *open_log(const char *run, const char *name, const char *mode) {
    FILE *f = fopen(in_scratch("%s/%s", run, name), mode);
    assert_non_null(f);
    return f;
}

void write_rows(const char *run, int64_t from, int64_t to) {
    FILE *log = open_log(run, "log.jsonl", "a"), *timing = open_log(run, "timing.jsonl", "a");
    for (int64_t s = from + 1; s <= to; s++) {
        fprintf(
            log,
            "{\"step\":%lld,\"epoch\":%.3f,\"loss\":%.9g,\"lr\":0.0003,\"grad_norm\":%.6g,\"skipped\":false}\n",
            (long long)s, (double)s / 100.0, loss_at(s), 1.0 + 0.5 * sin((double)s / 7.0));
        if (s % 10 == 0) fprintf(log, "{\"step\":%lld,\"val_loss\":%.9g}\n", (long long)s, loss_at(s) + 0.1);
        fprintf(
            timing,
            "{\"step\":%lld,\"seconds\":0.5,\"tokens_per_second\":2048,\"flops_per_second\":1e9,\"flops_share\":0.25}\n",
            (long long)s);
        if (s % 5 == 0)
            fprintf(
                timing,
                "{\"step\":%lld,\"gpu_watts\":300,\"gpu_celsius\":60.5,\"gpu_sm_mhz\":1700,"
                "\"gpu_utilisation\":0.9,\"gpu_slowed\":null}\n{\"step\":%lld,\"rank_seconds\":[0.5,0.5]}\n",
                (long long)s, (long long)s);
    }
    fclose(log);
    fclose(timing);
}

void make_run(const char *name, int64_t steps, const char *learning_rate) {
    put_text(
        temp_printf("%s/options.json", name),
        temp_printf("{\"learning-rate\": %s, \"steps\": 200, \"tokens-per-step\": 1024, \"text\": \"%s\"}",
                    learning_rate, nasty));
    put_text(temp_printf("%s/run.json", name),
             "{\"format\": \"llmc run 1\", \"steps\": 200, \"tokens_per_step\": 1024, \"floor_loss\": 1.9, "
             "\"parameters\": 1234567, \"flops_per_token\": 1e6, \"peak_flops\": 1e10, \"device\": "
             "\"<b>CPU</b>\"}");
    put_text(temp_printf("%s/samples.jsonl", name),
             temp_printf(
                 "{\"step\":50,\"text\":\"Once upon\"}\n{\"step\":100,\"text\":\"a %s time\"}\n{\"step\":1",
                 nasty));
    put_text(temp_printf("%s/step-00000100/trainer.json", name), "{}");
    write_rows(name, 0, steps);
}

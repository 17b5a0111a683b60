/* config.json of a model. */
#include "test/fuzz/fuzz.h"

#include "llmc/format/model_file.h"

FUZZ_TARGET(model_config) {
    struct error err;
    struct gpt_config config;
    fuzz_file("config.json", data, size);
    if (!model_config_read(&config, fuzz_path(""), &err)) return 0;
    struct error again;
    check(gpt_config_check(&config, &again), "a configuration that is impossible was taken: %s",
          again.message);
    fuzz_accept();
    return 0;
}

FUZZ_SEEDS(model_config) {
    struct error err;
    struct gpt_config config = {
        .name = "x", .context = 16, .vocab_size = 300, .layers = 2, .heads = 4, .channels = 32};
    check(model_config_write(fuzz_path(""), &config, ST_BF16, 256, &err), "%s", err.message);
    fuzz_seed_file(add, user, "config.json");
}

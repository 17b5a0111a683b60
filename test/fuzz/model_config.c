/* config.json of a model. */
#include "test/fuzz/fuzz.h"

#include "llmc/format/model_config.h"

FUZZ_TARGET(model_config) {
    struct error err;
    struct gpt_config config;
    enum gpt_format format;
    fuzz_file("config.json", data, size);
    if (!model_config_read(&config, &format, fuzz_path(""), &err)) return 0;
    struct error again;
    check(gpt_config_check(&config, &again), "a configuration that is impossible was taken: %s",
          again.message);
    fuzz_accept();
    return 0;
}

FUZZ_SEEDS(model_config) {
    struct error err;
    struct gpt_config config = GPT2_CONFIG("x", 16, 300, 2, 4, 32);
    gpt_config_complete(&config);
    config.bos = (struct gpt_token_ids){1, {299}};
    config.eos = (struct gpt_token_ids){2, {7, 8}};
    check(model_config_write(fuzz_path(""), &config, ST_BF16, NULL, &err), "%s", err.message);
    fuzz_seed_file(add, user, "config.json");
    config.positions = POSITIONS_ROPE; /* Llama's kinds, Qwen2's, then some that no family has */
    config.norm = NORM_RMS;
    config.mlp = MLP_SWIGLU;
    config.bias = config.qkv_bias = SWITCH_OFF;
    config.rope_theta = 10000.0;
    check(model_config_write(fuzz_path(""), &config, ST_F32, NULL, &err), "%s", err.message);
    fuzz_seed_file(add, user, "config.json");
    config.rope_scaling = ROPE_SCALING_LLAMA3;
    config.rope_factor = 8.0;
    config.rope_original = 64;
    config.rope_low = 1.0;
    config.rope_high = 4.0;
    check(model_config_write(fuzz_path(""), &config, ST_F32, NULL, &err), "%s", err.message);
    fuzz_seed_file(add, user, "config.json");
    config.qkv_bias = SWITCH_ON;
    check(model_config_write(fuzz_path(""), &config, ST_F32, NULL, &err), "%s", err.message);
    fuzz_seed_file(add, user, "config.json");
    config.qkv_bias = SWITCH_OFF;
    config.qk_norm = SWITCH_ON;
    check(model_config_write(fuzz_path(""), &config, ST_F32, NULL, &err), "%s", err.message);
    fuzz_seed_file(add, user, "config.json");
    config.norm = NORM_LAYER;
    check(model_config_write(fuzz_path(""), &config, ST_F32, NULL, &err), "%s", err.message);
    fuzz_seed_file(add, user, "config.json");
}

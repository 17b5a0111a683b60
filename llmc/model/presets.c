/* Shapes that a name stands for. */
#include "llmc/model/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Radford et al. 2019 (gpt2*), Brown et al. 2020 table 2.1 (gpt3*; 1.3B with heads of 128, since its 24
 * heads do not divide 2048). */
#define PRESET(label, maxT, V, L, NH, width)                                                                 \
    { .name = label, .context = maxT, .vocab_size = V, .layers = L, .heads = NH, .channels = width }
/* The shapes that the models' own config.json files give. */
#define LLAMA(label, maxT, V, L, NH, NKV, width, F, theta, tie, ...)                                         \
    {                                                                                                        \
        .name = label, .context = maxT, .vocab_size = V, .layers = L, .heads = NH, .kv_heads = NKV,          \
        .channels = width, .ff = F, .rope_theta = theta, .tied = tie, .positions = POSITIONS_ROPE,           \
        .norm = NORM_RMS, .mlp = MLP_SWIGLU, .bias = SWITCH_OFF, __VA_ARGS__                                 \
    }
#define LLAMA3_SCALING(times)                                                                                \
    .rope_scaling = ROPE_SCALING_LLAMA3, .rope_factor = times, .rope_original = 8192, .rope_low = 1,         \
    .rope_high = 4
/* `stories` is what `make train` trains, a Qwen3: rotary positions find what was said before by its distance,
 * and normalised queries and keys make training steadier (profiling/results/stories.txt). */
static const struct gpt_config presets[] = {
    LLAMA("stories", 512, 1024, 2, 4, 0, 128, 0, 10000, SWITCH_ON, .norm_eps = 1e-6, .qk_norm = SWITCH_ON),
    PRESET("tiny", 128, 1024, 2, 4, 128),
    PRESET("gpt2", 1024, 50257, 12, 12, 768),
    PRESET("gpt2-medium", 1024, 50257, 24, 16, 1024),
    PRESET("gpt2-large", 1024, 50257, 36, 20, 1280),
    PRESET("gpt2-xl", 1024, 50257, 48, 25, 1600),
    PRESET("gpt3-125m", 2048, 50257, 12, 12, 768),
    PRESET("gpt3-350m", 2048, 50257, 24, 16, 1024),
    PRESET("gpt3-760m", 2048, 50257, 24, 16, 1536),
    PRESET("gpt3-1.3b", 2048, 50257, 24, 16, 2048),
    LLAMA("smollm2-135m", 8192, 49152, 30, 9, 3, 576, 1536, 100000, SWITCH_ON, .norm_eps = 1e-5),
    LLAMA("smollm2-360m", 8192, 49152, 32, 15, 5, 960, 2560, 100000, SWITCH_ON, .norm_eps = 1e-5),
    LLAMA("tinyllama-1.1b", 2048, 32000, 22, 32, 4, 2048, 5632, 10000, SWITCH_OFF, .norm_eps = 1e-5),
    LLAMA("llama-3.2-1b", 131072, 128256, 16, 32, 8, 2048, 8192, 500000, SWITCH_ON, .norm_eps = 1e-5,
          LLAMA3_SCALING(32)),
    LLAMA("llama-3.2-3b", 131072, 128256, 28, 24, 8, 3072, 8192, 500000, SWITCH_ON, .norm_eps = 1e-5,
          LLAMA3_SCALING(32)),
    LLAMA("qwen2.5-0.5b", 32768, 151936, 24, 14, 2, 896, 4864, 1000000, SWITCH_ON, .norm_eps = 1e-6,
          .qkv_bias = SWITCH_ON),
    LLAMA("qwen3-0.6b", 40960, 151936, 28, 16, 8, 1024, 3072, 1000000, SWITCH_ON, .norm_eps = 1e-6,
          .head_size = 128, .qk_norm = SWITCH_ON),
};

const char *gpt_preset_names(void) {
    return "stories, tiny, gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt3-125m, gpt3-350m, gpt3-760m, gpt3-1.3b, "
           "smollm2-135m, smollm2-360m, tinyllama-1.1b, llama-3.2-1b, llama-3.2-3b, qwen2.5-0.5b, qwen3-0.6b, "
           "dN and nanochat-dN (N layers)";
}

/* Through the published (depth, width) pairs, linear between them, in steps of 64 with heads of 64. d12 is
 * gpt2, d24 gpt2-medium, d36 gpt2-large, d48 gpt2-xl. */
static struct gpt_config gpt2_of_depth(int64_t depth) {
    static const int64_t known[][2] = {{0, 0}, {12, 768}, {24, 1024}, {36, 1280}, {48, 1600}, {96, 3200}};
    size_t i = 1;
    while (i + 1 < ARRAY_LENGTH(known) && depth > known[i][0]) i++;
    int64_t d0 = known[i - 1][0], c0 = known[i - 1][1], d1 = known[i][0], c1 = known[i][1];
    int64_t channels = c0 + (c1 - c0) * (depth - d0) / (d1 - d0);
    int64_t width = max_i64(64, (channels + 32) / 64 * 64);
    return (struct gpt_config)PRESET("", 1024, 50257, depth, width / 64, width);
}

/* nanochat (Karpathy 2025) as it was first published. Its heads of 128 do not divide the width of an odd
 * depth, which is 64 more here. Epsilon is that of transformers' NanoChatConfig. */
static struct gpt_config nanochat_of_depth(int64_t depth) {
    int64_t width = round_up(64 * depth, 128);
    struct gpt_config c = PRESET("", 2048, 65536, depth, width / 128, width);
    c.positions = POSITIONS_ROPE;
    c.norm = NORM_RMS;
    c.mlp = MLP_RELU2;
    c.bias = c.tied = c.norm_weights = SWITCH_OFF;
    c.qk_norm = c.embedding_norm = c.rope_reverse = SWITCH_ON;
    c.norm_eps = 1e-6;
    c.logit_softcap = 15.0;
    return c;
}

static bool find_preset(struct gpt_config *config, const char *name, struct error *err) {
    for (size_t i = 0; i < ARRAY_LENGTH(presets); i++)
        if (strcmp(presets[i].name, name) == 0) {
            *config = presets[i];
            return true;
        }
    static const char prefix[] = "nanochat-";
    bool nanochat = strncmp(name, prefix, sizeof prefix - 1) == 0;
    const char *d = nanochat ? name + sizeof prefix - 1 : name;
    char *end = NULL;
    long depth = d[0] == 'd' ? strtol(d + 1, &end, 10) : 0;
    if (depth < 1 || depth > 96 || *end)
        return fail(err, "--model %s: neither a directory nor a preset. Presets: %s with 1 <= N <= 96", name,
                    gpt_preset_names());
    *config = nanochat ? nanochat_of_depth(depth) : gpt2_of_depth(depth);
    snprintf(config->name, sizeof config->name, "%sd%ld", nanochat ? prefix : "", depth);
    return true;
}

bool gpt_preset_exists(const char *name) {
    struct gpt_config config;
    return find_preset(&config, name, NULL);
}

/* What a preset says of rotary positions goes where `changes` has other positions, or another scaling. */
static void forget_rotary(struct gpt_config *c, const struct gpt_config *changes) {
    bool none = changes->positions && changes->positions != POSITIONS_ROPE;
    if (none) c->rope_theta = 0.0, c->rope_reverse = SWITCH_AUTO;
    if (!none && (!changes->rope_scaling || changes->rope_scaling == c->rope_scaling)) return;
    c->rope_scaling = ROPE_SCALING_AUTO;
    c->rope_factor = c->rope_low = c->rope_high = 0.0;
    c->rope_original = 0;
}

bool gpt_config_from_name(struct gpt_config *config, const char *name, const struct gpt_config *changes,
                          struct error *err) {
    if (!find_preset(config, name, err)) return false;
    if (changes) forget_rotary(config, changes);
    for (int i = 0; changes && i < GPT_FIELD_COUNT; i++) {
        double value = gpt_field_get(changes, &gpt_fields[i]);
        if (value != 0.0) gpt_field_set(config, &gpt_fields[i], value);
    }
    gpt_config_complete(config);
    return gpt_config_check(config, err);
}

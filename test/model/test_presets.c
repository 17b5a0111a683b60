/* Models by name: the published numbers of parameters, names that are none, and presets that are changed. */
#include "test/test.h"

#include "llmc/model/params.h"

#include <stdio.h>
#include <string.h>

static void test_presets(void **state) {
    static const struct {
        const char *name;
        int64_t count;
    } known[] = {{"gpt2", 124439808},
                 {"gpt2-medium", 354823168},
                 {"gpt2-large", 774030080},
                 {"gpt2-xl", 1557611200},
                 {"d12", 124439808},
                 {"d48", 1557611200},
                 /* of the published weights */
                 {"smollm2-135m", 134515008},
                 {"smollm2-360m", 361821120},
                 {"tinyllama-1.1b", 1100048384},
                 {"llama-3.2-1b", 1235814400},
                 {"llama-3.2-3b", 3212749824},
                 {"qwen2.5-0.5b", 494032768},
                 {"qwen3-0.6b", 596049920},
                 {"nanochat-d20", 560988160}}; /* as its report says */
    struct gpt_config c;
    struct error err;
    for (size_t i = 0; i < ARRAY_LENGTH(known); i++) {
        struct gpt_params p;
        assert_true(gpt_config_from_name(&c, known[i].name, NULL, &err));
        gpt_params_layout(&p, &c);
        assert_int_equal(p.count, known[i].count);
    }
    for (int depth = 1; depth <= 96; depth++) {
        char name[24];
        snprintf(name, sizeof name, "d%d", depth);
        assert_true(gpt_config_from_name(&c, name, NULL, &err) && gpt_config_check(&c, &err));
        assert_true(c.layers == depth && c.channels % 64 == 0);
        snprintf(name, sizeof name, "nanochat-d%d", depth);
        assert_true(gpt_config_from_name(&c, name, NULL, &err) && gpt_config_check(&c, &err));
        assert_true(c.layers == depth && c.head_size == 128 && c.channels - 64 * depth < 128);
    }
    static const char *const bad[] = {"gpt3", "d0",        "d97",         "d12x",       "",
                                      "d",    "nanochat-", "nanochat-12", "nanochat-d0"};
    for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) assert_false(gpt_config_from_name(&c, bad[i], NULL, &err));
    assert_false(gpt_config_from_name(&c, "gpt2", &(struct gpt_config){.heads = 7}, &err));
    assert_non_null(strstr(err.message, "7 heads do not divide 768 channels"));
    struct gpt_config changes = {.positions = POSITIONS_LEARNED};
    assert_true(gpt_config_from_name(&c, "smollm2-135m", &changes, &err) && c.rope_theta == 0.0);
    changes.rope_theta = 5000.0;
    assert_false(gpt_config_from_name(&c, "smollm2-135m", &changes, &err));
    assert_non_null(strstr(err.message, "--rope-theta"));
    changes = (struct gpt_config){.positions = POSITIONS_NONE};
    assert_true(gpt_config_from_name(&c, "nanochat-d4", &changes, &err) && c.rope_reverse == SWITCH_OFF);
    changes.rope_reverse = SWITCH_ON;
    assert_false(gpt_config_from_name(&c, "nanochat-d4", &changes, &err));
    assert_non_null(strstr(err.message, "--rope-reverse"));
    changes = (struct gpt_config){.positions = POSITIONS_NONE};
    assert_true(gpt_config_from_name(&c, "llama-3.2-1b", &changes, &err) && c.rope_factor == 0.0);
    changes = (struct gpt_config){.rope_scaling = ROPE_SCALING_LINEAR, .rope_factor = 2.0};
    assert_true(gpt_config_from_name(&c, "llama-3.2-1b", &changes, &err) && c.rope_original == 0);
    changes = (struct gpt_config){.rope_factor = 8.0};
    assert_true(gpt_config_from_name(&c, "llama-3.2-1b", &changes, &err) && c.rope_original == 8192);
    assert_false(gpt_config_from_name(&c, "smollm2-135m", &changes, &err));
    assert_non_null(strstr(err.message, "--rope-scaling none takes no --rope-factor"));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presets),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

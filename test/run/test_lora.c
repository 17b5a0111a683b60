/* Adapters from the command line: training, resuming, several processes, merging, and what is refused. */
#include "test/program.h"

#include "llmc/base/file.h"
#include "llmc/base/json_file.h"
#include "llmc/format/adapter.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/model_file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CPU   "--threads 1 --device cpu "
#define TEXT  "--text text.txt --batch-size 2 --tokens-per-step 128 --seq-len 32 "
#define GPT2  "--layers 2 --channels 32 --heads 2 --context 32 --tokenizer bytes "
#define LLAMA GPT2 "--positions rope --norm rms --mlp swiglu --no-bias --kv-heads 1 "
#define DEEP  "--layers 5 --channels 24 --heads 2 --context 32 --tokenizer bytes "
#define LORA  "--lora 3 --lora-alpha 5 --learning-rate 0.02 "

/* gpt2, llama: trained bases; another: the same as gpt2, with another seed; deep: more blocks than slots */
static int set_up(void **state) {
    static const char *const words[] = {"the", "cat", "saw", "a", "dog", "and", "ran", "home"};
    if (make_scratch(state) != 0) return -1;
    FILE *f = fopen(in_scratch("text.txt"), "w");
    for (int i = 0; i < 3000; i++) fprintf(f, "%s%s", words[(i * i + i / 7) % 8], i % 12 == 11 ? ".\n" : " ");
    fclose(f);
    expect_command(0, "", "$T --out gpt2 --steps 8 " TEXT GPT2 CPU);
    expect_command(0, "", "$T --out another --seed 2 --steps 2 " TEXT GPT2 CPU);
    expect_command(0, "", "$T --out llama --steps 8 " TEXT LLAMA CPU);
    expect_command(0, "", "$T --out deep --steps 2 " TEXT DEEP CPU);
    return 0;
}

static double loss_of(const char *command) {
    struct ran r = run_command("%s", command);
    const char *at = strstr(r.out, "loss");
    while (at && !(at[5] >= '0' && at[5] <= '9')) at = strstr(at + 1, "loss");
    if (r.status != 0 || !at) fail_msg("%s\n%s%s", command, r.out, r.err);
    return atof(at + 5);
}

/* The loss that training reports is that of the base with the adapter, and of the merged model. */
static void adapters_are_trained_used_and_merged(void **state) {
    static const char *const kinds[] = {"gpt2", "llama"};
    for (size_t i = 0; i < ARRAY_LENGTH(kinds); i++) {
        const char *k = kinds[i];
        expect_command(0, "adapters  rank 3, alpha 5, on all",
                       "rm -rf tuned merged; $T --out tuned --model %s --steps 30 " LORA TEXT CPU, k);
        expect_command(0, "", "test ! -e tuned/step-00000030/model.safetensors");
        expect_command(0, "", "$T export --from %s --adapter tuned --to merged --type f32", k);
        double base = loss_of(temp_printf("$T eval --from %s --text text.txt --seq-len 32 " CPU, k));
        double with =
            loss_of(temp_printf("$T eval --from %s --adapter tuned --text text.txt --seq-len 32 " CPU, k));
        double merged = loss_of("$T eval --from merged --text text.txt --seq-len 32 " CPU);
        if (!(with < base - 0.1)) fail_msg("%s: loss %g, without the adapter %g", k, with, base);
        assert_true(fabs(with - merged) < 2e-4);
        expect_command(0, "",
                       "$T sample --from %s --adapter tuned --temperature 0 --no-stats >a; "
                       "$T sample --from merged --temperature 0 --no-stats >b; cmp a b",
                       k);
        expect_command(
            0, "",
            "$T export --from %s --adapter tuned/step-00000030 --to merged.gguf --overwrite --type f32", k);
        /* the command that is printed at the end */
        expect_command(
            0, "", "$T --resume --out tuned | sed -n 's/^sample  *//p' | grep -e --adapter >hint && sh hint");
    }
}

static void interrupted_is_uninterrupted(void **state) {
#define RUN "--model gpt2 --schedule constant --warmup 2 --val-every 5 " LORA TEXT CPU
    static const char *const optimizers[] = {"muon", "adamw"};
    for (size_t i = 0; i < ARRAY_LENGTH(optimizers); i++) {
        const char *run = temp_printf("--optimizer %s " RUN, optimizers[i]);
        expect_command(0, "", "rm -rf whole parts two; $T --out whole --steps 20 %s", run);
        expect_command(0, "", "$T --out parts --steps 11 %s", run);
        expect_command(0, "", "$T --resume --out parts --steps 20");
        expect_command(0, "",
                       "for f in adapter_model optimizer; do cmp parts/step-00000020/$f.safetensors "
                       "whole/step-00000020/$f.safetensors || exit 1; done");
        /* n processes = one, to rounding */
        expect_command(0, "", "$T --out two --ranks 2 --steps 20 %s", run);
        double one = loss_of("$T eval --from gpt2 --adapter whole --text text.txt --seq-len 32 " CPU);
        double two = loss_of("$T eval --from gpt2 --adapter two --text text.txt --seq-len 32 " CPU);
        assert_true(fabs(one - two) < 2e-4);
    }
    /* the base may have moved, but must be the same */
    expect_command(0, "", "cp -r gpt2 moved; $T --resume --out parts --steps 21 --model moved");
    expect_command(1, "is the adapter of another model",
                   "$T --resume --out parts --steps 22 --model another");
    expect_command(1, "--lora 4: ", "$T --resume --out parts --steps 22 --lora 4");
    expect_command(1, "--lora-targets up: ", "$T --resume --out parts --steps 22 --lora-targets up");
}

static void expect_same_adapters(const char *a, const char *b) {
    expect_command(0, "",
                   "for f in adapter_config.json adapter_model.safetensors optimizer.safetensors; do cmp "
                   "%s/step-00000008/$f %s/step-00000008/$f || exit 1; done",
                   a, b);
}

/* The model in parts gives the bits of the whole one, and a run may change between them. */
static void the_model_is_divided(void **state) {
#define DIVIDED                                                                                                \
    "--model deep --schedule constant --warmup 2 --val-every 4 --sample-every 4 --text text.txt --seq-len 32 " \
    "--batch-size 1 --tokens-per-step 128 " LORA CPU
    static const char *const others[] = {"--lora-targets qkv,down", "--optimizer lion --recompute block",
                                         "--optimizer muon"};
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++) {
        expect_command(0, "",
                       "rm -rf whole two parts; $T --out whole --ranks 2 --zero 0 --steps 8 %s " DIVIDED,
                       others[i]);
        expect_command(0, "", "$T --out two --ranks 2 --zero 3 --steps 8 %s " DIVIDED, others[i]);
        expect_same_adapters("whole", "two");
        expect_command(0, "", "$T --out parts --ranks 2 --zero 3 --steps 3 %s " DIVIDED, others[i]);
        expect_command(0, "", "$T --out parts --ranks 2 --zero 0 --steps 5 --resume");
        expect_command(0, "", "$T --out parts --ranks 2 --zero 3 --steps 8 --resume");
        expect_same_adapters("whole", "parts");
    }
    expect_command(0, "", "$T --out four --ranks 4 --zero 0 --steps 8 " DIVIDED);
    expect_command(0, "", "$T --out teams --ranks 4 --zero 3 --zero-group 2 --steps 8 " DIVIDED);
    expect_same_adapters("four", "teams");
    expect_command(0, "", "$T --out one --steps 8 " DIVIDED);
    double one = loss_of("$T eval --from deep --adapter one --text text.txt --seq-len 32 " CPU);
    double four = loss_of("$T eval --from deep --adapter teams --text text.txt --seq-len 32 " CPU);
    assert_true(fabs(one - four) < 2e-4);
    /* the parameters of each process */
    expect_command(0, "",
                   "$T plan --model d12 --ranks 4 --lora 4 --device cpu | "
                   "awk '/^  parameters/ { less = $8 < 0.7 * $2 && $6 == $2 } END { exit !less }'");
}

static void wrong_use_is_refused(void **state) {
    expect_command(
        0, "", "rm -rf tuned; $T --out tuned --model gpt2 --steps 2 --lora-targets qkv,down " LORA TEXT CPU);
    static const struct {
        const char *command, *message;
    } cases[] = {
        {"$T --lora 3 " TEXT CPU, "--lora 3: adapters need a model to adapt: --model DIR\n"},
        {"$T --lora 3 --model runs/none " TEXT CPU, "adapt: --model DIR; there is none at runs/none\n"},
        {"$T --model gpt2 --lora-targets q " LORA TEXT CPU,
         "--lora-targets q: \"q\" is no linear layer of this model"},
        {"$T --model tuned " TEXT CPU, "is an adapter, not a model"},
        {"$T sample --from tuned", "is an adapter, not a model"},
        {"$T sample --from another --adapter tuned", "is the adapter of another model"},
        {"$T export --from another --adapter tuned --to x", "is the adapter of another model"},
        {"$T eval --from llama --adapter tuned --text text.txt", "is the adapter of another model"},
        {"$T sample --from gpt2 --adapter gpt2", "holds a model, not an adapter"},
        {"$T sample --from gpt2 --adapter nowhere", "--adapter nowhere: "},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        expect_command(1, cases[i].message, "%s", cases[i].command);
    expect_command(0, "--zero has no effect: with --lora only --zero 3 divides",
                   "rm -rf x; $T --out x --model gpt2 --ranks 2 --zero 2 --steps 1 " LORA TEXT CPU);
    expect_command(0, "--zero has no effect: one process",
                   "rm -rf x; $T --out x --model gpt2 --zero 3 --steps 1 " LORA TEXT CPU);
    expect_command(0, "--zero-group has no effect: with --lora only",
                   "rm -rf x; $T --out x --model gpt2 --ranks 2 --zero-group 2 --steps 1 " LORA TEXT CPU);
    expect_command(0, "--embedding-lr-factor has no effect: --lora does not train the embeddings",
                   "rm -rf x; $T --out x --model gpt2 --embedding-lr-factor 2 --steps 1 " LORA TEXT CPU);
    expect_command(0, "--embedding-decay has no effect: --lora does not train the embeddings",
                   "rm -rf x; $T --out x --model gpt2 --embedding-decay off --steps 1 " LORA TEXT CPU);
    expect_command(0, "--lora-targets has no effect",
                   "rm -rf x; $T --out x --lora-targets up --steps 1 " TEXT GPT2 CPU);
    expect_command(0, "the adapters",
                   "$T plan --model d12 --device cpu --lora 4 | grep -i 'adapters' >p; "
                   "test -s p && echo the adapters");
}

/* --- files of others --- */

static void put_config(const char *more) {
    put_text("peft/adapter_config.json",
             temp_printf("{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 3%s}", more));
}

/* One pair, for the layer of this name. */
static void put_pair(const char *layer, int64_t rows, int64_t cols) {
    struct safetensors_writer w;
    struct error err;
    float values[1024];
    int64_t a[] = {2, cols}, b[] = {rows, 2};
    for (int i = 0; i < 1024; i++) values[i] = (float)(i % 13 - 6) / 8.0f;
    safetensors_writer_init(&w);
    char *name_a = xasprintf("base_model.model.%s.lora_A.weight", layer),
         *name_b = xasprintf("base_model.model.%s.lora_B.weight", layer);
    safetensors_declare(&w, name_a, ST_F32, 2, a);
    safetensors_declare(&w, name_b, ST_F32, 2, b);
    if (!safetensors_writer_open(&w, in_scratch("peft/adapter_model.safetensors"), &err))
        fail_msg("%s", err.message);
    safetensors_put(&w, name_a, values, 2 * cols * 4);
    safetensors_put(&w, name_b, values, 2 * rows * 4);
    if (!safetensors_writer_close(&w, &err)) fail_msg("%s", err.message);
    free(name_a);
    free(name_b);
}

/* W + 3/2 B A, with B and A as PEFT stores them, in the rows of the layer and nowhere else. */
static void check_rows(const char *model, enum param_id id, int64_t layer, int64_t first, int64_t rows) {
    struct model_file plain, adapted;
    struct error err;
    char *dir = checkpoint_find(in_scratch("%s", model), &err);
    if (!model_file_open(&plain, dir, &err) ||
        !model_file_open_adapted(&adapted, dir, in_scratch("peft"), &err))
        fail_msg("%s", err.message);
    const struct gpt_config *c = &plain.weights.config;
    for (int i = 0; i < PARAM_ROWS; i++)
        for (int64_t l = 0; l < gpt_param_copies(c, (enum param_id)i); l++) {
            int64_t n = weights_rows(c, (enum param_id)i), cols = weights_cols(c, (enum param_id)i);
            float *was = (float *)xmalloc((size_t)(n * cols) * sizeof *was),
                  *is = (float *)xmalloc((size_t)(n * cols) * sizeof *is);
            assert_true(weights_read(was, &plain.weights, (enum param_id)i, l, 0, n, &err));
            assert_true(weights_read(is, &adapted.weights, (enum param_id)i, l, 0, n, &err));
            for (int64_t k = 0; k < n * cols; k++) {
                int64_t row = k / cols - first, col = k % cols;
                bool there = i == (int)id && l == layer && row >= 0 && row < rows;
                double more = 0.0;
                for (int64_t r = 0; there && r < 2; r++)
                    more += 1.5 * (double)((row * 2 + r) % 13 - 6) / 8.0 *
                            (double)((r * cols + col) % 13 - 6) / 8.0;
                if (fabs((double)is[k] - (double)was[k] - more) > 1e-5 || (!there && is[k] != was[k]))
                    fail_msg("%s: element %lld of %s", model, (long long)k, gpt_param_rows[i].name);
            }
            free(was);
            free(is);
        }
    model_file_close(&plain);
    model_file_close(&adapted);
    free(dir);
}

static void adapters_of_peft_are_read(void **state) {
    put_config(
        ", \"target_modules\": [\"x\"], \"bias\": \"none\", \"rank_pattern\": {}, \"modules_to_save\": null");
    put_pair("transformer.h.1.attn.c_attn", 96, 32);
    check_rows("gpt2", P_QKV_W, 1, 0, 96);
    put_pair("transformer.h.0.mlp.c_proj", 32, 128);
    check_rows("gpt2", P_FCPROJ_W, 0, 0, 32);
    put_pair("model.layers.1.self_attn.v_proj", 16, 32);
    check_rows("llama", P_QKV_W, 1, 48, 16);
    struct ran r = run_command("$T sample --from llama --adapter peft --no-stats");
    if (r.status != 0) fail_msg("%s", r.err);
}

static void what_is_no_plain_lora_is_refused(void **state) {
    static const struct {
        const char *config, *layer, *message;
        int64_t rows;
    } cases[] = {
        {", \"use_dora\": true", "transformer.h.1.attn.c_attn", "has \"use_dora\", which is not supported",
         96},
        {", \"bias\": \"all\"", "transformer.h.1.attn.c_attn", "has \"bias\"", 96},
        {", \"rank_pattern\": {\"q\": 4}", "transformer.h.1.attn.c_attn", "has \"rank_pattern\"", 96},
        {"", "transformer.h.2.attn.c_attn", "holds 2 tensors, of which 0 are adapters", 96},
        {"", "transformer.h.1.attn.c_attn", "expected (96,2)", 95},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        put_config(cases[i].config);
        put_pair(cases[i].layer, cases[i].rows, 32);
        expect_command(1, cases[i].message, "$T sample --from gpt2 --adapter peft");
    }
    put_text("peft/adapter_config.json", "{\"peft_type\": \"IA3\"}");
    expect_command(1, "\"peft_type\" is \"IA3\", expected LORA", "$T sample --from gpt2 --adapter peft");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adapters_are_trained_used_and_merged),
        cmocka_unit_test(interrupted_is_uninterrupted),
        cmocka_unit_test(the_model_is_divided),
        cmocka_unit_test(wrong_use_is_refused),
        cmocka_unit_test(adapters_of_peft_are_read),
        cmocka_unit_test(what_is_no_plain_lora_is_refused),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}

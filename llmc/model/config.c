/* The table of configuration fields, and the loops over it.
 *
 * Two rules keep the table small. A field that is not said follows from the others (gpt_config_complete()
 * has every such rule). A format that has no key for a field means one value by it, its `otherwise`; a
 * model with another value cannot be said in that format, which gpt_format_can_say() finds out for all
 * fields alike. */
#include "llmc/model/config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- the table --- */

#define C struct gpt_config
#define ALWAYS(value)                                                                                        \
    { .otherwise = value }
#define REQUIRED(name)                                                                                       \
    { .key = name, .required = true }
#define OPTIONAL(name, value)                                                                                \
    { .key = name, .otherwise = value }
#define FOLLOWS                                                                                              \
    { .otherwise = 0 }
#define BY_TENSORS                                                                                           \
    { .key = "" }
/* For this engine's own directories: a key that appears only where the field is not as usual. */
#define RARE(name)                                                                                           \
    { .key = name, .out_if_usual = true }
/* Of all formats, this engine's own directories alone can say another value; or these and a nanochat's. */
#define ONLY_OWN(name, value) OWN_AND_NANOCHAT(name, value, ALWAYS(value))
#define OWN_AND_NANOCHAT(name, value, ...)                                                                   \
    {                                                                                                        \
        [FORMAT_HF_GPT2] = ALWAYS(value), HF_LLAMAS(ALWAYS(value)), [FORMAT_HF_NANOCHAT] = __VA_ARGS__,      \
        [FORMAT_OWN] = RARE(name), [FORMAT_GGUF_GPT2] = ALWAYS(value), GGUF_LLAMAS(ALWAYS(value))            \
    }
/* The family of Llama: the same keys, and kinds that differ little. A nanochat has most of these keys. */
#define HF_QWENS(...)    [FORMAT_HF_QWEN2] = __VA_ARGS__, [FORMAT_HF_QWEN3] = __VA_ARGS__
#define HF_LLAMAS(...)   [FORMAT_HF_LLAMA] = __VA_ARGS__, HF_QWENS(__VA_ARGS__)
#define HF_ROTARY(...)   [FORMAT_HF_NANOCHAT] = __VA_ARGS__, HF_LLAMAS(__VA_ARGS__)
#define GGUF_QWENS(...)  [FORMAT_GGUF_QWEN2] = __VA_ARGS__, [FORMAT_GGUF_QWEN3] = __VA_ARGS__
#define GGUF_LLAMAS(...) [FORMAT_GGUF_LLAMA] = __VA_ARGS__, GGUF_QWENS(__VA_ARGS__)

/* A number of rope_scaling, under Hugging Face's name. */
#define SCALING_OF_ROPE(name)                                                                                \
    {                                                                                                        \
        [FORMAT_HF_GPT2] = FOLLOWS, HF_ROTARY(RARE("rope_scaling." name)),                                   \
        [FORMAT_OWN] = RARE("rope_" name), [FORMAT_GGUF_GPT2] = FOLLOWS, GGUF_LLAMAS(BY_TENSORS)             \
    }

const struct gpt_field gpt_fields[GPT_FIELD_COUNT] = {
    {OPT_INT(C, context, "context", "auto", 0, 1 << 24, "N",
             "longest sequence that the model can take (auto: as the model says)", 0),
     "context length",
     {[FORMAT_HF_GPT2] = REQUIRED("n_positions"),
      HF_ROTARY(REQUIRED("max_position_embeddings")),
      [FORMAT_OWN] = REQUIRED("context"),
      [FORMAT_GGUF_GPT2] = REQUIRED("context_length"),
      GGUF_LLAMAS(REQUIRED("context_length"))}},
    {OPT_INT(C, channels, "channels", "auto", 0, 1 << 20, "N",
             "width of the residual stream (auto: as the model says)", 0),
     "number of channels",
     {[FORMAT_HF_GPT2] = REQUIRED("n_embd"),
      HF_ROTARY(REQUIRED("hidden_size")),
      [FORMAT_OWN] = REQUIRED("channels"),
      [FORMAT_GGUF_GPT2] = REQUIRED("embedding_length"),
      GGUF_LLAMAS(REQUIRED("embedding_length"))}},
    {OPT_INT(C, ff, "ff", "auto", 0, 1 << 22, "N",
             "width of the MLP (auto: 4 times the channels; gated, 8/3 times, rounded up to 64)", 0),
     "width of the MLP",
     {[FORMAT_HF_GPT2] = {.key = "n_inner", .null_if_usual = true},
      HF_ROTARY(REQUIRED("intermediate_size")),
      [FORMAT_OWN] = REQUIRED("ff"),
      [FORMAT_GGUF_GPT2] = REQUIRED("feed_forward_length"),
      GGUF_LLAMAS(REQUIRED("feed_forward_length"))}},
    {OPT_INT(C, layers, "layers", "auto", 0, 10000, "N", "transformer blocks (auto: as the model says)", 0),
     "number of layers",
     {[FORMAT_HF_GPT2] = REQUIRED("n_layer"),
      HF_ROTARY(REQUIRED("num_hidden_layers")),
      [FORMAT_OWN] = REQUIRED("layers"),
      [FORMAT_GGUF_GPT2] = REQUIRED("block_count"),
      GGUF_LLAMAS(REQUIRED("block_count"))}},
    {OPT_INT(
         C, heads, "heads", "auto", 0, 65536, "N",
         "attention heads; must divide the channels, unless --head-dim is given (auto: as the model says)",
         0),
     "number of heads",
     {[FORMAT_HF_GPT2] = REQUIRED("n_head"),
      HF_ROTARY(REQUIRED("num_attention_heads")),
      [FORMAT_OWN] = REQUIRED("heads"),
      [FORMAT_GGUF_GPT2] = REQUIRED("attention.head_count"),
      GGUF_LLAMAS(REQUIRED("attention.head_count"))}},
    {OPT_INT(
         C, kv_heads, "kv-heads", "auto", 0, 65536, "N",
         "heads of keys and values, each shared by as many query heads; must divide the heads (auto: one for each)",
         0),
     "number of key and value heads",
     {[FORMAT_HF_GPT2] = FOLLOWS,
      [FORMAT_HF_LLAMA] = OPTIONAL("num_key_value_heads", 0),
      [FORMAT_HF_NANOCHAT] = OPTIONAL("num_key_value_heads", 0),
      HF_QWENS(REQUIRED("num_key_value_heads")), /* else it would be 32 */
      [FORMAT_OWN] = OPTIONAL("kv_heads", 0),
      [FORMAT_GGUF_GPT2] = FOLLOWS,
      GGUF_LLAMAS(OPTIONAL("attention.head_count_kv", 0))}},
    {OPT_INT(C, head_size, "head-dim", "auto", 0, 1 << 20, "N",
             "width of a head (auto: the channels divided by the heads)", 0),
     "width of a head",
     {[FORMAT_HF_GPT2] = FOLLOWS,
      [FORMAT_HF_LLAMA] = OPTIONAL("head_dim", 0),
      [FORMAT_HF_NANOCHAT] = FOLLOWS,
      [FORMAT_HF_QWEN2] = OPTIONAL("head_dim", 0),
      [FORMAT_HF_QWEN3] = OPTIONAL("head_dim", 128),
      [FORMAT_OWN] = OPTIONAL("head_dim", 0),
      [FORMAT_GGUF_GPT2] = FOLLOWS,
      [FORMAT_GGUF_LLAMA] = FOLLOWS,
      [FORMAT_GGUF_QWEN2] = FOLLOWS,
      [FORMAT_GGUF_QWEN3] = REQUIRED("attention.key_length")}},
    {OPT_REAL(C, norm_eps, "norm-eps", "auto", 0, 1, "X", "added to the variance in norms (auto: 1e-5)", 0),
     "epsilon of the norms",
     {[FORMAT_HF_GPT2] = OPTIONAL("layer_norm_epsilon", 1e-5),
      HF_ROTARY(OPTIONAL("rms_norm_eps", 1e-6)),
      [FORMAT_OWN] = OPTIONAL("norm_eps", 0),
      [FORMAT_GGUF_GPT2] = REQUIRED("attention.layer_norm_epsilon"),
      GGUF_LLAMAS(REQUIRED("attention.layer_norm_rms_epsilon"))}},
    {OPT_REAL(C, rope_theta, "rope-theta", "auto", 0, 1e12, "X",
              "base of the wavelengths of rotary positions (auto: 10000)", 0),
     "base of rotary positions",
     {[FORMAT_HF_GPT2] = FOLLOWS,
      HF_ROTARY(OPTIONAL("rope_theta", 10000)),
      [FORMAT_OWN] = OPTIONAL("rope_theta", 0),
      [FORMAT_GGUF_GPT2] = FOLLOWS,
      GGUF_LLAMAS(OPTIONAL("rope.freq_base", 0))}},
    {OPT_WORD(
         C, rope_scaling, "rope-scaling", "auto", "auto|none|linear|llama3", NULL,
         "which rotary positions turn slower, for longer texts: none, all, or the slow ones as in Llama 3.1 "
         "(auto: as the model says)",
         0),
     "scaling of rotary positions",
     {[FORMAT_HF_GPT2] = FOLLOWS,
      HF_ROTARY({.key = "rope_scaling.rope_type", .out_if_usual = true, .words = "|default|linear|llama3"}),
      [FORMAT_OWN] = RARE("rope_scaling"),
      [FORMAT_GGUF_GPT2] = FOLLOWS,
      [FORMAT_GGUF_LLAMA] = BY_TENSORS,
      GGUF_QWENS({.key = "", .words = "|none|linear|"})}}, /* llama.cpp reads their rope_freqs nowhere */
    {OPT_REAL(C, rope_factor, "rope-factor", "0", 0, 1e6, "X",
              "how many times slower those become (0: as the model says)", 0),
     "factor of the scaling of rotary positions", SCALING_OF_ROPE("factor")},
    {OPT_INT(C, rope_original, "rope-original-context", "0", 0, 1 << 24, "N",
             "with --rope-scaling llama3: length of the sequences before the scaling (0: as the model says)",
             0),
     "context length before the scaling", SCALING_OF_ROPE("original_max_position_embeddings")},
    {OPT_REAL(
         C, rope_low, "rope-low-freq-factor", "0", 0, 1e6, "X",
         "with --rope-scaling llama3: what turns at most X times in that length becomes slower (0: as the "
         "model says)",
         0),
     "number of turns of slow positions", SCALING_OF_ROPE("low_freq_factor")},
    {OPT_REAL(C, rope_high, "rope-high-freq-factor", "0", 0, 1e6, "X",
              "with --rope-scaling llama3: what turns at least X times in it stays as it is (0: as the model "
              "says)",
              0),
     "number of turns of fast positions", SCALING_OF_ROPE("high_freq_factor")},
    {OPT_SIZE(
         C, vocab_size, "vocab-size", "auto", 0, INT32_MAX / 2, "N",
         "tokens in the vocabulary (auto: as the model or the data says; a tokenizer that is trained for the run has "
         "1024 for the stories, 4096 for --text)",
         0),
     "vocabulary size",
     {[FORMAT_HF_GPT2] = REQUIRED("vocab_size"),
      HF_ROTARY(REQUIRED("vocab_size")),
      [FORMAT_OWN] = REQUIRED("vocab_size"),
      [FORMAT_GGUF_GPT2] = REQUIRED("vocab_size"),
      GGUF_LLAMAS(REQUIRED("vocab_size"))}},
    {OPT_WORD(
         C, positions, "positions", "auto", "auto|learned|rope|none|sinusoidal", NULL,
         "what tells attention the order of tokens; sinusoidal is a fixed table (auto: as the model says)",
         0),
     "kind of positions",
     {[FORMAT_HF_GPT2] = ALWAYS(POSITIONS_LEARNED),
      HF_ROTARY(ALWAYS(POSITIONS_ROPE)),
      [FORMAT_OWN] = OPTIONAL("positions", 0),
      [FORMAT_GGUF_GPT2] = ALWAYS(POSITIONS_LEARNED),
      GGUF_LLAMAS(ALWAYS(POSITIONS_ROPE))}},
    {OPT_WORD(C, norm, "norm", "auto", "auto|layer|rms", NULL, "kind of norm (auto: as the model says)", 0),
     "kind of norm",
     {[FORMAT_HF_GPT2] = ALWAYS(NORM_LAYER),
      HF_ROTARY(ALWAYS(NORM_RMS)),
      [FORMAT_OWN] = OPTIONAL("norm", 0),
      [FORMAT_GGUF_GPT2] = ALWAYS(NORM_LAYER),
      GGUF_LLAMAS(ALWAYS(NORM_RMS))}},
    {OPT_WORD(C, mlp, "mlp", "auto", "auto|gelu|relu2|swiglu|geglu", NULL,
              "activation of the MLP; swiglu and geglu are gated (auto: as the model says)", 0),
     "activation of the MLP",
     {[FORMAT_HF_GPT2] = {.key = "activation_function",
                          .otherwise = MLP_GELU,
                          .words = "|gelu_new,gelu_pytorch_tanh|relu2||"},
      HF_LLAMAS({.key = "hidden_act",
                 .otherwise = MLP_SWIGLU,
                 .words = "|||silu,swish|gelu_pytorch_tanh,gelu_new"}),
      [FORMAT_HF_NANOCHAT] = {.key = "hidden_act",
                              .otherwise = MLP_RELU2,
                              .words = "|gelu_pytorch_tanh,gelu_new|relu2||"},
      [FORMAT_OWN] = OPTIONAL("mlp", 0),
      [FORMAT_GGUF_GPT2] = ALWAYS(MLP_GELU),
      GGUF_LLAMAS(ALWAYS(MLP_SWIGLU))}},
    {OPT_WORD(C, bias, "bias", "auto", "auto|on|off", NULL,
              "add biases in linear layers and layernorm (auto: as the model says)", OPTION_SWITCH),
     "use of biases",
     {[FORMAT_HF_GPT2] = ALWAYS(SWITCH_ON),
      HF_ROTARY(ALWAYS(SWITCH_OFF)),
      [FORMAT_OWN] = OPTIONAL("bias", 0),
      [FORMAT_GGUF_GPT2] = ALWAYS(SWITCH_ON),
      GGUF_LLAMAS(ALWAYS(SWITCH_OFF))}},
    {OPT_WORD(C, qkv_bias, "qkv-bias", "auto", "auto|on|off", NULL,
              "add biases to queries, keys and values (auto: as the model says, else as --bias)",
              OPTION_SWITCH),
     "use of biases of queries, keys and values",
     {[FORMAT_HF_GPT2] = FOLLOWS,
      [FORMAT_HF_LLAMA] = FOLLOWS,
      [FORMAT_HF_QWEN2] = ALWAYS(SWITCH_ON),
      [FORMAT_HF_QWEN3] = FOLLOWS,
      [FORMAT_HF_NANOCHAT] = FOLLOWS,
      [FORMAT_OWN] = RARE("qkv_bias"),
      [FORMAT_GGUF_GPT2] = FOLLOWS,
      [FORMAT_GGUF_LLAMA] = FOLLOWS,
      [FORMAT_GGUF_QWEN2] = ALWAYS(SWITCH_ON),
      [FORMAT_GGUF_QWEN3] = FOLLOWS}},
    {OPT_WORD(C, qk_norm, "qk-norm", "auto", "auto|on|off", NULL,
              "normalise each head of queries and keys before attention (auto: as the model says)",
              OPTION_SWITCH),
     "norm of queries and keys",
     {[FORMAT_HF_GPT2] = FOLLOWS,
      [FORMAT_HF_LLAMA] = FOLLOWS,
      [FORMAT_HF_QWEN2] = FOLLOWS,
      [FORMAT_HF_QWEN3] = ALWAYS(SWITCH_ON),
      [FORMAT_HF_NANOCHAT] = ALWAYS(SWITCH_ON), /* behind the rotation, which changes no weightless norm */
      [FORMAT_OWN] = RARE("qk_norm"),
      [FORMAT_GGUF_GPT2] = FOLLOWS,
      [FORMAT_GGUF_LLAMA] = FOLLOWS,
      [FORMAT_GGUF_QWEN2] = FOLLOWS,
      [FORMAT_GGUF_QWEN3] = ALWAYS(SWITCH_ON)}},
    {OPT_WORD(C, tied, "tied", "auto", "auto|on|off", NULL,
              "use the token embedding as output head, too (auto: as the model says)", OPTION_SWITCH),
     "tying of the output head",
     {[FORMAT_HF_GPT2] = OPTIONAL("tie_word_embeddings", SWITCH_ON),
      HF_ROTARY(OPTIONAL("tie_word_embeddings", SWITCH_OFF)),
      [FORMAT_OWN] = OPTIONAL("tied", 0),
      [FORMAT_GGUF_GPT2] = BY_TENSORS,
      GGUF_LLAMAS(BY_TENSORS)}},
    {OPT_WORD(
         C, score, "score", "auto", "auto|scaled-dot|dot|cosine|l2|dot2", NULL,
         "how a query and a key are compared: dot product divided by the root of the heads' width, dot product, "
         "cosine times that root, negative squared distance, or squared dot product (auto: as the model says)",
         0),
     "score of attention", ONLY_OWN("score", SCORE_SCALED_DOT)},
    {OPT_WORD(
         C, mask, "mask", "auto", "auto|causal|anti-causal|full|window|prefix", NULL,
         "which tokens a token sees: those up to it, those from it on, all, the last --window of those up to it, "
         "or those up to it while tokens before the first that is predicted see each other (auto: as the model "
         "says; window with --window)",
         0),
     "mask of attention", ONLY_OWN("mask", MASK_CAUSAL)},
    {OPT_INT(C, window, "window", "0", 0, 1 << 24, "N",
             "tokens that a token sees, itself and those before it (0: as the model says)", 0),
     "window of attention", ONLY_OWN("window", 0)},
    {OPT_REAL(C, softcap, "softcap", "0", 0, 1e6, "X",
              "keep scores of attention between -X and X: X*tanh(score/X) (0: as the model says)", 0),
     "soft cap of scores", ONLY_OWN("softcap", 0)},
    {OPT_REAL(C, logit_softcap, "logit-softcap", "0", 0, 1e6, "X",
              "keep logits between -X and X: X*tanh(logit/X), in training and in use (0: as the model says)",
              0),
     "soft cap of logits",
     OWN_AND_NANOCHAT("logit_softcap", 0,
                      {.key = "final_logit_softcapping", .otherwise = 15, .null_if_usual = true})},
    {OPT_WORD(C, norm_weights, "norm-weights", "auto", "auto|on|off", NULL,
              "learn weights and biases of the norms (auto: as the model says)", OPTION_SWITCH),
     "use of weights in norms", OWN_AND_NANOCHAT("norm_weights", SWITCH_ON, ALWAYS(SWITCH_OFF))},
    {OPT_WORD(C, embedding_norm, "embedding-norm", "auto", "auto|on|off", NULL,
              "normalise the embedding before the first layer (auto: as the model says)", OPTION_SWITCH),
     "norm of the embedding", OWN_AND_NANOCHAT("embedding_norm", SWITCH_OFF, ALWAYS(SWITCH_ON))},
    {OPT_WORD(C, rope_reverse, "rope-reverse", "auto", "auto|on|off", NULL,
              "turn rotary positions the other way round, as nanochat does (auto: as the model says)",
              OPTION_SWITCH),
     "reversal of rotary positions", OWN_AND_NANOCHAT("rope_reverse", SWITCH_OFF, ALWAYS(SWITCH_ON))},
};
#undef C

/* --- a field's value --- */

double gpt_field_get(const struct gpt_config *c, const struct gpt_field *f) {
    const char *at = (const char *)c + f->option.offset;
    int64_t count;
    int word;
    double real;
    switch (f->option.type) {
    case OPTION_REAL:
        memcpy(&real, at, sizeof real);
        return real;
    case OPTION_WORD:
        memcpy(&word, at, sizeof word);
        return word;
    default:
        memcpy(&count, at, sizeof count);
        return (double)count;
    }
}

void gpt_field_set(struct gpt_config *c, const struct gpt_field *f, double value) {
    char *at = (char *)c + f->option.offset;
    int64_t count = (int64_t)value;
    int word = (int)value;
    if (f->option.type == OPTION_REAL)
        memcpy(at, &value, sizeof value);
    else if (f->option.type == OPTION_WORD)
        memcpy(at, &word, sizeof word);
    else
        memcpy(at, &count, sizeof count);
}

/* Part `index` of a list like "a|b|c"; NULL beyond its end. */
static const char *part(const char *list, char separator, int index, int *length) {
    for (;; index--) {
        const char *end = strchr(list, separator);
        *length = end ? (int)(end - list) : (int)strlen(list);
        if (index == 0) return list;
        if (!end) return NULL;
        list = end + 1;
    }
}

const char *gpt_field_text(const struct gpt_config *c, const struct gpt_field *f) {
    double value = gpt_field_get(c, f);
    int length = 0;
    const char *word = f->option.type == OPTION_WORD ? part(f->option.words, '|', (int)value, &length) : NULL;
    if (word) return temp_printf("%.*s", length, word);
    return f->option.type == OPTION_REAL ? temp_printf("%g", value) : temp_printf("%.0f", value);
}

/* --- configurations --- */

const struct gpt_field *gpt_config_said(const struct gpt_config *c) {
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (gpt_field_get(c, &gpt_fields[i]) != 0.0) return &gpt_fields[i];
    return NULL;
}

static bool close_enough(double a, double b) { return fabs(a - b) <= 1e-9 * fmax(fabs(a), fabs(b)); }

const struct gpt_field *gpt_config_difference(const struct gpt_config *a, const struct gpt_config *b) {
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (!close_enough(gpt_field_get(a, &gpt_fields[i]), gpt_field_get(b, &gpt_fields[i])))
            return &gpt_fields[i];
    return NULL;
}

void gpt_config_complete(struct gpt_config *c) {
    if (!c->positions) c->positions = POSITIONS_LEARNED;
    if (!c->norm) c->norm = NORM_LAYER;
    if (!c->mlp) c->mlp = MLP_GELU;
    if (!c->bias) c->bias = SWITCH_ON;
    if (!c->qkv_bias) c->qkv_bias = c->bias;
    if (!c->qk_norm) c->qk_norm = SWITCH_OFF;
    if (!c->tied) c->tied = SWITCH_ON;
    if (!c->norm_weights) c->norm_weights = SWITCH_ON;
    if (!c->embedding_norm) c->embedding_norm = SWITCH_OFF;
    if (!c->score) c->score = SCORE_SCALED_DOT;
    if (!c->mask) c->mask = c->window > 0 ? MASK_WINDOW : MASK_CAUSAL;
    if (!c->kv_heads) c->kv_heads = c->heads;
    if (!c->head_size && c->heads > 0) c->head_size = c->channels / c->heads;
    if (!c->ff) c->ff = gpt_mlp_gated(c) ? round_up(ceil_div(8 * c->channels, 3), 64) : 4 * c->channels;
    if (c->norm_eps == 0.0) c->norm_eps = 1e-5;
    if (c->rope_theta == 0.0 && c->positions == POSITIONS_ROPE) c->rope_theta = 10000.0;
    if (!c->rope_scaling) c->rope_scaling = ROPE_SCALING_NONE;
    if (!c->rope_reverse) c->rope_reverse = SWITCH_OFF;
}

static bool check_limits(const struct gpt_config *c, struct error *err) {
    for (int i = 0; i < GPT_FIELD_COUNT; i++) {
        const struct gpt_field *f = &gpt_fields[i];
        double value = gpt_field_get(c, f);
        double least = f->option.type == OPTION_REAL || strcmp(f->option.initial, "0") == 0 ? 0.0 : 1.0;
        int length;
        bool word = f->option.type == OPTION_WORD;
        bool good = word ? value >= 1.0 && part(f->option.words, '|', (int)value, &length)
                         : value >= least && value <= f->option.max;
        if (!good && word) return fail(err, "model %s: the %s is not known", c->name, f->what);
        if (!good)
            return fail(err, "model %s: the %s is %s, must be between %g and %.0f", c->name, f->what,
                        gpt_field_text(c, f), least, f->option.max);
    }
    return true;
}

/* Whether the scaling of rotary positions has the numbers of its kind, and no others. */
static bool check_rope_scaling(const struct gpt_config *c, struct error *err) {
    static const char *const kinds[] = {"auto", "none", "linear", "llama3"};
    enum gpt_rope_scaling kind = c->rope_scaling;
    const struct {
        const char *option;
        double value;
        bool wanted;
    } numbers[] = {{"factor", c->rope_factor, kind != ROPE_SCALING_NONE},
                   {"original-context", (double)c->rope_original, kind == ROPE_SCALING_LLAMA3},
                   {"low-freq-factor", c->rope_low, kind == ROPE_SCALING_LLAMA3},
                   {"high-freq-factor", c->rope_high, kind == ROPE_SCALING_LLAMA3}};
    if (kind != ROPE_SCALING_NONE && c->positions != POSITIONS_ROPE)
        return fail(err, "model %s: --rope-scaling is for rotary positions, and this model has others",
                    c->name);
    for (size_t i = 0; i < ARRAY_LENGTH(numbers); i++)
        if (numbers[i].wanted != (numbers[i].value != 0.0))
            return fail(err, "model %s: --rope-scaling %s %s --rope-%s", c->name, kinds[kind],
                        numbers[i].wanted ? "needs" : "takes no", numbers[i].option);
    if (c->rope_factor != 0.0 && c->rope_factor < 1.0)
        return fail(err, "model %s: --rope-factor is %g, must be at least 1", c->name, c->rope_factor);
    if (c->rope_low != 0.0 && c->rope_low >= c->rope_high)
        return fail(err, "model %s: --rope-low-freq-factor %g must be below --rope-high-freq-factor %g",
                    c->name, c->rope_low, c->rope_high);
    return true;
}

bool gpt_config_check(const struct gpt_config *c, struct error *err) {
    if (!check_limits(c, err)) return false;
    if (c->channels % c->heads && c->head_size == c->channels / c->heads)
        return fail(err, "model %s: %" PRId64 " heads do not divide %" PRId64 " channels", c->name, c->heads,
                    c->channels);
    if (c->heads % c->kv_heads)
        return fail(err, "model %s: %" PRId64 " key and value heads do not divide %" PRId64 " heads", c->name,
                    c->kv_heads, c->heads);
    if (c->positions == POSITIONS_ROPE && c->head_size % 2)
        return fail(err, "model %s: rotary positions need heads of even width, not %" PRId64, c->name,
                    c->head_size);
    if (c->positions != POSITIONS_ROPE && c->rope_theta != 0.0)
        return fail(err, "model %s: --rope-theta is for rotary positions, and this model has %s ones",
                    c->name,
                    c->positions == POSITIONS_NONE      ? "no"
                    : c->positions == POSITIONS_LEARNED ? "learned"
                                                        : "sinusoidal");
    if (c->positions != POSITIONS_ROPE && c->rope_reverse == SWITCH_ON)
        return fail(err, "model %s: --rope-reverse is for rotary positions, and this model has others",
                    c->name);
    if (!check_rope_scaling(c, err)) return false;
    if (c->mask == MASK_WINDOW && c->window == 0)
        return fail(err, "model %s: --mask window needs --window N, the number of tokens that a token sees",
                    c->name);
    if (c->mask != MASK_WINDOW && c->window > 0)
        return fail(err, "model %s: --window is for --mask window, and this model's mask is another",
                    c->name);
    double C = (double)c->channels, qkvo = 2.0 * (double)(c->heads + c->kv_heads) * (double)c->head_size;
    double mlp = (gpt_mlp_gated(c) ? 3.0 : 2.0) * (double)c->ff;
    double total = C * ((double)c->layers * (qkvo + mlp) + (double)c->vocab_size);
    if (total > 1e13)
        return fail(err, "model %s: %.3g parameters are more than this engine addresses", c->name, total);
    return true;
}

/* --- the rules of operations --- */

struct attn_rule gpt_attn_rule(const struct gpt_config *c) {
    static const enum attn_score scores[] = {[SCORE_SCALED_DOT] = ATTN_SCALED_DOT,
                                             [SCORE_DOT] = ATTN_DOT,
                                             [SCORE_COSINE] = ATTN_COSINE,
                                             [SCORE_L2] = ATTN_L2,
                                             [SCORE_DOT2] = ATTN_DOT2};
    static const enum attn_mask masks[] = {[MASK_CAUSAL] = ATTN_CAUSAL,
                                           [MASK_ANTI_CAUSAL] = ATTN_ANTI_CAUSAL,
                                           [MASK_FULL] = ATTN_FULL,
                                           [MASK_WINDOW] = ATTN_WINDOW,
                                           [MASK_PREFIX] = ATTN_PREFIX};
    return (struct attn_rule){.heads = (int)c->heads,
                              .kv_heads = (int)c->kv_heads,
                              .score = scores[c->score],
                              .mask = masks[c->mask],
                              .window = (int)c->window,
                              .softcap = (float)c->softcap};
}

struct rope_rule gpt_rope_rule(const struct gpt_config *c) {
    return (struct rope_rule){.theta = (float)c->rope_theta,
                              .factor = (float)c->rope_factor,
                              .original = (float)c->rope_original,
                              .low = (float)c->rope_low,
                              .high = (float)c->rope_high};
}

/* --- formats --- */

const char *gpt_format_name(enum gpt_format format) {
    static const char *const names[GPT_FORMATS] = {
        [FORMAT_HF_GPT2] = "a Hugging Face GPT-2",         [FORMAT_HF_LLAMA] = "a Hugging Face Llama",
        [FORMAT_HF_QWEN2] = "a Hugging Face Qwen2",        [FORMAT_OWN] = "this engine's own directory",
        [FORMAT_GGUF_GPT2] = "GGUF's architecture gpt2",   [FORMAT_GGUF_LLAMA] = "GGUF's architecture llama",
        [FORMAT_GGUF_QWEN2] = "GGUF's architecture qwen2", [FORMAT_GGUF_QWEN3] = "GGUF's architecture qwen3",
        [FORMAT_HF_QWEN3] = "a Hugging Face Qwen3",        [FORMAT_HF_NANOCHAT] = "a Hugging Face NanoChat",
    };
    return names[format];
}

const char *gpt_format_word(const struct gpt_field *f, enum gpt_format format, int value, int *length) {
    const char *words = f->in[format].words ? f->in[format].words : f->option.words;
    const char *all = part(words, '|', value, length);
    const char *comma = all ? memchr(all, ',', (size_t)*length) : NULL;
    if (comma) *length = (int)(comma - all);
    return all;
}

bool gpt_format_reads_word(const struct gpt_field *f, enum gpt_format format, const char *word, int *value) {
    const char *words = f->in[format].words ? f->in[format].words : f->option.words, *choice, *name;
    int length, n;
    for (*value = 1; (choice = part(words, '|', *value, &length)); ++*value) {
        char *alternatives = xasprintf("%.*s", length, choice);
        bool found = false;
        for (int k = 0; !found && (name = part(alternatives, ',', k, &n)); k++)
            found = n > 0 && (int)strlen(word) == n && memcmp(word, name, (size_t)n) == 0;
        free(alternatives);
        if (found) return true;
    }
    return false;
}

bool gpt_format_can_say(enum gpt_format format, const struct gpt_config *c, struct error *err) {
    struct gpt_config meant = *c; /* by what the format has keys for */
    for (int i = 0; i < GPT_FIELD_COUNT; i++)
        if (!gpt_fields[i].in[format].key)
            gpt_field_set(&meant, &gpt_fields[i], gpt_fields[i].in[format].otherwise);
    gpt_config_complete(&meant);
    const struct gpt_field *f = gpt_config_difference(&meant, c);
    if (f)
        return fail(err, "model %s: %s has no key for the %s (--%s), which is %s there, not %s", c->name,
                    gpt_format_name(format), f->what, f->option.name, gpt_field_text(&meant, f),
                    gpt_field_text(c, f));
    for (int i = 0; i < GPT_FIELD_COUNT; i++) {
        int length = 1;
        f = &gpt_fields[i];
        if (f->in[format].key && f->option.type == OPTION_WORD)
            (void)gpt_format_word(f, format, (int)gpt_field_get(c, f), &length);
        if (length == 0)
            return fail(err, "model %s: %s has no word for the %s %s (--%s)", c->name,
                        gpt_format_name(format), f->what, gpt_field_text(c, f), f->option.name);
    }
    return true;
}

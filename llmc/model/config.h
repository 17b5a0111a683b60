/* What a network is: its shape, and which kind of each part it has.
 *
 * Everything that is known about a field of the configuration stands in one row of gpt_fields: where it
 * lies, its limits, its words, its option on the command line, and its key in each file format. Options,
 * help, checks, config.json, GGUF keys and comparisons are loops over these rows, so a new field is one row
 * here and its effect in gpt.c.
 *
 * 0 in a field means "not said": gpt_config_complete() puts in what follows from the other fields. */
#ifndef LLMC_MODEL_CONFIG_H
#define LLMC_MODEL_CONFIG_H

#include "llmc/base/options.h"
#include "llmc/ops/attn_rule.h"
#include "llmc/ops/rope_rule.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The kinds. The first is "not said" in each. */
enum gpt_positions {
    POSITIONS_AUTO,
    POSITIONS_LEARNED, /* an embedding is added to that of the token */
    POSITIONS_ROPE,    /* queries and keys are rotated (Su et al. 2021, arXiv 2104.09864) */
    POSITIONS_NONE,    /* the causal mask alone (Haviv et al. 2022, arXiv 2203.16634) */
    /* A fixed table is added: column c of position t is sin(a) where c is even, cos(a) where it is odd, with
     * a = t / 10000^((c - c%2)/C) (Vaswani et al. 2017, arXiv 1706.03762). The paper multiplies the token's
     * embedding by sqrt(C); here the table is divided by it, which the norm that follows makes the same. */
    POSITIONS_SINUSOIDAL
};
enum gpt_norm {
    NORM_AUTO,
    NORM_LAYER, /* Ba et al. 2016, arXiv 1607.06450 */
    NORM_RMS    /* Zhang & Sennrich 2019, arXiv 1910.07467 */
};
enum gpt_mlp {
    MLP_AUTO,
    MLP_GELU,   /* tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415) */
    MLP_RELU2,  /* squared ReLU (So et al. 2021, arXiv 2109.08668) */
    MLP_SWIGLU, /* gated (Shazeer 2020, arXiv 2002.05202) */
    MLP_GEGLU   /* gated, with GELU's tanh form (same) */
};
/* How the frequencies of rotary positions are made slower: rope_rule.h. */
enum gpt_rope_scaling { ROPE_SCALING_AUTO, ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_LLAMA3 };
/* Scores and masks of attention: attn_rule.h has the definitions and their sources. */
enum gpt_score { SCORE_AUTO, SCORE_SCALED_DOT, SCORE_DOT, SCORE_COSINE, SCORE_L2, SCORE_DOT2 };
enum gpt_mask {
    MASK_AUTO,
    MASK_CAUSAL,
    MASK_ANTI_CAUSAL,
    MASK_FULL,
    MASK_WINDOW, /* causal, the last `window` tokens */
    MASK_PREFIX  /* causal, but the tokens before the first target see each other */
};
enum gpt_switch { SWITCH_AUTO, SWITCH_ON, SWITCH_OFF };

/* Tokens to which a model directory gives a meaning; count 0: not said. */
enum { GPT_MOST_IDS = 8 };
struct gpt_token_ids {
    int count;
    int32_t id[GPT_MOST_IDS];
};

struct gpt_config {
    char name[64];
    int64_t context;    /* maxT: the longest sequence */
    int64_t vocab_size; /* V: tokens that exist */
    int64_t layers;     /* L */
    int64_t heads;      /* NH: of the queries */
    int64_t channels;   /* C: width of the residual stream */
    int64_t kv_heads;   /* NKV: of keys and values; each serves NH/NKV heads (arXiv 2305.13245) */
    int64_t head_size;  /* HS */
    int64_t ff;         /* F: width between the two halves of the MLP; a gated MLP computes 2F values first */
    enum gpt_positions positions;
    enum gpt_norm norm;
    enum gpt_mlp mlp;
    enum gpt_switch bias;     /* of linear layers and of layernorm */
    enum gpt_switch qkv_bias; /* of the linear layer that makes queries, keys and values */
    enum gpt_switch qk_norm;  /* queries and keys are normalised, head by head, before they are rotated */
    enum gpt_switch tied;     /* the output head is the token embedding */
    double norm_eps;          /* added to the variance in every norm */
    double rope_theta;        /* base of the wavelengths of rotary positions; 0 without them */
    enum gpt_rope_scaling rope_scaling;
    double rope_factor;         /* by which the frequencies are divided; 0 without scaling */
    int64_t rope_original;      /* of llama3, else 0: tokens of the sequences before the scaling */
    double rope_low, rope_high; /* of llama3, else 0: turns within them, see rope_rule.h */
    enum gpt_score score;
    enum gpt_mask mask;
    int64_t window;                 /* tokens that a token sees, with itself; 0 with other masks */
    double softcap;                 /* scores stay between -softcap and softcap; 0: any */
    double logit_softcap;           /* the same of the output head's logits */
    enum gpt_switch norm_weights;   /* norms have weights, and biases if the model has such */
    enum gpt_switch embedding_norm; /* the embedding is normalised before the first layer */
    enum gpt_switch rope_reverse;   /* rotary positions turn the other way round */
    /* Tokens that begin, and that end, a text, as config.json says. They are kept, but change nothing
     * that is computed, so they are no rows of the table. */
    struct gpt_token_ids bos, eos;
};

/* A complete GPT-2, for constants. */
#define GPT2_CONFIG(name, context, vocab_size, layers, heads, channels)                                      \
    {                                                                                                        \
        name, context, vocab_size, layers, heads, channels, heads, (channels) / (heads), 4 * (channels),     \
            POSITIONS_LEARNED, NORM_LAYER, MLP_GELU, SWITCH_ON, SWITCH_ON, SWITCH_OFF, SWITCH_ON, 1e-5, 0.0, \
            ROPE_SCALING_NONE, 0.0, 0, 0.0, 0.0, SCORE_SCALED_DOT, MASK_CAUSAL, 0, 0.0, 0.0, SWITCH_ON,      \
            SWITCH_OFF, SWITCH_OFF                                                                           \
    }

/* Formats that name fields. A family of Hugging Face models and an architecture of GGUF each have keys of
 * their own, and mean something by the keys that they do not have. */
enum gpt_format {
    FORMAT_HF_GPT2,
    FORMAT_HF_LLAMA,
    FORMAT_HF_QWEN2,
    FORMAT_HF_QWEN3,
    FORMAT_HF_NANOCHAT,
    FORMAT_OWN, /* config.json with this engine's names, for what no family of Hugging Face can say */
    FORMAT_GGUF_GPT2,
    FORMAT_GGUF_LLAMA,
    FORMAT_GGUF_QWEN2,
    FORMAT_GGUF_QWEN3,
    GPT_FORMATS
};

/* What one format says of a field. */
struct gpt_format_key {
    /* NULL: none, the format always means `otherwise`; "": it shows in the tensors, or in several keys that
     * the format's own code knows. "a.b" in a config.json: key b of the object a. */
    const char *key;
    double otherwise;   /* the value where the key is missing or null; 0: what follows from other fields */
    bool required;      /* a file without the key is refused */
    bool null_if_usual; /* null, read and written, stands for what follows from other fields */
    bool out_if_usual;  /* not written there */
    /* The format's words, in the order of the option's; NULL: the same. "a|b,c|": the second is written
     * as b and read as b or c; the third cannot be said. */
    const char *words;
};

struct gpt_field {
    struct option_row option; /* offset in struct gpt_config; an initial value of "auto", or "0" where a
                                 complete configuration may have 0 */
    const char *what;         /* for messages: "number of layers" */
    struct gpt_format_key in[GPT_FORMATS];
};
enum { GPT_FIELD_COUNT = 30 };
extern const struct gpt_field gpt_fields[GPT_FIELD_COUNT];
/* The options of a model's shape, for a struct gpt_config at `offset` in the command's configuration. */
#define GPT_OPTION_GROUP(heading, offset)                                                                    \
    { heading, &gpt_fields[0].option, GPT_FIELD_COUNT, sizeof(struct gpt_field), offset }

/* A field's value as a number: counts, reals, and the index of a word. Set: 0 is "not said". */
double gpt_field_get(const struct gpt_config *config, const struct gpt_field *field);
void gpt_field_set(struct gpt_config *config, const struct gpt_field *field, double value);
/* As a person writes it: "12", "rope". By temp_printf. */
const char *gpt_field_text(const struct gpt_config *config, const struct gpt_field *field);

/* A preset ("tiny", "gpt2" ... "gpt2-xl", "gpt3-125m" ... "gpt3-1.3b", "smollm2-135m" ... "qwen3-0.6b", or
 * "dN" and "nanochat-dN" for N layers) with the fields that `changes` (or NULL) says put over it, complete and
 * checked. */
bool gpt_config_from_name(struct gpt_config *config, const char *name, const struct gpt_config *changes,
                          struct error *err);
const char *gpt_preset_names(void); /* for help texts */
bool gpt_preset_exists(const char *name);

/* The rule of the model's attention, without dropout and documents. */
struct attn_rule gpt_attn_rule(const struct gpt_config *config);
/* How its rotary positions turn. */
struct rope_rule gpt_rope_rule(const struct gpt_config *config);

/* The first field that is said, or NULL. */
const struct gpt_field *gpt_config_said(const struct gpt_config *config);
/* Puts what follows from the other fields into those that are not said. */
void gpt_config_complete(struct gpt_config *config);
/* Whether a complete configuration is one that the engine computes. The message names field and value. */
bool gpt_config_check(const struct gpt_config *config, struct error *err);
/* The first field in which two complete configurations differ, or NULL. */
const struct gpt_field *gpt_config_difference(const struct gpt_config *a, const struct gpt_config *b);

/* Whether the format can say what this model is. The message names the field, and what the format means
 * instead. */
bool gpt_format_can_say(enum gpt_format format, const struct gpt_config *config, struct error *err);
const char *gpt_format_name(enum gpt_format format); /* "a Hugging Face GPT-2" */
/* The words of a field in a format: the one that is written (length 0: it cannot be said), and whether
 * `word` means `value`. */
const char *gpt_format_word(const struct gpt_field *field, enum gpt_format format, int value, int *length);
bool gpt_format_reads_word(const struct gpt_field *field, enum gpt_format format, const char *word,
                           int *value);

/* V rounded up for the device (Vp); the padding rows are zero, stay zero, and are never sampled. */
static inline int64_t gpt_padded_vocab(const struct gpt_config *c) { return round_up(c->vocab_size, 128); }
/* Tokens see those after them. Such a model cannot write, as these do not exist yet. */
static inline bool gpt_looks_ahead(const struct gpt_config *c) {
    return c->mask == MASK_ANTI_CAUSAL || c->mask == MASK_FULL;
}
static inline bool gpt_mlp_gated(const struct gpt_config *c) {
    return c->mlp == MLP_SWIGLU || c->mlp == MLP_GEGLU;
}

#ifdef __cplusplus
}
#endif
#endif

/* Options that change nothing: see idle.h. */
#include "llmc/run/idle.h"

/* --- when --- */

static bool no_text(const struct run *r) { return !r->config.text; }
static bool no_stories(const struct run *r) { return !r->data.stories; }
static bool no_adapters(const struct run *r) { return r->config.lora_rank == 0; }
static bool adapters(const struct run *r) { return r->config.lora_rank > 0; }
static bool whole_model(const struct run *r) { return adapters(r) && r->config.zero != ZERO_PARAMETERS; }
static bool no_chat(const struct run *r) { return !r->config.chat; }
static bool shards(const struct run *r) { return r->config.data; }
static bool shuffled_documents(const struct run *r) {
    return r->config.samples == SAMPLES_CHOICE_DOCUMENTS && r->config.shuffle &&
           !run_samples_file(&r->config);
}
static bool not_packed(const struct run *r) { return r->config.samples != SAMPLES_CHOICE_PACKED; }
static bool no_wsd(const struct run *r) { return r->config.schedule != SCHEDULE_WSD; }
static bool no_end_of_decay(const struct run *r) {
    return r->config.schedule == SCHEDULE_CONSTANT || r->config.schedule == SCHEDULE_NOAM;
}
static bool weights(const struct run *r) { return r->start && !r->resumed; }
static bool no_validation(const struct run *r) { return !r->data.val; }
static bool no_tasks(const struct run *r) { return !r->config.eval_tasks; }
static bool no_tokenizer(const struct run *r) { return !r->data.tokenizer; }
static bool looks_ahead(const struct run *r) { return gpt_looks_ahead(&r->model); }
static bool one_process(const struct run *r) { return r->group->world == 1; }
static bool undivided(const struct run *r) { return one_process(r) && r->config.zero > ZERO_OPTIMIZER; }
static bool not_started_here(const struct run *r) { return !r->config.gpus && !r->config.ranks; }
static bool no_gpu(const struct run *r) { return r->device->arch == 0; }
static bool fp32(const struct run *r) { return run_gpt_options(&r->config, r->device).dtype == DTYPE_F32; }
static bool nothing_to_round(const struct run *r) {
    return r->config.stochastic_rounding && (fp32(r) || r->config.master_weights);
}
static bool no_tf32(const struct run *r) { return r->config.tf32 && (no_gpu(r) || !fp32(r)); }

static const struct {
    const char *option;
    bool (*idle)(const struct run *r);
    const char *reason;
} rows[] = {
    {"init-std", weights, "the weights are those of --model"},
    {"format", no_text, "it says what --text is"},
    {"field", no_text, "it says what --text is"},
    {"chat-template", no_chat, "it is for --chat"},
    {"stories", no_stories, "the run does not train on the built-in stories"},
    {"validation-fraction", shards, "--val names the shards to validate on"},
    {"shuffle", shuffled_documents, "whole documents are read in their order"},
    {"document-mask", not_packed, "it is for --samples packed"},
    {"final-lr-fraction", no_end_of_decay,
     "with this --schedule the learning rate does not fall to a last value"},
    {"decay-fraction", no_wsd, "it is for --schedule wsd"},
    {"val-every", no_validation, "there is no validation data; with --data, --val names it"},
    {"val-batches", no_validation, "there is no validation data; with --data, --val names it"},
    {"keep-best", no_validation, "there is no validation data; with --data, --val names it"},
    {"early-stop", no_validation, "there is no validation data; with --data, --val names it"},
    {"eval-every", no_tasks, "there are no --eval-tasks"},
    {"sample-every", looks_ahead, "tokens of this model see those after them, so it cannot write"},
    {"sample-every", no_tokenizer, "there is no tokenizer to write text with; --tokenizer names one"},
    {"zero", undivided, "one process has nobody to divide its memory with"},
    {"zero-group", one_process, "one process has nobody to divide its memory with"},
    {"zero", whole_model, "with --lora only --zero 3 divides something, the model"},
    {"zero-group", whole_model, "with --lora only --zero 3 divides something, the model"},
    {"embedding-lr-factor", adapters, "--lora does not train the embeddings"},
    {"embedding-decay", adapters, "--lora does not train the embeddings"},
    {"lora-alpha", no_adapters, "it is for --lora"},
    {"lora-targets", no_adapters, "it is for --lora"},
    {"comm-timeout", one_process, "there is one process only"},
    {"bind", not_started_here, "it is for the processes of --gpus and --ranks"},
    {"tf32", no_tf32, "it is for fp32 matrices on a GPU"},
    {"autotune", no_gpu, "it is for matrices on a GPU"},
    {"master-weights", fp32, "the weights are fp32 as they are"},
    {"stochastic-rounding", nothing_to_round, "it is for bf16 weights without master weights"},
};

void run_warn_idle_options(const struct run *r) {
    for (size_t i = 0; i < ARRAY_LENGTH(rows); i++)
        if (options_source(&r->options, rows[i].option) == OPTION_FROM_COMMAND && rows[i].idle(r))
            warn("--%s has no effect: %s", rows[i].option, rows[i].reason);
}

/* The options of a training run. What --resume does with each is a row of resume.c; when one changes
 * nothing, idle.c says so. */
#include "llmc/run/config.h"

#include <math.h>

#define C struct run_config
static const struct option_row model_rows[] = {
    OPT_TEXT(
        C, model, "model", NULL, "NAME|DIR",
        "stories, tiny, gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt3-125m ... gpt3-1.3b, smollm2-135m, "
        "smollm2-360m, tinyllama-1.1b, llama-3.2-1b, llama-3.2-3b, qwen2.5-0.5b, qwen3-0.6b, dN or nanochat-dN "
        "for N layers, or a directory with weights to start from: a checkpoint, or a Hugging Face GPT-2, Llama, Qwen2, "
        "Qwen3 or NanoChat, or a GGUF file of one of the first four (default: " RUN_STORIES_MODEL
        " for the built-in stories, else " RUN_DEFAULT_MODEL ")",
        0),
    OPT_REAL(
        C, init_std, "init-std", "auto", 0, 10, "X",
        "standard deviation of new weights (auto: 0.1 for the stories, else 0.02, more below 768 channels)",
        0),
};
static const struct option_row data_rows[] = {
    OPT_TEXT(
        C, text, "text", NULL, "PATH",
        "train on this text: a file, also compressed (.gz, .zst), JSON lines, a directory of such files, or "
        "- for the standard input (default: the built-in stories)",
        0),
    TEXT_FORMAT_OPTIONS(C, "of --text; "),
    OPT_TEXT(
        C, data, "data", NULL, "GLOB",
        "train on these token shards (.bin, as llm.c writes them); GLOB:0.7,GLOB:0.3 is a mixture, whose "
        "parts have these shares of the samples",
        0),
    OPT_TEXT(C, val, "val", NULL, "GLOB",
             "token shards to validate on; needed with --data to validate at all", 0),
    OPT_TEXT(C, chat, "chat", NULL, "FILE",
             "learn to answer from conversations: JSON lines (also .gz, .zst) of {\"messages\": [{\"role\": "
             "\"system|user|assistant\", \"content\": TEXT}, ...]}; only what the assistant says is learned",
             0),
    CHAT_TEMPLATE_OPTION(C),
    OPT_TEXT(
        C, pairs, "pairs", NULL, "FILE",
        "learn to write a target from a source: lines (also .gz, .zst) of SOURCE<tab>TARGET or of "
        "{\"source\": TEXT, \"target\": TEXT}; only the target is learned. With --mask prefix the source "
        "is read in both directions",
        0),
    OPT_TEXT(C, tokenizer, "tokenizer", NULL, "PATH|bytes",
             "tokenizer.json, a directory with one, or the word bytes (default: train one on the text)", 0),
    OPT_SIZE(C, stories, "stories", "40k", 100, 1e9, "N", "stories in the built-in corpus", 0),
    OPT_REAL(C, validation_fraction, "validation-fraction", "0.02", 0, 0.5, "X",
             "share of the text that is held out for validation (0: none)", 0),
    OPT_WORD(
        C, samples, "samples", "auto", "auto|windows|documents|apart|packed", NULL,
        "what a training sequence is. windows: T tokens from anywhere. documents: whole documents, "
        "conversations or pairs from their start, as many in a row as fit. packed: the same, but each in "
        "the row where it leaves the fewest places empty. apart: one conversation or pair (auto: documents "
        "for the stories, apart for --chat and --pairs, windows otherwise)",
        0),
    OPT_FLAG(C, document_mask, "document-mask", "true",
             "with --samples packed, a token sees only its own document, and positions count from its start",
             0),
    OPT_FLAG(
        C, shuffle, "shuffle", "true",
        "visit the windows, packed rows, conversations or pairs in a new random order in every epoch; packed "
        "rows otherwise begin with the longest documents",
        0),
};
static const struct option_row batch_rows[] = {
    OPT_INT(
        C, batch_size, "batch-size", "auto", 0, 1 << 20, "B",
        "sequences that a process computes at a time (auto: a divisor of a step's; on a GPU the largest that "
        "fits, on the CPU at most 8 below 512 channels, else 4)",
        0),
    OPT_INT(
        C, seq_len, "seq-len", "auto", 0, 1 << 24, "T",
        "tokens in a sequence (auto: 464 for the stories, or 116 if they are not packed, the longest sample of "
        "--chat or --pairs, else 1024; at most 1024 and the model's context)",
        0),
    OPT_SIZE(
        C, tokens_per_step, "tokens-per-step", "auto", 0, 1e12, "N",
        "tokens in an optimizer step, a multiple of B * T * processes; larger steps accumulate the "
        "gradients of several micro-batches (auto: B * T * processes; without --batch-size on any device as "
        "with 8 below 512 channels, else 4)",
        0),
    OPT_SIZE(
        C, steps, "steps", "auto", 0, 1e12, "N",
        "optimizer steps (auto: --epochs decides; without it 2600 for the stories, three epochs of --chat or "
        "--pairs, else one, but at least 500)",
        0),
    OPT_REAL(C, epochs, "epochs", "0", 0, 1e9, "X", "passes over the training data; used if --steps is 0", 0),
};
static const struct option_row optimizer_rows[] = {
    OPT_WORD(C, optimizer, "optimizer", "auto", "auto|adamw|muon|lion", NULL,
             "muon updates the matrices of the blocks, and adamw the rest (auto: adamw)", 0),
    OPT_REAL(
        C, learning_rate, "learning-rate", "auto", 0, 100, "X",
        "peak learning rate (auto: 4e-3 for the stories, else by the model's width, 6e-4 at 768 channels; "
        "twice that with muon; a tenth for weights from --model DIR, but not for --lora)",
        0),
    OPT_WORD(C, schedule, "schedule", "cosine", "cosine|linear|constant|wsd|noam", NULL,
             "shape of the learning rate after the warmup; wsd is constant and decays at the "
             "end, noam falls with the square root of the steps",
             0),
    OPT_INT(C, warmup, "warmup", "auto", -1, INFINITY, "N",
            "steps in which the learning rate rises to its peak (auto: 5 % of all, at most 700)", 0),
    OPT_REAL(C, final_lr_fraction, "final-lr-fraction", "auto", -1, 1, "X",
             "last learning rate as a fraction of the peak (auto: 0 for the stories, else 0.1)", 0),
    OPT_REAL(C, decay_fraction, "decay-fraction", "0.2", 0, 1, "X",
             "fraction of the steps in which wsd decays", 0),
    OPT_REAL(C, weight_decay, "weight-decay", "0.1", 0, 100, "X", "decoupled weight decay, of matrices only",
             0),
    OPT_REAL(C, momentum, "momentum", "auto", -1, 1, "X", "Muon's decay rate of the momentum (auto: 0.95)",
             OPTION_BELOW_MAX),
    OPT_REAL(C, muon_lr_factor, "muon-lr-factor", "auto", 0, 1000, "X",
             "Muon's learning rate of the matrices, as a multiple of --learning-rate (auto: 1)", 0),
    OPT_REAL(C, embedding_lr_factor, "embedding-lr-factor", "1", 0, 1000, "X",
             "learning rate of embeddings and output head, as a multiple of --learning-rate", 0),
    OPT_WORD(C, embedding_decay, "embedding-decay", "auto", "auto|on|off", NULL,
             "whether --weight-decay applies to embeddings and output head (auto: on, but off with muon)", 0),
    OPT_REAL(C, beta1, "beta1", "0.9", 0, 1, "X", "AdamW's and Lion's decay rate of the first moment",
             OPTION_BELOW_MAX),
    OPT_REAL(
        C, beta2, "beta2", "auto", -1, 1, "X",
        "AdamW's decay rate of the second moment, Lion's second one of the first (auto: 0.95, Lion 0.99)",
        OPTION_BELOW_MAX),
    OPT_REAL(C, eps, "eps", "auto", 0, 1, "X", "AdamW's epsilon (auto: 1e-8)", 0),
    OPT_REAL(
        C, label_smoothing, "label-smoothing", "0", 0, 1, "X",
        "share of each target's probability that goes to all tokens alike; part of the training loss, but "
        "not of the validation loss",
        OPTION_BELOW_MAX),
    OPT_REAL(C, z_loss, "z-loss", "0", 0, 1000, "X",
             "adds X times the square of the logarithm of the softmax's sum to the training loss, but not to "
             "the validation loss",
             0),
    OPT_REAL(
        C, dropout, "dropout", "0", 0, 1, "X",
        "set this share of the embedding, of attention's weights and of what attention and MLP add to 0 in "
        "training; on a GPU attention then runs without tensor cores",
        OPTION_BELOW_MAX),
    OPT_REAL(C, grad_clip, "grad-clip", "1", 0, INFINITY, "X",
             "a gradient with a larger norm is scaled down to this norm (0: never)", 0),
    OPT_REAL(C, skip_outliers, "skip-outliers", "0", 0, 1e6, "Z",
             "skip the update of a step whose loss or gradient norm is more than Z standard deviations above "
             "the mean of the last 128 steps (0: never)",
             0),
};
static const struct option_row adapter_rows[] = {
    OPT_INT(
        C, lora_rank, "lora", "0", 0, 4096, "RANK",
        "train low-rank adapters (LoRA) of this rank beside the matrices of --model DIR, which stay as they "
        "are (0: train the model itself)",
        0),
    OPT_REAL(C, lora_alpha, "lora-alpha", "auto", 0, 1e6, "A",
             "the adapters' product is scaled by A / RANK (auto: twice the rank)", 0),
    OPT_TEXT(
        C, lora_targets, "lora-targets", "all", "LIST",
        "the layers that get adapters: of qkv (or q, k, v), attn, gate, up, down, as the model has them; or "
        "all",
        0),
};
static const struct option_row evaluation_rows[] = {
    OPT_INT(C, val_every, "val-every", "auto", 0, INFINITY, "N",
            "steps between validations (auto: a tenth of the run, at least 20)", 0),
    OPT_INT(C, val_batches, "val-batches", "auto", 0, INFINITY, "N",
            "batches in a validation (auto: the whole held-out text, or 20 batches of shards)", 0),
    OPT_TEXT(C, eval_tasks, "eval-tasks", NULL, "LIST",
             "questions to answer during training; files as for `train_gpt eval --tasks`", 0),
    OPT_INT(C, eval_every, "eval-every", "auto", 0, INFINITY, "N",
            "steps between two rounds of --eval-tasks (auto: as --val-every)", 0),
    OPT_INT(C, sample_every, "sample-every", "0", 0, INFINITY, "N",
            "steps between two printed samples (0: one at the end)", 0),
};
static const struct option_row run_rows[] = {
    OPT_TEXT(C, out, "out", NULL, "DIR",
             "directory for checkpoints, logs and the plot (default: a new one under runs/)", 0),
    OPT_FLAG(C, resume, "resume", "false", "continue the run in --out from its newest intact checkpoint",
             OPTION_THIS_RUN),
    OPT_FLAG(C, overwrite, "overwrite", "false",
             "delete the run in --out and start anew; files that no run made stay", OPTION_THIS_RUN),
    OPT_TIME(
        C, max_time, "max-time", "TIME",
        "save and end before TIME has passed: 90m, 7h, 2d; the exit status is then 85, and --resume goes "
        "on",
        OPTION_THIS_RUN),
    OPT_FLAG(C, requeue, "requeue", "false",
             "SIGUSR1, which else only saves, saves and ends the run with status 85, for a batch system that "
             "announces its time limit by it (dev/slurm/train.sbatch)",
             OPTION_THIS_RUN),
    OPT_TEXT(C, notify, "notify", NULL, "COMMAND",
             "run this shell command when the run has ended or failed; LLMC_EVENT, LLMC_STATUS, LLMC_RUN, "
             "LLMC_STEP and LLMC_MESSAGE tell it what happened",
             OPTION_THIS_RUN),
    OPT_INT(C, save_every, "save-every", "auto", 0, INFINITY, "N",
            "steps between checkpoints (auto: a tenth of the run, at least 50)", 0),
    OPT_INT(C, keep, "keep", "2", 1, 1e6, "N", "checkpoints to keep; older ones are deleted", 0),
    OPT_INT(
        C, rollback, "rollback", "0", 0, 1e6, "N",
        "when training diverges, go back to the last good checkpoint and on with the data behind, up to N "
        "times (0: the run ends)",
        0),
    OPT_FLAG(C, keep_best, "keep-best", "false",
             "also keep the checkpoint with the lowest validation loss; it can be named as RUN/best", 0),
    OPT_INT(C, early_stop, "early-stop", "0", 0, 1e6, "N",
            "end when N validations in a row have brought no lower loss (0: never)", 0),
    OPT_FLAG(C, tensorboard, "tensorboard", "false",
             "also write the log and the samples as event files, which TensorBoard reads", 0),
    OPT_INT(C, seed, "seed", "1", 0, INFINITY, "N", "seed of the initial weights and of shuffling", 0),
    OPT_FLAG(C, verbose, "verbose", "false",
             "print every option at the start, not only those that differ from the default", OPTION_THIS_RUN),
};
static const struct option_row process_rows[] = {
    OPT_INT(C, gpus, "gpus", "0", 0, 1024, "N",
            "train on N GPUs of this machine, with a process for each (0: on one GPU, in this process)",
            OPTION_THIS_RUN),
    OPT_INT(C, ranks, "ranks", "0", 0, 1024, "N",
            "start N processes on this machine, for any device; on the CPU they share its cores",
            OPTION_THIS_RUN),
    OPT_WORD(
        C, zero, "zero", "1", "0|1|2|3", NULL,
        "what the processes divide among them to save memory: 1 the optimizer state, 2 also gradients, "
        "3 also parameters; `train_gpt plan` shows the memory of each level. With --lora, 3 divides the model, "
        "and 1 and 2 nothing",
        0),
    OPT_INT(
        C, zero_group, "zero-group", "0", 0, 1e6, "N",
        "divide among N processes in a row, such as those of one machine; every group of N then holds all "
        "parts, and only sums of gradients travel between groups (0: divide among all). Worth it above "
        "about 64 GPUs",
        0),
    OPT_INT(C, restart, "restart", "0", 0, 1e6, "N",
            "if a process dies, restart all of them from the last checkpoint, up to N times",
            OPTION_THIS_RUN),
    OPT_REAL(C, comm_timeout, "comm-timeout", "120", 1, 1e6, "S",
             "seconds after which the run ends because a process is silent or stuck", OPTION_THIS_RUN),
    OPT_FLAG(C, bind, "bind", "true", "with --gpus or --ranks, bind each process to cores of its own",
             OPTION_THIS_RUN),
    OPT_FLAG(C, rank_logs, "rank-logs", "false", "write rank-N.log in --out for every process",
             OPTION_THIS_RUN),
};
static const struct option_row device_rows[] = {
    OPT_TEXT(C, device, "device", "auto", "NAME", "cpu, cuda, cuda:N, or auto: a GPU if there is one", 0),
    OPT_WORD(C, dtype, "dtype", "auto", "auto|fp32|bf16", NULL,
             "type of weights and activations (auto: bf16 on a GPU, fp32 on the CPU)", 0),
    OPT_WORD(
        C, matmul, "matmul", "bf16", "bf16|fp8", NULL,
        "how the matrices of the blocks are multiplied: bf16 as they are stored; fp8 as copies in 8 bits, "
        "about twice as fast on Ada, Hopper and later GPUs (the CPU emulates it)",
        0),
    OPT_WORD(C, recompute, "recompute", "none", "none|act|norm|block", NULL,
             "what backward computes again instead of keeping it in memory; the results are the same", 0),
    OPT_INT(C, head_chunks, "head-chunks", "1", 1, 1 << 20, "N",
            "compute the logits in N parts, which saves memory", 0),
    OPT_FLAG(C, master_weights, "master-weights", "true", "keep fp32 copies of bf16 weights for the update",
             0),
    OPT_FLAG(C, stochastic_rounding, "stochastic-rounding", "false",
             "round updated bf16 weights up or down at random, without bias; for --no-master-weights", 0),
    OPT_FLAG(C, tf32, "tf32", "false", "on a GPU, multiply fp32 matrices in TF32 (10-bit mantissas)", 0),
    OPT_TEXT(
        C, autotune, "autotune", "auto", "FILE",
        "on a GPU, time the algorithms for each kind of matmul once and keep the fastest in FILE (auto: for "
        "large ones, in ~/.cache/llmc/matmul.tune; off: take the library's first)",
        0),
    OPT_FLAG(C, graph, "graph", "true",
             "record the operations of a micro-step and launch them as one graph, where the device can", 0),
    OPT_INT(C, threads, "threads", "auto", 0, 4096, "N", "CPU threads (auto: the cores it may use)", 0),
};
#undef C

const struct option_group run_option_groups[] = {
    {"Model", model_rows, ARRAY_LENGTH(model_rows)},
    GPT_OPTION_GROUP("Shape of a new model", offsetof(struct run_config, shape)),
    {"Data", data_rows, ARRAY_LENGTH(data_rows)},
    {"Batch and length", batch_rows, ARRAY_LENGTH(batch_rows)},
    {"Optimizer", optimizer_rows, ARRAY_LENGTH(optimizer_rows)},
    {"Adapters", adapter_rows, ARRAY_LENGTH(adapter_rows)},
    {"Evaluation", evaluation_rows, ARRAY_LENGTH(evaluation_rows)},
    {"Run", run_rows, ARRAY_LENGTH(run_rows)},
    {"Several processes (also with torchrun, mpirun and srun)", process_rows, ARRAY_LENGTH(process_rows)},
    {"Device and memory", device_rows, ARRAY_LENGTH(device_rows)},
};

/* build/prepare: turns text into token shards, for training on more text than fits in memory.
 *
 *     build/prepare --tokenizer train:32768 --out shards books/ wiki.jsonl.zst
 *     build/train_gpt --data 'shards/data_train_*.bin' --val 'shards/data_val_*.bin' ... */
#include "llmc/base/console.h"
#include "llmc/base/options.h"
#include "llmc/cli/about.h"
#include "llmc/cli/commands.h"
#include "data/prepare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define S struct prepare_options
static const struct option_row text_rows[] = {
    TEXT_FORMAT_OPTIONS(S, ""),
    OPT_FLAG(S, strict, "strict", "false", "stop at a line that is not JSON or has no such field",
             OPTION_THIS_RUN),
    OPT_REAL(S, validation_fraction, "validation-fraction", "0.01", 0, 0.5, "X",
             "share of the documents for validation, chosen by a hash of their text", 0),
};
static const struct option_row token_rows[] = {
    OPT_TEXT(
        S, tokenizer, "tokenizer", NULL, "WHICH",
        "gpt2, bytes, a tokenizer.json, a directory with one or with GPT-2's vocab.bpe and encoder.json, or "
        "train:N to train one with N tokens on the text",
        OPTION_REQUIRED),
    OPT_SIZE(S, tokenizer_text, "tokenizer-text", "0", 0, 1e18, "BYTES",
             "text from the start of the input to train the tokenizer on (0: all)", 0),
};
static const struct option_row shard_rows[] = {
    OPT_TEXT(S, out, "out", "shards", "DIR", "directory to write to", 0),
    OPT_TEXT(S, name, "name", "data", "NAME",
             "shards are called NAME_train_000000.bin, NAME_val_000000.bin, ...", 0),
    OPT_SIZE(S, shard_tokens, "shard-tokens", "1e8", 2, 2147483647, "N", "tokens in a shard", 0),
    OPT_FLAG(S, resume, "resume", "false",
             "continue an interrupted run; finished shards are verified and kept", OPTION_THIS_RUN),
    OPT_FLAG(S, overwrite, "overwrite", "false", "delete the output of an earlier run in the directory",
             OPTION_THIS_RUN),
    OPT_INT(S, threads, "threads", "auto", 0, 4096, "N",
            "threads (auto: one per core); the output is the same", 0),
    OPT_SIZE(S, batch_bytes, "batch-size", "32M", 4096, 1 << 30, "BYTES",
             "text per batch; the program needs about 10 times as much memory", 0),
};
#undef S
static const struct option_group groups[] = {{"Text", text_rows, ARRAY_LENGTH(text_rows)},
                                             {"Tokens", token_rows, ARRAY_LENGTH(token_rows)},
                                             {"Shards", shard_rows, ARRAY_LENGTH(shard_rows)}};
static const struct option_command command = {"prepare --tokenizer WHICH [options] INPUT...",
                                              "Turns text into token shards for train_gpt --data. An INPUT "
                                              "is a text file, a JSON-lines file, either of them compressed "
                                              "(.gz, .zst), a directory of such files, or - for the standard "
                                              "input. A text file is one document, or several with lines of "
                                              "only <|endoftext|> between them; a line of JSON is one "
                                              "document. The token <|endoftext|> precedes each document. "
                                              "Also writes manifest.json, which says what the shards were "
                                              "made from, and tokenizer.json.",
                                              groups,
                                              ARRAY_LENGTH(groups),
                                              "INPUT",
                                              1,
                                              1 << 20};

static bool sound(const struct prepare_options *o, struct error *err) {
    if (!o->name[0] || strchr(o->name, '/') || o->name[0] == '.')
        return fail(err, "--name %s: expected the beginning of a file name", o->name);
    if (o->resume && o->overwrite) return fail(err, "--resume and --overwrite exclude each other");
    return true;
}

int main(int argc, char **argv) {
    static const struct about_command only = {NULL, &command, NULL};
    static const struct about about = {"turns text into token shards for train_gpt", &only, 1};
    struct prepare_options c;
    struct options o;
    struct error err;
    open_standard_files();
    int status = about_program(&about, argc, argv);
    if (status < 0) status = command_options(&o, &command, &c, argc - 1, argv + 1);
    if (status >= 0) return status;
    status = !sound(&c, &err) ? 2 : !prepare_run(&c, o.positional, o.positional_count, &err);
    if (status) report_error("%s", err.message);
    options_free(&o);
    return status;
}

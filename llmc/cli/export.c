/* `train_gpt export`: writes a checkpoint as a GGUF file, or as a Hugging Face directory without training
 * state. */
#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/cli/commands.h"
#include "llmc/cli/prompt.h"
#include "llmc/format/checkpoint.h"
#include "llmc/format/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct export_config {
    const char *from, *adapter, *to;
    enum export_type type;
    bool overwrite;
};

static const struct option_row rows[] = {
    OPT_TEXT(struct export_config, from, "from", NULL, "PATH",
             "run directory (its newest intact checkpoint), checkpoint, Hugging Face directory, GGUF file, "
             "or llm.c model file",
             OPTION_REQUIRED),
    ADAPTER_OPTION(struct export_config),
    OPT_TEXT(struct export_config, to, "to", NULL, "PATH",
             "a GGUF file for llama.cpp if the name ends in .gguf, else a new Hugging Face directory",
             OPTION_REQUIRED),
    OPT_WORD(struct export_config, type, "type", "f16", EXPORT_TYPE_WORDS, NULL,
             "type of the written weights; q8_0 is for GGUF only", 0),
    OPT_FLAG(struct export_config, overwrite, "overwrite", "false",
             "replace a GGUF file, or a directory that holds an exported model and nothing else",
             OPTION_THIS_RUN),
};
static const struct option_group groups[] = {{"Export", rows, ARRAY_LENGTH(rows)}};
const struct option_command export_command = {
    "train_gpt export --from PATH --to PATH [options]",
    "Writes a model without the optimizer state. The target appears only when it is complete. A GGUF file "
    "includes the tokenizer. --adapter merges a LoRA adapter into the weights.",
    groups, ARRAY_LENGTH(groups)};

static int64_t size_of(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 ? (int64_t)st.st_size : 0;
}

static bool export_model(const struct export_config *c, const char *from, const char *adapter, bool gguf,
                         struct error *err) {
    static const char *const files[] = {".bin", ".safetensors", ".pt", ".pth", ".ggml", ".onnx"};
    if (gguf)
        return may_write_file(c->to, c->overwrite, err) && export_gguf(from, adapter, c->to, c->type, err);
    for (size_t i = 0; i < ARRAY_LENGTH(files); i++)
        if (path_ends_with(c->to, files[i]))
            return fail(err, "--to %s: this would be the name of a directory; a GGUF file ends in .gguf",
                        c->to);
    return export_huggingface(from, adapter, c->to, c->type, c->overwrite, err);
}

int cmd_export(int argc, char **argv) {
    struct options options;
    struct export_config c;
    int status = command_options(&options, &export_command, &c, argc, argv);
    if (status >= 0) return status;
    bool gguf = path_ends_with(c.to, ".gguf");
    struct error err;
    char *adapter = open_adapter(c.adapter), *from = checkpoint_find(c.from, &err);
    bool ok = from != NULL && export_model(&c, from, adapter, gguf, &err);
    if (ok) {
        char *weights = gguf ? xstrdup(c.to) : xasprintf("%s/model.safetensors", c.to);
        say("%s -> %s (%s, %s)\n", from, c.to, export_type_name(c.type),
            human_bytes((double)size_of(weights)));
        free(weights);
    } else {
        report_error("%s", err.message);
    }
    free(from);
    free(adapter);
    options_free(&options);
    return ok ? 0 : 1;
}

/* Writes tokenizer.json. Not through the JSON library: its order of keys and its layout would differ from
 * Hugging Face's, and the same tokenizer must always give the same bytes. */
#include "llmc/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/file.h"
#include "llmc/text/tokenizer_tables.h"

static const char default_pre_tokenizer[] =
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}";
static const char default_post_processor[] =
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":false,\"use_regex\":true}";
static const char default_decoder[] =
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true}";

/* The inside of a JSON string. */
static void put_text(FILE *f, const char *text, int64_t size) {
    for (int64_t i = 0; i < size; i++) {
        if (text[i] == '"' || text[i] == '\\')
            fprintf(f, "\\%c", text[i]);
        else if ((uint8_t)text[i] < 0x20)
            fprintf(f, "\\u%04x", text[i]);
        else
            fputc((uint8_t)text[i], f);
    }
}

static void put_name(FILE *f, const struct tokenizer *t, uint32_t id) {
    char *name = printable_name(t, id);
    put_text(f, name, (int64_t)strlen(name));
    free(name);
}

static const char *json_bool(bool b) { return b ? "true" : "false"; }

static void put_added(FILE *f, const struct tokenizer *t) {
    /* Sorted by id, since Hugging Face numbers added tokens that the vocabulary lacks in the order of the
     * list. */
    int *order = (int *)xmalloc(((size_t)t->added_count + 1) * sizeof *order);
    for (int i = 0; i < t->added_count; i++) {
        int at = i;
        for (; at > 0 && t->added[order[at - 1]].id > t->added[i].id; at--) order[at] = order[at - 1];
        order[at] = i;
    }
    for (int i = 0; i < t->added_count; i++) {
        const struct added_token *a = &t->added[order[i]];
        fprintf(f, "%s\n    {\"id\": %u, \"content\": \"", i ? "," : "", a->id);
        put_text(f, t->token_data + t->token_start[a->id], token_size(t, a->id));
        fprintf(f,
                "\", \"single_word\": false, \"lstrip\": %s, \"rstrip\": %s, \"normalized\": %s, "
                "\"special\": %s}",
                json_bool(a->lstrip), json_bool(a->rstrip), json_bool(a->normalized), json_bool(a->special));
    }
    free(order);
}

static void put_model(FILE *f, const struct tokenizer *t) {
    fprintf(f,
            "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
            "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
            "    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n    \"ignore_merges\": %s,\n"
            "    \"vocab\": {",
            json_bool(t->ignore_merges));
    /* The vocabulary includes added tokens below the last token of the model, so that they keep their
     * ids. */
    int last = t->vocab_size - 1;
    while (last >= 0 && !t->in_model[last]) last--;
    for (int id = 0; id <= last; id++) {
        fputs(id ? ",\n      \"" : "\n      \"", f);
        if (t->in_model[id])
            put_name(f, t, (uint32_t)id);
        else
            put_text(f, t->token_data + t->token_start[id], token_size(t, (uint32_t)id));
        fprintf(f, "\": %d", id);
    }
    fputs("\n    },\n    \"merges\": [", f);
    for (int i = 0; i < t->merge_count; i++) {
        fputs(i ? ",\n      \"" : "\n      \"", f);
        put_name(f, t, t->merge_pair[2 * i]);
        fputc(' ', f);
        put_name(f, t, t->merge_pair[2 * i + 1]);
        fputc('"', f);
    }
    fputs("\n    ]\n  }\n", f);
}

bool tokenizer_save(const struct tokenizer *t, const char *path, struct error *err) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    check(f, "out of host memory");
    fputs("{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [",
          f);
    put_added(f, t);
    fprintf(f,
            "\n  ],\n  \"normalizer\": %s,\n  \"pre_tokenizer\": %s,\n  \"post_processor\": %s,\n"
            "  \"decoder\": %s,\n",
            t->json_normalizer ? t->json_normalizer : "null",
            t->json_pre_tokenizer ? t->json_pre_tokenizer : default_pre_tokenizer,
            t->json_post_processor ? t->json_post_processor : default_post_processor,
            t->json_decoder ? t->json_decoder : default_decoder);
    put_model(f, t);
    fputs("}\n", f);
    bool complete = !ferror(f);
    check(!fclose(f) && complete, "out of host memory while writing %s", path);
    bool ok = write_file_atomic(path, text, size, err);
    free(text);
    return ok;
}

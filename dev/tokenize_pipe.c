/* Serves the tokenizer to other programs through pipes. Reads texts from standard input, each as a 32-bit
 * size and its bytes, and answers each with a 32-bit count and the 32-bit ids, all little-endian.
 * dev/reference/tokenizer_oracle.py and split_patterns.py compare it with Hugging Face.
 *     build/tokenize_pipe TOKENIZER [special]      special: special tokens in a text become their ids
 *     build/tokenize_pipe TOKENIZER words          words: the sizes of the words that the text is cut into */
#include "llmc/text/tokenizer_tables.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_size(void *arg, const uint8_t *word, int64_t size) {
    struct token_buffer *b = (struct token_buffer *)arg;
    token_buffer_reserve(b, 1);
    b->ids[b->count++] = (uint32_t)size;
}

int main(int argc, char **argv) {
    struct error err;
    bool special = argc == 3 && !strcmp(argv[2], "special"), words = argc == 3 && !strcmp(argv[2], "words");
    check(argc == 2 || special || words, "usage: %s TOKENIZER [special | words]", argv[0]);
    struct tokenizer *t = tokenizer_load(argv[1], &err);
    check(t, "%s", err.message);
    struct token_buffer b = {0};
    char *text = NULL;
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        text = (char *)xrealloc(text, (size_t)size + 1);
        check(fread(text, 1, size, stdin) == size, "standard input ends inside a text of %u bytes", size);
        b.count = 0;
        int64_t n = -1;
        if (!words)
            n = special ? tokenizer_encode_special(t, text, size, &b) : tokenizer_encode(t, text, size, &b);
        else if (pretokenize(&t->pre, (const uint8_t *)text, size, add_size, &b))
            n = b.count;
        check(n >= 0 && n == b.count, "a text of %u bytes could not be encoded", size);
        uint32_t count = (uint32_t)n;
        fwrite(&count, sizeof count, 1, stdout);
        fwrite(b.ids, sizeof *b.ids, count, stdout);
    }
    check(!fflush(stdout), "cannot write to standard output");
    free(text);
    token_buffer_free(&b);
    tokenizer_free(t);
}

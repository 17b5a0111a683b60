/* Serves the tokenizer to other programs through pipes. Reads texts from standard input, each as a 32-bit
 * size and its bytes, and answers each with a 32-bit count and the 32-bit ids, all little-endian.
 * dev/reference/tokenizer_oracle.py compares it with Hugging Face.
 *     build/tokenize_pipe TOKENIZER [special]      special: special tokens in a text become their ids */
#include "llmc/text/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    struct error err;
    check(argc == 2 || (argc == 3 && !strcmp(argv[2], "special")), "usage: %s TOKENIZER [special]", argv[0]);
    struct tokenizer *t = tokenizer_load(argv[1], &err);
    check(t, "%s", err.message);
    struct token_buffer b = {0};
    char *text = NULL;
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        text = (char *)xrealloc(text, (size_t)size + 1);
        check(fread(text, 1, size, stdin) == size, "standard input ends inside a text of %u bytes", size);
        b.count = 0;
        int64_t n =
            argc == 3 ? tokenizer_encode_special(t, text, size, &b) : tokenizer_encode(t, text, size, &b);
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

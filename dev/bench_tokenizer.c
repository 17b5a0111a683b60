/* Measures the tokenizer on a text.
 *     build/bench_tokenizer encode TEXT TOKENIZER [THREADS]      MB/s of encoding, and per thread
 *     build/bench_tokenizer train TEXT VOCAB [THREADS [OUT.json]]    seconds of BPE training, peak memory
 *     build/bench_tokenizer linear TEXT TOKENIZER      time per byte of 100 MB runs, against that of TEXT
 * dev/reference/bench_tokenizer.py compares encoding with Hugging Face's tokenizers and tiktoken. */
#include "llmc/base/file.h"
#include "llmc/text/bpe_train.h"
#include "llmc/text/tokenizer.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* --- texts --- */

/* Cuts after the first newline past every 64 KiB, as dev/reference/bench_tokenizer.py does. The caller
 * frees. */
static struct text_span *cut_documents(const struct mapped_file *f, int64_t *count) {
    struct text_span *docs = NULL;
    const char *p = (const char *)f->data, *end = p + f->size;
    *count = 0;
    while (p < end) {
        const char *cut = end - p > 65536 ? memchr(p + 65536, '\n', (size_t)(end - p - 65536)) : NULL;
        const char *next = cut ? cut + 1 : end;
        if ((*count & (*count - 1)) == 0)
            docs = (struct text_span *)xrealloc(docs, (size_t)(*count ? 2 * *count : 1) * sizeof *docs);
        docs[(*count)++] = (struct text_span){p, next - p};
        p = next;
    }
    return docs;
}

static struct mapped_file open_text(const char *path) {
    struct mapped_file f;
    struct error err;
    check(file_map(&f, path, &err), "%s", err.message);
    check(f.size > 0, "%s is empty: nothing to measure", path);
    return f;
}

static struct tokenizer *open_tokenizer(const char *path) {
    struct error err;
    double start = now_seconds();
    struct tokenizer *t = tokenizer_load(path, &err);
    check(t, "%s", err.message);
    printf("%s: %d tokens, loaded in %.3f s\n", path, tokenizer_vocab_size(t), now_seconds() - start);
    return t;
}

static double peak_bytes(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return 1024.0 * (double)usage.ru_maxrss;
}

/* --- encoding --- */

/* Of all threads, user and system. */
static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* Returns seconds. Every thread starts with an empty cache of words, as in a program that has just
 * started. */
static double time_encoding(const struct tokenizer *t, const struct text_span *docs, int64_t count,
                            int threads, int64_t *tokens) {
    int64_t total = 0;
    double start = now_seconds();
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        struct token_buffer b = {0};
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++) {
            b.count = 0;
            total += tokenizer_encode(t, docs[i].data, docs[i].size, &b);
        }
        token_buffer_free(&b);
    }
    *tokens = total;
    return now_seconds() - start;
}

static void bench_encode(const char *text, const char *tokenizer, int threads) {
    struct mapped_file f = open_text(text);
    struct tokenizer *t = open_tokenizer(tokenizer);
    int64_t count, tokens;
    struct text_span *docs = cut_documents(&f, &count);
    double best = 1e30, best_cpu = 1e30, size = 1e-6 * (double)f.size;
    for (int i = 0; i < 3; i++) {
        double cpu = cpu_seconds(), seconds = time_encoding(t, docs, count, threads, &tokens);
        cpu = cpu_seconds() - cpu;
        if (seconds < best) best = seconds;
        if (cpu < best_cpu) best_cpu = cpu;
    }
    printf("%s: %.1f MB in %lld documents, %lld tokens, %.2f bytes per token\n", text, size, (long long)count,
           (long long)tokens, (double)f.size / (double)tokens);
    printf("encode: %.4f s with %d threads: %.1f MB/s, %.1f MB/s per thread; %.4f s of CPU time: %.1f MB/s "
           "(best of 3)\n",
           best, threads, size / best, size / best / threads, best_cpu, size / best_cpu);
    free(docs);
    tokenizer_free(t);
    file_unmap(&f);
}

/* --- training --- */

static void bench_train(const char *text, int vocab_size, int threads, const char *out) {
    struct mapped_file f = open_text(text);
    struct text_span whole = {(const char *)f.data, f.size};
    struct error err;
    double start = now_seconds();
    struct bpe_trainer *b = bpe_trainer_new();
    bpe_trainer_add(b, &whole, 1, threads);
    double counted = now_seconds();
    double mapped = (double)f.size; /* the peak includes pages of the file, which the kernel can reclaim */
    struct tokenizer *t = bpe_trainer_finish(b, vocab_size, &err);
    check(t, "%s", err.message);
    double end = now_seconds();
    printf("train: %.1f MB to %d tokens with %d threads: %.2f s = %.2f s counting words (%.1f MB/s) + %.2f s "
           "merging; peak memory %s with the mapped text of %s\n",
           1e-6 * (double)f.size, tokenizer_vocab_size(t), threads, end - start, counted - start,
           1e-6 * (double)f.size / (counted - start), end - counted, human_bytes(peak_bytes()),
           human_bytes(mapped));
    check(!out || tokenizer_save(t, out, &err), "%s", err.message);
    tokenizer_free(t);
    bpe_trainer_free(b);
    file_unmap(&f);
}

/* --- runs --- */

static void bench_linear(const char *text, const char *tokenizer) {
    static const char *const parts[] = {"a",        " ", "\n", "1", "=", "ab", "acgtcatgcatgacgat",
                                        "\xc3\xa9", "a "};
    struct mapped_file f = open_text(text);
    struct tokenizer *t = open_tokenizer(tokenizer);
    int64_t count, tokens, size = 100000000;
    struct text_span *docs = cut_documents(&f, &count);
    double prose = 1e9 * time_encoding(t, docs, count, 1, &tokens) / (double)f.size;
    printf("%-24s %7.1f MB %10lld tokens %7.2f ns per byte\n", text, 1e-6 * (double)f.size, (long long)tokens,
           prose);
    char *run = (char *)xmalloc((size_t)size);
    for (size_t i = 0; i < ARRAY_LENGTH(parts); i++) {
        int64_t period = (int64_t)strlen(parts[i]);
        for (int64_t k = 0; k < size; k++) run[k] = parts[i][k % period];
        double ns = 1e9 * time_encoding(t, &(struct text_span){run, size}, 1, 1, &tokens) / (double)size;
        printf("run of \"%s\"%*s %7.1f MB %10lld tokens %7.2f ns per byte, %.2f times the text\n",
               parts[i][0] == '\n' ? "\\n" : parts[i], (int)(16 - period - (parts[i][0] == '\n')), "",
               1e-6 * (double)size, (long long)tokens, ns, ns / prose);
    }
    printf("peak memory %s\n", human_bytes(peak_bytes()));
    free(run);
    free(docs);
    tokenizer_free(t);
    file_unmap(&f);
}

int main(int argc, char **argv) {
    const char *mode = argc > 3 ? argv[1] : "";
    int threads = argc > 4 ? atoi(argv[4]) : omp_get_max_threads();
    check(threads >= 1, "THREADS is \"%s\", expected a number from 1 on", argc > 4 ? argv[4] : "");
    if (!strcmp(mode, "encode") && argc <= 5)
        bench_encode(argv[2], argv[3], threads);
    else if (!strcmp(mode, "train") && argc <= 6)
        bench_train(argv[2], atoi(argv[3]), threads, argc > 5 ? argv[5] : NULL);
    else if (!strcmp(mode, "linear") && argc == 4)
        bench_linear(argv[2], argv[3]);
    else
        die("usage: %s encode TEXT TOKENIZER [THREADS]\n       %s train TEXT VOCAB [THREADS [OUT.json]]\n"
            "       %s linear TEXT TOKENIZER",
            argv[0], argv[0], argv[0]);
}

/* Shared by the tests of build/prepare: running it as a user does, killing it, and what it wrote. The tokens
 * are bytes unless a test says otherwise, so that documents can be read back from the shards. */
#ifndef LLMC_TEST_PREPARE_H
#define LLMC_TEST_PREPARE_H

#include "test/scratch.h"

#include "llmc/corpus/dataloader.h"
#include "llmc/corpus/documents.h"
#include "llmc/base/rng.h"
#include "llmc/text/tokenizer.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

#define UNUSED __attribute__((unused)) /* not every test program needs everything */

/* --- files --- */

UNUSED static void *gzip(const void *data, size_t size, size_t *out_size) {
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    size_t room = size + size / 100 + 100;
    uint8_t *out = malloc(room);
    z.next_in = (Bytef *)(uintptr_t)data;
    z.avail_in = (uInt)size;
    z.next_out = out;
    z.avail_out = (uInt)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    *out_size = z.total_out;
    deflateEnd(&z);
    return out;
}

UNUSED static void *zstd(const void *data, size_t size, size_t *out_size) {
    size_t room = ZSTD_compressBound(size);
    void *out = malloc(room);
    *out_size = ZSTD_compress(out, room, data, size, 3);
    assert_false(ZSTD_isError(*out_size));
    return out;
}

/* Words of document `i`, about `size` bytes. The caller frees. */
UNUSED static char *prose(uint64_t i, int64_t size) {
    static const char *const words[] = {"the", "cat", "of", "\xc3\xa9t\xc3\xa9", "it's", "12", "\n", "house"};
    char *text = malloc((size_t)size + 64);
    int64_t n = sprintf(text, "%d:", (int)i);
    for (uint64_t k = 0; n < size; k++)
        n += sprintf(text + n, " %s", words[rng_philox(i, RNG_TEST, k).v[0] % 8]);
    return text;
}

UNUSED static void put_compressed(const char *name, const char *text, bool with_zstd, int members) {
    size_t size = strlen(text), packed = 0;
    char *all = malloc(2 * size + 4096);
    for (int k = 0; k < members; k++) {
        size_t from = size * (size_t)k / (size_t)members, to = size * (size_t)(k + 1) / (size_t)members, n;
        void *part = (with_zstd ? zstd : gzip)(text + from, to - from, &n);
        memcpy(all + packed, part, n);
        packed += n;
        free(part);
    }
    put_file(name, all, packed);
    free(all);
}

/* A text of a few thousand documents, for runs of some hundred milliseconds. */
UNUSED static void make_long_input(void) {
    FILE *f = fopen(in_scratch("long.txt"), "wb");
    for (int i = 0; i < 4000; i++) {
        char *text = prose((uint64_t)i, 200 + i % 300);
        fprintf(f, "%s\n<|endoftext|>\n", text);
        free(text);
    }
    fclose(f);
    char *all = get_file("long.txt", NULL);
    put_compressed("more.txt.gz", all, false, 2);
    free(all);
}

/* --- running the program --- */

struct result {
    int status; /* as waitpid gives it */
    char *out, *err;
};

UNUSED static const char *program(void) {
    static char path[PATH_MAX];
    const char *build = getenv("BUILD");
    snprintf(path, sizeof path, "%s/prepare", build && *build ? build : "build");
    return path;
}

UNUSED static void close_result(struct result *r) {
    free(r->out);
    free(r->err);
}

struct how {
    const char *input;   /* file for the standard input */
    int64_t kill_after;  /* microseconds; 0: do not */
    const char *kill_at; /* only count them from when this file is there */
    int64_t file_limit;  /* bytes; 0: none */
};

/* `arguments` are separated by blanks; "@" stands for the scratch directory. */
UNUSED static struct result run_how(struct how how, const char *arguments) {
    char *copy = malloc(strlen(arguments) * 40 + 16000), *to = copy, *argv[64];
    for (const char *p = arguments; *p; p++) {
        if (*p == '@')
            to += sprintf(to, "%s", scratch_directory());
        else
            *to++ = *p;
    }
    *to = 0;
    int n = 0;
    argv[n++] = (char *)(uintptr_t)program();
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " ")) argv[n++] = word;
    argv[n] = NULL;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int in = open(how.input ? how.input : "/dev/null", O_RDONLY);
        int out = open(in_scratch("stdout"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        int err = open(in_scratch("stderr"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(in, 0);
        dup2(out, 1);
        dup2(err, 2);
        if (how.file_limit) {
            signal(SIGXFSZ, SIG_IGN);
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)how.file_limit, RLIM_INFINITY});
        }
        alarm(120);
        execv(program(), argv);
        _exit(127);
    }
    struct result r = {0};
    bool ended = false;
    while (how.kill_at && !path_exists(how.kill_at) && !ended) {
        ended = waitpid(child, &r.status, WNOHANG) == child;
        usleep(100);
    }
    if (how.kill_after && !ended) {
        usleep((useconds_t)how.kill_after);
        kill(child, SIGKILL);
    }
    if (!ended) assert_int_equal(waitpid(child, &r.status, 0), child);
    r.out = get_file("stdout", NULL);
    r.err = get_file("stderr", NULL);
    free(copy);
    if (WIFEXITED(r.status) && WEXITSTATUS(r.status) == 127)
        fail_msg("%s: cannot be run; make it first", program());
    return r;
}

UNUSED static void expect(struct how how, int status, const char *arguments, const char *mentions) {
    struct result r = run_how(how, arguments);
    if (!WIFEXITED(r.status) || WEXITSTATUS(r.status) != status)
        fail_msg("prepare %s: status %#x instead of exit %d; it said: %s%s", arguments, (unsigned)r.status,
                 status, r.out, r.err);
    if (mentions && !strstr(r.err, mentions) && !strstr(r.out, mentions))
        fail_msg("prepare %s: \"%s%s\" does not mention \"%s\"", arguments, r.out, r.err, mentions);
    close_result(&r);
}

UNUSED static void prepare(const char *arguments) { expect((struct how){0}, 0, arguments, NULL); }
UNUSED static void refuses(const char *arguments, const char *mentions) {
    expect((struct how){0}, 1, arguments, mentions);
}

/* --- what it wrote --- */

UNUSED static bool exists(const char *name) { return path_exists(in_scratch("%s", name)); }

/* Files of a directory under final names, sorted; *count of them. None, if there is no such directory. */
UNUSED static char **list(const char *dir, int *count) {
    struct file_list l = {0};
    struct error err = {""};
    if (exists(dir) && !file_list_add(&l, in_scratch("%s", dir), NULL, NULL, &err))
        fail_msg("%s", err.message);
    *count = (int)l.count;
    return l.paths;
}

UNUSED static void free_list(char **paths, int count) {
    for (int i = 0; i < count; i++) free(paths[i]);
    free(paths);
}

UNUSED static void assert_same_directories(const char *a, const char *b) {
    int n, m;
    char **left = list(a, &n), **right = list(b, &m);
    if (n != m) fail_msg("%d files in %s, %d in %s", n, a, m, b);
    for (int i = 0; i < n; i++) {
        assert_string_equal(strrchr(left[i], '/'), strrchr(right[i], '/'));
        struct mapped_file x, y;
        struct error err = {""};
        assert_true(file_map(&x, left[i], &err) && file_map(&y, right[i], &err));
        if (x.size != y.size || memcmp(x.data, y.data, (size_t)x.size) != 0)
            fail_msg("%s and %s differ", left[i], right[i]);
        file_unmap(&x);
        file_unmap(&y);
    }
    free_list(left, n);
    free_list(right, m);
}

UNUSED static int count_final_shards(const char *dir) {
    int n, shards = 0;
    char **paths = list(dir, &n);
    for (int i = 0; i < n; i++) shards += strcmp(paths[i] + strlen(paths[i]) - 4, ".bin") == 0;
    free_list(paths, n);
    return shards;
}

/* The documents of one side of shards of bytes, each ended by NUL; the caller frees. */
UNUSED static char *read_back(const char *pattern, int64_t vocab, int64_t *documents) {
    struct error err = {""};
    struct dataset *d = dataset_open(in_scratch("%s", pattern), vocab, &err);
    if (!d) fail_msg("%s", err.message);
    int64_t total = dataset_tokens(d), n = 0, shards = dataset_shards(d), at = 0;
    dataset_free(d);
    char *text = malloc((size_t)total + 1);
    *documents = 0;
    for (int64_t k = 0; k < shards; k++) {
        char name[64];
        snprintf(name, sizeof name, "%.*s%06d.bin", (int)(strchr(pattern, '*') - pattern), pattern, (int)k);
        struct shard s;
        int fd = shard_open(&s, in_scratch("%s", name), &err);
        assert_true(fd >= 0);
        uint32_t *tokens = malloc((size_t)s.tokens * sizeof *tokens);
        assert_true(shard_read(&s, fd, 0, s.tokens, vocab, tokens, &err));
        for (int64_t i = 0; i < s.tokens; i++, at++) {
            if (at == 0)
                assert_int_equal(tokens[i], 256);
            else
                text[n++] = tokens[i] == 256 ? 0 : (char)tokens[i];
            *documents += tokens[i] == 256;
        }
        free(tokens);
        close(fd);
        shard_free(&s);
    }
    if (text[n - 1] == 0)
        (*documents)--; /* the end of the last one */
    else
        text[n++] = 0;
    return text;
}

/* Compares both sides: every expected document is the next one on one of them. */
UNUSED static void assert_documents(const char *dir, char *const *expected, int count, bool *validation) {
    char pattern[128];
    int64_t n[2];
    char *text[2];
    for (int side = 0; side < 2; side++) {
        snprintf(pattern, sizeof pattern, "%s/data_%s_*.bin", dir, side ? "val" : "train");
        text[side] = read_back(pattern, 257, &n[side]);
    }
    const char *at[2] = {text[0], text[1]};
    assert_int_equal(n[0] + n[1], count);
    for (int i = 0; i < count; i++) {
        int side = n[0] > 0 && strcmp(at[0], expected[i]) == 0 ? 0 : 1;
        if (n[side] <= 0 || strcmp(at[side], expected[i]) != 0)
            fail_msg("document %d, \"%.60s\", is not next on either side (\"%.60s\")", i, expected[i],
                     n[0] > 0 ? at[0] : "");
        at[side] += strlen(at[side]) + 1;
        n[side]--;
        if (validation) validation[i] = side;
    }
    free(text[0]);
    free(text[1]);
}

UNUSED static json_t *manifest(const char *dir) {
    char name[128];
    snprintf(name, sizeof name, "%s/manifest.json", dir);
    json_error_t e;
    json_t *m = json_load_file(in_scratch("%s", name), 0, &e);
    if (!m) fail_msg("%s: %s", name, e.text);
    return m;
}

UNUSED static int64_t number(const json_t *o, const char *key) {
    return json_integer_value(json_object_get(o, key));
}

/* Sizes, counts and checksums of the manifest against the files. */
UNUSED static void assert_manifest_is_true(const char *dir, int64_t shard_tokens) {
    json_t *m = manifest(dir);
    int shards = 0;
    for (int side = 0; side < 2; side++) {
        const json_t *s = json_object_get(m, side ? "validation" : "train");
        const json_t *files = json_object_get(s, "shards");
        int64_t tokens = 0;
        for (size_t i = 0; i < json_array_size(files); i++, shards++) {
            const json_t *f = json_array_get(files, i);
            char name[256];
            snprintf(name, sizeof name, "%s/%s", dir, json_string_value(json_object_get(f, "file")));
            struct mapped_file map;
            struct error err = {""};
            if (!file_map(&map, in_scratch("%s", name), &err)) fail_msg("%s", err.message);
            char hash[32];
            snprintf(hash, sizeof hash, "%016" PRIx64, XXH3_64bits(map.data, (size_t)map.size));
            assert_string_equal(hash, json_string_value(json_object_get(f, "xxh3")));
            assert_int_equal(map.size, number(f, "bytes"));
            file_unmap(&map);
            struct shard sh;
            int fd = shard_open(&sh, in_scratch("%s", name), &err);
            if (fd < 0) fail_msg("%s", err.message);
            assert_int_equal(sh.tokens, number(f, "tokens"));
            if (i + 1 < json_array_size(files)) assert_int_equal(sh.tokens, shard_tokens);
            assert_true(sh.tokens <= shard_tokens);
            tokens += sh.tokens;
            close(fd);
            shard_free(&sh);
        }
        assert_int_equal(tokens, number(s, "tokens"));
    }
    assert_int_equal(shards, count_final_shards(dir));
    char name[128];
    snprintf(name, sizeof name, "%s/tokenizer.json", dir);
    struct error err = {""};
    struct tokenizer *t = tokenizer_load(in_scratch("%s", name), &err);
    if (!t) fail_msg("%s", err.message);
    char hash[32];
    snprintf(hash, sizeof hash, "%016" PRIx64, tokenizer_hash(t));
    assert_string_equal(hash, json_string_value(json_object_get(json_object_get(m, "tokenizer"), "hash")));
    tokenizer_free(t);
    json_decref(m);
}

#endif

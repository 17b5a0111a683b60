/* build/prepare as a user runs it: inputs of every kind, shards and manifest, threads, interruption by
 * SIGKILL and by a full disk, bad input. The tokens are bytes unless a test says otherwise, so that
 * documents can be read back from the shards. */
#include "test/scratch.h"

#include "llmc/corpus/dataloader.h"
#include "llmc/corpus/documents.h"
#include "llmc/base/rng.h"
#include "llmc/text/tokenizer.h"

#include <dirent.h>
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

/* --- helpers: files --- */

static void *gzip(const void *data, size_t size, size_t *out_size) {
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

static void *zstd(const void *data, size_t size, size_t *out_size) {
    size_t room = ZSTD_compressBound(size);
    void *out = malloc(room);
    *out_size = ZSTD_compress(out, room, data, size, 3);
    assert_false(ZSTD_isError(*out_size));
    return out;
}

/* Words of document `i`, about `size` bytes. The caller frees. */
static char *prose(uint64_t i, int64_t size) {
    static const char *const words[] = {"the", "cat", "of", "\xc3\xa9t\xc3\xa9", "it's", "12", "\n", "house"};
    char *text = malloc((size_t)size + 64);
    int64_t n = sprintf(text, "%d:", (int)i);
    for (uint64_t k = 0; n < size; k++)
        n += sprintf(text + n, " %s", words[rng_philox(i, RNG_TEST, k).v[0] % 8]);
    return text;
}

/* --- helpers: running the program --- */

struct result {
    int status; /* as waitpid gives it */
    char *out, *err;
};

static const char *program(void) {
    static char path[PATH_MAX];
    const char *build = getenv("BUILD");
    snprintf(path, sizeof path, "%s/prepare", build && *build ? build : "build");
    return path;
}

static void close_result(struct result *r) {
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
static struct result run_how(struct how how, const char *arguments) {
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

static void expect(struct how how, int status, const char *arguments, const char *mentions) {
    struct result r = run_how(how, arguments);
    if (!WIFEXITED(r.status) || WEXITSTATUS(r.status) != status)
        fail_msg("prepare %s: status %#x instead of exit %d; it said: %s%s", arguments, (unsigned)r.status,
                 status, r.out, r.err);
    if (mentions && !strstr(r.err, mentions) && !strstr(r.out, mentions))
        fail_msg("prepare %s: \"%s%s\" does not mention \"%s\"", arguments, r.out, r.err, mentions);
    close_result(&r);
}

static void prepare(const char *arguments) { expect((struct how){0}, 0, arguments, NULL); }
static void refuses(const char *arguments, const char *mentions) {
    expect((struct how){0}, 1, arguments, mentions);
}

/* --- helpers: what it wrote --- */

static bool exists(const char *name) { return path_exists(in_scratch("%s", name)); }

/* Files of a directory under final names, sorted; *count of them. None, if there is no such directory. */
static char **list(const char *dir, int *count) {
    struct file_list l = {0};
    struct error err = {""};
    if (exists(dir) && !file_list_add(&l, in_scratch("%s", dir), NULL, NULL, &err))
        fail_msg("%s", err.message);
    *count = (int)l.count;
    return l.paths;
}

static void free_list(char **paths, int count) {
    for (int i = 0; i < count; i++) free(paths[i]);
    free(paths);
}

static void assert_same_directories(const char *a, const char *b) {
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

static int count_final_shards(const char *dir) {
    int n, shards = 0;
    char **paths = list(dir, &n);
    for (int i = 0; i < n; i++) shards += strcmp(paths[i] + strlen(paths[i]) - 4, ".bin") == 0;
    free_list(paths, n);
    return shards;
}

/* The documents of one side of shards of bytes, each ended by NUL; the caller frees. */
static char *read_back(const char *pattern, int64_t vocab, int64_t *documents) {
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
static void assert_documents(const char *dir, char *const *expected, int count, bool *validation) {
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

static json_t *manifest(const char *dir) {
    char name[128];
    snprintf(name, sizeof name, "%s/manifest.json", dir);
    json_error_t e;
    json_t *m = json_load_file(in_scratch("%s", name), 0, &e);
    if (!m) fail_msg("%s: %s", name, e.text);
    return m;
}

static int64_t number(const json_t *o, const char *key) {
    return json_integer_value(json_object_get(o, key));
}

/* Sizes, counts and checksums of the manifest against the files. */
static void assert_manifest_is_true(const char *dir, int64_t shard_tokens) {
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

/* --- inputs of every kind --- */

enum { PER_SOURCE = 60, SOURCES = 8, DOCS = PER_SOURCE * SOURCES };
static char *docs[DOCS];

/* Documents [first, first + PER_SOURCE) as a text or as JSON lines. */
static char *as_text(int first) {
    char *out = calloc(1, PER_SOURCE * 700);
    for (int i = first; i < first + PER_SOURCE; i++)
        sprintf(out + strlen(out), "%s%s\n", i > first ? "<|endoftext|>\n" : "", docs[i]);
    out[strlen(out) - 1] =
        0; /* without a line break at the end of the file, which would belong to the document */
    return out;
}

static char *as_json_lines(int first) {
    char *out = calloc(1, PER_SOURCE * 2000);
    for (int i = first; i < first + PER_SOURCE; i++) {
        json_t *line = json_pack("{s:i, s:s, s:{s:n}}", "id", i, "text", docs[i], "meta", "x");
        char *text = json_dumps(line, i % 2 ? JSON_ENSURE_ASCII : 0);
        sprintf(out + strlen(out), "%s%s\n", i % 7 == 0 ? "\n  \r\n" : "", text);
        free(text);
        json_decref(line);
    }
    return out;
}

static void put_compressed(const char *name, const char *text, bool with_zstd, int members) {
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

static void make_inputs(void) {
    for (int i = 0; i < DOCS; i++) docs[i] = prose((uint64_t)i, 20 + i % 500);
    char *text[SOURCES];
    for (int k = 0; k < SOURCES; k++)
        text[k] = k == 1 || k == 3 || k == 5 ? as_json_lines(k * PER_SOURCE) : as_text(k * PER_SOURCE);
    put_text("in/a.txt", text[0]);
    put_text("in/b.jsonl", text[1]);
    put_compressed("in/c.txt.gz", text[2], false, 3);
    put_compressed("in/d.jsonl.gz", text[3], false, 1);
    put_compressed("in/e.txt.zst", text[4], true, 3);
    put_compressed("in/sub/f.jsonl.zst", text[5], true, 1);
    put_compressed("in/sub/g", text[6], true, 1); /* told by its first bytes */
    put_text("h.txt", text[7]);
    put_file("in/sub/binary.bin", "a\0b", 3);
    put_text("in/.hidden", "not to be read");
    put_text("in/empty", "");
    for (int k = 0; k < SOURCES; k++) free(text[k]);
}

static void free_inputs(void) {
    for (int i = 0; i < DOCS; i++) free(docs[i]);
}

static void every_kind_of_input(void **state) {
    make_inputs();
    expect((struct how){.input = in_scratch("h.txt")}, 0,
           "--tokenizer bytes --validation-fraction 0.2 --shard-tokens 10000 --out @/out @/in -", "binary");
    assert_documents("out", docs, DOCS, NULL);
    assert_manifest_is_true("out", 10000);
    json_t *m = manifest("out");
    const json_t *sources = json_object_get(m, "sources");
    assert_int_equal(json_array_size(sources), 10);
    for (size_t i = 0; i < 10; i++) {
        const json_t *s = json_array_get(sources, i);
        const char *path = json_string_value(json_object_get(s, "path"));
        bool binary = strstr(path, "binary.bin"), empty = strstr(path, "empty");
        assert_int_equal(number(s, "documents"), binary || empty ? 0 : PER_SOURCE);
        if (binary) {
            assert_string_equal(json_string_value(json_object_get(s, "left_out")), "binary data");
            continue;
        }
        struct mapped_file f;
        struct error err;
        assert_true(file_map(&f, strcmp(path, "-") ? path : in_scratch("h.txt"), &err));
        char hash[32];
        snprintf(hash, sizeof hash, "%016" PRIx64, XXH3_64bits(f.data, (size_t)f.size));
        assert_string_equal(hash, json_string_value(json_object_get(s, "xxh3")));
        assert_int_equal(f.size, number(s, "bytes"));
        file_unmap(&f);
    }
    json_decref(m);
    free_inputs();
}

static void standard_input_in_json_lines(void **state) {
    char *lines[] = {"{\"body\": \"one\"}", "{\"body\": \"two\\u0000\\n\\ud83d\\ude00\"}", "{\"body\": \"\"}",
                     "{\"n\": 123456789012345678901234567890, \"body\": \"three\"}"};
    char text[512] = "\xef\xbb\xbf"; /* a byte order mark */
    for (int i = 0; i < 4; i++) sprintf(text + strlen(text), "%s\r\n", lines[i]);
    text[strlen(text) - 1] = 0; /* and no line break at the end */
    put_text("x", text);
    expect((struct how){.input = in_scratch("x")}, 0,
           "--tokenizer bytes --format jsonl --field body --out @/out --validation-fraction 0 -", NULL);
    int64_t n;
    char *back = read_back("out/data_train_*.bin", 257, &n);
    const char expected[] = "one\0two\0\n\xf0\x9f\x98\x80\0three";
    assert_int_equal(n, 3); /* the NUL in the second is a byte, not an end */
    assert_memory_equal(back, expected, sizeof expected);
    free(back);
    assert_int_equal(count_final_shards("out"), 1);
}

/* Separators, and lines that only begin like one, at every place around the borders of the blocks that are
 * read; a document longer than a batch. */
static void borders_do_not_matter(void **state) {
    enum { READ = 1 << 17, COUNT = 40 };
    FILE *f = fopen(in_scratch("t"), "wb");
    char *expected[COUNT + 1];
    int64_t at = 0;
    for (int i = 0; i < COUNT; i++) {
        int64_t border = (int64_t)READ * (i + 1) - i % 20; /* where the separator begins */
        const char *more = i < 20 ? "" : " is not the end";
        expected[i] = prose((uint64_t)i, border - at - 1);
        expected[i][border - at - 1] = 0;
        at += fprintf(f, "%s\n<|endoftext|>%s\n", expected[i], more);
    }
    expected[COUNT] = prose(77, 3500000);
    fprintf(f, "<|endoftext|>\r\n%s\r\n<|endoftext|>", expected[COUNT]);
    fclose(f);
    prepare("--tokenizer bytes --validation-fraction 0 --batch-size 4096 --shard-tokens 1e6 --out @/out @/t");
    int64_t n;
    char *back = read_back("out/data_train_*.bin", 257, &n), *p = back;
    assert_int_equal(n, 22);
    for (int i = 0; i < COUNT; i++) {
        size_t size = strlen(expected[i]);
        assert_memory_equal(p, expected[i], size);
        p += size;
        static const char joint[] = "\n<|endoftext|> is not the end\n";
        if (i < 20) assert_int_equal(*p++, 0);
        if (i >= 20 && i < COUNT - 1) assert_memory_equal(p, joint, sizeof joint - 1);
        if (i >= 20) p += sizeof joint - 1;
        free(expected[i]);
    }
    assert_string_equal(p, expected[COUNT]);
    assert_manifest_is_true("out", 1000000);
    free(back);
    free(expected[COUNT]);
}

/* --- the result depends on text and options only --- */

static void threads_change_nothing(void **state) {
    make_inputs();
    char name[32], arguments[256];
    for (int threads = 1; threads <= 5; threads += 2) {
        snprintf(
            arguments, sizeof arguments,
            "--tokenizer train:300 --batch-size 8k --shard-tokens 7k --threads %d --out @/out%d @/in @/h.txt",
            threads, threads);
        prepare(arguments);
        snprintf(name, sizeof name, "out%d", threads);
        assert_same_directories("out1", name);
    }
    assert_manifest_is_true("out1", 7168);
    /* Batches only decide the memory that is needed. */
    prepare("--tokenizer bytes --batch-size 4k --validation-fraction 0.2 --out @/a @/in");
    prepare("--tokenizer bytes --batch-size 100k --validation-fraction 0.2 --out @/b @/in");
    assert_int_equal(unlink(in_scratch("a/manifest.json")), 0);
    assert_int_equal(unlink(in_scratch("b/manifest.json")), 0);
    assert_same_directories("a", "b");
    free_inputs();
}

static void adding_files_moves_no_document(void **state) {
    make_inputs();
    bool before[DOCS], after[DOCS];
    prepare(
        "--tokenizer bytes --validation-fraction 0.2 --out @/a @/in/c.txt.gz @/in/d.jsonl.gz @/in/e.txt.zst");
    prepare("--tokenizer bytes --validation-fraction 0.2 --out @/b @/in @/h.txt");
    assert_documents("a", docs + 2 * PER_SOURCE, 3 * PER_SOURCE, before);
    assert_documents("b", docs, DOCS, after);
    assert_memory_equal(before, after + 2 * PER_SOURCE, 3 * PER_SOURCE * sizeof(bool));
    int kept = 0;
    for (int i = 0; i < DOCS; i++) kept += after[i];
    assert_in_range(kept, DOCS / 10, DOCS * 3 / 10);
    free_inputs();
}

/* A single small text is divided as train_gpt --text divides it. */
static void one_text_has_a_validation_set(void **state) {
    char *text = prose(3, 50000);
    put_text("t.txt", text);
    prepare("--tokenizer bytes --validation-fraction 0.1 --out @/out @/t.txt");
    json_t *m = manifest("out");
    assert_in_range(number(json_object_get(m, "validation"), "text_bytes"), 3000, 8000);
    json_decref(m);
    free(text);
    put_text("tiny.txt", "tiny");
    expect((struct how){0}, 0, "--tokenizer bytes --out @/tiny @/tiny.txt",
           "no document was chosen for validation");
    assert_int_equal(count_final_shards("tiny"), 1);
}

static void wide_vocabularies_give_wide_shards(void **state) {
    struct tokenizer *t = tokenizer_bytes();
    struct error err = {""};
    json_error_t e;
    assert_true(tokenizer_save(t, in_scratch("t.json"), &err));
    tokenizer_free(t);
    json_t *root = json_load_file(in_scratch("t.json"), 0, &e),
           *added = json_object_get(root, "added_tokens");
    assert_true(json_is_array(added));
    for (int id = 257; id < 65540; id++) {
        json_t *copy = json_deep_copy(json_array_get(added, 0));
        json_object_set_new(copy, "id", json_integer(id));
        json_object_set_new(copy, "content", json_sprintf("<|%d|>", id));
        json_array_append_new(added, copy);
    }
    assert_int_equal(json_dump_file(root, in_scratch("t.json"), 0), 0);
    json_decref(root);
    put_text("t.txt", "some text");
    prepare("--tokenizer @/t.json --validation-fraction 0 --out @/out @/t.txt");
    struct shard s;
    int fd = shard_open(&s, in_scratch("out/data_train_000000.bin"), &err);
    assert_true(fd >= 0);
    assert_int_equal(s.token_bytes, 4);
    close(fd);
    shard_free(&s);
    assert_manifest_is_true("out", 100000000);
}

/* --- interruption --- */

/* A text of a few thousand documents, for runs of some hundred milliseconds. */
static void make_long_input(void) {
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

#define LONG_RUN                                                                                             \
    " --tokenizer train:300 --batch-size 16k --shard-tokens 4k --validation-fraction 0.1 @/long.txt "        \
    "@/more.txt.gz"

/* Every file with a final name is a shard of the uninterrupted run. */
static void assert_final_names_are_whole(const char *dir, const char *reference) {
    int n;
    char **paths = list(dir, &n);
    for (int i = 0; i < n; i++) {
        const char *name = strrchr(paths[i], '/') + 1;
        if (strcmp(name + strlen(name) - 4, ".bin") != 0) continue;
        char other[256];
        snprintf(other, sizeof other, "%s/%s", reference, name);
        struct mapped_file x, y;
        struct error err = {""};
        assert_true(file_map(&x, paths[i], &err));
        if (!file_map(&y, in_scratch("%s", other), &err)) fail_msg("%s", err.message);
        if (x.size != y.size || memcmp(x.data, y.data, (size_t)x.size) != 0)
            fail_msg("%s is not whole", paths[i]);
        file_unmap(&x);
        file_unmap(&y);
    }
    free_list(paths, n);
}

/* Killed early, then at various moments after a further shard got its name. */
static void killed_and_resumed_equals_uninterrupted(void **state) {
    make_long_input();
    prepare("--out @/whole" LONG_RUN);
    const int shards = count_final_shards("whole");
    assert_true(shards > 50);
    int kills = 0, reached = 0;
    for (int round = 0;; round++) {
        if (round > 20) fail_msg("after 20 rounds the run is not complete");
        struct rng4 r4 = rng_philox(9, RNG_TEST, (uint64_t)round);
        char goal[64];
        reached += (int)(r4.v[0] % 11) + 1;
        snprintf(goal, sizeof goal, "parts/data_train_%06d.bin", reached);
        struct how how = {.kill_after = round < 8 ? 1 + (int64_t)(r4.v[1] % 6000) : 0};
        if (round > 0 && round < 8) how.kill_at = in_scratch("%s", goal);
        struct result r = run_how(how, "--resume --threads 2 --out @/parts" LONG_RUN);
        bool killed = WIFSIGNALED(r.status) && WTERMSIG(r.status) == SIGKILL;
        if (!killed && (!WIFEXITED(r.status) || WEXITSTATUS(r.status) != 0))
            fail_msg("round %d: status %#x: %s", round, (unsigned)r.status, r.err);
        close_result(&r);
        if (!killed) break;
        kills++;
        if (!exists("parts")) continue;
        assert_final_names_are_whole("parts", "whole");
        assert_false(exists("parts/manifest.json"));
        if (round == 3) { /* killed after the manifest was written and before the first of two renames */
            assert_true(exists("parts/manifest.json.partial"));
            assert_int_equal(rename(in_scratch("parts/data_train_000001.bin"),
                                    in_scratch("parts/data_train_000001.bin.partial")),
                             0);
        }
        reached = max_i64(reached, count_final_shards("parts") * 9 / 10);
    }
    assert_true(kills >= 3);
    assert_same_directories("whole", "parts");
    prepare("--resume --out @/parts" LONG_RUN); /* once more: all is there */
    assert_same_directories("whole", "parts");
}

/* Finished work is not repeated: its files stay the same. */
static void finished_shards_are_kept(void **state) {
    make_long_input();
    prepare("--out @/whole" LONG_RUN);
    struct how full = {.file_limit = 9500};
    /* The limit allows tokenizer and manifest at first, and stops the run when the manifest has grown. */
    struct result r = run_how(full, "--out @/parts" LONG_RUN);
    assert_true(WIFEXITED(r.status) && WEXITSTATUS(r.status) == 1);
    assert_mentions(r.err, "File too large");
    close_result(&r);
    int before = count_final_shards("parts");
    if (before == 0) fail_msg("nothing was finished under the limit");
    struct stat first, again;
    assert_int_equal(stat(in_scratch("parts/data_train_000000.bin"), &first), 0);
    assert_final_names_are_whole("parts", "whole");
    prepare("--resume --out @/parts" LONG_RUN);
    assert_int_equal(stat(in_scratch("parts/data_train_000000.bin"), &again), 0);
    assert_int_equal(first.st_ino, again.st_ino);
    assert_int_equal(first.st_mtim.tv_nsec, again.st_mtim.tv_nsec);
    assert_same_directories("whole", "parts");
}

static void a_full_disk_leaves_no_half_shard(void **state) {
    make_long_input();
    expect((struct how){.file_limit = 200000}, 1,
           "--tokenizer bytes --validation-fraction 0.1 --out @/out @/long.txt", "File too large");
    assert_int_equal(count_final_shards("out"), 0);
    assert_false(exists("out/manifest.json"));
    prepare(
        "--tokenizer bytes --validation-fraction 0.1 --out @/out @/long.txt"); /* nothing stands in the way */
    assert_manifest_is_true("out", 100000000);
}

static void flip_byte(const char *name, int64_t offset) {
    int fd = open(in_scratch("%s", name), O_RDWR);
    char byte = 0;
    assert_true(fd >= 0 && pread(fd, &byte, 1, offset) == 1);
    byte = (char)(byte ^ 1);
    assert_int_equal(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

/* An interrupted run in @/parts. */
static void interrupt(void) {
    assert_true(remove_tree(in_scratch("parts")));
    refuses("--overwrite --out @/parts --strict --tokenizer bytes --batch-size 16k --shard-tokens 10k "
            "--format text @/long.txt @/cut.gz",
            "--resume continues");
    assert_true(exists("parts/manifest.json.partial"));
    assert_true(count_final_shards("parts") > 2);
}

#define AGAIN " --tokenizer bytes --batch-size 16k --shard-tokens 10k --format text @/long.txt @/cut.gz"

static void resuming_what_does_not_fit_is_refused(void **state) {
    make_long_input();
    struct mapped_file f;
    struct error err = {""};
    assert_true(file_map(&f, in_scratch("more.txt.gz"), &err));
    put_file("cut.gz", f.data, (size_t)f.size / 2); /* an error that stops the run in its middle */
    interrupt();
    refuses("--out @/parts" AGAIN, "--resume");
    refuses("--resume --out @/parts --tokenizer bytes --batch-size 16k --shard-tokens 20k --format text "
            "@/long.txt @/cut.gz",
            "--shard-tokens is 20480 now, but was 10240");
    refuses("--resume --out @/parts --tokenizer bytes --batch-size 16k --shard-tokens 10k --format text "
            "@/long.txt",
            "1 input files now");
    refuses("--resume --out @/parts --tokenizer bytes --batch-size 16k --shard-tokens 10k --format text "
            "@/long.txt @/more.txt.gz",
            "more.txt.gz now");
    put_file("cut.gz", f.data, (size_t)f.size); /* the input was repaired: it is another one */
    refuses("--resume --out @/parts" AGAIN, "bytes now, but had");
    put_file("cut.gz", f.data, (size_t)f.size / 2);
    flip_byte("parts/data_train_000001.bin", 5000);
    refuses("--resume --out @/parts" AGAIN, "data_train_000001.bin: its checksum is");
    flip_byte("parts/data_train_000001.bin", 5000);
    assert_int_equal(truncate(in_scratch("parts/data_train_000000.bin"), 5000), 0);
    refuses("--resume --out @/parts" AGAIN, "has 5000 bytes, but had 21504");
    put_file("parts/manifest.json.partial", "{", 1);
    refuses("--resume --out @/parts" AGAIN, "manifest.json.partial: not valid JSON in line 1");
    put_text("parts/manifest.json.partial", "{\"format\": \"llmc token shards\", \"version\": 2}");
    refuses("--resume --out @/parts" AGAIN, "version 2, expected 1");
    static const char *const damaged[] = {
        "{\"format\": \"llmc token shards\", \"version\": 1}",
        "{\"format\": \"llmc token shards\", \"version\": 1, \"options\": 3, \"sources\": \"x\"}"};
    for (int i = 0; i < 2; i++) {
        put_text("parts/manifest.json.partial", damaged[i]);
        refuses("--resume --out @/parts" AGAIN, "--resume");
    }
    assert_int_equal(unlink(in_scratch("parts/manifest.json.partial")), 0);
    refuses("--resume --out @/parts" AGAIN, "is there already, and no manifest.json");
    put_file("cut.gz", f.data, (size_t)f.size);
    prepare("--overwrite --out @/parts" AGAIN);
    assert_manifest_is_true("parts", 10240);
    refuses("--out @/parts" AGAIN, "holds finished shards");
    file_unmap(&f);
}

static void unfinished_shards_are_checked(void **state) {
    make_long_input();
    struct mapped_file f;
    struct error err = {""};
    assert_true(file_map(&f, in_scratch("more.txt.gz"), &err));
    put_file("cut.gz", f.data, (size_t)f.size / 2);
    file_unmap(&f);
    interrupt();
    char name[64];
    int n;
    char **paths = list("parts", &n);
    bool found = false;
    for (int i = 0; i < n; i++)
        if (strstr(paths[i], "_train_") && strstr(paths[i], ".partial")) {
            snprintf(name, sizeof name, "parts%s", strrchr(paths[i], '/'));
            found = true;
        }
    free_list(paths, n);
    assert_true(found);
    flip_byte(name, 1024);
    refuses("--resume --out @/parts" AGAIN, "are not those that were written");
    flip_byte(name, 1024);
    refuses("--resume --out @/parts" AGAIN, "truncated"); /* as before */
    assert_int_equal(truncate(in_scratch("%s", name), 1024), 0);
    refuses("--resume --out @/parts" AGAIN, "the file ends there");
}

static void one_run_at_a_time(void **state) {
    make_long_input();
    assert_int_equal(mkdir(in_scratch("out"), 0700), 0);
    pid_t child = fork();
    if (child == 0) {
        char *argv[] = {(char *)(uintptr_t) "prepare",
                        (char *)(uintptr_t) "--tokenizer",
                        (char *)(uintptr_t) "bytes",
                        (char *)(uintptr_t) "--out",
                        xstrdup(in_scratch("out")),
                        (char *)(uintptr_t) "-",
                        NULL};
        int ends[2]; /* it waits for input that does not come */
        if (pipe(ends) != 0) _exit(1);
        dup2(ends[0], 0);
        execv(program(), argv);
        _exit(127);
    }
    usleep(300000);
    struct result r = {0};
    for (int i = 0; i < 20; i++) { /* until the other has started, on a busy machine */
        r = run_how((struct how){0}, "--overwrite --tokenizer bytes --out @/out @/long.txt");
        if (WEXITSTATUS(r.status) == 1) break;
        close_result(&r);
        usleep(100000);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_int_equal(WEXITSTATUS(r.status), 1);
    assert_mentions(r.err, "another build/prepare");
    close_result(&r);
    prepare("--overwrite --tokenizer bytes --out @/out @/long.txt"); /* the lock is gone with it */
}

/* --- bad input --- */

static void bad_lines_are_counted_and_named(void **state) {
    static const char text[] = "{\"text\": \"good\"}\n"
                               "{\"text\": \"cut off\n"
                               "\n"
                               "[1, 2]\n"
                               "{\"text\": 7}\n"
                               "{\"content\": \"other\", \"id\": 1}\n"
                               "{\"text\": \"bad \xff utf-8\"}\n"
                               "{\"text\": \"also good\"}\n";
    put_text("x.jsonl", text);
    struct result r =
        run_how((struct how){0}, "--tokenizer bytes --validation-fraction 0 --out @/out @/x.jsonl");
    assert_int_equal(r.status, 0);
    static const char *const parts[] = {"x.jsonl:2: skipped: not JSON", "x.jsonl:4: skipped: is an array",
                                        "x.jsonl:5: skipped: field \"text\" is a number",
                                        "x.jsonl:6: skipped: no field \"text\"; there are: content, id",
                                        "x.jsonl:7: skipped: not JSON"};
    for (size_t i = 0; i < ARRAY_LENGTH(parts); i++) assert_mentions(r.err, parts[i]);
    assert_mentions(r.out, "3 lines were skipped because they are not JSON");
    assert_mentions(r.out, "2 lines were skipped because they have no text");
    if (strchr(r.err, '\r') || strchr(r.err, '\033')) fail_msg("control characters in a file: %s", r.err);
    close_result(&r);
    int64_t n;
    char *back = read_back("out/data_train_*.bin", 257, &n);
    assert_int_equal(n, 2);
    assert_string_equal(back, "good");
    assert_string_equal(back + 5, "also good");
    free(back);
    json_t *m = manifest("out");
    const json_t *s = json_array_get(json_object_get(m, "sources"), 0);
    assert_int_equal(number(s, "malformed_lines"), 3);
    assert_int_equal(number(s, "lines_without_field"), 2);
    json_decref(m);
    refuses("--strict --tokenizer bytes --out @/strict @/x.jsonl", "x.jsonl:2: not JSON");
    assert_int_equal(count_final_shards("strict"), 0);
    refuses("--tokenizer bytes --field body --out @/body @/x.jsonl", "no text was found");
    assert_int_equal(count_final_shards("body"), 0);
    char many[4096] = "";
    for (int i = 0; i < 100; i++) strcat(many, "{}\n");
    strcat(many, "{\"text\":\"x\"}");
    put_text("many.jsonl", many);
    r = run_how((struct how){0}, "--tokenizer train:257 --validation-fraction 0 --out @/many @/many.jsonl");
    int reports = 0;
    for (const char *p = r.err; (p = strstr(p, "warning:")) != NULL; p++) reports++;
    assert_int_equal(reports, 10); /* once, though the text is read twice */
    assert_mentions(r.out, "100 lines");
    close_result(&r);
}

static void damaged_compression_is_an_error(void **state) {
    char *text = prose(1, 300000);
    size_t n[2];
    uint8_t *packed[2] = {gzip(text, strlen(text), &n[0]), zstd(text, strlen(text), &n[1])};
    static const char *const ends[] = {"gz", "zst"};
    char name[32], arguments[256];
    for (int k = 0; k < 2; k++) {
        snprintf(name, sizeof name, "t.txt.%s", ends[k]);
        snprintf(arguments, sizeof arguments,
                 "--overwrite --tokenizer bytes --batch-size 4k --shard-tokens 1e5 --out @/out @/%s", name);
        const size_t sizes[] = {n[k] - 1, n[k] / 2, 12, 3, 0};
        for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
            put_file(name, packed[k], sizes[i]);
            struct result r = run_how((struct how){0}, arguments);
            if (!WIFEXITED(r.status) || WEXITSTATUS(r.status) != 1)
                fail_msg("%zu bytes of %s: status %#x", sizes[i], name, (unsigned)r.status);
            assert_mentions(r.err, name);
            assert_mentions(r.err, sizes[i] > 10             ? "truncated"
                                   : sizes[i] == 3 && k == 0 ? "truncated"
                                                             : "begin like");
            close_result(&r);
            assert_false(exists("out/manifest.json"));
            assert_true(remove_tree(in_scratch("out")));
        }
        uint8_t *copy = malloc(n[k] + 8);
        memcpy(copy, packed[k], n[k]);
        memset(copy + n[k] / 2, 0x5a, 64);
        put_file(name, copy, n[k]);
        refuses(arguments, "damaged near byte");
        memcpy(copy, packed[k], n[k]);
        memcpy(copy + n[k], "garbage!", 8);
        put_file(name, copy, n[k] + 8);
        refuses("--overwrite --tokenizer bytes --out @/out @/t.txt.gz",
                k == 0 ? "another gzip member" : NULL);
        if (k == 1) refuses("--overwrite --tokenizer bytes --out @/out @/t.txt.zst", "damaged near byte");
        if (k == 0) { /* zeros are padding */
            memset(copy + n[k], 0, 8);
            put_file("padded.gz", copy, n[k] + 8);
            prepare("--overwrite --tokenizer bytes --out @/out @/padded.gz");
        }
        free(copy);
        free(packed[k]);
    }
    put_text("fake.gz", "this is text");
    refuses("--overwrite --tokenizer bytes --out @/out @/fake.gz", "does not begin like gzip");
    free(text);
}

/* While it waits for the standard input, its input file grows. */
static void files_that_change_are_noticed(void **state) {
    put_text("t", "some text");
    assert_int_equal(mkfifo(in_scratch("fifo"), 0600), 0);
    pid_t child = fork();
    if (child == 0) {
        int writer = open(in_scratch("fifo"), O_WRONLY);
        for (int i = 0; i < 10000 && !exists("out/tokenizer.json"); i++) usleep(1000);
        put_text("t", "some more text");
        close(writer);
        _exit(0);
    }
    refuses("--tokenizer bytes --out @/out @/fifo @/t", "had 9 bytes and now has 14");
    waitpid(child, NULL, 0);
}

static void text_of_any_bytes(void **state) {
    put_file("t", "caf\xe9\0and more", 13);
    expect((struct how){0}, 0, "--tokenizer bytes --format text --validation-fraction 0 --out @/out @/t",
           "not UTF-8");
    int64_t n;
    char *back = read_back("out/data_train_*.bin", 257, &n);
    assert_memory_equal(back, "caf\xe9\0and more", 14);
    free(back);
    json_t *m = manifest("out");
    assert_int_equal(number(json_object_get(m, "train"), "tokens"), 15); /* with <|endoftext|> at both ends */
    json_decref(m);
    put_text("empty", "");
    refuses("--tokenizer bytes --out @/none @/empty", "no text was found");
    assert_int_equal(mkdir(in_scratch("dir"), 0700), 0);
    refuses("--tokenizer bytes --out @/none @/dir", "no file in this directory");
    refuses("--tokenizer bytes --out @/none @/missing", "missing: cannot read: No such file");
    refuses("--tokenizer bytes --out @/empty/x @/t", "cannot create directory");
}

static void tokenizers_by_name(void **state) {
    put_text("t", "The quick brown fox. The quick brown fox. The quick brown fox, again and again.");
    refuses("--tokenizer @/nothing --out @/out @/t", "nothing");
    refuses("--tokenizer train:100 --out @/out @/t", "from 257 to");
    refuses("--tokenizer train:1x --out @/out @/t", "expected train:N");
    refuses("--tokenizer train:300 --out @/out -", "can be read only once");
    if (!path_is_directory("data/gpt2")) refuses("--tokenizer gpt2 --out @/out @/t", "data/download.sh gpt2");
    prepare("--tokenizer train:280 --validation-fraction 0 --out @/one @/t");
    prepare("--tokenizer @/one/tokenizer.json --validation-fraction 0 --out @/two @/t");
    prepare("--tokenizer @/one --validation-fraction 0 --out @/three @/t"); /* a directory that holds one */
    assert_true(remove_tree(in_scratch("one/manifest.json")) &&
                remove_tree(in_scratch("two/manifest.json")) &&
                remove_tree(in_scratch("three/manifest.json")));
    assert_same_directories("one", "two");
    assert_same_directories("one", "three");
    json_t *root;
    json_error_t e;
    root = json_load_file(in_scratch("one/tokenizer.json"), 0, &e);
    json_array_clear(json_object_get(root, "added_tokens"));
    assert_int_equal(json_dump_file(root, in_scratch("none.json"), 0), 0);
    json_decref(root);
    refuses("--tokenizer @/none.json --out @/out @/t", "no <|endoftext|>");
}

static void options_are_checked(void **state) {
    put_text("t", "text");
    static const struct {
        const char *arguments, *mentions;
    } cases[] = {{"@/t", "--tokenizer"},
                 {"--tokenizer bytes", "INPUT"},
                 {"--tokenizer bytes --shard-tokens 1 @/t", "--shard-tokens"},
                 {"--tokenizer bytes --shard-tokens 3e9 @/t", "--shard-tokens"},
                 {"--tokenizer bytes --validation-fraction 0.6 @/t", "--validation-fraction"},
                 {"--tokenizer bytes --name a/b @/t", "--name"},
                 {"--tokenizer bytes --resume --overwrite @/t", "exclude"},
                 {"--tokenizer bytes --treads 2 @/t", "--threads"}};
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        expect((struct how){0}, 2, cases[i].arguments, cases[i].mentions);
    expect((struct how){0}, 0, "--help", "prepare --tokenizer WHICH");
}

/* The output directory is below the input directory: its files are no input. */
static void output_is_not_input(void **state) {
    put_text("in/t", "some text");
    prepare("--tokenizer bytes --validation-fraction 0 --out @/in/shards @/in");
    prepare("--tokenizer bytes --validation-fraction 0 --out @/in/shards --overwrite @/in");
    json_t *m = manifest("in/shards");
    assert_int_equal(json_array_size(json_object_get(m, "sources")), 1);
    json_decref(m);
    prepare("--tokenizer bytes --validation-fraction 0 --out @/in/shards --resume @/in/");
}

/* On a terminal: a line that is redrawn. */
static void terminals_get_a_bar(void **state) {
    make_long_input();
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) skip();
    char *name = xstrdup(ptsname(master)), output[1 << 15];
    pid_t child = fork();
    if (child == 0) {
        int slave = open(name, O_RDWR | O_NOCTTY), ends[2], null = open("/dev/null", O_WRONLY);
        if (slave < 0 || pipe(ends) != 0) _exit(1);
        dup2(slave, 2);
        dup2(null, 1);
        if (fork() == 0) { /* a source of which more and more comes, slowly */
            for (int i = 0; i < 60; i++) {
                usleep(20000);
                if (write(ends[1], "some text\n<|endoftext|>\n", 23) != 23) _exit(1);
            }
            _exit(0);
        }
        close(ends[1]);
        dup2(ends[0], 0);
        char *argv[] = {(char *)(uintptr_t) "prepare", (char *)(uintptr_t) "--tokenizer",
                        (char *)(uintptr_t) "bytes",   (char *)(uintptr_t) "--out",
                        xstrdup(in_scratch("out")),    xstrdup(in_scratch("long.txt")),
                        (char *)(uintptr_t) "-",       (char *)(uintptr_t) "--batch-size",
                        (char *)(uintptr_t) "4096",    NULL};
        execv(program(), argv);
        _exit(127);
    }
    size_t n = 0;
    int status = -1;
    fcntl(master, F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 3000; i++) {
        ssize_t got = read(master, output + n, sizeof output - 1 - n);
        if (got > 0)
            n += (size_t)got;
        else if (waitpid(child, &status, WNOHANG) == child)
            break;
        else
            usleep(10000);
    }
    output[n] = 0;
    close(master);
    free(name);
    assert_int_equal(status, 0);
    assert_mentions(output, "\rencoding");
    assert_mentions(output, "MB/s");
    assert_mentions(output, "tokens");
    assert_mentions(output, "\033[K");
}

int main(int argc, char **argv) {
    /* In memory: most of the time would go into flushing hundreds of small shards to a disk. */
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 0);
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(every_kind_of_input),
        SCRATCH_TEST(standard_input_in_json_lines),
        SCRATCH_TEST(borders_do_not_matter),
        SCRATCH_TEST(threads_change_nothing),
        SCRATCH_TEST(adding_files_moves_no_document),
        SCRATCH_TEST(one_text_has_a_validation_set),
        SCRATCH_TEST(wide_vocabularies_give_wide_shards),
        SCRATCH_TEST(killed_and_resumed_equals_uninterrupted),
        SCRATCH_TEST(finished_shards_are_kept),
        SCRATCH_TEST(a_full_disk_leaves_no_half_shard),
        SCRATCH_TEST(resuming_what_does_not_fit_is_refused),
        SCRATCH_TEST(unfinished_shards_are_checked),
        SCRATCH_TEST(one_run_at_a_time),
        SCRATCH_TEST(bad_lines_are_counted_and_named),
        SCRATCH_TEST(damaged_compression_is_an_error),
        SCRATCH_TEST(files_that_change_are_noticed),
        SCRATCH_TEST(text_of_any_bytes),
        SCRATCH_TEST(tokenizers_by_name),
        SCRATCH_TEST(options_are_checked),
        SCRATCH_TEST(output_is_not_input),
        SCRATCH_TEST(terminals_get_a_bar),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* The description of shards that an interrupted `prepare` left, beside valid files. */
#include "test/fuzz/fuzz.h"

#include "data/shard_set.h"
#include "llmc/base/file.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 4 };
static const uint32_t tokens[] = {1, 2, 3, 4, 5, 6};

/* One whole shard, an open one with two tokens, and their description. */
static json_t *make_shards(void) {
    struct shard_set s;
    struct error err;
    shard_set_init(&s, fuzz_path(""), "x", 2, MOST);
    check(shard_set_append(&s, tokens, ARRAY_LENGTH(tokens), &err) && shard_set_sync(&s, &err), "%s",
          err.message);
    json_t *note = shard_set_describe(&s, false);
    check(shard_set_publish(&s, &err), "%s", err.message);
    shard_set_free(&s);
    return note;
}

/* All inputs use the same two files; making them again would wait for the disk. */
static void restore_files(void) {
    static const char *const names[] = {"x_000000.bin", "x_000001.bin.partial"};
    static struct mapped_file files[ARRAY_LENGTH(names)];
    struct error err;
    if (!files[0].data) json_decref(make_shards());
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        check(files[i].data || file_map(&files[i], fuzz_path(names[i]), &err), "%s", err.message);
        fuzz_file(names[i], files[i].data, (size_t)files[i].size);
    }
    remove(fuzz_path("x_000000.bin.partial"));
    remove(fuzz_path("x_000001.bin"));
}

FUZZ_TARGET(shard_set) {
    struct error err;
    struct shard_set s;
    json_t *note = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, NULL);
    if (!note) return 0;
    restore_files();
    shard_set_init(&s, fuzz_path(""), "x", 2, MOST);
    if (shard_set_restore(&s, note, &err)) {
        /* What was taken up can be gone on with. */
        check(shard_set_append(&s, tokens, ARRAY_LENGTH(tokens), &err), "%s", err.message);
        fuzz_accept();
    }
    shard_set_free(&s);
    json_decref(note);
    return 0;
}

FUZZ_SEEDS(shard_set) {
    json_t *note = make_shards();
    char *text = json_dumps(note, 0);
    add(user, text, strlen(text));
    free(text);
    json_decref(note);
}

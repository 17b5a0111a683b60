/* trainer.json of a checkpoint. Its checksum is corrected first, so that the rest is parsed too, unless the
 * input ends with a space. */
#include "test/fuzz/fuzz.h"

#include "llmc/format/checkpoint.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

FUZZ_TARGET(trainer) {
    struct error err;
    struct train_state state;
    char tail[64];
    int tail_size =
        snprintf(tail, sizeof tail, ",\n  \"xxh3\": \"%016" PRIx64 "\"\n}\n", XXH3_64bits(data, size));
    uint8_t *file = xmalloc(size + sizeof tail);
    if (size) memcpy(file, data, size);
    memcpy(file + size, tail, (size_t)tail_size);
    bool as_is = size > 0 && data[size - 1] == ' ';
    fuzz_file("trainer.json", file, size + (as_is ? 0 : (size_t)tail_size));
    if (checkpoint_load_state(&state, fuzz_path(""), &err)) fuzz_accept();
    train_state_free(&state);
    free(file);
    return 0;
}

FUZZ_SEEDS(trainer) {
    static const char text[] =
        "{\n  \"format\": 1,\n  \"step\": 30,\n  \"sample\": 240,\n  \"tokens\": 61440,\n  \"data\": "
        "\"0123456789abcdef\",\n  \"best_val_loss\": 2.5,\n  \"options\": {\"values\": {\"batch-size\": 4}, "
        "\"explicit\": [\"batch-size\"]},\n  \"extra\": null,\n  \"files\": {\"config.json\": {\"bytes\": "
        "100, \"xxh3\": \"fedcba9876543210\"}}";
    add(user, text, sizeof text - 1);
}

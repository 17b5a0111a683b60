/* Everything that is handed over as text: text and JSON lines, plain, gzip or Zstandard, and what is
 * neither. The last byte selects format, field, and whether the file was named. */
#include "test/fuzz/fuzz.h"

#include "llmc/corpus/text_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

FUZZ_TARGET(text_source) {
    struct error err;
    uint8_t how = size ? data[size - 1] : 0;
    struct source_list list = {
        .options = {.format = (enum text_format)(how % 3), .field = how & 64 ? "text" : NULL}};
    struct text_batch b = {0};
    const char *path = fuzz_file("text", data, size);
    check(source_list_add(&list, path, &err), "%s", err.message);
    list.sources[0].in_directory = how & 32;
    struct text_reader *r = text_reader_new(&list, NULL, MOST_DOCUMENT);
    struct text_remarks remarks = {0};
    bool ok;
    int batches = 0;
    while ((ok = text_reader_next(r, &b, 64, &err)) && batches++ < 1000) {
        struct text_documents d;
        for (int64_t i = 0; i < b.count; i++) {
            const struct text_record *t = &b.records[i];
            check(t->at >= 0 && t->size >= 0 && t->at + t->size <= b.size, "a record outside of its batch");
        }
        text_documents_open(&d, &list, &b);
        text_remarks_add(&remarks, &list, &b, &d);
        text_documents_close(&d);
        if (b.last) break;
    }
    char *remark;
    for (int i = 0; (remark = text_remark(&remarks, i)) != NULL; i++) free(remark);
    if (ok) fuzz_accept();
    text_remarks_free(&remarks);
    text_batch_free(&b);
    text_reader_free(r);
    source_list_free(&list);
    return 0;
}

FUZZ_SEEDS(text_source) {
    static const char text[] =
        "A document.\n\nMore of it.\n<|endoftext|>\nAnother one.\n<|endoftext|>\n\xC3\xA9\n\n";
    static const char lines[] =
        "{\"text\": \"one\", \"id\": 1}\n\n{\"text\": \"t\\u00e9\\nwo\"}\r\n{\"no\": 1}\n{bad\n";
    add(user, text, sizeof text - 1);
    add(user, lines, sizeof lines - 2);
    uint8_t packed[1024];
    size_t n = ZSTD_compress(packed, sizeof packed, text, sizeof text - 1, 3);
    check(!ZSTD_isError(n), "Zstandard");
    add(user, packed, n);
    z_stream z = {0};
    check(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK, "gzip");
    z.next_in = (Bytef *)(uintptr_t)text;
    z.avail_in = sizeof text - 1;
    z.next_out = packed;
    z.avail_out = sizeof packed;
    check(deflate(&z, Z_FINISH) == Z_STREAM_END, "gzip");
    add(user, packed, z.total_out);
    deflateEnd(&z);
}

/* What is text, by its first bytes: every format that has a name, the borders between text and binary,
 * and texts that begin like something else. */
#include "test/scratch.h"

#include "llmc/corpus/content.h"

#include <stdlib.h>
#include <string.h>

#define BYTES(text) text, sizeof(text) - 1
#define TEXT        CONTENT_TEXT, NULL

static const struct {
    const char *bytes;
    size_t size;
    enum content_class class;
    const char *name;
} cases[] = {
    {BYTES("Once upon a time.\n"), TEXT},
    {BYTES(""), TEXT},
    {BYTES("\xef\xbb\xbf"
           "Once.\n"),
     TEXT},
    {BYTES("\xef\xbb\xbf"), TEXT},
    {BYTES("na\xc3\xafve caf\xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac"), TEXT},
    {BYTES("na\xefve caf\xe9, in Latin-1"), TEXT},
    {BYTES("\x1b[1mbold\x1b[0m\ttab\f\v\b\r\n"), TEXT},
    {BYTES("one\0two"), CONTENT_BINARY, "binary data"},
    {BYTES("\x01\x02\x9d\xff\x03 ab"), CONTENT_BINARY, "binary data"},
    {BYTES("\x01 in valid UTF-8 is odd, but text"), TEXT},
    {BYTES("\xff\xfeO\0n\0c\0e\0"), CONTENT_BINARY, "UTF-16 text"},
    {BYTES("\xfe\xff\0O\0n\0c\0e"), CONTENT_BINARY, "UTF-16 text"},
    {BYTES("O\0n\0c\0e\0 \0u\0p\0"), CONTENT_BINARY, "UTF-16 text"},
    {BYTES("\0O\0n\0c\0e\0 \0u\0p"), CONTENT_BINARY, "UTF-16 text"},
    {BYTES("\xff\xfe\0\0O\0\0\0"), CONTENT_BINARY, "UTF-32 text"},
    {BYTES("BZh91AY&SY\x01\x02"), CONTENT_BINARY, "bzip2 data"},
    {BYTES("BZhang wrote this"), TEXT},
    {BYTES("\xfd"
           "7zXZ\0\0\x04"),
     CONTENT_BINARY, "xz data"},
    {BYTES("\x1f\x8b\x08\0"), CONTENT_BINARY, "gzip data"},
    {BYTES("\x28\xb5\x2f\xfd\x04"), CONTENT_BINARY, "Zstandard data"},
    {BYTES("PK\3\4\x14\0"), CONTENT_BINARY, "zip archive"},
    {BYTES("PK, said he"), TEXT},
    {BYTES("PAR1\x15\x04\x15\0"), CONTENT_BINARY, "Parquet table"},
    {BYTES("PAR1 is a word, too"), TEXT},
    {BYTES("ARROW1\0\0"), CONTENT_BINARY, "Arrow table"},
    {BYTES("ORCHARDS bear apples"), TEXT},
    {BYTES("SQLite format 3\0\x10\0"), CONTENT_BINARY, "SQLite database"},
    {BYTES("\x88\xd7\x34\x01\x01\0\0\0"), CONTENT_BINARY, "token shard"},
    {BYTES("\x89PNG\r\n\x1a\n"), CONTENT_BINARY, "PNG picture"},
    {BYTES("\xff\xd8\xff\xe0"), CONTENT_BINARY, "JPEG picture"},
    {BYTES("GIF89a\x01\0"), CONTENT_BINARY, "GIF picture"},
    {BYTES("GIF89a is an old format"), TEXT},
    {BYTES("BMX\0\0"), CONTENT_BINARY, "BMP picture"},
    {BYTES("BMX is a bicycle"), TEXT},
    {BYTES("\0\0\0\x18"
           "ftypmp42"),
     CONTENT_BINARY, "MP4 media"},
    {BYTES("%PDF-1.7\n"), CONTENT_BINARY, "PDF document"},
    {BYTES("MZ\x90\0"), CONTENT_BINARY, "program"},
    {BYTES("\x7f"
           "ELF\x02"),
     CONTENT_BINARY, "program"},
    {BYTES("{\"text\": \"one\"}\n{\"text\": \"two\"}\n"), CONTENT_JSON_LINES, "JSON lines"},
    {BYTES("\n {\"text\": \"one {\\\"\", \"n\": [1]}"), CONTENT_JSON_LINES, "JSON lines"},
    {BYTES("\xef\xbb\xbf{\"a\":1}\n"), CONTENT_JSON_LINES, "JSON lines"},
    {BYTES("{\n  \"text\": \"one\"\n}\n"), CONTENT_STRUCTURED, "JSON"},
    {BYTES("[{\"text\": \"one\"}, {\"text\": \"two\"}]"), CONTENT_STRUCTURED, "JSON"},
    {BYTES("[\n  \"one\", \"two\"]"), CONTENT_STRUCTURED, "JSON"},
    {BYTES("[1, 2, [3]]"), CONTENT_STRUCTURED, "JSON"},
    {BYTES("{'text': 'Python, not JSON'}\n"), TEXT},
    {BYTES("{ return \"a block\"; }\n"), TEXT},
    {BYTES("[1] First footnote.\n"), TEXT},
    {BYTES("[[Category:Wiki]]\n"), TEXT},
    {BYTES("[\"Quoted,\" he said]\n"), TEXT},
    {BYTES("{\"unclosed"), TEXT},
    {BYTES("{"), TEXT},
    {BYTES("<!DOCTYPE html>\n<title>x</title>"), CONTENT_STRUCTURED, "HTML"},
    {BYTES(" \n<HTML lang=en>"), CONTENT_STRUCTURED, "HTML"},
    {BYTES("<?xml version=\"1.0\"?><a/>"), CONTENT_STRUCTURED, "XML"},
    {BYTES("<?php echo 1;"), TEXT},
    {BYTES("<svg xmlns=\"x\"><g></g></svg>"), CONTENT_STRUCTURED, "SVG picture"},
    {BYTES("<div><p>a</p><p>b</p></div>"), CONTENT_STRUCTURED, "markup"},
    {BYTES("<doc id=1>\nA long enough article, with little markup around it.\n</doc>\n<doc id=2>\nAnother "
           "article, which is just as long as the first.\n</doc>\n"),
     TEXT},
    {BYTES("<|endoftext|>\nOnce.\n"), TEXT},
    {BYTES("<speaker> says hello"), TEXT},
    {BYTES("{\\rtf1\\ansi"), CONTENT_STRUCTURED, "RTF document"},
    {BYTES("%!PS-Adobe-3.0"), CONTENT_STRUCTURED, "PostScript document"},
    {BYTES("WARC/1.0\r\n"), CONTENT_STRUCTURED, "web archive (WARC)"},
    {BYTES("a,b\n1,2\n"), TEXT},
};

static void first_bytes_decide(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        char *exact = malloc(cases[i].size + 1); /* so that the sanitizer sees a read beyond the end */
        memcpy(exact, cases[i].bytes, cases[i].size);
        struct content c = content_of(exact, (int64_t)cases[i].size, true);
        bool mark = cases[i].size >= 3 && !memcmp(cases[i].bytes, "\xef\xbb\xbf", 3);
        if (c.class != cases[i].class || !c.name != !cases[i].name ||
            (c.name && strcmp(c.name, cases[i].name) != 0) || c.mark != (mark ? 3 : 0))
            fail_msg("case %zu, \"%.20s\": class %d, %s, mark %d", i, cases[i].bytes, c.class,
                     c.name ? c.name : "text", c.mark);
        free(exact);
    }
}

/* What is cut off is not held against a text. */
static void heads_are_cut_anywhere(void **state) {
    (void)state;
    static const char word[] = "\xf0\x9f\x98\x80";
    char head[64];
    for (int k = 0; k < 64; k++) head[k] = word[k % 4];
    for (int size = 1; size <= 64; size++) {
        struct content c = content_of(head, size, false);
        assert_int_equal(c.class, CONTENT_TEXT);
    }
    char *line = malloc(CONTENT_HEAD);
    memset(line, 'a', CONTENT_HEAD);
    memcpy(line, "{\"text\": \"", 10);
    assert_int_equal(content_of(line, CONTENT_HEAD, false).class, CONTENT_JSON_LINES); /* a very long line */
    memcpy(line, "[{\"a\": \"", 8);
    assert_int_equal(content_of(line, CONTENT_HEAD, false).class, CONTENT_STRUCTURED);
    memset(line, ' ', CONTENT_HEAD);
    memcpy(line + 257, "ustar", 5);
    assert_string_equal(content_of(line, CONTENT_HEAD, false).name, "tar archive");
    free(line);
}

/* Random bytes are no text, whatever they begin with; 50 to 1 is the border for bytes that are not
 * UTF-8. */
static void control_characters_decide(void **state) {
    (void)state;
    char bytes[1000];
    for (int controls = 0; controls <= 40; controls++) {
        memset(bytes, 0xe9, sizeof bytes);
        memset(bytes, 1, (size_t)controls);
        struct content c = content_of(bytes, sizeof bytes, true);
        assert_int_equal(c.class, controls > 20 ? CONTENT_BINARY : CONTENT_TEXT);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_bytes_decide),
        cmocka_unit_test(heads_are_cut_anywhere),
        cmocka_unit_test(control_characters_decide),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

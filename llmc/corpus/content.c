/* Recognises contents that are not text. A table of signatures names the common formats; the other
 * binary ones give themselves away by NUL bytes and control characters. JSON and markup are told by how
 * they begin, because a text may hold a brace or a tag anywhere else. */
#include "llmc/corpus/content.h"

#include "llmc/base/utf8.h"

#include <ctype.h>
#include <jansson.h>
#include <string.h>
#include <strings.h>

static const char to_json_lines[] = "convert it to JSON lines", decompress[] = "decompress it first",
                  unpack[] = "unpack it first", extract[] = "extract its text first",
                  to_utf8[] = "convert it to UTF-8, with iconv for example";

/* `letters`: a text could begin like that, so other bytes must speak against text, too. */
static const struct signature {
    int at, size;
    const char *bytes, *name, *advice;
    bool letters;
} signatures[] = {
#define BYTES(text) sizeof(text) - 1, text
    {0, BYTES("\xff\xfe\0\0"), "UTF-32 text", to_utf8, false},
    {0, BYTES("\0\0\xfe\xff"), "UTF-32 text", to_utf8, false},
    {0, BYTES("\xff\xfe"), "UTF-16 text", to_utf8, false},
    {0, BYTES("\xfe\xff"), "UTF-16 text", to_utf8, false},
    {0, BYTES("\xfd\x37zXZ"), "xz data", decompress, false},
    {0, BYTES("\x04\x22\x4d\x18"), "LZ4 data", decompress, false},
    {0, BYTES("LZIP\x01"), "lzip data", decompress, false},
    {0, BYTES("\x5d\0\0"), "LZMA data", decompress, false},
    {0, BYTES("\x1f\x9d"), "compress data", decompress, false},
    {0, BYTES("\x1f\x8b"), "gzip data", decompress, false}, /* within what was decompressed already */
    {0, BYTES("\x28\xb5\x2f\xfd"), "Zstandard data", decompress, false},
    {0, BYTES("\xff\x06\0\0sNaPpY"), "Snappy data", decompress, false},
    {0, BYTES("PK\3\4"), "zip archive", unpack, false},
    {0, BYTES("PK\5\6"), "zip archive", unpack, false},
    {0, BYTES("7z\xbc\xaf\x27\x1c"), "7z archive", unpack, false},
    {0, BYTES("Rar!\x1a\x07"), "RAR archive", unpack, false},
    {257, BYTES("ustar"), "tar archive", unpack, false},
    {0, BYTES("!<arch>\n"), "ar archive", unpack, false},
    {0, BYTES("PAR1"), "Parquet table", to_json_lines, true},
    {0, BYTES("ARROW1\0\0"), "Arrow table", to_json_lines, false},
    {0, BYTES("\xff\xff\xff\xff"), "Arrow stream", to_json_lines, false},
    {0, BYTES("FEA1"), "Feather table", to_json_lines, true},
    {0, BYTES("ORC"), "ORC table", to_json_lines, true},
    {0, BYTES("Obj\x01"), "Avro table", to_json_lines, false},
    {0, BYTES("SQLite format 3\0"), "SQLite database", to_json_lines, false},
    {0, BYTES("\x89HDF\r\n\x1a\n"), "HDF5 file", to_json_lines, false},
    {0, BYTES("\x93NUMPY"), "NumPy array", NULL, false},
    {0, BYTES("GGUF"), "GGUF model", NULL, true},
    {0, BYTES("\x80\x02"), "Python pickle", NULL, false},
    {0, BYTES("\x80\x03"), "Python pickle", NULL, false},
    {0, BYTES("\x80\x04\x95"), "Python pickle", NULL, false},
    {0, BYTES("\x80\x05\x95"), "Python pickle", NULL, false},
    {0, BYTES("\x88\xd7\x34\x01"), "token shard", "give it to --data", false},
    {0, BYTES("\xc1\xd8\x34\x01"), "token shard", "give it to --data", false},
    {0, BYTES("\x89PNG"), "PNG picture", NULL, false},
    {0, BYTES("\xff\xd8\xff"), "JPEG picture", NULL, false},
    {0, BYTES("GIF8"), "GIF picture", NULL, true},
    {0, BYTES("RIFF"), "RIFF media", NULL, true},
    {0, BYTES("II*\0"), "TIFF picture", NULL, false},
    {0, BYTES("MM\0*"), "TIFF picture", NULL, false},
    {0, BYTES("BM"), "BMP picture", NULL, true},
    {4, BYTES("ftyp"), "MP4 media", NULL, true},
    {0, BYTES("ID3"), "MP3 sound", NULL, true},
    {0, BYTES("OggS"), "Ogg media", NULL, true},
    {0, BYTES("fLaC"), "FLAC sound", NULL, true},
    {0, BYTES("\x1a\x45\xdf\xa3"), "Matroska media", NULL, false},
    {0, BYTES("%PDF-"), "PDF document", extract, false},
    {0, BYTES("\xd0\xcf\x11\xe0"), "Word or Excel document", extract, false},
    {0, BYTES("AT&TFORM"), "DjVu document", extract, false},
    {0, BYTES("\x7f\x45LF"), "program", NULL, false},
    {0, BYTES("MZ"), "program", NULL, true},
    {0, BYTES("\xca\xfe\xba\xbe"), "program", NULL, false},
    {0, BYTES("\xfe\xed\xfa"), "program", NULL, false},
    {0, BYTES("\xcf\xfa\xed\xfe"), "program", NULL, false},
    {0, BYTES("\0asm"), "program", NULL, false},
};

/* Forms of text that hold more structure than prose. */
static const struct signature structures[] = {
    {0, BYTES("{\\rtf"), "RTF document", extract, false},
    {0, BYTES("%!PS"), "PostScript document", extract, false},
    {0, BYTES("WARC/1."), "web archive (WARC)", extract, false},
    {0, BYTES("<!doctype"), "HTML", extract, false},
    {0, BYTES("<html"), "HTML", extract, false},
    {0, BYTES("<?xml"), "XML", extract, false},
    {0, BYTES("<svg"), "SVG picture", NULL, false},
    {0, BYTES("<rss"), "XML", extract, false},
    {0, BYTES("<feed"), "XML", extract, false},
    {0, BYTES("<mediawiki"), "XML", extract, false},
};

/* --- bytes --- */

struct counts {
    int64_t nul, nul_odd; /* NUL bytes; those at odd positions */
    int64_t control;      /* control characters that no text has, NUL included */
    bool utf8;
};

/* A character that is cut off at the end of a head is none that is invalid. */
static struct counts count_bytes(const uint8_t *p, int64_t size, bool whole) {
    struct counts c = {.utf8 = true};
    for (int64_t i = 0; i < size; i++) {
        uint8_t b = p[i];
        bool usual = b >= ' ' ? b != 0x7f : (b >= '\b' && b <= '\r') || b == 0x1b;
        c.nul += b == 0;
        c.nul_odd += b == 0 && i % 2;
        c.control += !usual;
    }
    for (int64_t i = 0; i < size && c.utf8;) {
        uint32_t code;
        int n = utf8_decode(p + i, p + size, &code);
        c.utf8 = n > 0 || (!whole && size - i < 4);
        i += n ? n : 1;
    }
    return c;
}

/* bzip2: "BZh", a digit, and the number pi or, in an empty file, its square root. */
static bool is_bzip2(const uint8_t *p, int64_t size) {
    return size >= 10 && !memcmp(p, "BZh", 3) && p[3] >= '1' && p[3] <= '9' &&
           (!memcmp(p + 4, "1AY&SY", 6) || !memcmp(p + 4, "\x17\x72\x45\x38\x50\x90", 6));
}

static bool begins_with(const uint8_t *p, int64_t size, const struct signature *s, bool any_case) {
    const char *at = (const char *)p + s->at;
    return size >= s->at + s->size &&
           (any_case ? !strncasecmp(at, s->bytes, (size_t)s->size) : !memcmp(at, s->bytes, (size_t)s->size));
}

static struct content binary(const char *name, const char *advice) {
    return (struct content){.class = CONTENT_BINARY, .name = name, .advice = advice};
}

static bool find_binary(struct content *out, const uint8_t *p, int64_t size, bool whole) {
    struct counts c = count_bytes(p, size, whole);
    bool like_text = c.nul == 0 && (c.utf8 || c.control * 50 <= size);
    for (size_t i = 0; i < ARRAY_LENGTH(signatures); i++) {
        const struct signature *s = &signatures[i];
        if (!begins_with(p, size, s, false) || (s->letters && like_text)) continue;
        *out = binary(s->name, s->advice);
        return true;
    }
    if (is_bzip2(p, size)) {
        *out = binary("bzip2 data", decompress);
        return true;
    }
    if (like_text) return false;
    /* Letters of Latin scripts have a NUL as every other byte in UTF-16. */
    bool one_side = c.nul_odd * 20 < c.nul || c.nul_odd * 20 > c.nul * 19;
    *out = c.nul * 5 > size && one_side && size >= 4 ? binary("UTF-16 text", to_utf8)
                                                     : binary("binary data", NULL);
    return true;
}

/* --- JSON --- */

static const uint8_t *after_blank(const uint8_t *p, const uint8_t *end) {
    while (p < end && strchr(" \t\r\n", *p) && *p) p++;
    return p;
}

/* Behind the string that begins at p, or NULL if there is none that ends soon. */
static const uint8_t *after_string(const uint8_t *p, const uint8_t *end) {
    enum { LONGEST = 4096 };
    if (p == end || *p != '"') return NULL;
    end = p + min_i64(LONGEST, end - p);
    for (p++; p < end; p++) {
        if (*p == '"') return p + 1;
        if (*p == '\\') p++;
        if (p < end && *p < ' ') return NULL;
    }
    return NULL;
}

static bool parses(const uint8_t *p, const uint8_t *end) {
    json_t *root = json_loadb((const char *)p, (size_t)(end - p), JSON_ALLOW_NUL, NULL);
    json_decref(root);
    return root != NULL;
}

/* Arrays begin with an object or a string, objects with a key. No prose does. */
static bool find_json(struct content *out, const uint8_t *p, const uint8_t *end, bool whole) {
    static const struct content json = {.class = CONTENT_STRUCTURED, .name = "JSON", .advice = to_json_lines};
    bool array = p < end && *p == '[';
    if (p == end || (*p != '{' && !array)) return false;
    const uint8_t *q = after_blank(p + 1, end);
    bool object = !array || (q < end && *q == '{');
    if (array && object) q = after_blank(q + 1, end);
    q = after_string(q, end);
    if (q) q = after_blank(q, end);
    if (!(q && q < end && (object ? *q == ':' : *q == ',' || *q == ']')) && !(whole && parses(p, end)))
        return false;
    *out = json;
    const uint8_t *line = (const uint8_t *)memchr(p, '\n', (size_t)(end - p));
    if (!array && (line || whole ? parses(p, line ? line : end) : true))
        *out = (struct content){.class = CONTENT_JSON_LINES,
                                .name = "JSON lines",
                                .advice = "name it *.jsonl, or give --format jsonl or --field NAME"};
    return true;
}

/* --- markup --- */

/* Whether tags take more than a quarter of what begins with one. */
static bool is_mostly_tags(const uint8_t *p, const uint8_t *end) {
    enum { LONGEST_TAG = 2000, FEWEST = 3 };
    int64_t inside = 0, closing = 0, size = end - p;
    if (size < 2 || *p != '<' || !isalpha(p[1])) return false;
    while ((p = (const uint8_t *)memchr(p, '<', (size_t)(end - p))) != NULL) {
        const uint8_t *to = (const uint8_t *)memchr(p, '>', (size_t)min_i64(LONGEST_TAG, end - p));
        if (to && end - p > 2 && (isalpha(p[1]) || p[1] == '/')) {
            inside += to + 1 - p;
            closing += p[1] == '/' || to[-1] == '/';
        }
        p = to ? to + 1 : p + 1;
    }
    return closing >= FEWEST && inside * 4 > size;
}

/* --- all --- */

struct content content_of(const void *head, int64_t size, bool whole) {
    const uint8_t *p = (const uint8_t *)head, *end = p + size;
    struct content c = {.class = CONTENT_TEXT};
    if (size >= 3 && !memcmp(p, "\xef\xbb\xbf", 3)) {
        c.mark = 3;
        p += 3;
    }
    struct content found = {.class = CONTENT_TEXT};
    if (p == end) return c;
    if (!find_binary(&found, p, end - p, whole)) {
        p = after_blank(p, end);
        bool markup = !find_json(&found, p, end, whole) && is_mostly_tags(p, end);
        if (markup)
            found = (struct content){.class = CONTENT_STRUCTURED, .name = "markup", .advice = extract};
        for (size_t i = 0; i < ARRAY_LENGTH(structures) && (found.class == CONTENT_TEXT || markup); i++)
            if (begins_with(p, end - p, &structures[i], true)) {
                found = (struct content){
                    .class = CONTENT_STRUCTURED, .name = structures[i].name, .advice = structures[i].advice};
                break;
            }
    }
    found.mark = c.mark;
    return found;
}

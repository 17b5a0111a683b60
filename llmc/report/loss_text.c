/* Collects tokens into pieces of whole characters, and draws them in lines: see loss_text.h. */
#include "llmc/report/loss_text.h"

#include "llmc/base/utf8.h"
#include "llmc/report/json_text.h"
#include "llmc/report/page.h"

#include <jansson.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

const double loss_levels[LOSS_LEVELS] = {0.5, 1.0, 2.0, 4.0, 8.0};

static int level_of(double loss) {
    int level = 0;
    while (level < LOSS_LEVELS && loss >= loss_levels[level]) level++;
    return level;
}

/* --- collecting --- */

static bool ends_within_character(const struct loss_text *t, const struct loss_piece *p) {
    const uint8_t *bytes = (const uint8_t *)t->bytes + p->first;
    int64_t from = p->size - 1;
    while (from > 0 && p->size - from < 4 && utf8_is_continuation(bytes[from])) from--;
    uint8_t lead = from < 0 ? 0 : bytes[from];
    int length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 1;
    return p->size - from < length;
}

void loss_text_add(struct loss_text *t, const char *bytes, int64_t size, double loss, bool ends) {
    if (t->size + size > t->size_capacity) {
        t->size_capacity = 2 * (t->size + size);
        t->bytes = (char *)xrealloc(t->bytes, (size_t)t->size_capacity);
    }
    if (t->count == t->capacity) {
        t->capacity = max_i64(256, 2 * t->capacity);
        t->pieces = (struct loss_piece *)xrealloc(t->pieces, (size_t)t->capacity * sizeof *t->pieces);
    }
    struct loss_piece *last = t->count ? &t->pieces[t->count - 1] : NULL;
    if (last && size > 0 && utf8_is_continuation((uint8_t)bytes[0]) && ends_within_character(t, last)) {
        last->size += size;
        last->tokens++;
        last->loss = fmax(last->loss, loss);
    } else {
        t->pieces[t->count++] = (struct loss_piece){t->size, size, 1, loss, ends};
    }
    if (size) memcpy(t->bytes + t->size, bytes, (size_t)size);
    t->size += size;
}

void loss_text_free(struct loss_text *t) {
    free(t->bytes);
    free(t->pieces);
    memset(t, 0, sizeof *t);
}

/* --- colours --- */

enum loss_form loss_text_form(void) {
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM"), *depth = getenv("COLORTERM");
    if (!isatty(STDOUT_FILENO) || (no_color && *no_color) || !term || strcmp(term, "dumb") == 0)
        return LOSS_DIGITS;
    if (depth && (strcmp(depth, "truecolor") == 0 || strcmp(depth, "24bit") == 0)) return LOSS_COLOURS_RGB;
    return strstr(term, "256color") ? LOSS_COLOURS_256 : LOSS_DIGITS;
}

/* The colour that page.css calls `name`, "--low: 255 255 255;". */
static void colour_of_pages(const char *name, double rgb[3]) {
    size_t size;
    const char *type, *css = page_part("page.css", &size, &type),
                      *at = css ? (const char *)memmem(css, size, name, strlen(name)) : NULL;
    char value[32] = "";
    if (at) snprintf(value, sizeof value, "%.*s", (int)(sizeof value - 1), at + strlen(name));
    check(sscanf(value, ": %lf %lf %lf", &rgb[0], &rgb[1], &rgb[2]) == 3, "page.css has no colour %s", name);
}

/* As shade() of page.js: from --low over --mid to --high. */
static void colour_of_level(int level, int rgb[3]) {
    double low[3], mid[3], high[3], x = (double)level / LOSS_LEVELS;
    colour_of_pages("--low", low);
    colour_of_pages("--mid", mid);
    colour_of_pages("--high", high);
    for (int c = 0; c < 3; c++)
        rgb[c] = (int)lround(x < 0.5 ? low[c] + 2 * x * (mid[c] - low[c])
                                     : mid[c] + (2 * x - 1) * (high[c] - mid[c]));
}

/* The nearest of the 6 x 6 x 6 colours that terminals of 256 have: 0, 95, 135, ... 255 of each part. */
static int colour_256(const int rgb[3]) {
    int index = 0;
    for (int c = 0; c < 3; c++) index = 6 * index + (rgb[c] < 48 ? 0 : rgb[c] < 115 ? 1 : (rgb[c] - 35) / 40);
    return 16 + index;
}

/* The escape sequence that begins a level; "" for level 0. */
static void set_colours(char sgr[64], enum loss_form form, int level) {
    int rgb[3];
    colour_of_level(level, rgb);
    bool light = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 128;
    *sgr = 0;
    if (level == 0 || form == LOSS_DIGITS) return;
    if (form == LOSS_COLOURS_256)
        snprintf(sgr, 64, "\033[38;5;%d;48;5;%dm", light ? 16 : 231, colour_256(rgb));
    else
        snprintf(sgr, 64, "\033[38;2;%s;48;2;%d;%d;%dm", light ? "17;17;17" : "255;255;255", rgb[0], rgb[1],
                 rgb[2]);
}

/* --- lines --- */

struct lines {
    FILE *out;
    enum loss_form form;
    int width, column;
    char *digits; /* (width + 1): what stands under the line */
    char sgr[LOSS_LEVELS + 1][64];
    const char *colours; /* of the piece that is being drawn */
};

static void end_line(struct lines *l) {
    if (*l->colours) fputs("\033[0m", l->out);
    fputc('\n', l->out);
    int n = l->width;
    while (n > 0 && l->digits[n - 1] == ' ') n--;
    if (n) fprintf(l->out, "%.*s\n", n, l->digits);
    memset(l->digits, ' ', (size_t)l->width);
    l->column = 0;
    fputs(l->colours, l->out);
}

/* One character as it can be shown, and its columns. */
static int take_character(const uint8_t **p, const uint8_t *end, char text[8], bool *newline) {
    uint32_t code;
    int n = utf8_decode(*p, end, &code);
    *newline = n && code == '\n';
    if (n == 0) {
        snprintf(text, 8, "\\x%02x", *(*p)++);
        return 4;
    }
    *p += n;
    bool moves = (code >= 0x7f && code < 0xa0) || (code >= 0x200e && code <= 0x200f) ||
                 (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
    if (code < 0x20) code = code == '\n' ? 0x23ce : code == '\t' ? 0x21e5 : 0x2400 + code;
    text[utf8_encode((uint8_t *)text, moves ? 0xfffd : code)] = 0;
    int columns = wcwidth((wchar_t)code);
    return columns < 0 ? 1 : columns;
}

static int columns_of(const uint8_t *p, const uint8_t *end) {
    char text[8];
    bool newline;
    int sum = 0;
    while (p < end) sum += take_character(&p, end, text, &newline);
    return sum;
}

static void put_piece(struct lines *l, const char *bytes, int64_t size, double loss, bool ends) {
    const uint8_t *p = (const uint8_t *)bytes, *end = p + size;
    int level = level_of(loss), columns = size <= 4 * (int64_t)l->width ? columns_of(p, end) : l->width + 1;
    if (l->column && l->column + columns > l->width && columns <= l->width) end_line(l);
    if (l->form == LOSS_DIGITS && !isnan(loss) && l->column < l->width)
        l->digits[l->column] = level ? (char)('0' + level) : '.';
    fputs(l->colours = l->sgr[level], l->out);
    while (p < end) {
        char text[8];
        bool newline;
        int n = take_character(&p, end, text, &newline);
        if (l->column + n > l->width) end_line(l);
        fputs(text, l->out);
        l->column += n;
        if (newline) end_line(l);
    }
    if (*l->colours) fputs("\033[0m", l->out);
    l->colours = "";
    if (ends && l->column) end_line(l);
}

/* Each level, drawn as a token of it. */
static void put_scale(struct lines *l) {
    put_piece(l, "nats a token: ", 14, NAN, false);
    for (int level = 0; level <= LOSS_LEVELS; level++) {
        const char *label = level == 0 ? temp_printf("below %g", loss_levels[0])
                            : level < LOSS_LEVELS
                                ? temp_printf("%g to %g", loss_levels[level - 1], loss_levels[level])
                                : temp_printf("%g and more", loss_levels[LOSS_LEVELS - 1]);
        put_piece(l, label, (int64_t)strlen(label), level ? loss_levels[level - 1] : 0.0, false);
        put_piece(l, "  ", level < LOSS_LEVELS ? 2 : 0, NAN, false);
    }
    end_line(l);
}

void loss_text_print(const struct loss_text *t, FILE *out, enum loss_form form, int width) {
    struct lines l = {.out = out, .form = form, .width = width, .colours = ""};
    l.digits = (char *)xmalloc((size_t)width);
    memset(l.digits, ' ', (size_t)width);
    for (int level = 0; level <= LOSS_LEVELS; level++) set_colours(l.sgr[level], form, level);
    /* wcwidth() knows the characters of the locale; without this one, each has one column */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0), before = utf8 ? uselocale(utf8) : utf8;
    for (int64_t i = 0; i < t->count; i++) {
        const struct loss_piece *p = &t->pieces[i];
        put_piece(&l, t->bytes + p->first, p->size, p->loss, p->ends);
    }
    if (l.column) end_line(&l);
    fputc('\n', out);
    put_scale(&l);
    if (utf8) {
        uselocale(before);
        freelocale(utf8);
    }
    free(l.digits);
}

/* --- the page --- */

static void put_facts(struct writer *w, void *user) { page_put_json(w, "facts", (json_t *)user); }

bool loss_text_write_page(const struct loss_text *t, json_t *facts, const char *path, struct error *err) {
    json_t *levels = json_array(), *pieces = json_array();
    for (int i = 0; i < LOSS_LEVELS; i++) json_array_append_new(levels, json_real(loss_levels[i]));
    for (int64_t i = 0; i < t->count; i++) {
        const struct loss_piece *p = &t->pieces[i];
        json_array_append_new(pieces, json_pack("[o, o, I, b]", json_text(t->bytes + p->first, p->size),
                                                isfinite(p->loss) ? json_real(p->loss) : json_null(),
                                                (json_int_t)p->tokens, p->ends));
    }
    json_object_set_new(facts, "levels", levels);
    json_object_set_new(facts, "pieces", pieces);
    return page_write(path, "eval.html", put_facts, facts, err);
}

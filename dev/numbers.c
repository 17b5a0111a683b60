/* Prints a part of what `train_gpt view --json FILE` wrote, as a table or as a picture.
 *     build/numbers FILE                          the names of its arrays, their shapes and what they are
 *     build/numbers FILE NAME [INDEX ...]         the numbers, with 3 digits behind the point
 *     build/numbers FILE NAME [INDEX ...] X.svg   a matrix as a picture: 0 is pale, its largest number dark
 * There is an INDEX for each dimension; `:` stands for all of it, as does an index that is left out. Two
 * dimensions at most may be open. Tokens are shown as text. */
#include "llmc/base/file.h"
#include "llmc/base/json_file.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 4, LABEL = 7 /* characters of a token in a table */ };

/* A matrix inside an array: its open dimensions are the columns, and before them the rows. */
struct part {
    json_t *root, *data;
    const char *name;
    bool of_tokens; /* the numbers are ids of tokens */
    int64_t first, rows, columns, row_step, column_step;
    bool row_is_token, column_is_token;
};

static const char *token_text(const json_t *root, int64_t id) {
    const char *text = json_string_value(json_array_get(json_object_get(root, "vocabulary"), (size_t)id));
    return text ? text : "?";
}

/* The label of row or column i: the token at that place of the text, or the number itself. */
static const char *label(const struct part *p, int64_t i, bool is_token) {
    if (!is_token) return temp_printf("%" PRId64, i);
    json_t *id = json_array_get(json_object_get(p->root, "tokens"), (size_t)i);
    return token_text(p->root, json_integer_value(id));
}

static double number_at(const struct part *p, int64_t row, int64_t column) {
    size_t i = (size_t)(p->first + row * p->row_step + column * p->column_step);
    return json_number_value(json_array_get(p->data, i));
}

static void list_arrays(json_t *root) {
    const char *name;
    json_t *array, *dim;
    size_t i;
    json_object_foreach(json_object_get(root, "arrays"), name, array) {
        char shape[64] = "";
        json_array_foreach(json_object_get(array, "shape"), i, dim)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%" PRId64, i ? " x " : "",
                     (int64_t)json_integer_value(dim));
        printf("%-16s %-16s %s\n", name, shape, json_string_value(json_object_get(array, "about")));
    }
}

/* Is dimension d, as the last part of `about` names it ("...: layer, head, from, to"), a place in the
 * text? */
static bool is_token(const char *about, int d) {
    const char *names = strrchr(about, ':');
    names = names ? names + 1 : about;
    for (; d > 0 && names; d--) names = strchr(names + 1, ',');
    if (!names) return false;
    names += strspn(names, ", ");
    size_t size = strcspn(names, ",");
    return (size == 5 && strncmp(names, "token", 5) == 0) || (size == 4 && strncmp(names, "from", 4) == 0) ||
           (size == 2 && strncmp(names, "to", 2) == 0);
}

static struct part choose(json_t *root, const char *name, char **index, int indices) {
    json_t *array = json_object_get(json_object_get(root, "arrays"), name), *shape;
    check(array != NULL, "there is no array \"%s\"; without a name, all are listed", name);
    shape = json_object_get(array, "shape");
    const char *about = json_string_value(json_object_get(array, "about"));
    int rank = (int)json_array_size(shape), open = 0;
    check(indices <= rank, "%s has %d dimensions, and these are %d indices", name, rank, indices);
    struct part p = {
        .root = root, .data = json_object_get(array, "data"), .name = name, .rows = 1, .columns = 1};
    size_t end = strlen(name);
    p.of_tokens = strcmp(name, "target") == 0 || (end > 6 && strcmp(name + end - 6, "_token") == 0);
    int64_t step = (int64_t)json_array_size(p.data);
    for (int d = 0; d < rank; d++) {
        int64_t size = json_integer_value(json_array_get(shape, (size_t)d));
        step /= size;
        if (d < indices && strcmp(index[d], ":") != 0) {
            char *rest;
            int64_t i = strtoll(index[d], &rest, 10);
            check(rest != index[d] && !*rest && i >= 0 && i < size,
                  "index %s of %s is not a number from 0 to %" PRId64 ", nor `:`", index[d], name, size - 1);
            p.first += i * step;
            continue;
        }
        check(++open <= 2, "%s needs more indices: a table has two dimensions", name);
        p.rows = p.columns, p.row_step = p.column_step, p.row_is_token = p.column_is_token;
        p.columns = size, p.column_step = step, p.column_is_token = is_token(about, d);
    }
    return p;
}

/* A token in so many columns; control characters would break the table. */
static void print_label(const char *text, int width) {
    char shown[LABEL + 1];
    int n = 0;
    for (; text[n] && n < LABEL; n++) shown[n] = text[n] < ' ' && text[n] >= 0 ? '.' : text[n];
    shown[n] = 0;
    printf("%*s", width, shown);
}

static void print_table(const struct part *p) {
    if (p->rows > 1 || p->columns > 1) {
        printf("%*s", LABEL, "");
        for (int64_t c = 0; c < p->columns; c++) print_label(label(p, c, p->column_is_token), LABEL + 1);
        printf("\n");
    }
    for (int64_t r = 0; r < p->rows; r++) {
        print_label(p->rows > 1 ? label(p, r, p->row_is_token) : "", LABEL);
        for (int64_t c = 0; c < p->columns; c++)
            if (p->of_tokens)
                print_label(token_text(p->root, (int64_t)number_at(p, r, c)), LABEL + 1);
            else
                printf("%*.3f", LABEL + 1, number_at(p, r, c));
        printf("\n");
    }
}

static void put_xml(struct writer *w, const char *text) {
    for (; *text; text++)
        if (strchr("<>&", *text))
            writer_printf(w, "&#%d;", *text);
        else
            writer_put(w, text, 1);
}

static void draw(const struct part *p, const char *path) {
    enum { CELL = 34, LEFT = 96, TOP = 84 };
    struct writer w;
    struct error err;
    double largest = 0.0;
    for (int64_t r = 0; r < p->rows; r++)
        for (int64_t c = 0; c < p->columns; c++) largest = fmax(largest, fabs(number_at(p, r, c)));
    check(writer_open(&w, path, &err), "%s", err.message);
    int64_t wide = LEFT + CELL * p->columns + 30, high = TOP + CELL * p->rows + 8;
    writer_printf(&w,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %" PRId64 " %" PRId64
                  "\" width=\"%" PRId64 "\" font-family=\"sans-serif\" font-size=\"12\">\n"
                  "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
                  wide, high, wide);
    for (int64_t c = 0; c < p->columns; c++) {
        writer_printf(&w, "<text transform=\"translate(%" PRId64 " %d) rotate(-50)\">", LEFT + CELL * c + 20,
                      TOP - 6);
        put_xml(&w, label(p, c, p->column_is_token));
        writer_printf(&w, "</text>\n");
    }
    for (int64_t r = 0; r < p->rows; r++) {
        writer_printf(&w, "<text x=\"%d\" y=\"%" PRId64 "\" text-anchor=\"end\">", LEFT - 6,
                      TOP + CELL * r + 21);
        put_xml(&w, label(p, r, p->row_is_token));
        writer_printf(&w, "</text>\n");
        for (int64_t c = 0; c < p->columns; c++) {
            double v = number_at(p, r, c), share = largest > 0.0 ? fabs(v) / largest : 0.0;
            writer_printf(&w,
                          "<rect x=\"%" PRId64 "\" y=\"%" PRId64
                          "\" width=\"%d\" height=\"%d\" fill=\"%s\" fill-opacity=\"%.3f\" stroke=\"#ddd\"/>"
                          "<text x=\"%" PRId64 "\" y=\"%" PRId64
                          "\" text-anchor=\"middle\" font-size=\"10\" fill=\"%s\">%.2f</text>\n",
                          LEFT + CELL * c, TOP + CELL * r, CELL, CELL, v < 0.0 ? "#b34700" : "#0a2c68", share,
                          LEFT + CELL * c + CELL / 2, TOP + CELL * r + 21, share > 0.5 ? "#fff" : "#444", v);
        }
    }
    writer_printf(&w, "</svg>\n");
    check(writer_close(&w, &err), "%s", err.message);
}

int main(int argc, char **argv) {
    struct error err;
    check(argc >= 2, "usage: %s FILE [NAME [INDEX ...] [PICTURE.svg]]", argv[0]);
    json_t *root = json_file_load(argv[1], &err);
    check(root != NULL, "%s", err.message);
    check(json_is_object(json_object_get(root, "arrays")), "%s is not what `train_gpt view --json` writes",
          argv[1]);
    if (argc == 2) {
        list_arrays(root);
    } else {
        const char *last = argv[argc - 1], *dot = strrchr(last, '.');
        bool picture = argc > 3 && dot && strcmp(dot, ".svg") == 0;
        struct part p = choose(root, argv[2], argv + 3, argc - 3 - picture);
        if (picture)
            draw(&p, last);
        else
            print_table(&p);
    }
    json_decref(root);
}

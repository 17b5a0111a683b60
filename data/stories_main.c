/* build/stories: writes stories of the default corpus or pairs made of them, prints their entropy, or grades
 * a text.
 *
 *     build/stories --count 1000 --seed 1 > FILE      one story a line, with lines <|endoftext|> between them
 *     build/stories --pairs reversed --count 1000     a sentence a line, a tab, and its words from the last on
 *     build/stories --entropy
 *     build/stories --grade FILE */
#include "llmc/stories/stories.h"

#include "llmc/base/file.h"
#include "llmc/base/console.h"
#include "llmc/base/options.h"
#include "llmc/cli/about.h"
#include "llmc/cli/commands.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct config {
    int64_t count, seed, first;
    bool entropy;
    const char *grade;
    enum pairs { PAIRS_NONE, PAIRS_REVERSED, PAIRS_SORTED } pairs;
};
static const struct option_row rows[] = {
    OPT_SIZE(struct config, count, "count", "10", 1, 1e12, "N", "stories to write", 0),
    OPT_INT(struct config, seed, "seed", "1", 0, INFINITY, "N", "seed of the stories", 0),
    OPT_SIZE(struct config, first, "first", "0", 0, 1e15, "N", "number of the first story", 0),
    OPT_WORD(
        struct config, pairs, "pairs", "none", "none|reversed|sorted", NULL,
        "write a sentence of each story in place of it, with a tab and the target of train_gpt --pairs: its "
        "words from the last to the first, or in the order of their bytes. The target follows from the "
        "sentence: a perfect model has a loss of 0 and a BLEU of 100",
        0),
    OPT_FLAG(struct config, entropy, "entropy", "false",
             "print the entropy in nats: no model of the stories can have a lower loss", 0),
    OPT_TEXT(struct config, grade, "grade", NULL, "FILE",
             "grade the stories in FILE, with lines of only <|endoftext|> between them", 0),
};
static const struct option_group groups[] = {{"Options", rows, ARRAY_LENGTH(rows)}};
static const struct option_command command = {
    "stories [options]",
    "Writes stories of the default corpus or pairs made of them to the standard output, prints their entropy, "
    "or grades a text.",
    groups,
    1,
    NULL,
    0,
    0};

static void write_stories(const struct config *c) {
    for (int64_t i = 0; i < c->count; i++) {
        char *story = story_make((uint64_t)c->seed, (uint64_t)(c->first + i));
        bool ok = printf("%s%s\n", i > 0 ? "<|endoftext|>\n" : "", story) > 0;
        free(story);
        check(ok, "cannot write the stories: %s", strerror(errno));
    }
    check(fflush(stdout) == 0, "cannot write the stories: %s", strerror(errno));
}

/* --- pairs --- */

enum { MOST_WORDS = 64 };

/* Does the word end a sentence? Its full stop may stand before a quotation mark. */
static bool ends_sentence(const char *word) {
    size_t n = strcspn(word, " ");
    while (n > 0 && word[n - 1] == '"') n--;
    return n > 0 && strchr(".!?", word[n - 1]);
}

/* Cuts sentence `index` of the story, counted round and round, into words; returns how many. */
static int words_of_sentence(char *words[MOST_WORDS], char *story, int64_t index) {
    int sentences = 0, at = 0, count = 0;
    for (char *p = story; p; p = strchr(p, ' ') ? strchr(p, ' ') + 1 : NULL) sentences += ends_sentence(p);
    index %= max_i64(1, sentences);
    for (char *p = story, *rest = story; (p = strsep(&rest, " ")) != NULL;) {
        if (at == index && count < MOST_WORDS) words[count++] = p;
        at += ends_sentence(p);
    }
    return count;
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void write_pairs(const struct config *c) {
    for (int64_t i = c->first; i < c->first + c->count; i++) {
        char *story = story_make((uint64_t)c->seed, (uint64_t)i), *words[MOST_WORDS];
        int n = words_of_sentence(words, story, i);
        bool ok = true;
        for (int k = 0; k < n; k++) ok = ok && printf("%s%s", k ? " " : "", words[k]) > 0;
        if (c->pairs == PAIRS_SORTED) qsort(words, (size_t)n, sizeof *words, by_bytes);
        for (int k = 0; k < n; k++)
            ok = ok && printf("%s%s", k ? " " : "\t", words[c->pairs == PAIRS_SORTED ? k : n - 1 - k]) > 0;
        free(story);
        check(ok && putchar('\n') != EOF, "cannot write the pairs: %s", strerror(errno));
    }
    check(fflush(stdout) == 0, "cannot write the pairs: %s", strerror(errno));
}

static void print_entropy(const struct config *c) {
    enum { SAMPLE = 50000 };
    double bytes = 0, words = 0;
    for (int64_t i = 0; i < SAMPLE; i++) {
        char *story = story_make((uint64_t)c->seed, (uint64_t)(c->first + i));
        words++;
        for (const char *p = story; *p != '\0'; p++, bytes++) words += *p == ' ';
        free(story);
    }
    double h = story_entropy();
    printf("nats per story  %9.4f   exact\n", h);
    printf("nats per word   %9.4f   over %.2f words in a story\n", h * SAMPLE / words, words / SAMPLE);
    printf("nats per byte   %9.4f   over %.2f bytes in a story (means of %d stories)\n", h * SAMPLE / bytes,
           bytes / SAMPLE, SAMPLE);
}

static void print_share(const char *what, int part, int whole) {
    printf("%-12s %8d of %8d", what, part, whole);
    if (whole > 0) printf("  %6.2f %%", 100.0 * part / whole);
    printf("\n");
}

static void print_grade(const char *path) {
    struct mapped_file f;
    struct error err;
    check(file_map(&f, path, &err), "%s", err.message);
    struct story_grade g = story_grade((const char *)f.data, f.size);
    print_share("grammatical", g.grammatical, g.sentences);
    print_share("in place", g.in_place, g.sentences);
    print_share("references", g.references_ok, g.references);
    file_unmap(&f);
}

int main(int argc, char **argv) {
    static const struct about_command only = {NULL, &command, NULL};
    static const struct about about = {"writes and grades stories of the built-in corpus", &only, 1};
    struct config c;
    struct options o;
    open_standard_files();
    int status = about_program(&about, argc, argv);
    if (status < 0) status = command_options(&o, &command, &c, argc - 1, argv + 1);
    if (status >= 0) return status;
    if (c.grade) {
        print_grade(c.grade);
    } else if (c.entropy) {
        print_entropy(&c);
    } else if (c.pairs) {
        write_pairs(&c);
    } else {
        write_stories(&c);
    }
    options_free(&o);
    return 0;
}

/* The stories: their probability by three independent methods (the record of the choices, the parser, the
 * sum over all derivations of a small grammar), the entropy, the grade of corrupted stories, and
 * grading. */
#include "test/test.h"

#include "llmc/stories/stories_grammar.h"
#include "llmc/base/rng.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- helpers --- */

static int64_t length(const char *s) { return (int64_t)strlen(s); }

static double log_p(const char *text) { return story_log_probability(text, length(text)); }

/* `text` with `size` bytes at `offset` replaced. The caller frees. */
static char *replaced(const char *text, int64_t offset, int64_t size, const char *by, int by_size) {
    return xasprintf("%.*s%.*s%s", (int)offset, text, by_size, by, text + offset + size);
}

static int64_t word_end(const char *text, int64_t at) {
    while (isalpha((unsigned char)text[at])) at++;
    return at;
}

static uint32_t random_number(uint64_t index, uint32_t below) {
    return (uint32_t)(rng_uniform(7, RNG_TEST, index) * below);
}

/* A set of strings, each with a number. */
struct words {
    struct word {
        char *text;
        double value;
    } * w;
    int count, capacity;
};
static double *word_value(struct words *s, const char *text, int64_t size) {
    if (2 * (s->count + 1) > s->capacity) {
        struct words bigger = {.capacity = 4 * s->capacity + 64};
        bigger.w = xcalloc((size_t)bigger.capacity, sizeof *bigger.w);
        for (int i = 0; i < s->capacity; i++)
            if (s->w[i].text) {
                *word_value(&bigger, s->w[i].text, length(s->w[i].text)) = s->w[i].value;
                free(s->w[i].text);
            }
        free(s->w);
        *s = bigger;
    }
    uint64_t hash = 14695981039346656037u;
    for (int64_t i = 0; i < size; i++) hash = (hash ^ (uint8_t)text[i]) * 1099511628211u;
    for (uint64_t i = hash % (uint64_t)s->capacity;; i = (i + 1) % (uint64_t)s->capacity) {
        struct word *w = &s->w[i];
        if (!w->text) {
            w->text = xasprintf("%.*s", (int)size, text);
            s->count++;
            return &w->value;
        }
        if (length(w->text) == size && memcmp(w->text, text, (size_t)size) == 0) return &w->value;
    }
}
static void words_free(struct words *s) {
    for (int i = 0; i < s->capacity; i++) free(s->w[i].text);
    free(s->w);
    *s = (struct words){0};
}

/* --- a small grammar in full --- */

/* Every kind of item. Two texts have two derivations: "It was good.", and in the middle of a story "X left
 * ...". */
static const char *const who[] = {"Ann|she", "Bob|he", "Cy|he"};
static const char *const count_names[] = {"one", "two", "three", "four"};
static const struct story_table small_tables[] = {{"name|he", who, 3}, {"name", count_names, 4}};
static const struct story_list small_lists[] = {
    {"person", 0, 0, 3}, {"man", 0, 1, 2}, {"some", 1, 0, 2}, {"lots", 1, 2, 2}};
static const int8_t small_registers[STORY_REGISTERS] = {
    ['a' - 'a'] = 1, ['b' - 'a'] = 1, ['c' - 'a'] = 1, ['n' - 'a'] = 2, ['m' - 'a'] = 2};
static const struct story_line small_phrase[] = {
    {3, "good", 0}, {1, "bad", 0}, {1, "seen by {c=person!ab}", 0}};
static const struct story_choice small_phrases[] = {{"mood", small_phrase, 3}};
static const struct story_line small_start[] = {{2, "{a=person.He} met {b=person!a}.", 1},
                                                {1, "{a=man} met {b=person!a} and {c=man}.", 1}};
static const struct story_line small_middle[] = {
    {2, "{a} had {n=lots}, {b.he} took {m=some} of them.{c:b}", 2}, {1, "", 3}};
static const struct story_line small_rest[] = {
    {2, "{c} left {n-m} to {a}.", 3}, {1, "{c} left {n-m} to {a}.", 3}, {1, "", 3}};
static const struct story_line small_end[] = {
    {2, "It was {mood}.", STORY_END}, {1, "It was good.", STORY_END}, {1, "{b.He} was {mood}.", STORY_END}};
static struct story_choice small_beats[] = {
    {"start", small_start, 2}, {"middle", small_middle, 2}, {"rest", small_rest, 3}, {"end", small_end, 3}};
static const struct story_grammar small = {small_tables,   small_lists, 4, small_phrases, 1, small_beats, 4,
                                           small_registers};

/* Runs through all sequences of choices, like an odometer. */
struct every_choice {
    struct story_source source;
    uint32_t value[64], total[64];
    int used, at;
};
static uint32_t next_choice(struct story_source *source, uint32_t total) {
    struct every_choice *e = (struct every_choice *)source;
    assert_true(e->at < 64);
    if (e->at == e->used) e->value[e->used++] = 0;
    e->total[e->at] = total;
    return e->value[e->at++];
}
static bool next_sequence(struct every_choice *e) {
    e->used = e->at;
    e->at = 0;
    while (e->used > 0 && ++e->value[e->used - 1] == e->total[e->used - 1]) e->used--;
    return e->used > 0;
}

static void test_small_grammar(void **state) {
    (void)state;
    struct every_choice e = {.source = {next_choice}};
    struct words texts = {0};
    double sum = 0, entropy = 0;
    int derivations = 0;
    do {
        struct story_trace trace = {0};
        char *text = story_generate(&small, &e.source, &trace);
        double sequence = 1; /* a line of weight w is w sequences */
        for (int i = 0; i < e.at; i++) sequence /= e.total[i];
        *word_value(&texts, text, length(text)) += sequence;
        sum += sequence;
        entropy -= sequence * trace.log_probability;
        derivations++;
        free(text);
    } while (next_sequence(&e));
    assert_true(derivations > 1000);
    assert_true(fabs(sum - 1) < 1e-12);
    assert_true(fabs(entropy - story_grammar_entropy(&small)) < 1e-12);
    int several = 0;
    for (int i = 0; i < texts.capacity; i++) {
        const struct word *w = &texts.w[i];
        if (!w->text) continue;
        double p = exp(story_grammar_log_probability(&small, w->text, length(w->text)));
        if (!(fabs(p - w->value) <= 1e-12 * w->value))
            fail_msg("'%s': probability %.17g, sum of its derivations %.17g", w->text, p, w->value);
        several++;
    }
    assert_int_equal(several, texts.count);
    words_free(&texts);
}

static double small_log_p(const char *text) {
    return story_grammar_log_probability(&small, text, length(text));
}

/* Texts outside the small grammar, each one step away from a story. */
static void test_small_grammar_refuses(void **state) {
    (void)state;
    assert_true(isfinite(small_log_p("She met Bob. It was good.")));
    assert_true(isfinite(small_log_p("She met Bob. He was seen by Cy.")));
    assert_true(isfinite(small_log_p("Bob met Ann and Cy. She was bad.")));
    assert_true(isfinite(
        small_log_p("She met Bob. Ann had three, he took two of them. Bob left one to Ann. It was bad.")));
    static const char *const texts[] = {
        "",
        " ",
        "She met Bob.",
        "She met Bob. ",
        "It was good.",
        "She met Bob. It was goo",
        "she met Bob. It was good.",
        "She met Bob. It was good. ",
        " She met Bob. It was good.",
        "She met Bob.  It was good.",
        "She met Bob.It was good.",
        "She met Bob. It was good. It was good.",
        "She met Bob. he was good.",
        "She met Ann. It was good.",
        "She met Bob. He was seen by Bob.",
        "She met Bob. She was good.",
        "Bob met Ann and Ann. She was bad.",
        "Bob met Bob and Cy. It was bad.",
        "She met Bob. Ann had three, he took two of them. Bob left two to Ann. It was bad.",
        "She met Bob. Ann had three, he took two of them. Ann left one to Ann. It was bad.",
        "She met Bob. Bob had three, he took two of them. It was bad.",
        "She met Bob. Ann had three, she took two of them. It was bad."};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++)
        if (!(small_log_p(texts[i]) == -INFINITY))
            fail_msg("'%s' has log-probability %g", texts[i], small_log_p(texts[i]));
}

/* --- the stories --- */

static void test_pure_function(void **state) {
    (void)state;
    char *first[50];
    for (int i = 0; i < 50; i++) first[i] = story_make(3, (uint64_t)i);
    for (int i = 49; i >= 0; i--) {
        char *again = story_make(3, (uint64_t)i), *seed = story_make(4, (uint64_t)i);
        char *far = story_make(3, (uint64_t)i + (UINT64_C(1) << 40));
        assert_string_equal(again, first[i]);
        assert_string_not_equal(seed, first[i]);
        assert_string_not_equal(far, first[i]);
        for (int j = 0; j < i; j++) assert_string_not_equal(first[i], first[j]);
        free(again);
        free(seed);
        free(far);
        free(first[i]);
    }
}

/* For every story the record of the choices agrees with the parser, so no story has two derivations; and
 * the entropy of the grammar agrees with the mean over stories. */
static void test_probability_and_entropy(void **state) {
    (void)state;
    enum { STORIES = 20000 };
    double sum = 0, squares = 0, word_count = 0;
    struct words vocabulary = {0}, distinct = {0};
    for (int i = 0; i < STORIES; i++) {
        struct story_trace trace = {0};
        char *text = story_make_traced(1, (uint64_t)i, &trace);
        double p = log_p(text);
        if (!(fabs(p - trace.log_probability) < 1e-9))
            fail_msg("'%s': parser %.12g, choices %.12g", text, p, trace.log_probability);
        sum -= p;
        squares += p * p;
        (*word_value(&distinct, text, length(text)))++;
        int words = 0;
        for (int64_t at = 0; text[at] != '\0';) {
            int64_t end = word_end(text, at);
            if (end > at) (*word_value(&vocabulary, text + at, end - at))++, words++;
            at = end + (text[end] != '\0');
        }
        word_count += words;
        if (trace.sentences < 3 || trace.sentences > 9 || words < 30 || words > 110)
            fail_msg("%d sentences, %d words: %s", trace.sentences, words, text);
        free(text);
    }
    double mean = sum / STORIES, deviation = sqrt((squares / STORIES - mean * mean) / STORIES);
    if (!(fabs(mean - story_entropy()) < 4 * deviation))
        fail_msg("mean of -log p %.4f +- %.4f, entropy %.4f", mean, deviation, story_entropy());
    assert_true(distinct.count > STORIES - 20);
    assert_in_range(vocabulary.count, 200, 420);
    assert_true(word_count / STORIES > 40 && word_count / STORIES < 80);
    words_free(&distinct);
    words_free(&vocabulary);
}

/* Every line and phrase is used, so every brace of the grammar was read and every register set before
 * use. */
static void mark_line(void *context, const struct story_line *line) {
    char key[32];
    snprintf(key, sizeof key, "%p", (const void *)line);
    (*word_value(context, key, length(key)))++;
}
static void test_every_line_is_used(void **state) {
    (void)state;
    struct words used = {0};
    struct story_trace trace = {.line = mark_line, .context = &used};
    for (int i = 0; i < 20000; i++) free(story_make_traced(2, (uint64_t)i, &trace));
    const struct story_grammar *g = &story_grammar;
    for (int i = 0; i < g->beat_count + g->phrase_count; i++) {
        const struct story_choice *c = i < g->beat_count ? &g->beats[i] : &g->phrases[i - g->beat_count];
        if (c->count == 0) fail_msg("beat or phrase %d has no lines", i);
        for (int j = 0; j < c->count; j++) {
            char key[32];
            snprintf(key, sizeof key, "%p", (const void *)&c->lines[j]);
            if (*word_value(&used, key, length(key)) < 20) fail_msg("hardly ever used: %s", c->lines[j].text);
        }
    }
    words_free(&used);
}

/* --- corruption --- */

/* Words that can often replace each other, and the rest. */
static const char *const classes[][10] = {
    {"sunny", "warm", "cold", "windy", "cloudy"},
    {"day", "morning", "afternoon", "evening"},
    {"happy", "glad", "proud", "sad", "worried"},
    {"new", "pretty", "big", "little", "small", "tiny", "kind", "brave", "great"},
    {"he", "she", "his", "her", "him", "it", "He", "They"},
    {"Anna", "Ben", "Mia", "Tom", "Zoe", "Rex"},
    {"red", "blue", "white", "brown"},
    {"one", "two", "three", "five", "six", "seven"},
    {"ball", "kite", "drum", "bear", "boots", "box", "bag"},
    {"soup", "cake", "pot", "oven", "bread", "plates", "apples"},
    {"park", "lake", "tree", "rock", "gate", "house", "zebra"},
    {"was", "had", "and", "so", "not", "the", "a", "went", "of"},
};

static const char *another_word(const char *word, int64_t size, uint64_t index) {
    size_t class = random_number(2 * index, ARRAY_LENGTH(classes));
    for (size_t i = 0; i < ARRAY_LENGTH(classes); i++)
        for (int j = 0; j < 10 && classes[i][j]; j++)
            if (length(classes[i][j]) == size && strncmp(classes[i][j], word, (size_t)size) == 0) class = i;
    const char *by = NULL;
    for (uint64_t try = 0; !by; try++) by = classes[class][random_number(2 * index + 1 + (try << 32), 10)];
    return by;
}

static bool perfect(const struct story_grade *g) {
    return g->grammatical == g->sentences && g->in_place == g->sentences && g->references_ok == g->references;
}

/* A story with one word changed is either another story, or impossible. The parser of exact probabilities
 * and the grader, which share no matching code, must agree on which. */
static void test_changed_words(void **state) {
    (void)state;
    int possible = 0, impossible = 0;
    for (int i = 0; i < 300; i++) {
        char *text = story_make(5, (uint64_t)i);
        for (int64_t at = 0; text[at] != '\0';) {
            int64_t end = word_end(text, at);
            const char *by = another_word(text + at, end - at, (uint64_t)(i * 1000 + at));
            if (end > at && (length(by) != end - at || strncmp(by, text + at, strlen(by)) != 0)) {
                char *changed = replaced(text, at, end - at, by, (int)strlen(by));
                bool in_language = isfinite(log_p(changed));
                struct story_grade g = story_grade(changed, length(changed));
                if (perfect(&g) != in_language)
                    fail_msg("log-probability %g, but grade %d %d %d %d %d: %s", log_p(changed), g.sentences,
                             g.grammatical, g.in_place, g.references, g.references_ok, changed);
                in_language ? possible++ : impossible++;
                free(changed);
            }
            at = end + (text[end] != '\0');
        }
        free(text);
    }
    if (possible < 200 || impossible < 5000) fail_msg("%d possible, %d impossible", possible, impossible);
}

/* Where the references of a story are. */
struct reference {
    int64_t offset;
    struct story_item item;
    int row;
};
struct references {
    struct reference r[64];
    int count;
};
static void note_reference(void *context, int64_t offset, const struct story_item *item, int row) {
    struct references *list = context;
    assert_true(list->count < 64);
    list->r[list->count++] = (struct reference){offset, *item, row};
}

/* Whether the story is right up to the end of the sentence at `offset`. Who falls in a race, for example,
 * is a choice: only what follows from it is wrong then. */
static bool right_so_far(const char *text, int64_t offset) {
    while (!(strchr(".!?", text[offset]) && (text[offset + 1] == ' ' || text[offset + 1] == '\0'))) offset++;
    struct story_grade g = story_grade(text, offset + 1);
    return perfect(&g);
}

/* A wrong reference costs itself, or its sentence if that contradicts itself. */
static void test_wrong_references(void **state) {
    (void)state;
    int wrong = 0, contradictions = 0, other_choice = 0;
    for (int i = 0; i < 1500; i++) {
        struct references list = {.count = 0};
        struct story_trace trace = {.reference = note_reference, .context = &list};
        char *text = story_make_traced(6, (uint64_t)i, &trace);
        struct story_grade whole = story_grade(text, length(text));
        assert_int_equal(whole.references, list.count);
        for (int k = 0; k < list.count; k++) {
            const struct reference *r = &list.r[k];
            int row = (int)random_number((uint64_t)(i * 100 + k), (uint32_t)r->item.table->count), size,
                other;
            story_cell(&r->item, r->row, &size);
            char by[64];
            const char *p = story_cell(&r->item, row, &other);
            snprintf(by, sizeof by, "%.*s", other, p);
            if (r->item.capital) by[0] = (char)toupper((unsigned char)by[0]);
            if (size == other && strncmp(by, text + r->offset, (size_t)size) == 0) continue;
            char *changed = replaced(text, r->offset, size, by, other);
            struct story_grade g = story_grade(changed, length(changed));
            bool as_reference = g.grammatical == whole.grammatical && g.in_place == whole.in_place &&
                                g.references == whole.references && g.references_ok == whole.references - 1;
            bool as_sentence = g.grammatical == whole.grammatical - 1 && g.in_place == g.grammatical &&
                               g.references < whole.references && g.references_ok == g.references;
            if (!as_reference && !as_sentence && right_so_far(changed, r->offset)) {
                assert_true(isfinite(log_p(changed)) == perfect(&g));
                other_choice++;
                free(changed);
                continue;
            }
            if (g.sentences != whole.sentences || as_reference == as_sentence)
                fail_msg("'%s' for '%.*s' costs %d sentences, %d places, %d references: %s", by, size,
                         text + r->offset, whole.grammatical - g.grammatical, g.grammatical - g.in_place,
                         g.references - g.references_ok, changed);
            assert_true(log_p(changed) == -INFINITY);
            as_reference ? wrong++ : contradictions++;
            free(changed);
        }
        free(text);
    }
    assert_true(wrong > 3 * contradictions && contradictions > 100 && other_choice < wrong / 10);
}

/* --- grading --- */

static void test_generated_text_is_perfect(void **state) {
    (void)state;
    char *corpus = xstrdup("");
    int sentences = 0, references = 0;
    for (int i = 0; i < 200; i++) {
        struct story_trace trace = {0};
        char *text = story_make_traced(8, (uint64_t)i, &trace);
        /* as build/stories writes them, and as a decoder returns them */
        char *longer = xasprintf(i % 2 ? "%s%s\n<|endoftext|>\n" : "%s%s<|endoftext|>", corpus, text);
        sentences += trace.sentences;
        references += trace.references;
        free(text);
        free(corpus);
        corpus = longer;
    }
    struct story_grade g = story_grade(corpus, length(corpus));
    assert_int_equal(g.sentences, sentences);
    assert_int_equal(g.references, references);
    assert_true(perfect(&g));
    free(corpus);
}

/* One unreadable word costs only its sentence, wherever it is. */
static void test_unknown_word(void **state) {
    (void)state;
    for (int i = 0; i < 300; i++) {
        char *text = story_make(9, (uint64_t)i);
        struct story_grade whole = story_grade(text, length(text));
        for (int64_t at = 0; text[at] != '\0';) {
            int64_t end = word_end(text, at);
            if (end > at) {
                char *changed = replaced(text, at, end - at, "qux", 3);
                assert_true(log_p(changed) == -INFINITY);
                struct story_grade g = story_grade(changed, length(changed));
                if (g.sentences != whole.sentences || g.grammatical != whole.sentences - 1 ||
                    g.in_place != g.grammatical || g.references_ok != g.references)
                    fail_msg("%d sentences, %d grammatical, %d in place, %d of %d references: %s",
                             g.sentences, g.grammatical, g.in_place, g.references_ok, g.references, changed);
                free(changed);
            }
            at = end + (text[end] != '\0');
        }
        free(text);
    }
}

/* A missing, repeated or foreign sentence costs at most its place. A story cut anywhere is right up to
 * there. */
static void test_cut_and_repeated(void **state) {
    (void)state;
    for (int i = 0; i < 200; i++) {
        char *text = story_make(10, (uint64_t)i);
        int64_t size = length(text), begin = 0;
        struct story_grade whole = story_grade(text, size);
        int complete = 0;
        for (int64_t at = 1; at <= size; at++) {
            struct story_grade g = story_grade(text, at);
            bool stop = strchr(".!?", text[at - 1]) && (text[at] == ' ' || text[at] == '\0');
            complete += stop;
            /* after a cut behind the mark in '"What?" asked Ben.' nothing shows that the sentence
             * continues */
            bool inside = strchr(".!?", text[at - 1]) && text[at] == '"';
            if (!inside && (g.sentences != complete || !perfect(&g)))
                fail_msg("%d of %d sentences: %.*s", g.grammatical, complete, (int)at, text);
            if (!stop) continue;
            char *sentence = xasprintf("%.*s ", (int)(at - begin), text + begin);
            char *twice = replaced(text, begin, 0, sentence, (int)strlen(sentence));
            g = story_grade(twice, length(twice));
            assert_int_equal(g.sentences, whole.sentences + 1);
            assert_int_equal(g.grammatical, whole.sentences + 1);
            assert_int_equal(g.in_place, whole.sentences);
            free(twice);
            char *strange = replaced(text, begin, 0, "Qux was here. ", 14);
            g = story_grade(strange, length(strange));
            assert_int_equal(g.sentences, whole.sentences + 1);
            assert_int_equal(g.grammatical, whole.sentences);
            assert_int_equal(g.in_place, whole.sentences);
            assert_int_equal(g.references_ok, g.references);
            free(strange);
            char *without = replaced(text, begin, min_i64(at + 1, size) - begin, "", 0);
            g = story_grade(without, length(without));
            assert_int_equal(g.sentences, whole.sentences - 1);
            assert_int_equal(g.grammatical, whole.sentences - 1);
            assert_true(g.in_place >= whole.sentences - 2);
            free(without);
            free(sentence);
            begin = at + 1;
        }
        free(text);
    }
}

static void expect_grade(const char *text, int sentences, int grammatical, int in_place, int references,
                         int ok) {
    struct story_grade g = story_grade(text, length(text));
    if (g.sentences != sentences || g.grammatical != grammatical || g.in_place != in_place ||
        g.references != references || g.references_ok != ok)
        fail_msg("%d sentences, %d grammatical, %d in place, %d of %d references right: %s", g.sentences,
                 g.grammatical, g.in_place, g.references_ok, g.references, text);
}

/* Cases by hand. */
static void test_grade_of_sentences(void **state) {
    (void)state;
    expect_grade("Mia and Ben were good friends.", 1, 1, 1, 0, 0);
    expect_grade("Mia and Mia were good friends.", 1, 0, 0, 0, 0);
    expect_grade("mia and Ben were good friends.", 1, 0, 0, 0, 0);
    expect_grade("Mia and Ben were good friends. mia and Ben were glad.", 2, 1, 1, 0, 0);
    expect_grade("Mia and Ben were good", 0, 0, 0, 0, 0);
    expect_grade("  Mia and Ben\nwere good friends. ", 1, 0, 0, 0, 0);
    /* nothing is known before: nothing to be right or wrong */
    expect_grade("That night, she dreamed of the sea.", 1, 1, 0, 0, 0);
    /* but the second sentence can contradict the first */
    expect_grade("That night, she dreamed of the sea. Tom was glad.", 2, 2, 0, 1, 0);
    expect_grade("That night, she dreamed of the sea. Mia was glad.", 2, 2, 0, 1, 1);
    expect_grade("Mia and Ben were good friends.<|endoftext|>Tom and Anna were good friends.", 2, 2, 2, 0, 0);
}

/* A text that is no story costs time, but not much. */
static void test_garbage(void **state) {
    (void)state;
    enum { SIZE = 20000 };
    struct story_grade g = story_grade("", 0);
    assert_int_equal(g.sentences, 0);
    char *text = xmalloc(SIZE);
    static const char *const alphabets[] = {"a.", "<|endoftext|>. ",         ".",
                                            "<",  "One day, Anna was her. ", "\"?! \n"};
    for (size_t k = 0; k <= ARRAY_LENGTH(alphabets); k++) {
        for (int i = 0; i < SIZE; i++) {
            uint32_t r = random_number(k * SIZE + (uint64_t)i, 256);
            text[i] = k < ARRAY_LENGTH(alphabets) ? alphabets[k][r % strlen(alphabets[k])] : (char)r;
        }
        g = story_grade(text, SIZE);
        assert_true(g.grammatical == 0 && g.references == 0 && g.in_place == 0 && g.sentences <= SIZE);
        assert_true(story_log_probability(text, SIZE) == -INFINITY);
    }
    /* Sentences of real stories in random order. */
    char *mixed = xstrdup("");
    for (int i = 0; i < 300; i++) {
        char *story = story_make(11, (uint64_t)i), *stop = strchr(story, '.');
        char *longer = xasprintf("%s %.*s", mixed, stop ? (int)(stop + 1 - story) : 0, story);
        free(mixed);
        free(story);
        mixed = longer;
    }
    g = story_grade(mixed, length(mixed));
    assert_true(g.sentences > 250 && g.grammatical == g.sentences && g.in_place < 20);
    free(mixed);
    free(text);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_grammar),      cmocka_unit_test(test_small_grammar_refuses),
        cmocka_unit_test(test_pure_function),      cmocka_unit_test(test_probability_and_entropy),
        cmocka_unit_test(test_every_line_is_used), cmocka_unit_test(test_changed_words),
        cmocka_unit_test(test_wrong_references),   cmocka_unit_test(test_generated_text_is_perfect),
        cmocka_unit_test(test_unknown_word),       cmocka_unit_test(test_cut_and_repeated),
        cmocka_unit_test(test_grade_of_sentences), cmocka_unit_test(test_garbage),
    };
    return test_main(argc, argv, tests, NULL, NULL);
}

/* What a head links, in a model whose parameters are written by hand so that one head does exactly that; the
 * loss without a head; and what the stories say of their pronouns. */
#include "test/test.h"

#include "llmc/model/heads.h"
#include "llmc/model/generate.h"
#include "llmc/stories/story_links.h"
#include "llmc/text/bpe_train.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* --- stories --- */

static bool is_word(const char *text, struct story_span s, const char *const *words, size_t count) {
    for (size_t i = 0; i < count; i++)
        if ((int64_t)strlen(words[i]) == s.size && strncasecmp(text + s.at, words[i], (size_t)s.size) == 0)
            return true;
    return false;
}

/* Every link is from a pronoun; what it stands for is named before it, and a person by a name that fits. */
static void test_links_of_stories(void **state) {
    static const char *const things[] = {"it", "they", "them"}, *const persons[] = {"he", "she", "him", "her",
                                                                                    "his"};
    static const char *const girls[] = {"Anna", "Mia", "Lily", "Emma", "Zoe"}, *const boys[] = {"Ben", "Tom",
                                                                                                "Max", "Leo",
                                                                                                "Sam"};
    struct story_links l;
    int64_t links = 0, of_things = 0, of_boys = 0, others = 0;
    for (uint64_t i = 0; i < 300; i++) {
        story_links_make(&l, 11, i);
        char *plain = story_make(11, i);
        assert_string_equal(plain, l.text);
        for (int k = 0; k < l.count; k++) {
            const struct story_link *link = &l.link[k];
            const char *pronoun = l.text + link->pronoun.at;
            bool she = tolower((unsigned char)*pronoun) == 's' || strncasecmp(pronoun, "her", 3) == 0;
            int named = 0;
            assert_true(link->thing ? is_word(l.text, link->pronoun, things, 3)
                                    : is_word(l.text, link->pronoun, persons, 5));
            for (int n = 0; n < l.nouns; n++) {
                struct story_span noun = l.noun[n].span;
                assert_true((noun.at < link->pronoun.at) == (n < link->nouns_before));
                if (n >= link->nouns_before) break;
                if (l.noun[n].what != link->what) {
                    others++;
                    continue;
                }
                named++;
                if (!link->thing && is_word(l.text, noun, girls, 5)) assert_true(she);
                if (!link->thing && is_word(l.text, noun, boys, 5)) assert_false(she);
                of_boys += is_word(l.text, noun, boys, 5);
            }
            assert_true(named > 0);
            of_things += link->thing;
        }
        links += l.count;
        free(plain);
        story_links_free(&l);
    }
    assert_true(links > 500 && of_things > 50 && of_boys > 100 && others > 1000);
}

/* --- a planted head --- */

enum { T = 128, STORIES = 120, C = 32, HS = 8, LAYER = 1, HEAD = 2 };

struct planted {
    struct device *device;
    struct ctx ctx;
    struct gpt gpt;
    struct tokenizer *tokenizer;
    struct head_texts texts;
};

static struct tokenizer *train_tokenizer(void) {
    enum { DOCUMENTS = 1500 };
    struct text_span docs[DOCUMENTS];
    struct error err;
    for (int i = 0; i < DOCUMENTS; i++) {
        docs[i].data = story_make(3, (uint64_t)i);
        docs[i].size = (int64_t)strlen(docs[i].data);
    }
    struct tokenizer *t = tokenizer_train(docs, DOCUMENTS, 1024, 1, &err);
    if (!t) fail_msg("%s", err.message);
    for (int i = 0; i < DOCUMENTS; i++) free((void *)(uintptr_t)docs[i].data);
    return t;
}

static bool token_is(const struct tokenizer *t, int64_t id, const char *const *words, size_t count) {
    int size = 0;
    const char *bytes = tokenizer_token_bytes(t, id, &size);
    int64_t space = bytes && size > 1 && bytes[0] == ' ';
    return bytes && is_word(bytes, (struct story_span){space, size - space}, words, count);
}

/* All parameters are 0 but these: every token has feature 0, the name of a thing feature 1, too; in one head
 * the query is feature 0 and the key feature 1. Everywhere else all scores are 0. */
static void plant(struct planted *p) {
    static const char *const things[] = {"ball", "kite", "drum",  "boat",  "doll", "bear",
                                         "book", "bike", "boots", "socks", "shoes"};
    struct tensor wte = gpt_param(&p->gpt, P_WTE, 0), qkv = gpt_param(&p->gpt, P_QKV_W, LAYER);
    fill(&p->ctx, &p->gpt.params, 0.0f);
    for (int64_t l = 0; l < 2; l++) {
        struct tensor gain = gpt_param(&p->gpt, P_LN1_W, l);
        fill(&p->ctx, &gain, 1.0f);
    }
    for (int64_t id = 0; id < p->gpt.config.vocab_size; id++) {
        f32(&wte)[id * C] = 10.0f;
        if (token_is(p->tokenizer, id, things, ARRAY_LENGTH(things))) f32(&wte)[id * C + 1] = 10.0f;
    }
    f32(&qkv)[(HEAD * HS) * C] = 3.0f;         /* dimension 0 of the head's query, from feature 0 */
    f32(&qkv)[(C + HEAD * HS) * C + 1] = 3.0f; /* of its key, from feature 1 */
}

static int open_planted(void **state) {
    struct planted *p = (struct planted *)xcalloc(1, sizeof *p);
    struct error err;
    struct gpt_config config = {.name = "planted", .context = T, .layers = 2, .heads = 4, .channels = C};
    p->tokenizer = train_tokenizer();
    config.vocab_size = tokenizer_vocab_size(p->tokenizer);
    gpt_config_complete(&config);
    p->device = device_open_cpu();
    ctx_init(&p->ctx, p->device, cpu_ops(), false);
    struct gpt_options options = {.B = 7, .T = T, .dtype = DTYPE_F32};
    gpt_create(&p->gpt, &p->ctx, &config, &options);
    plant(p);
    if (!head_texts_of_stories(&p->texts, p->tokenizer, STORIES, T, false, &err)) fail_msg("%s", err.message);
    *state = p;
    return 0;
}

static int close_planted(void **state) {
    struct planted *p = (struct planted *)*state;
    head_texts_free(&p->texts);
    tokenizer_free(p->tokenizer);
    ctx_free(&p->ctx);
    p->device->close(p->device);
    free(p);
    return 0;
}

/* The links of the texts are from the token before a pronoun to tokens of nouns, right and wrong ones. */
static void test_links_of_tokens(void **state) {
    const struct planted *p = (const struct planted *)*state;
    static const char *const pronouns[] = {"it", "they", "them"};
    assert_in_range(p->texts.links, 30, 1000);
    for (int64_t i = 0; i < STORIES * T; i++) {
        const int32_t *token = p->texts.tokens + i;
        bool padded =
            i % T + 1 < T && token[1] == p->texts.tokens[0]; /* <|endoftext|>, which begins each text */
        if (i % T + 1 < T) assert_int_equal(p->texts.targets[i], padded ? -1 : token[1]);
    }
    for (int64_t i = 0; i < p->texts.links; i++) {
        const struct head_link *link = &p->texts.link[i];
        const int32_t *tokens = p->texts.tokens + link->text * T;
        int64_t right = 0;
        assert_true(token_is(p->tokenizer, tokens[link->from + 1], pronouns, 3));
        for (int64_t k = 0; k < link->count; k++) {
            assert_in_range(p->texts.source[link->first + k].token, 1, link->from - 1);
            right += p->texts.source[link->first + k].right;
        }
        assert_true(right > 0 && right < link->count);
    }
    double chance = head_chance(&p->texts) / (double)p->texts.links;
    assert_true(chance > 0.05 && chance < 0.6);
}

static void test_planted_head_is_found(void **state) {
    struct planted *p = (struct planted *)*state;
    int64_t hits[8], links = p->texts.links;
    head_hits(hits, &p->texts, &p->gpt);
    assert_int_equal(head_best(hits, &p->gpt.config), LAYER * 4 + HEAD);
    if (!(hits[LAYER * 4 + HEAD] >= 0.95 * (double)links))
        fail_msg("the planted head is right for %d of %d", (int)hits[LAYER * 4 + HEAD], (int)links);
    for (int i = 0; i < 8; i++)
        if (i != LAYER * 4 + HEAD) assert_true((double)hits[i] < 0.5 * (double)links);
    /* the same, one text at a time, as at the end of a training */
    struct gpt one;
    int64_t again[8];
    generator_create(&one, &p->ctx, &p->gpt.config, DTYPE_F32, &p->gpt, 0, 0);
    head_hits(again, &p->texts, &one);
    assert_memory_equal(hits, again, sizeof hits);
}

/* Without the head the loss is that of a model without its columns of the output projection. */
static void test_loss_without_a_head(void **state) {
    struct planted *p = (struct planted *)*state;
    bool off[8] = {false};
    struct ablation a = {.off = off};
    gpt_init_weights(&p->gpt, 9);
    struct tensor proj = gpt_param(&p->gpt, P_PROJ_W, 0), wte = gpt_param(&p->gpt, P_WTE, 0);
    for (int64_t i = 0; i < tensor_count(&wte); i++) f32(&wte)[i] *= 20.0f;
    for (int64_t i = 0; i < tensor_count(&proj); i++) f32(&proj)[i] *= 50.0f;
    double whole = head_loss(&p->texts, &p->gpt, NULL);
    off[3] = true; /* layer 0 */
    double without = head_loss(&p->texts, &p->gpt, &a);
    for (int64_t i = 0; i < C; i++) memset(f32(&proj) + i * C + 3 * HS, 0, HS * sizeof(float));
    double zeroed = head_loss(&p->texts, &p->gpt, NULL);
    assert_true(fabs(without - zeroed) < 1e-6);
    assert_true(fabs(without - whole) > 1e-3);
    plant(p);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_links_of_stories), cmocka_unit_test(test_links_of_tokens),
        cmocka_unit_test(test_planted_head_is_found), cmocka_unit_test(test_loss_without_a_head)};
    return test_main(argc, argv, tests, open_planted, close_planted);
}

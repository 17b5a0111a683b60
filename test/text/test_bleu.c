/* BLEU against sacrebleu (dev/reference/bleu.py). */
#include "test/test.h"

#include "llmc/text/bleu.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *golden;

static const char *text_at(const json_t *list, size_t i) {
    return json_string_value(json_array_get(list, i));
}

static void words_are_those_of_mteval(void **state) {
    const json_t *pair;
    size_t i;
    json_array_foreach(json_object_get(golden, "words"), i, pair) {
        char *words = bleu_words(text_at(pair, 0));
        assert_string_equal(words, text_at(pair, 1));
        free(words);
    }
    assert_true(i > 10);
}

static void near(double is, double expected) {
    if (!(fabs(is - expected) <= 1e-9 * (1.0 + fabs(expected))))
        fail_msg("%.12g, expected %.12g", is, expected);
}

static void scores_are_those_of_sacrebleu(void **state) {
    const json_t *set;
    size_t i;
    json_array_foreach(json_object_get(golden, "sets"), i, set) {
        const json_t *written = json_object_get(set, "written"),
                     *references = json_object_get(set, "references");
        struct bleu b = {{0}, {0}, 0, 0};
        double brevity, precision[BLEU_ORDER];
        for (size_t k = 0; k < json_array_size(written); k++)
            bleu_add(&b, text_at(written, k), text_at(references, k));
        near(bleu_score(&b, &brevity, precision), json_real_value(json_object_get(set, "score")));
        near(brevity, json_real_value(json_object_get(set, "brevity")));
        for (size_t n = 0; n < BLEU_ORDER; n++)
            near(precision[n], json_real_value(json_array_get(json_object_get(set, "precisions"), n)));
    }
    assert_true(i > 5);
}

static int set_up(void **state) {
    golden = json_load_file("test/golden/bleu.json", 0, NULL);
    return golden ? 0 : -1;
}

static int tear_down(void **state) {
    json_decref(golden);
    return 0;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_are_those_of_mteval),
        cmocka_unit_test(scores_are_those_of_sacrebleu),
    };
    return test_main(argc, argv, tests, set_up, tear_down);
}

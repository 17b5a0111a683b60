/* llmc/fp8.h against the tables of the OCP specification and against searches through all codes. */
#include "test/test.h"

#include "llmc/fp8.h"
#include "llmc/rng.h"
#include "llmc/tensor.h"

#include <stdio.h>
#include <string.h>

/* Table 1 and 2 of the specification: infinity, NaN, largest, smallest normal, largest and smallest
 * subnormal. */
static void test_the_specification(void **state) {
    assert_true(fp8_value(FP8_E4M3, 0x7e) == 448.0f && fp8_value(FP8_E4M3, 0x08) == 0x1p-6f);
    assert_true(fp8_value(FP8_E4M3, 0x07) == 0.875f * 0x1p-6f && fp8_value(FP8_E4M3, 0x01) == 0x1p-9f);
    assert_true(isnan(fp8_value(FP8_E4M3, 0x7f)) && isnan(fp8_value(FP8_E4M3, 0xff)));
    assert_true(fp8_value(FP8_E5M2, 0x7b) == 57344.0f && fp8_value(FP8_E5M2, 0x04) == 0x1p-14f);
    assert_true(fp8_value(FP8_E5M2, 0x03) == 0.75f * 0x1p-14f && fp8_value(FP8_E5M2, 0x01) == 0x1p-16f);
    assert_true(fp8_value(FP8_E5M2, 0x7c) == INFINITY && fp8_value(FP8_E5M2, 0xfc) == -INFINITY);
    for (int code = 0x7d; code <= 0x7f; code++) assert_true(isnan(fp8_value(FP8_E5M2, (uint8_t)code)));
    assert_true(fp8_value(FP8_E4M3, 0x38) == 1.0f && fp8_value(FP8_E5M2, 0xbc) == -1.0f);
}

/* Every finite number stays; between two neighbours the nearer one wins, and the one with an even code in the
 * middle. */
static void test_rounding(void **state) {
    for (int f = FP8_E4M3; f <= FP8_E5M2; f++) {
        enum fp8_format format = (enum fp8_format)f;
        int last = format == FP8_E4M3 ? 0x7e : 0x7b;
        for (int code = 0; code <= last; code++) {
            float v = fp8_value(format, (uint8_t)code);
            assert_true(fp8_round(format, v) == v && fp8_round(format, -v) == -v);
            if (code == last) break;
            float next = fp8_value(format, (uint8_t)(code + 1)), middle = 0.5f * (v + next);
            assert_true(next > v);
            assert_true(fp8_round(format, middle) == (code % 2 ? next : v));
            assert_true(fp8_round(format, nextafterf(middle, 0.0f)) == v);
            assert_true(fp8_round(format, nextafterf(middle, next)) == next);
            assert_true(fp8_round(format, -nextafterf(middle, next)) == -next);
        }
        float largest = fp8_largest(format);
        assert_true(fp8_value(format, (uint8_t)last) == largest);
        for (float x = largest; x < 1e38f; x *= 1.01f) assert_true(fp8_round(format, -x) == -largest);
        assert_true(fp8_round(format, INFINITY) == largest && isnan(fp8_round(format, NAN)));
        assert_true(fp8_round(format, 1e-30f) == 0.0f && fp8_round(format, 0.0f) == 0.0f);
    }
}

/* The largest power of two that fits, for magnitudes of every size. */
static void test_scale(void **state) {
    for (int f = FP8_E4M3; f <= FP8_E5M2; f++) {
        enum fp8_format format = (enum fp8_format)f;
        double largest = (double)fp8_largest(format);
        for (int i = 0; i < 20000; i++) {
            double u = rng_uniform(1, RNG_TEST, (uint64_t)i);
            float amax = ldexpf((float)(1.0 + u), i % 220 - 110), scale = fp8_scale(format, amax);
            int exponent;
            assert_true(frexpf(scale, &exponent) == 0.5f);
            assert_true((double)amax * (double)scale <= largest &&
                        2.0 * (double)amax * (double)scale > largest);
            double error = fabs((double)fp8_through(format, amax, scale) - (double)amax);
            assert_true(error <= (format == FP8_E4M3 ? 0x1p-4 : 0x1p-3) * (double)amax);
        }
        assert_true(fp8_scale(format, (float)largest) == 1.0f);
        assert_true(fp8_scale(format, nextafterf((float)largest, INFINITY)) == 0.5f);
        assert_true(fp8_scale(format, 0.0f) == 1.0f);
        assert_true(fp8_scale(format, 0x1p-149f) == 0x1p126f && isfinite(fp8_scale(format, 3e38f)));
        assert_true(isnan(fp8_scale(format, INFINITY)) && isnan(fp8_scale(format, NAN)));
        /* small integers are exact whatever the scale */
        for (int amax = 1; amax <= (format == FP8_E4M3 ? 16 : 8); amax++)
            for (int i = -amax; i <= amax; i++)
                assert_true(fp8_through(format, (float)i, fp8_scale(format, (float)amax)) == (float)i);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_specification),
                                       cmocka_unit_test(test_rounding), cmocka_unit_test(test_scale)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

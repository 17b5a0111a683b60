/* Tests of the op tests: a wrong result must be reported. Every output of every op is set to the reference,
 * rounded to its dtype, and then spoiled in one way; a case of that op must fail. So these tests also show
 * that cases and tolerances leave no room for such an error. */
#include "test/test.h"

#include "llmc/ops/fp8.h"
#include "test/ops/cpu_ctx.h"
#include "test/ops/op_harness.h"

#include <stdlib.h>
#include <string.h>

/* --- ways to spoil a result --- */

enum spoil {
    NONE,
    FIRST_ELEMENT,
    MIDDLE_ELEMENT,
    LAST_ELEMENT,
    ONE_NAN,
    SCALED,
    SHIFTED,
    ADDED,
    ROW_NOT_WRITTEN,
    TAIL_NOT_WRITTEN,
    PAST_END,
    BEFORE_START,
    SPOILS
};
static const char *const spoil_text[SPOILS] = {"",
                                               "the first element is wrong by twice what is allowed",
                                               "the middle element is wrong by twice what is allowed",
                                               "the last element is wrong by twice what is allowed",
                                               "one element is NaN",
                                               "all elements are wrong by a factor",
                                               "every element has the value of the next",
                                               "the result was added to what was there",
                                               "a row in the middle is as it was",
                                               "the last elements are as they were",
                                               "the element after the end was written",
                                               "the element before the start was written"};

/* The code whose value is nearest to x. */
static uint8_t nearest_code(enum fp8_format format, double x) {
    uint8_t best = 0;
    if (isnan(x)) return 0x7f;
    for (int code = 0; code < (format == FP8_E4M3 ? 0x7f : 0x7c); code++)
        if (fabs((double)fp8_value(format, (uint8_t)code) - fabs(x)) <
            fabs((double)fp8_value(format, best) - fabs(x)))
            best = (uint8_t)code;
    return x < 0.0 ? best | 0x80 : best;
}

static void put(struct operand *o, int64_t i, double v) {
    struct tensor *t = &o->target;
    if (dtype_is_fp8(t->dtype))
        ((uint8_t *)t->data)[i] =
            nearest_code(fp8_format_of(t->dtype), v / (double)o[1].expected[0]); /* the operand after it */
    else if (t->dtype == DTYPE_BF16)
        ((uint16_t *)t->data)[i] = bf16_from_f32((float)v);
    else
        f32(t)[i] = (float)v;
}

static void put_wrong_by_twice(struct operand *o, int64_t i) {
    double right = (double)o->expected[i], allowed = o->exact ? 0.02 * (1.0 + fabs(right)) : o->allowed[i];
    put(o, i, right + (right < 0.0 ? -2.0 : 2.0) * allowed);
}

static void write_result(struct operand *o, enum spoil spoil) {
    int64_t n = o->count, cols = tensor_cols(&o->target), row = tensor_rows(&o->target) / 2 * cols;
    /* more than rounding explains */
    double factor = o->target.fp8 ? 1.5 : o->target.dtype == DTYPE_BF16 ? 1.0 + 0x1p-4 : 1.0 + 0x1p-10;
    for (int64_t i = 0; i < n; i++) {
        bool untouched = (spoil == ROW_NOT_WRITTEN && i >= row && i < row + cols) ||
                         (spoil == TAIL_NOT_WRITTEN && i >= (n - 1) / 4 * 4);
        double right = (double)o->expected[spoil == SHIFTED && i + 1 < n ? i + 1 : i];
        put(o, i,
            untouched         ? (double)o->initial[i]
            : spoil == SCALED ? right * factor
            : spoil == ADDED  ? right + (double)o->initial[i]
                              : right);
    }
    if (spoil == FIRST_ELEMENT) put_wrong_by_twice(o, 0);
    if (spoil == MIDDLE_ELEMENT) put_wrong_by_twice(o, n / 2);
    if (spoil == LAST_ELEMENT) put_wrong_by_twice(o, n - 1);
    if (spoil == ONE_NAN) put(o, n / 2, (double)NAN);
    if (spoil == PAST_END) put(o, n, 0.0);
    if (spoil == BEFORE_START) put(o, -1, 0.0);
}

/* --- every output of every op --- */

/* What happened to one operand in the cases so far: was the result changed, and did a comparison fail? */
struct record {
    const char *name;
    bool changed[SPOILS], noticed[SPOILS];
};

static struct record *record_of(struct record *records, const char *name) {
    while (records->name && strcmp(records->name, name) != 0) records++;
    records->name = name;
    return records;
}

static bool matches(struct op_instance *x) {
    struct error err;
    double worst = 0.0;
    return op_instance_compare(x, &worst, &err);
}

static void write_all(struct op_instance *x) {
    op_instance_upload(x);
    for (int k = 0; k < x->count; k++)
        if (x->operand[k].role != ROLE_IN) write_result(&x->operand[k], NONE);
}

static void spoil_output(struct op_instance *x, struct operand *o, struct record *record) {
    size_t bytes = (size_t)tensor_bytes(&o->target);
    void *right = xmalloc(bytes);
    write_all(x);
    memcpy(right, o->target.data, bytes);
    for (int spoil = NONE + 1; spoil < SPOILS; spoil++) {
        if (record->noticed[spoil]) continue;
        write_all(x);
        write_result(o, (enum spoil)spoil);
        record->changed[spoil] = record->changed[spoil] || spoil == PAST_END || spoil == BEFORE_START ||
                                 memcmp(right, o->target.data, bytes) != 0;
        record->noticed[spoil] = !matches(x);
    }
    free(right);
}

/* One bit of an input, unless its memory is that of an output. */
static void change_input(struct op_instance *x, int k) {
    for (int other = 0; other < x->count; other++)
        if (x->operand[other].alias == k) return;
    write_all(x);
    struct tensor *t = &x->operand[k].target;
    ((unsigned char *)t->data)[tensor_bytes(t) - 1] ^= 1;
    if (matches(x)) fail_msg("%s: nobody notices that the input %s changed", op_name(x->op->id), t->name);
}

static void test_spoiled_results_are_noticed(void **state) {
    int survivors = 0, noticed = 0;
    for (int id = 0; id < OP_COUNT; id++)
        for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            struct record records[OP_MAX_OPERANDS + 1] = {0};
            for (size_t i = 0; i < op_tests[id]->case_count; i++) {
                const struct op_case *c = &op_tests[id]->cases[i];
                struct op_instance x;
                if (c->size == SIZE_LARGE) continue;
                op_instance_create(&x, op_tests[id], c, (enum dtype)dtype, ctx_of(state));
                write_all(&x);
                if (!matches(&x)) fail_msg("%s: a right result fails", op_case_text(x.op, c, x.dtype, NULL));
                for (int k = 0; k < x.count; k++)
                    if (x.operand[k].role == ROLE_IN)
                        change_input(&x, k);
                    else
                        spoil_output(&x, &x.operand[k], record_of(records, x.operand[k].name));
                op_instance_free(&x);
            }
            for (const struct record *r = records; r->name; r++)
                for (int spoil = NONE + 1; spoil < SPOILS; spoil++) {
                    noticed += r->noticed[spoil];
                    if (r->noticed[spoil] || !r->changed[spoil]) continue;
                    print_error("%s %s, %s: %s, and no case notices\n", op_name((enum op_id)id),
                                dtype_name((enum dtype)dtype), r->name, spoil_text[spoil]);
                    survivors++;
                }
        }
    assert_int_equal(survivors, 0);
    assert_true(noticed > 2 * OP_COUNT * (SPOILS - 4)); /* some ways change nothing: SHIFTED of one element */
}

/* --- scratch and a second run --- */

/* Variants that compute the right values, and do one thing wrong. */
static int64_t small_need(struct tensor *out, float value) { return 64; }
static void write_value(struct tensor *out, float value) {
    for (int64_t i = 0; i < tensor_count(out); i++) f32(out)[i] = value;
}
static void overruns_scratch(const struct op_env *env, struct tensor *out, float value) {
    write_value(out, value);
    ((char *)env->scratch)[64] = 1;
}
static void reads_scratch(const struct op_env *env, struct tensor *out, float value) {
    write_value(out, value + 0.0f * *(float *)env->scratch);
}
static void differs(const struct op_env *env, struct tensor *out, const struct tensor *inp,
                    enum activation act) {
    static bool second;
    cpu_ops()->act_forward[0].run(env, out, inp, act);
    if (second) f32(out)[0] = nextafterf(f32(out)[0], 0.0f);
    second = !second;
}

/* The first case of an op must fail with this message. */
static void expect_failure(void **state, const struct ops *ops, enum op_id id, const char *message) {
    struct ctx ctx;
    struct error err = {""};
    double worst = 0.0;
    ctx_init(&ctx, ctx_of(state)->device, ops, false);
    struct op_target target = {.ctx = &ctx};
    enum op_verdict verdict =
        op_check(op_tests[id], &op_tests[id]->cases[0], DTYPE_F32, &target, &worst, &err);
    if (verdict != OP_FAILED || !strstr(err.message, message))
        fail_msg("'%s' should say '%s'", err.message, message);
    ctx_free(&ctx);
}

static void test_misuse_of_scratch_is_noticed(void **state) {
    const struct fill_variant overruns[] = {{"overruns", overruns_scratch, small_need}, {0}};
    const struct fill_variant reads[] = {{"reads", reads_scratch, small_need}, {0}};
    struct ops ops = *cpu_ops();
    ops.fill = overruns;
    expect_failure(state, &ops, OP_fill, "byte 0 after the end of its scratch");
    ops.fill = reads;
    expect_failure(state, &ops, OP_fill, "nan and should be exactly");
}

static void test_a_second_run_that_differs_is_noticed(void **state) {
    const struct act_forward_variant variants[] = {{"differs", differs, cpu_ops()->act_forward[0].need}, {0}};
    struct ops ops = *cpu_ops();
    ops.act_forward = variants;
    expect_failure(state, &ops, OP_act_forward, "two runs on the same inputs gave different bits");
}

int main(int argc, char **argv) {
#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, open_cpu, close_cpu)
    const struct CMUnitTest tests[] = {CPU_TEST(test_spoiled_results_are_noticed),
                                       CPU_TEST(test_misuse_of_scratch_is_noticed),
                                       CPU_TEST(test_a_second_run_that_differs_is_noticed)};
    return test_main(argc, argv, tests, NULL, NULL);
}

/* Checkpoints of several ranks: what some write, any others read, element by element; and a rank that
 * cannot write. */
#include "test/format/checkpoint.h"
#include "test/ranks/ranks.h"

#include <signal.h>
#include <sys/resource.h>

enum { PARAMS_SALT = 500, M_SALT = 1500, V_SALT = 2500 };

struct plan {
    const char *run;
    const struct gpt_config *config;
    enum zero_level level;
    int64_t team; /* 0: all */
    enum optimizer_kind optimizer;
    bool save;             /* else load and compare */
    int64_t step, limited; /* the rank that may not write more than a page; -1: none */
};

static void each_stored(struct zero *z, enum zero_what what, uint64_t salt, bool write) {
    struct gpt *g = z->gpt;
    float *expected = (float *)xcalloc((size_t)g->layout.total, sizeof *expected);
    struct tensor all = tensor_make("expected", DTYPE_F32, expected, g->layout.total, 0, 0, 0);
    paint(g, &all, salt);
    struct zero_range r;
    for (int64_t next = 0; zero_stored(z, what, 0, g->layout.total, &next, &r);)
        if (write)
            memcpy(r.here.data, expected + r.first, (size_t)r.count * sizeof(float));
        else
            check(memcmp(r.here.data, expected + r.first, (size_t)r.count * sizeof(float)) == 0,
                  "elements %" PRId64 " to %" PRId64 " of state %d are others", r.first,
                  r.first + r.count - 1, (int)what);
    free(expected);
}

static int body(const struct ranks *ranks, int64_t rank) {
    const struct plan *p = (const struct plan *)ranks->arg;
    struct error err;
    struct group *group = ranks_open(ranks);
    struct device *device = device_open_cpu();
    struct comm *comm = comm_open(group, device, p->team, &err);
    check(comm, "%s", err.message);
    struct ctx ctx;
    struct gpt gpt;
    struct optimizer opt;
    struct zero z;
    struct gpt_options options = {.B = 1, .T = p->config->context, .train = true};
    zero_gpt_options(&options, p->level, ranks->world);
    ctx_init(&ctx, device, cpu_ops(), false);
    gpt_create(&gpt, &ctx, p->config, &options);
    memset(gpt.params.data, 0x7f, (size_t)tensor_bytes(&gpt.params));
    zero_create(&z, &gpt, &opt, comm, p->level, (struct optimizer_options){.kind = p->optimizer});
    int status = 0;
    if (p->save) {
        each_stored(&z, ZERO_PARAMS, PARAMS_SALT, true);
        each_stored(&z, ZERO_M, M_SALT, true);
        each_stored(&z, ZERO_V, V_SALT, true);
        zero_parameters_changed(&z);
        struct rlimit small_files = {4096, 4096};
        signal(SIGXFSZ, SIG_IGN);
        if (rank == p->limited) setrlimit(RLIMIT_FSIZE, &small_files);
        struct train_state state = state_at(p->step);
        check(make_directories(p->run, &err), "%s", err.message);
        if (!checkpoint_save(p->run, &z, NULL, &state, &err)) {
            fprintf(stderr, "%s\n", err.message);
            status = 5;
        }
        train_state_free(&state);
    } else {
        char *dir = checkpoint_find(p->run, &err);
        check(dir, "%s", err.message);
        memset(opt.m.data, 0x7f, (size_t)tensor_bytes(&opt.m));
        if (opt.v.data) memset(opt.v.data, 0x7f, (size_t)tensor_bytes(&opt.v));
        check(checkpoint_load_parameters(&z, dir, &err) && checkpoint_load_moments(&z, dir, &err), "%s",
              err.message);
        each_stored(&z, ZERO_PARAMS, PARAMS_SALT, false);
        each_stored(&z, ZERO_M, M_SALT, false);
        each_stored(&z, ZERO_V, V_SALT, false);
        free(dir);
    }
    zero_free(&z);
    ctx_free(&ctx);
    comm->close(comm);
    device->close(device);
    group_close(group);
    return status;
}

/* The ranks have ended; they are to be freed. */
static void run_ranks(struct ranks *r, int64_t world, const struct plan *plan) {
    ranks_init(r, world, 60);
    r->arg = plan;
    ranks_start(r, body);
    ranks_finish(r, 60);
}

static void succeed(int64_t world, const struct plan *plan) {
    struct ranks r;
    run_ranks(&r, world, plan);
    ranks_expect_all(&r, 0, NULL);
    ranks_free(&r);
}

static void any_number_reads_what_any_number_wrote(void **state) {
    static const struct {
        const struct gpt_config *config;
        int64_t world, files;
        enum zero_level level;
        int64_t team;
    } runs[] = {{&small, 1, 1, ZERO_NONE},         {&small, 2, 2, ZERO_OPTIMIZER},
                {&small, 3, 3, ZERO_PARAMETERS},   {&small, 4, 4, ZERO_GRADIENTS},
                {&least, 4, 3, ZERO_PARAMETERS},   {&least, 2, 2, ZERO_NONE},
                {&small, 4, 4, ZERO_PARAMETERS, 2}};
    for (size_t w = 0; w < ARRAY_LENGTH(runs); w++) {
        enum optimizer_kind optimizer = (enum optimizer_kind)(w % 3);
        const char *run = in_scratch("run-%zu", w);
        struct plan p = {
            .run = run, .config = runs[w].config, .level = runs[w].level, .save = true, .step = 3};
        p.team = runs[w].team;
        p.limited = -1;
        p.optimizer = optimizer;
        succeed(runs[w].world, &p);
        int64_t files = runs[w].files;
        char *last =
            xasprintf("%s/step-00000003/optimizer-%05d-of-%05d.safetensors", run, (int)files, (int)files);
        assert_true(path_exists(last) == (files > 1));
        char *dir = xasprintf("%s/step-00000003", run);
        assert_int_equal(count_entries(dir), 3 + 2 * files + (files > 1 ? 2 : 0));
        free(dir);
        free(last);
        p.save = false;
        for (size_t r = 0; r < ARRAY_LENGTH(runs); r++) {
            if (runs[r].config != runs[w].config) continue;
            p.level = runs[r].level;
            p.team = runs[r].team;
            succeed(runs[r].world, &p);
        }
    }
}

/* The others, which could, have the same reason, nothing is left behind, and the older checkpoint is as it
 * was. */
static void one_rank_cannot_write(void **state) {
    const char *run = in_scratch("run");
    struct plan p = {
        .run = run, .config = &small, .level = ZERO_OPTIMIZER, .save = true, .step = 1, .limited = -1};
    succeed(2, &p);
    for (p.limited = 0; p.limited < 3; p.limited++) {
        struct ranks r;
        p.step = 2;
        run_ranks(&r, 3, &p);
        ranks_expect_all(&r, 5, "File too large");
        ranks_expect_all(&r, 5, "step-00000002.tmp/");
        ranks_free(&r);
        assert_int_equal(count_entries(run), 1);
        assert_finds(run, 1);
    }
    p.save = false;
    succeed(2, &p);
}

/* Without the fixture's model: OpenMP's threads, once started, do not survive a fork. */
int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {SCRATCH_TEST(any_number_reads_what_any_number_wrote),
                                       SCRATCH_TEST(one_rank_cannot_write)};
    return test_main(argc, argv, tests, NULL, NULL);
}

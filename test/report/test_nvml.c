/* Readings of a GPU from stand-ins for NVIDIA's library, which the test compiles: one that works, and
 * others that lack functions or whose functions fail. */
#include "test/scratch.h"

#include "llmc/base/file.h"
#include "llmc/report/nvml.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- stand-ins --- */

/* -DNO_X leaves function X out, -DBAD_X makes it fail. Its readings come from the environment. */
static const char source[] =
    "#include <stdlib.h>\n"
    "#include <string.h>\n"
    "static unsigned number(const char *name) { return (unsigned)strtoul(getenv(name), 0, 0); }\n"
    "static int fail_or(int bad) { return bad ? 3 : 0; }\n"
    "#ifndef BAD_INIT\n#define BAD_INIT 0\n#endif\n"
    "#ifndef BAD_POWER\n#define BAD_POWER 0\n#endif\n"
    "#ifndef BAD_REASONS\n#define BAD_REASONS 0\n#endif\n"
    "int nvmlInit_v2(void) { setenv(\"FAKE_OPEN\", \"1\", 1); return fail_or(BAD_INIT); }\n"
    "int nvmlShutdown(void) { setenv(\"FAKE_OPEN\", \"0\", 1); return 0; }\n"
    "#ifndef NO_HANDLE\n"
    "int nvmlDeviceGetHandleByUUID(const char *id, void **device) {\n"
    "    *device = (void *)42;\n"
    "    return strcmp(id, \"GPU-17\") ? 6 : 0;\n"
    "}\n"
    "#endif\n"
    "#ifndef NO_POWER\n"
    "int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) {\n"
    "    *mw = number(\"FAKE_POWER\");\n"
    "    return fail_or(BAD_POWER || d != (void *)42);\n"
    "}\n"
    "#endif\n"
    "#ifndef NO_REST\n"
    "int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *c) { *c = 61; return fail_or(sensor != 0); "
    "}\n"
    "int nvmlDeviceGetClockInfo(void *d, int type, unsigned *mhz) { *mhz = 1830; return fail_or(type != 1); "
    "}\n"
    "int nvmlDeviceGetUtilizationRates(void *d, unsigned *rates) { rates[0] = 97, rates[1] = 40; return 0; "
    "}\n"
    "#ifdef OLD_NAME\n"
    "#define nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetCurrentClocksThrottleReasons\n"
    "#endif\n"
    "int nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *r) {\n"
    "    *r = number(\"FAKE_REASONS\");\n"
    "    return fail_or(BAD_REASONS);\n"
    "}\n"
    "#endif\n";

static int set_up(void **state) {
    if (make_scratch(state) != 0) return -1;
    put_text("fake.c", source);
    return 0;
}

/* Compiles a stand-in and opens the GPU `uuid` with it. */
static struct nvml *open_fake(const char *flags, const char *uuid) {
    static int count;
    char *library = xasprintf("%s/fake-%d.so", scratch_directory(), count++);
    char *command = xasprintf("cc -shared -fPIC -w %s -o %s %s/fake.c", flags, library, scratch_directory());
    assert_int_equal(system(command), 0);
    setenv("LLMC_NVML", library, 1);
    setenv("FAKE_OPEN", "0", 1);
    setenv("FAKE_POWER", "412300", 1);
    setenv("FAKE_REASONS", "0", 1);
    free(command);
    free(library);
    return nvml_open(uuid);
}

static const char *const gpu = "GPU-17";

/* --- readings --- */

static void test_everything_is_read(void **state) {
    struct nvml_reading r;
    struct nvml *n = open_fake("", gpu);
    assert_non_null(n);
    assert_true(nvml_read(n, 0.0, &r));
    assert_true(fabs(r.watts - 412.3) < 1e-9 && r.celsius == 61 && r.sm_mhz == 1830);
    assert_true(fabs(r.utilisation - 0.97) < 1e-9);
    assert_null(r.slowed);
    assert_false(nvml_read(n, 3600.0, &r)); /* too soon */
    setenv("FAKE_POWER", "100000", 1);
    assert_true(nvml_read(n, 0.0, &r));
    assert_true(r.watts == 100.0);
    assert_string_equal(getenv("FAKE_OPEN"), "1");
    nvml_close(n);
    assert_string_equal(getenv("FAKE_OPEN"), "0");
}

/* Idleness and clocks set by the user are no reason to warn; of the others the first is reported. */
static void test_slowdown(void **state) {
    static const struct {
        const char *reasons, *slowed;
    } steps[] = {{"0x1", NULL},
                 {"0x112", NULL},
                 {"0x5", "the power limit"},
                 {"0x0", NULL},
                 {"0x4", "the power limit"},
                 {"0x60", "the hardware: too hot"},
                 {"0x20", "the driver: too hot"}};
    struct nvml_reading r;
    struct nvml *n = open_fake("-DOLD_NAME", gpu);
    assert_non_null(n);
    for (size_t i = 0; i < ARRAY_LENGTH(steps); i++) {
        setenv("FAKE_REASONS", steps[i].reasons, 1);
        assert_true(nvml_read(n, 0.0, &r));
        if (steps[i].slowed)
            assert_string_equal(r.slowed, steps[i].slowed);
        else
            assert_null(r.slowed);
        assert_int_equal(r.slowed_first, i == 2);
    }
    nvml_close(n);
}

/* --- what is missing --- */

static void test_missing_and_failing_functions(void **state) {
    static const char *const flags[] = {"-DNO_POWER", "-DBAD_POWER=1"};
    struct nvml_reading r;
    for (size_t i = 0; i < ARRAY_LENGTH(flags); i++) {
        struct nvml *n = open_fake(flags[i], gpu);
        assert_non_null(n);
        assert_true(nvml_read(n, 0.0, &r));
        assert_true(isnan(r.watts) && r.celsius == 61 && r.sm_mhz == 1830);
        nvml_close(n);
    }
    struct nvml *n = open_fake("-DBAD_REASONS=1", gpu);
    setenv("FAKE_REASONS", "0x4", 1);
    assert_true(nvml_read(n, 0.0, &r));
    assert_null(r.slowed);
    nvml_close(n);
    n = open_fake("-DNO_REST -DNO_POWER", gpu);
    assert_non_null(n);
    assert_false(nvml_read(n, 0.0, &r));
    nvml_close(n);
}

static void test_no_library(void **state) {
    struct nvml_reading r;
    assert_null(open_fake("-DNO_HANDLE", gpu));
    assert_null(open_fake("-DBAD_INIT=1", gpu));
    assert_null(open_fake("", "GPU-18"));
    assert_string_equal(getenv("FAKE_OPEN"), "0"); /* what was opened is closed */
    setenv("LLMC_NVML", "/nowhere/libnvidia-ml.so.1", 1);
    assert_null(nvml_open(gpu));
    assert_false(nvml_read(NULL, 0.0, &r));
    nvml_close(NULL);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything_is_read),
        cmocka_unit_test(test_slowdown),
        cmocka_unit_test(test_missing_and_failing_functions),
        cmocka_unit_test(test_no_library),
    };
    return test_main(argc, argv, tests, set_up, remove_scratch);
}

/* Event files, read by a second implementation of the format, which takes nothing from the writer's. */
#include "test/scratch.h"

#include "llmc/report/event_file.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* CRC-32C by its definition: the remainder of a division, most significant bit first, of reversed bytes. */
static uint32_t crc32c(const uint8_t *p, size_t size) {
    uint64_t rest = 0;
    for (size_t i = 0; i < 8 * (size + 4); i++) {
        unsigned bit = i < 8 * size ? p[i / 8] >> i % 8 & 1 : 0;
        bit ^= i < 32;
        rest = rest << 1 | bit;
        if (rest >> 32 & 1) rest ^= UINT64_C(0x11edc6f41);
    }
    uint32_t reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (uint32_t)(rest >> i & 1) << (31 - i);
    return ~reversed;
}

static uint64_t little(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static void check_crc(const uint8_t *p, size_t size, uint64_t stored) {
    uint32_t crc = crc32c(p, size), masked = (crc >> 15 | crc << 17) + 0xa282ead8u;
    assert_int_equal(masked, stored);
}

/* The file of the scratch directory; the caller frees. */
static uint8_t *read_events(size_t *size) {
    char *name = NULL;
    DIR *d = opendir(scratch_directory());
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (event_file_name(e->d_name)) {
            assert_null(name);
            name = xstrdup(e->d_name);
        }
    closedir(d);
    assert_non_null(name);
    uint8_t *bytes = (uint8_t *)get_file(name, size);
    free(name);
    return bytes;
}

/* The next record, checked; NULL at the end. */
static const uint8_t *next_record(const uint8_t **at, const uint8_t *end, size_t *size) {
    if (*at == end) return NULL;
    assert_true(end - *at >= 16);
    *size = (size_t)little(*at, 8);
    assert_true(*size <= (size_t)(end - *at) - 16);
    check_crc(*at, 8, little(*at + 8, 4));
    const uint8_t *data = *at + 12;
    check_crc(data, *size, little(data + *size, 4));
    *at = data + *size + 4;
    return data;
}

/* The value of a field of a message: its bytes, or an integer in *number. NULL: not there. */
static const uint8_t *field(const uint8_t *p, size_t size, unsigned wanted, size_t *length,
                            uint64_t *number) {
    const uint8_t *end = p + size, *found = NULL;
    while (p < end) {
        uint64_t v[2] = {0, 0};
        int integers = 1;
        for (int i = 0; i < integers; i++) {
            for (int shift = 0;; shift += 7) {
                assert_true(p < end);
                v[i] |= (uint64_t)(*p & 127) << shift;
                if (!(*p++ & 128)) break;
            }
            if (i == 0 && ((v[0] & 7) == 0 || (v[0] & 7) == 2)) integers = 2;
        }
        size_t n = (v[0] & 7) == 1 ? 8 : (v[0] & 7) == 5 ? 4 : (v[0] & 7) == 2 ? (size_t)v[1] : 0;
        assert_true(n <= (size_t)(end - p));
        if (v[0] >> 3 == wanted) {
            found = p;
            *length = n;
            *number = v[1];
        }
        p += n;
    }
    return found;
}

static void assert_text(const uint8_t *p, size_t size, const char *text) {
    assert_non_null(p);
    assert_int_equal(size, strlen(text));
    assert_memory_equal(p, text, size);
}

static void what_is_written_is_read(void **state) {
    struct error err;
    struct event_file *f = event_file_open(scratch_directory(), 0, &err);
    assert_non_null(f);
    event_scalar(f, 0, "a", 1.5);
    event_scalar(f, 300, "loss/train", (double)NAN);
    event_scalar(f, INT64_C(1) << 40, "b", -1e-30);
    event_text(f, 7, "sample", "text \xe2\x82\xac \n<b>");
    event_file_close(f);
    size_t size, n, m;
    uint64_t v;
    uint8_t *bytes = read_events(&size);
    const uint8_t *at = bytes, *end = bytes + size, *e, *p;
    assert_int_equal(crc32c((const uint8_t *)"123456789", 9), 0xe3069283u);
    e = next_record(&at, end, &n);
    p = field(e, n, 3, &m, &v);
    assert_text(p, m, "brain.Event:2");
    static const struct {
        int64_t step;
        const char *tag;
        double value;
    } scalars[] = {{0, "a", 1.5}, {300, "loss/train", NAN}, {INT64_C(1) << 40, "b", -1e-30}};
    for (size_t i = 0; i < ARRAY_LENGTH(scalars); i++) {
        size_t in_summary, in_value;
        float got;
        double wall;
        e = next_record(&at, end, &n);
        memcpy(&wall, field(e, n, 1, &m, &v), 8);
        assert_true(wall > 1e9 && wall < 1e11);
        v = 0;
        field(e, n, 2, &m, &v);
        assert_int_equal(v, scalars[i].step);
        const uint8_t *summary = field(e, n, 5, &in_summary, &v),
                      *value = field(summary, in_summary, 1, &in_value, &v);
        p = field(value, in_value, 1, &m, &v);
        assert_text(p, m, scalars[i].tag);
        memcpy(&got, field(value, in_value, 2, &m, &v), 4);
        assert_int_equal(m, 4);
        assert_true(isnan(scalars[i].value) ? isnan(got) : got == (float)scalars[i].value);
    }
    size_t s, w, t;
    e = next_record(&at, end, &n);
    const uint8_t *summary = field(e, n, 5, &s, &v), *value = field(summary, s, 1, &w, &v),
                  *tensor = field(value, w, 8, &t, &v);
    p = field(tensor, t, 8, &m, &v);
    assert_text(p, m, "text \xe2\x82\xac \n<b>");
    field(tensor, t, 1, &m, &v);
    assert_int_equal(v, 7); /* DT_STRING */
    assert_null(next_record(&at, end, &n));
    free(bytes);
}

static void a_resumed_run_takes_events_back(void **state) {
    struct error err;
    size_t size, n, m;
    uint64_t v;
    struct event_file *f = event_file_open(scratch_directory(), 20, &err);
    event_file_close(f);
    uint8_t *bytes = read_events(&size);
    const uint8_t *at = bytes;
    next_record(&at, bytes + size, &n);
    const uint8_t *e = next_record(&at, bytes + size, &n);
    field(e, n, 2, &m, &v);
    assert_int_equal(v, 21); /* what is from here on in older files does not count */
    const uint8_t *session = field(e, n, 7, &m, &v);
    assert_non_null(session);
    field(session, m, 1, &m, &v);
    assert_int_equal(v, 1); /* START */
    free(bytes);
    assert_null(event_file_open("/no/such/directory", 0, &err));
    assert_mentions(err.message, "/no/such/directory");
}

static void names(void **state) {
    assert_true(event_file_name("events.out.tfevents.1700000000.llmc.1"));
    static const char *const others[] = {"events.out.tfevents.1700000000.host.1.0", "events.out.tfevents.",
                                         "events.out.tfevents.1.llmc.", "events.out.tfevents.1.llmc.1.tmp",
                                         "xevents.out.tfevents.1.llmc.1"};
    for (size_t i = 0; i < ARRAY_LENGTH(others); i++) assert_false(event_file_name(others[i]));
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {SCRATCH_TEST(what_is_written_is_read),
                                       SCRATCH_TEST(a_resumed_run_takes_events_back),
                                       cmocka_unit_test(names)};
    return test_main(argc, argv, tests, NULL, NULL);
}

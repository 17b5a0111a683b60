/* Protobuf by hand: a field is a key, number * 8 + kind, and its value; kinds are 0 (an integer, 7 bits a
 * byte), 1 (8 bytes), 2 (a length and so many bytes), 5 (4 bytes). A message inside another is its bytes as
 * kind 2, so messages are built from the inside. */
#include "llmc/report/event_file.h"

#include "llmc/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct event_file {
    FILE *out;
    char *path;
    double flushed; /* now_seconds() */
    bool failed;
};

/* --- messages --- */

struct message {
    uint8_t *bytes;
    size_t size;
};

static void put_bytes(struct message *m, const void *bytes, size_t size) {
    m->bytes = (uint8_t *)xrealloc(m->bytes, m->size + size + 1);
    memcpy(m->bytes + m->size, bytes, size);
    m->size += size;
}

static void put_varint(struct message *m, uint64_t v) {
    uint8_t bytes[10];
    size_t n = 0;
    do {
        bytes[n++] = (uint8_t)((v & 127) | (v > 127 ? 128 : 0));
        v >>= 7;
    } while (v);
    put_bytes(m, bytes, n);
}

enum { KIND_INTEGER = 0, KIND_DOUBLE = 1, KIND_BYTES = 2, KIND_FLOAT = 5 };
static void put_key(struct message *m, unsigned field, unsigned kind) { put_varint(m, field << 3 | kind); }

static void put_integer(struct message *m, unsigned field, int64_t v) {
    put_key(m, field, KIND_INTEGER);
    put_varint(m, (uint64_t)v);
}

static void put_little_endian(struct message *m, uint64_t bits, size_t bytes) {
    uint8_t out[8];
    for (size_t i = 0; i < bytes; i++) out[i] = (uint8_t)(bits >> 8 * i);
    put_bytes(m, out, bytes);
}

static void put_double(struct message *m, unsigned field, double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(m, field, KIND_DOUBLE);
    put_little_endian(m, bits, 8);
}

static void put_float(struct message *m, unsigned field, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(m, field, KIND_FLOAT);
    put_little_endian(m, bits, 4);
}

static void put_string(struct message *m, unsigned field, const char *text) {
    put_key(m, field, KIND_BYTES);
    put_varint(m, strlen(text));
    put_bytes(m, text, strlen(text));
}

/* Takes over `inner`. */
static void put_message(struct message *m, unsigned field, struct message inner) {
    put_key(m, field, KIND_BYTES);
    put_varint(m, inner.size);
    put_bytes(m, inner.bytes ? inner.bytes : (const uint8_t *)"", inner.size);
    free(inner.bytes);
}

/* --- records --- */

/* Castagnoli's polynomial, bits reversed; as TensorFlow masks it. */
static uint32_t masked_crc(const uint8_t *p, size_t size) {
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < size; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    crc = ~crc;
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void write_record(struct event_file *f, struct message event) {
    struct message head = {0}, tail = {0};
    put_little_endian(&head, event.size, 8);
    put_little_endian(&head, masked_crc(head.bytes, 8), 4);
    put_little_endian(&tail, masked_crc(event.bytes, event.size), 4);
    bool ok = fwrite(head.bytes, head.size, 1, f->out) == 1 &&
              fwrite(event.bytes, event.size, 1, f->out) == 1 &&
              fwrite(tail.bytes, tail.size, 1, f->out) == 1;
    if (!ok && !f->failed) warn("%s: cannot write: %s. Training goes on", f->path, strerror(errno));
    f->failed = f->failed || !ok;
    free(head.bytes);
    free(event.bytes);
    free(tail.bytes);
    if (now_seconds() - f->flushed >= 1.0) event_file_flush(f);
}

/* tensorflow.Event: wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7. */
static struct message event_at(int64_t step) {
    struct message event = {0};
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    put_double(&event, 1, (double)t.tv_sec + 1e-9 * (double)t.tv_nsec);
    if (step) put_integer(&event, 2, step);
    return event;
}

/* Summary: value = 1, taken over. */
static void write_value(struct event_file *f, int64_t step, struct message value) {
    struct message summary = {0}, event = event_at(step);
    put_message(&summary, 1, value);
    put_message(&event, 5, summary);
    write_record(f, event);
}

/* Summary.Value: tag = 1, simple_value = 2. */
void event_scalar(struct event_file *f, int64_t step, const char *tag, double v) {
    struct message value = {0};
    if (!f || f->failed) return;
    put_string(&value, 1, tag);
    put_float(&value, 2, (float)v);
    write_value(f, step, value);
}

/* Summary.Value: tensor = 8 (TensorProto: dtype = 1, tensor_shape = 2, string_val = 8), metadata = 9
 * (SummaryMetadata: plugin_data = 1 (plugin_name = 1), data_class = 4). */
void event_text(struct event_file *f, int64_t step, const char *tag, const char *text) {
    enum { DT_STRING = 7, DATA_CLASS_TENSOR = 2 };
    struct message value = {0}, tensor = {0}, shape = {0}, dim = {0}, metadata = {0}, plugin = {0};
    if (!f || f->failed) return;
    put_integer(&dim, 1, 1);
    put_message(&shape, 2, dim);
    put_integer(&tensor, 1, DT_STRING);
    put_message(&tensor, 2, shape);
    put_string(&tensor, 8, text);
    put_string(&plugin, 1, "text");
    put_message(&metadata, 1, plugin);
    put_integer(&metadata, 4, DATA_CLASS_TENSOR);
    put_string(&value, 1, tag);
    put_message(&value, 8, tensor);
    put_message(&value, 9, metadata);
    write_value(f, step, value);
}

/* --- files --- */

bool event_file_name(const char *name) {
    static const char begin[] = "events.out.tfevents.", middle[] = ".llmc.";
    if (strncmp(name, begin, sizeof begin - 1) != 0) return false;
    name += sizeof begin - 1;
    size_t digits = strspn(name, "0123456789");
    if (digits == 0 || strncmp(name + digits, middle, sizeof middle - 1) != 0) return false;
    name += digits + sizeof middle - 1;
    return *name && strspn(name, "0123456789") == strlen(name);
}

struct event_file *event_file_open(const char *directory, int64_t resumed_step, struct error *err) {
    struct event_file *f = (struct event_file *)xcalloc(1, sizeof *f);
    int fd = -1;
    for (int i = 1; fd < 0; i++) {
        free(f->path);
        f->path = xasprintf("%s/events.out.tfevents.%010lld.llmc.%d", directory, (long long)time(NULL), i);
        fd = open(f->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;
    }
    f->out = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!f->out) {
        fail(err, "%s: cannot open for writing: %s", f->path, strerror(errno));
        free(f->path);
        free(f);
        return NULL;
    }
    struct message version = event_at(0), start, session = {0};
    put_string(&version, 3, "brain.Event:2");
    write_record(f, version);
    if (resumed_step > 0) { /* SessionLog: status = 1, which is START = 1 */
        start = event_at(resumed_step + 1);
        put_integer(&session, 1, 1);
        put_message(&start, 7, session);
        write_record(f, start);
    }
    return f;
}

bool event_file_is_there(const struct event_file *f) { return path_exists(f->path); }

void event_file_flush(struct event_file *f) {
    if (!f) return;
    f->flushed = now_seconds();
    if (fflush(f->out) == 0 || f->failed) return;
    warn("%s: cannot write: %s. Training goes on", f->path, strerror(errno));
    f->failed = true;
}

void event_file_close(struct event_file *f) {
    if (!f) return;
    event_file_flush(f);
    fclose(f->out);
    free(f->path);
    free(f);
}

/* JSON-lines files that hold whole lines only. A row that the disk has no room for waits in memory; a line
 * that a crash tore off is cut when the run is resumed, with all rows after the step of the checkpoint. */
#include "llmc/report/log_file.h"

#include "llmc/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* While the disk is full, rows wait in memory up to this many bytes: about half a million steps. */
#define WAITING_MAX ((int64_t)64 << 20)

/* --- numbers and rows --- */

const char *log_double(double v) {
    if (!isfinite(v)) return "null";
    char text[32];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    return temp_printf("%s", text);
}

int log_row_print(char *out, const struct log_row *row) {
    if (row->validation)
        return snprintf(out, LOG_LINE_MAX, "{\"step\":%" PRId64 ",\"val_loss\":%s}\n", row->step,
                        log_double(row->loss));
    return snprintf(out, LOG_LINE_MAX,
                    "{\"step\":%" PRId64
                    ",\"epoch\":%s,\"loss\":%s,\"lr\":%s,\"grad_norm\":%s,\"skipped\":%s}\n",
                    row->step, log_double(row->epoch), log_double(row->loss), log_double(row->lr),
                    log_double(row->grad_norm), row->skipped ? "true" : "false");
}

static bool take_text(const char **p, const char *text) {
    size_t n = strlen(text);
    if (strncmp(*p, text, n) != 0) return false;
    *p += n;
    return true;
}

static bool take_double(const char **p, const char *key, double *v) {
    if (!take_text(p, key)) return false;
    if (take_text(p, "null")) {
        *v = NAN;
        return true;
    }
    /* strtod alone would also accept "nan", "0x1p3" and leading space. */
    size_t n = strspn(*p, "-+.eE0123456789");
    char *end;
    *v = strtod(*p, &end);
    if (n == 0 || end != *p + n || !isfinite(*v)) return false;
    *p = end;
    return true;
}

static bool take_step(const char **p, int64_t *step) {
    if (!take_text(p, "{\"step\":") || **p < '0' || **p > '9') return false;
    char *end;
    errno = 0;
    *step = strtoll(*p, &end, 10);
    *p = end;
    return errno == 0;
}

/* Copies a line to where a NUL ends it. */
static bool line_copy(char out[LOG_LINE_MAX], const char *line, int64_t size) {
    if (size < 0 || size >= LOG_LINE_MAX) return false;
    memcpy(out, line, (size_t)size);
    out[size] = 0;
    return (int64_t)strlen(out) == size;
}

bool log_row_parse(struct log_row *row, const char *line, int64_t size) {
    char text[LOG_LINE_MAX];
    const char *p = text;
    *row = (struct log_row){.validation = true, .epoch = NAN, .lr = NAN, .grad_norm = NAN};
    if (!line_copy(text, line, size) || !take_step(&p, &row->step)) return false;
    if (take_double(&p, ",\"val_loss\":", &row->loss)) return strcmp(p, "}") == 0;
    row->validation = false;
    if (!take_double(&p, ",\"epoch\":", &row->epoch) || !take_double(&p, ",\"loss\":", &row->loss) ||
        !take_double(&p, ",\"lr\":", &row->lr) || !take_double(&p, ",\"grad_norm\":", &row->grad_norm))
        return false;
    row->skipped = take_text(&p, ",\"skipped\":true");
    return (row->skipped || take_text(&p, ",\"skipped\":false")) && strcmp(p, "}") == 0;
}

/* --- cutting --- */

/* The number of bytes at the start of the file that are whole rows of steps up to `last_step`. */
static int64_t bytes_to_keep(const struct mapped_file *m, int64_t last_step) {
    const char *data = (const char *)m->data;
    int64_t keep = 0;
    while (keep < m->size) {
        const char *line = data + keep, *newline = memchr(line, '\n', (size_t)(m->size - keep));
        char text[LOG_LINE_MAX];
        const char *p = text;
        int64_t step;
        if (!newline || !line_copy(text, line, min_i64(newline - line, LOG_LINE_MAX - 1))) break;
        if (newline == line || newline[-1] != '}' || !take_step(&p, &step) || step > last_step) break;
        keep += newline - line + 1;
    }
    return keep;
}

static bool lock_and_cut(struct log_file *f, int64_t resumed_step, struct error *err) {
    /* Some network file systems have no locks. The run then continues without this protection. */
    if (flock(f->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return fail(err, "%s: another process is writing this file; stop it, or give this run another --out",
                    f->path);
    if (resumed_step > 0) {
        struct mapped_file m;
        if (!file_map(&m, f->path, err)) return false;
        f->size = bytes_to_keep(&m, resumed_step);
        file_unmap(&m);
    }
    if (ftruncate(f->fd, f->size) != 0)
        return fail(err, "%s: cannot be cut to %" PRId64 " bytes: %s", f->path, f->size, strerror(errno));
    return true;
}

/* --- writing --- */

bool log_file_open(struct log_file *f, const char *path, int64_t resumed_step, struct error *err) {
    *f = (struct log_file){.fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666)};
    if (f->fd < 0) return fail(err, "%s: cannot open for writing: %s", path, strerror(errno));
    f->path = xstrdup(path);
    if (lock_and_cut(f, resumed_step, err)) return true;
    close(f->fd);
    free(f->path);
    *f = (struct log_file){.fd = -1};
    return false;
}

static bool copy_rows(int to, int from, int64_t size) {
    char bytes[1 << 16];
    for (int64_t at = 0; at < size;) {
        ssize_t n = pread(from, bytes, (size_t)min_i64((int64_t)sizeof bytes, size - at), at);
        if (n <= 0 || pwrite(to, bytes, (size_t)n, at) != n) return false;
        at += n;
    }
    return true;
}

bool log_file_restore(struct log_file *f, struct error *err) {
    if (f->fd < 0 || path_exists(f->path)) return true;
    int fd = open(f->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return fail(err, "%s: cannot be made anew: %s", f->path, strerror(errno));
    if ((flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) || !copy_rows(fd, f->fd, f->size)) {
        fail(err, "%s: the rows so far cannot be written again: %s", f->path, strerror(errno));
        unlink(f->path);
        close(fd);
        return false;
    }
    close(f->fd);
    f->fd = fd;
    log_file_sync(f);
    return true;
}

static void report_once(struct log_file *f, const char *what, int reason) {
    if (!f->reported) warn("%s: cannot %s: %s. Training goes on", f->path, what, strerror(reason));
    f->reported = true;
}

static void write_waiting(struct log_file *f) {
    int64_t done = 0;
    int reason = 0;
    while (done < f->waiting_size && !reason) {
        ssize_t n = pwrite(f->fd, f->waiting + done, (size_t)(f->waiting_size - done), f->size + done);
        if (n > 0)
            done += n;
        else if (n == 0 || errno != EINTR)
            reason = n == 0 ? ENOSPC : errno;
    }
    int64_t whole = done;
    while (reason && whole > 0 && f->waiting[whole - 1] != '\n') whole--;
    /* If truncating fails too, the next write starts at the same place and overwrites the torn line. */
    if (done > whole && ftruncate(f->fd, f->size + whole) != 0) reason = errno;
    f->size += whole;
    f->waiting_size -= whole;
    memmove(f->waiting, f->waiting + whole, (size_t)f->waiting_size);
    if (reason) {
        report_once(f, "write (rows wait in memory until there is space)", reason);
        f->failing = true;
    } else if (f->failing) {
        f->failing = false;
        warn("%s: writing works again; %s", f->path,
             f->lost ? "the rows of some steps are missing" : "nothing was lost");
    }
}

void log_file_put(struct log_file *f, const char *line, int64_t size) {
    if (f->fd < 0) return;
    if (f->waiting_size + size > WAITING_MAX) {
        f->lost++;
        write_waiting(f);
        return;
    }
    if (f->waiting_size + size > f->waiting_capacity) {
        f->waiting_capacity = max_i64(2 * f->waiting_capacity, f->waiting_size + size);
        f->waiting = xrealloc(f->waiting, (size_t)f->waiting_capacity);
    }
    memcpy(f->waiting + f->waiting_size, line, (size_t)size);
    f->waiting_size += size;
    write_waiting(f);
}

void log_file_sync(struct log_file *f) {
    if (f->fd < 0) return;
    if (f->waiting_size) write_waiting(f);
    /* EINVAL, EROFS: nothing there that could be flushed. */
    if (fdatasync(f->fd) != 0 && errno != EINVAL && errno != EROFS)
        report_once(f, "flush to the disk", errno);
}

void log_file_close(struct log_file *f) {
    if (f->fd < 0) return;
    log_file_sync(f);
    for (int64_t i = 0; i < f->waiting_size; i++) f->lost += f->waiting[i] == '\n';
    if (f->lost) warn("%s: %" PRId64 " rows could not be written and are lost", f->path, f->lost);
    close(f->fd);
    free(f->path);
    free(f->waiting);
    *f = (struct log_file){.fd = -1};
}

/* A million steps are 230 MB of two files, and a page of them is to open within a second: so a row is taken
 * apart in one pass without copies, a number becomes a double by one multiplication (exact to the last bit
 * or two, which a picture does not show), and the two files are read at the same time. */
#include "llmc/report/history.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const history_keys[HISTORY_SERIES] = {
    "loss",        "val_loss",  "lr",          "grad_norm",  "tokens_per_second",
    "flops_share", "gpu_watts", "gpu_celsius", "gpu_sm_mhz", "gpu_utilisation"};

/* Where a key's number goes. ELAPSED is the sum of "seconds". */
enum { KEY_STEP = HISTORY_SERIES, KEY_SECONDS, KEYS };
enum { ELAPSED = 2 };
static const struct {
    int table, column;
} places[KEYS] = {
    [HISTORY_LOSS] = {HISTORY_STEPS, 0},
    [HISTORY_LR] = {HISTORY_STEPS, 1},
    [HISTORY_GRAD_NORM] = {HISTORY_STEPS, 2},
    [HISTORY_VAL_LOSS] = {HISTORY_VALIDATIONS, 0},
    [HISTORY_TOKENS_PER_SECOND] = {HISTORY_TIMES, 0},
    [HISTORY_FLOPS_SHARE] = {HISTORY_TIMES, 1},
    [HISTORY_GPU_WATTS] = {HISTORY_GPU, 0},
    [HISTORY_GPU_CELSIUS] = {HISTORY_GPU, 1},
    [HISTORY_GPU_MHZ] = {HISTORY_GPU, 2},
    [HISTORY_GPU_UTILISATION] = {HISTORY_GPU, 3},
    [KEY_STEP] = {-1, 0},
    [KEY_SECONDS] = {HISTORY_TIMES, ELAPSED},
};
static const int table_columns[HISTORY_TABLES] = {3, 1, 3, 4};

/* --- tables --- */

/* The number of rows before `step`. */
static int64_t rows_before(const struct history_table *t, double step) {
    int64_t low = 0, high = t->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if ((double)t->step[middle] < step)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Makes room for a row of this step. False: the table is full. */
static bool table_begin_row(struct history_table *t, int columns, int64_t step) {
    if (t->count && t->step[t->count - 1] >= step) t->count = rows_before(t, (double)step);
    if (t->count == HISTORY_ROWS_MAX) return false;
    if (t->count == t->capacity) {
        t->capacity = max_i64(1024, 2 * t->capacity);
        t->step = (int64_t *)xrealloc(t->step, (size_t)t->capacity * sizeof *t->step);
        for (int c = 0; c < columns; c++)
            t->column[c] = (double *)xrealloc(t->column[c], (size_t)t->capacity * sizeof *t->column[c]);
    }
    t->step[t->count] = step;
    for (int c = 0; c < columns; c++) t->column[c][t->count] = NAN;
    return true;
}

/* --- a row --- */

/* What a file's rows have been made into; of two files that are read at the same time, in parts. */
struct reader {
    struct history *h;
    int first_table, tables; /* those that the rows of this file go to */
    int64_t unreadable, left_out, rows;
};

static const char *take_number(const char *p, const char *end, double *v) {
    static const double ten[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const char *begin = p;
    bool negative = p < end && *p == '-';
    uint64_t digits = 0;
    int scale = 0, exponent = 0, seen = 0;
    p += negative;
    for (; p < end && *p >= '0' && *p <= '9'; p++, seen++)
        if (digits < UINT64_C(1) << 59)
            digits = 10 * digits + (uint64_t)(*p - '0');
        else
            scale++;
    if (p < end && *p == '.')
        for (p++; p < end && *p >= '0' && *p <= '9'; p++, seen++)
            if (digits < UINT64_C(1) << 59) digits = 10 * digits + (uint64_t)(*p - '0'), scale--;
    if (seen == 0) return NULL;
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        bool down = p < end && *p == '-';
        p += p < end && (*p == '-' || *p == '+');
        const char *first = p;
        for (; p < end && *p >= '0' && *p <= '9'; p++)
            if (exponent < 10000) exponent = 10 * exponent + (*p - '0');
        if (p == first) return NULL;
        scale += down ? -exponent : exponent;
    }
    double x = (double)digits;
    if (scale >= -22 && scale <= 22)
        x = scale < 0 ? x / ten[-scale] : x * ten[scale];
    else
        x = x == 0.0 ? 0.0 : x * pow(10.0, scale);
    *v = negative ? -x : x;
    return p > begin && isfinite(x) ? p : NULL;
}

/* Behind a value that is of no interest: a text, a list, an object, a word. */
static const char *skip_value(const char *p, const char *end) {
    int depth = 0;
    bool text = false;
    for (; p < end; p++) {
        if (text) {
            if (*p == '\\')
                p++;
            else
                text = *p != '"';
        } else if (*p == '"') {
            text = true;
        } else if (*p == '[' || *p == '{') {
            depth++;
        } else if (*p == ']' || *p == '}') {
            if (depth-- == 0) return p;
        } else if (*p == ',' && depth == 0) {
            return p;
        }
    }
    return NULL;
}

/* The key at p, of which the closing quote is at `end`. `guess` is the one that rows of this kind have
 * here. */
static int find_key(const char *p, size_t size, int guess) {
    static const char *const other[] = {[KEY_STEP] = "step", [KEY_SECONDS] = "seconds"};
    for (int i = 0; i < KEYS; i++) {
        int k = (guess + i) % KEYS;
        const char *key = k < HISTORY_SERIES ? history_keys[k] : other[k];
        if (key[0] == p[0] && strlen(key) == size && memcmp(key, p, size) == 0) return k;
    }
    return -1;
}

static void keep_row(struct reader *r, const double *value, unsigned has) {
    double step = value[KEY_STEP];
    for (int table = r->first_table; table < r->first_table + r->tables; table++) {
        struct history_table *t = &r->h->table[table];
        bool begun = false;
        for (int k = 0; k < KEYS; k++) {
            if (!(has >> k & 1) || places[k].table != table) continue;
            if (!begun && !table_begin_row(t, table_columns[table], (int64_t)step)) {
                r->left_out++;
                break;
            }
            begun = true;
            t->column[places[k].column][t->count] = value[k];
        }
        if (!begun) continue;
        if (table == HISTORY_TIMES) { /* seconds become their sum */
            double before = t->count ? t->column[ELAPSED][t->count - 1] : 0.0,
                   own = t->column[ELAPSED][t->count];
            t->column[ELAPSED][t->count] = before + (own > 0.0 ? own : 0.0);
        }
        t->count++;
        r->rows++;
    }
}

/* A line without its '\n'. */
static bool read_row(struct reader *r, const char *p, const char *end) {
    double value[KEYS];
    unsigned has = 0;
    int guess = KEY_STEP;
    if (end - p < 2 || *p != '{' || end[-1] != '}') return false;
    end--;
    for (;;) {
        if (++p >= end || *p != '"') return false;
        const char *key = ++p;
        p = (const char *)memchr(p, '"', (size_t)(end - p));
        if (!p || p == key || p + 1 >= end || p[1] != ':') return false;
        int k = find_key(key, (size_t)(p - key), guess);
        p += 2;
        bool null = end - p >= 4 && memcmp(p, "null", 4) == 0;
        if (k >= 0 && !null) {
            if (!(p = take_number(p, end, &value[k]))) return false;
            has |= 1u << k;
        } else {
            if (k >= 0) value[k] = NAN, has |= 1u << k;
            if (p == end || !(p = null ? p + 4 : skip_value(p, end + 1))) return false;
        }
        if (k >= 0) guess = k + 1;
        if (p == end) break;
        if (p > end || *p != ',') return false;
    }
    double step = has >> KEY_STEP & 1 ? value[KEY_STEP] : NAN;
    if (!(step >= 0.0 && step < 9e15 && step == floor(step))) return false;
    keep_row(r, value, has);
    return true;
}

/* --- files --- */

enum { BLOCK = 1 << 20 }; /* also the longest line that is read */

static void file_close(struct history_file *f) {
    if (f->fd >= 0) close(f->fd);
    *f = (struct history_file){.fd = -1};
}

static bool same_tail(const struct history_file *f) {
    char now[sizeof f->tail];
    size_t n = (size_t)min_i64(f->offset, sizeof now);
    return pread(f->fd, now, n, f->offset - (int64_t)n) == (ssize_t)n &&
           memcmp(now, f->tail + sizeof f->tail - n, n) == 0;
}

/* Whether what has been read of the file is still its beginning. Opens the file if it is a new one. Of a run
 * that is not there any more, what has been read stays. */
static bool file_goes_on(struct history_file *f, const char *path, bool there) {
    struct stat st;
    bool exists = stat(path, &st) == 0 && S_ISREG(st.st_mode);
    if (f->fd >= 0 && exists && f->device == (uint64_t)st.st_dev && f->inode == (uint64_t)st.st_ino &&
        st.st_size >= f->offset + f->skipping && same_tail(f))
        return true;
    if (!exists && !there) return true;
    bool had = f->fd >= 0 && f->offset > 0;
    file_close(f);
    if (!exists) return !had;
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (f->fd >= 0 && (fstat(f->fd, &st) != 0 || !S_ISREG(st.st_mode))) file_close(f);
    f->device = (uint64_t)st.st_dev;
    f->inode = (uint64_t)st.st_ino;
    return !had;
}

/* Reads whole lines from the file's offset on. */
static void file_read(struct history_file *f, struct reader *r) {
    char *block = (char *)xmalloc(BLOCK);
    for (;;) {
        int64_t at = f->offset + f->skipping;
        ssize_t n = f->fd < 0 ? 0 : pread(f->fd, block, BLOCK, at);
        if (n <= 0) break;
        const char *p = block, *end = block + n, *newline;
        while ((newline = (const char *)memchr(p, '\n', (size_t)(end - p))) != NULL) {
            if (f->skipping || !read_row(r, p, newline)) r->unreadable += newline > p || f->skipping;
            f->skipping = 0;
            p = newline + 1;
        }
        if (p > block) {
            f->offset = at + (p - block);
            int64_t keep = min_i64(sizeof f->tail, p - block);
            memmove(f->tail, f->tail + keep, sizeof f->tail - (size_t)keep);
            memcpy(f->tail + sizeof f->tail - (size_t)keep, p - keep, (size_t)keep);
        } else if (n == BLOCK) {
            f->skipping += n;
        } else {
            break; /* the line is still being written */
        }
    }
    free(block);
}

/* --- a run --- */

void history_open(struct history *h, const char *directory) {
    *h = (struct history){.directory = xstrdup(directory), .modified = NAN};
    for (int i = 0; i < 2; i++) h->file[i].fd = -1;
}

static void forget(struct history *h, const struct reader *r) {
    for (int t = r->first_table; t < r->first_table + r->tables; t++) h->table[t].count = 0;
    h->version++;
}

void history_update(struct history *h) {
    struct reader reader[2] = {{.h = h, .first_table = HISTORY_STEPS, .tables = 2},
                               {.h = h, .first_table = HISTORY_TIMES, .tables = 2}};
    struct stat size[2] = {{0}}, st;
    char *path[2] = {xasprintf("%s/log.jsonl", h->directory), xasprintf("%s/timing.jsonl", h->directory)};
    bool there = stat(path[0], &st) == 0;
    h->version += there != h->there;
    h->there = there;
    if (there) h->modified = (double)st.st_mtim.tv_sec + 1e-9 * (double)st.st_mtim.tv_nsec;
    for (int i = 0; i < 2; i++) {
        if (!file_goes_on(&h->file[i], path[i], there)) forget(h, &reader[i]);
        free(path[i]);
    }
    /* The rows of the two files go to different tables. Threads cost more than a few new rows. */
    for (int i = 0; i < 2; i++)
        if (h->file[i].fd >= 0 && fstat(h->file[i].fd, &size[i]) != 0) size[i].st_size = 0;
    bool much =
        size[0].st_size - h->file[0].offset > 4 * BLOCK && size[1].st_size - h->file[1].offset > 4 * BLOCK;
#pragma omp parallel for num_threads(2) if (much) schedule(static, 1)
    for (int i = 0; i < 2; i++) file_read(&h->file[i], &reader[i]);
    for (int i = 0; i < 2; i++) {
        if (reader[i].rows) h->version++;
        h->file[i].unreadable += reader[i].unreadable;
        h->file[i].left_out += reader[i].left_out;
    }
    h->unreadable = h->file[0].unreadable + h->file[1].unreadable;
    h->left_out = h->file[0].left_out + h->file[1].left_out;
}

void history_close(struct history *h) {
    for (int t = 0; t < HISTORY_TABLES; t++) {
        free(h->table[t].step);
        for (int c = 0; c < table_columns[t]; c++) free(h->table[t].column[c]);
    }
    for (int i = 0; i < 2; i++) file_close(&h->file[i]);
    free(h->directory);
    memset(h, 0, sizeof *h);
}

/* --- what is in it --- */

int64_t history_last_step(const struct history *h) {
    const struct history_table *t = &h->table[HISTORY_STEPS];
    return t->count ? t->step[t->count - 1] : 0;
}

double history_last(const struct history *h, enum history_series s) {
    const struct history_table *t = &h->table[places[s].table];
    return t->count ? t->column[places[s].column][t->count - 1] : (double)NAN;
}

bool history_has(const struct history *h, enum history_series s) {
    const struct history_table *t = &h->table[places[s].table];
    int64_t i = t->count - 1;
    while (i >= 0 && isnan(t->column[places[s].column][i])) i--;
    return i >= 0;
}

double history_time(const struct history *h, double step) {
    const struct history_table *t = &h->table[HISTORY_TIMES];
    if (t->count == 0) return NAN;
    const double *elapsed = t->column[ELAPSED];
    int64_t i = rows_before(t, step);
    if (i == t->count) return elapsed[i - 1];
    double before = i ? elapsed[i - 1] : 0.0, first = i ? (double)t->step[i - 1] : (double)(t->step[0] - 1);
    double share = (step - first) / fmax(1.0, (double)t->step[i] - first);
    return before + fmax(0.0, share) * (elapsed[i] - before);
}

double history_step_at(const struct history *h, double seconds) {
    const struct history_table *t = &h->table[HISTORY_TIMES];
    if (t->count == 0) return seconds <= 0.0 ? 0.0 : INFINITY;
    int64_t low = 0, high = t->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (t->column[ELAPSED][middle] < seconds)
            low = middle + 1;
        else
            high = middle;
    }
    return low == t->count ? INFINITY : (double)t->step[low];
}

void history_points(struct history_points *p, const struct history *h, enum history_series s, double from,
                    double to, int64_t wanted) {
    const struct history_table *t = &h->table[places[s].table];
    const double *value = t->column[places[s].column];
    int64_t first = max_i64(0, rows_before(t, from) - 1), last = min_i64(t->count, rows_before(t, to) + 2);
    int64_t rows = max_i64(0, last - first), each = max_i64(1, ceil_div(rows, max_i64(1, wanted)));
    int64_t n = ceil_div(rows, each);
    bool rate = s == HISTORY_TOKENS_PER_SECOND || s == HISTORY_FLOPS_SHARE;
    *p = (struct history_points){.count = n};
    p->step = (int64_t *)xcalloc((size_t)n, sizeof *p->step);
    p->rows = (int64_t *)xcalloc((size_t)n, sizeof *p->rows);
    p->min = (double *)xcalloc((size_t)n, sizeof *p->min);
    p->max = (double *)xcalloc((size_t)n, sizeof *p->max);
    p->mean = (double *)xcalloc((size_t)n, sizeof *p->mean);
    for (int64_t i = 0; i < n; i++) {
        int64_t begin = first + i * each, end = min_i64(last, begin + each), counted = 0;
        double low = INFINITY, high = -INFINITY, sum = 0.0;
        for (int64_t k = begin; k < end; k++) {
            if (isnan(value[k])) continue;
            low = fmin(low, value[k]);
            high = fmax(high, value[k]);
            sum += rate ? 1.0 / value[k] : value[k];
            counted++;
        }
        p->step[i] = t->step[end - 1];
        p->rows[i] = end - begin;
        p->min[i] = counted ? low : (double)NAN;
        p->max[i] = counted ? high : (double)NAN;
        p->mean[i] = counted ? rate ? (double)counted / sum : sum / (double)counted : (double)NAN;
    }
}

void history_points_free(struct history_points *p) {
    free(p->step);
    free(p->rows);
    free(p->min);
    free(p->max);
    free(p->mean);
    memset(p, 0, sizeof *p);
}

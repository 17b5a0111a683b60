/* What a run owns: see owner.h. */
#include "llmc/run/owner.h"

#include "llmc/base/file.h"
#include "llmc/format/checkpoint.h"
#include "llmc/report/event_file.h"
#include "llmc/report/log_file.h"
#include "llmc/run/ranks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- the rule --- */

/* The last one goes last: a directory that is only half cleared still holds a run, and can be cleared
 * again. */
static const char *const own_files[] = {"timing.jsonl", "tasks.jsonl", "samples.jsonl",
                                        "options.json", "run.json",    "loss.svg",
                                        "stories.txt",  "best",        "log.jsonl"};

static bool is_rank_log(const char *name) {
    size_t digits = strncmp(name, "rank-", 5) == 0 ? strspn(name + 5, "0123456789") : 0;
    return digits > 0 && strcmp(name + 5 + digits, ".log") == 0;
}

/* What may be there before log.jsonl, if a start is killed. */
static bool precedes_log(const char *name) {
    return is_rank_log(name) || strncmp(name, SHARED_MARK, strlen(SHARED_MARK)) == 0;
}

static bool owns_file(const char *name) {
    for (size_t i = 0; i < ARRAY_LENGTH(own_files); i++) {
        size_t n = strlen(own_files[i]);
        if (strncmp(name, own_files[i], n) == 0 && (!name[n] || strcmp(name + n, ".tmp") == 0)) return true;
    }
    return precedes_log(name) || event_file_name(name);
}

static bool owns_directory(const char *name) {
    return checkpoint_step(name) >= 0 || checkpoint_unfinished(name);
}

bool run_owns(const char *name) { return owns_file(name) || owns_directory(name); }

/* An empty log, or one that begins with a row, which a crash may have torn. */
static bool is_log(const char *path) {
    static const char begin[] = "{\"step\":";
    struct mapped_file m;
    struct log_row row;
    if (!file_map(&m, path, NULL)) return false;
    const char *text = (const char *)m.data, *end = m.size ? memchr(text, '\n', (size_t)m.size) : NULL;
    int64_t torn = min_i64(m.size, (int64_t)strlen(begin));
    bool good = m.size == 0 || (end ? log_row_parse(&row, text, end - text)
                                    : m.size < LOG_LINE_MAX && memcmp(text, begin, (size_t)torn) == 0);
    file_unmap(&m);
    return good;
}

/* --- what is there --- */

struct contents {
    int64_t checkpoints; /* entries named like one */
    int64_t others;      /* other entries, but for those that a start leaves when it is killed */
    bool log;
    char *wrong; /* a name of the run's that is taken by something no run makes; NULL: none */
    const char *reason;
};

static bool has_file(int dir, const char *directory, const char *file) {
    return faccessat(dir, temp_printf("%s/%s", directory, file), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static bool links_to_checkpoint(int dir, const char *name) {
    char target[64] = "";
    ssize_t n = readlinkat(dir, name, target, sizeof target - 1);
    return n > 0 && checkpoint_step(target) >= 0;
}

/* Why no run has made what has a name of the run's, or NULL. */
static const char *what_is_wrong(int dir, const char *name) {
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0) return NULL;
    if (strncmp(name, "best", 4) == 0)
        return links_to_checkpoint(dir, name) ? NULL : "is no symbolic link to a checkpoint of the run";
    if (S_ISLNK(st.st_mode)) return "is a symbolic link";
    if (owns_file(name)) return S_ISREG(st.st_mode) ? NULL : "is not a file";
    if (!S_ISDIR(st.st_mode)) return "is not a directory";
    return checkpoint_unfinished(name) || !has_file(dir, name, "config.json") ||
                   has_file(dir, name, "trainer.json")
               ? NULL
               : "is a model without trainer.json";
}

static bool look(struct contents *c, const char *path, struct error *err) {
    *c = (struct contents){0};
    DIR *dir = opendir(path);
    if (!dir) return fail(err, "%s: cannot list directory: %s", path, strerror(errno));
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        const char *name = e->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        c->checkpoints += checkpoint_step(name) >= 0;
        c->others += checkpoint_step(name) < 0 && !precedes_log(name);
        const char *wrong = run_owns(name) ? what_is_wrong(dirfd(dir), name) : NULL;
        if (wrong && !c->wrong) {
            c->wrong = xstrdup(name);
            c->reason = wrong;
        }
    }
    closedir(dir);
    char *log = xasprintf("%s/log.jsonl", path);
    c->log = is_log(log);
    free(log);
    return true;
}

static bool holds_run(const struct contents *c) { return c->checkpoints > 0 || c->log; }

bool directory_holds_run(const char *path) {
    struct contents c;
    if (!path_is_directory(path) || !look(&c, path, NULL)) return false;
    free(c.wrong);
    return holds_run(&c);
}

bool run_wrote(void *unused, const char *path) {
    const char *slash = strrchr(path, '/');
    if (!run_owns(slash ? slash + 1 : path)) return false;
    char *around = path_parent(path);
    bool wrote = directory_holds_run(around);
    free(around);
    return wrote;
}

/* A file that has one of the names a new run will use. The caller frees. */
static char *name_in_use(const char *path) {
    DIR *dir = opendir(path);
    char *found = NULL;
    for (struct dirent *e; dir && !found && (e = readdir(dir)) != NULL;)
        if (run_owns(e->d_name) && !precedes_log(e->d_name)) found = xstrdup(e->d_name);
    if (dir) closedir(dir);
    return found;
}

/* Whether a directory is `above` or lies in it; both are real paths, NULL for what does not exist. */
static bool lies_in(const char *directory, const char *above) {
    size_t n = above ? strlen(above) : 0;
    return above && directory && strncmp(directory, above, n) == 0 && (!directory[n] || directory[n] == '/');
}

/* --- may it be used --- */

static bool can_write(const struct owner *o, struct error *err) {
    return access(o->path, W_OK | X_OK) == 0 ||
           fail(err, "%s: cannot be written: %s", o->path, strerror(errno));
}

static bool check_new(const struct owner *o, struct error *err) {
    if (o->holds_run)
        return fail(
            err,
            "%s already holds a run: --resume continues it, --overwrite deletes it first, --out DIR names "
            "another directory",
            o->path);
    char *name = name_in_use(o->path);
    bool ok = name ? fail(err, "%s/%s is there, which a run would replace, but no run: give another --out",
                          o->path, name)
                   : can_write(o, err);
    free(name);
    return ok;
}

static bool check_overwrite(const struct owner *o, const struct contents *c, struct error *err) {
    char *out = realpath(o->path, NULL), *here = realpath(".", NULL);
    bool working = lies_in(here, out);
    free(out);
    free(here);
    if (working)
        return fail(err, "--overwrite: the working directory lies in --out %s: go to another directory",
                    o->path);
    if (!o->holds_run && c->checkpoints + c->others > 0)
        return fail(
            err,
            "%s: is not empty and holds no run, and --overwrite deletes nothing else: give another --out",
            o->path);
    if (c->wrong)
        return fail(err, "%s/%s %s, so no run has made it: move it away, or give another --out", o->path,
                    c->wrong, c->reason);
    return can_write(o, err);
}

static bool check_resume(const struct owner *o, struct error *err) {
    return o->holds_run ||
           fail(err, "%s: there is no run to resume: no directory like step-00001000, no log.jsonl", o->path);
}

/* --- the lock --- */

/* False only if another process holds it: some file systems have no locks, and that is no reason to
 * stop. */
static bool lock(int fd) { return flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; }

static bool lock_directory(struct owner *o, struct error *err) {
    struct stat st;
    o->lock = open(o->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (o->lock < 0 || fstat(o->lock, &st) != 0)
        return fail(err, "%s: cannot open directory: %s", o->path, strerror(errno));
    o->device = st.st_dev;
    o->inode = st.st_ino;
    char *log = xasprintf("%s/log.jsonl", o->path);
    o->log_lock = open(log, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    free(log);
    return (lock(o->lock) && (o->log_lock < 0 || lock(o->log_lock))) ||
           fail(err,
                "%s: another process is training in this directory; stop it, or give this run another --out",
                o->path);
}

void owner_release_log(struct owner *o) {
    if (o->log_lock >= 0) close(o->log_lock);
    o->log_lock = -1;
}

void owner_close(struct owner *o) {
    if (!o->path) return;
    owner_release_log(o);
    if (o->lock >= 0) close(o->lock);
    free(o->path);
    *o = (struct owner){.lock = -1, .log_lock = -1};
}

/* --- opening --- */

char *owner_existing(const struct owner *o) {
    return o->existed ? xasprintf("%.*s", (int)o->existed, o->path) : xstrdup(".");
}

/* A place where nothing is: whether the directory could be made is found out without making it. */
static bool check_absent(const struct owner *o, struct error *err) {
    if (o->purpose == OWNER_RESUME) return fail(err, "%s: has no checkpoint: no such directory", o->path);
    char *above = owner_existing(o);
    bool ok =
        path_is_directory(above)
            ? access(above, W_OK | X_OK) == 0 || fail(err, "%s: cannot be made: %s", o->path, strerror(errno))
            : fail(err, "%s: cannot be made: %s is not a directory", o->path, above);
    free(above);
    return ok;
}

bool owner_open(struct owner *o, const char *path, enum owner_purpose purpose, struct error *err) {
    *o = (struct owner){.purpose = purpose, .lock = -1, .log_lock = -1};
    o->path = xstrdup(path);
    if (!*path) return fail(err, "--out: a directory without a name");
    o->existed = path_existing(path);
    if (!path_exists(path)) return check_absent(o, err);
    if (!path_is_directory(path))
        return fail(err, "%s: is not a directory: --out names the directory of a run", path);
    struct contents c;
    if (!lock_directory(o, err) || !look(&c, path, err)) return false;
    o->holds_run = holds_run(&c);
    o->checkpoints = c.checkpoints;
    bool ok = purpose == OWNER_NEW      ? check_new(o, err)
              : purpose == OWNER_RESUME ? check_resume(o, err)
                                        : check_overwrite(o, &c, err);
    free(c.wrong);
    return ok;
}

/* The directory of a path, or of the part of a pattern before its first '*', '?' or '['; NULL for what is
 * neither. The caller frees. */
static char *directory_of_input(const char *input) {
    if (path_is_directory(input)) return realpath(input, NULL);
    size_t n = path_exists(input) ? strlen(input) : strcspn(input, "*?[");
    if (!path_exists(input) && !input[n]) return NULL;
    char *fixed = xasprintf("%.*s", (int)n, input);
    char *parent = n && fixed[n - 1] == '/' ? xstrdup(fixed) : path_parent(fixed),
         *real = realpath(parent, NULL);
    free(parent);
    free(fixed);
    return real;
}

bool owner_check_input(const struct owner *o, const char *option, const char *input, struct error *err) {
    if (o->purpose != OWNER_OVERWRITE || !input) return true;
    char *out = realpath(o->path, NULL), *directory = directory_of_input(input);
    bool inside = lies_in(directory, out);
    free(out);
    free(directory);
    return !inside || fail(err, "--%s %s lies in --out %s, whose run --overwrite deletes: give another --out",
                           option, input, o->path);
}

/* --- taking --- */

static bool remove_file(const struct owner *o, const char *name, struct error *err) {
    return unlinkat(o->lock, name, 0) == 0 || errno == ENOENT ||
           fail(err, "%s/%s: cannot remove: %s", o->path, name, strerror(errno));
}

/* Directories or files that are the run's, but for log.jsonl. */
static bool remove_entries(const struct owner *o, bool directories, struct error *err) {
    DIR *dir = opendir(o->path);
    if (!dir) return fail(err, "%s: cannot list directory: %s", o->path, strerror(errno));
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(dir)) != NULL;) {
        if (directories && owns_directory(e->d_name)) {
            char *path = xasprintf("%s/%s", o->path, e->d_name);
            ok = checkpoint_remove(path, err);
            free(path);
        } else if (!directories && owns_file(e->d_name) && strcmp(e->d_name, "log.jsonl") != 0) {
            ok = remove_file(o, e->d_name, err);
        }
    }
    closedir(dir);
    return ok;
}

static bool remove_run(const struct owner *o, struct error *err) {
    return remove_entries(o, true, err) && remove_entries(o, false, err) && remove_file(o, "log.jsonl", err);
}

bool owner_take(struct owner *o, struct error *err) {
    if (o->lock < 0 && path_exists(o->path))
        return fail(err, "%s: another process has just made this directory: give another --out", o->path);
    o->taken = true;
    if (o->lock < 0) return make_directories(o->path, err) && lock_directory(o, err);
    return o->purpose != OWNER_OVERWRITE || remove_run(o, err);
}

void owner_give_up(struct owner *o) {
    if (!o->taken || o->purpose == OWNER_RESUME) return;
    if (o->lock >= 0) (void)remove_run(o, NULL);
    remove_empty_directories(o->path, o->existed);
}

bool owner_is_there(const struct owner *o) {
    struct stat st;
    return stat(o->path, &st) == 0 && st.st_dev == o->device && st.st_ino == o->inode;
}

bool owner_take_again(struct owner *o, struct error *err) {
    struct owner again;
    bool ok = owner_open(&again, o->path, OWNER_NEW, err) && owner_take(&again, err);
    if (!ok) {
        owner_close(&again);
        return false;
    }
    owner_release_log(&again);
    owner_close(o);
    *o = again;
    return true;
}

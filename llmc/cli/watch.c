/* `train_gpt watch`: runs in a browser, as they train (serve/watch.h). */
#include "llmc/cli/commands.h"

#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/serve/watch.h"

#include <stdio.h>
#include <string.h>

struct watch_config {
    const char *address, *html;
    int64_t port;
    bool token, overwrite;
};

#define C struct watch_config
static const struct option_row rows[] = {
    SERVER_OPTIONS(C),
    OPT_TEXT(C, html, "html", NULL, "FILE",
             "serve nothing, and write the page as it is now, complete in one file", 0),
    OPT_FLAG(C, overwrite, "overwrite", "false", "replace FILE if it exists", 0),
};
#undef C
static const struct option_group groups[] = {{"Page", rows, ARRAY_LENGTH(rows)}};
const struct option_command watch_command = {
    "train_gpt watch [RUN ...] [options]",
    "Shows the curves, samples, options and checkpoints of one or several runs in a browser, and follows "
    "those that are training. Only reads files of the runs. Without a RUN, all under runs/.",
    groups,
    ARRAY_LENGTH(groups),
    "RUN",
    0,
    WATCH_RUNS_MAX};

static bool write_page(const struct watch_config *c, struct watch *w, struct error *err) {
    if (!watch_write_page(w, c->html, err)) return false;
    fprintf(stderr, "%s: open it in a browser\n", c->html);
    return true;
}

static bool serve(const struct watch_config *c, struct watch *w, struct error *err) {
    struct http_options o = {c->address, c->port, c->token, "watch.html", watch_handle, w};
    struct http *http = http_open(&o, err);
    if (!http) return false;
    watch_update(w);
    say("open      %s\nCtrl-C ends it; training is not affected\n", http_url(http));
    http_serve(http);
    http_close(http);
    return true;
}

int cmd_watch(int argc, char **argv) {
    struct options options;
    struct watch_config c;
    struct watch w;
    struct error err;
    int status = command_options(&options, &watch_command, &c, argc, argv);
    if (status >= 0) return status;
    bool may = !c.html || may_write_file(c.html, c.overwrite, &err);
    status = !may || !watch_open(&w, options.positional, options.positional_count, &err) ? 2 : 0;
    if (status == 0) {
        status = !(c.html ? write_page(&c, &w, &err) : serve(&c, &w, &err));
        watch_close(&w);
    }
    if (status) report_error("%s", err.message);
    options_free(&options);
    return status;
}

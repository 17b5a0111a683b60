/* The page is profile.html with the results as JSON in the place of its data; profile.js draws them. */
#include "llmc/report/profile_page.h"

#include "llmc/report/json_text.h"
#include "llmc/report/page.h"

#include <jansson.h>
#include <string.h>
#include <time.h>

static json_t *row_facts(const struct profile_row *r) {
    json_t *facts =
        json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:f}", "name", r->name, "variant", r->variant, "calls",
                  r->calls, "flops", r->flops, "bytes", r->bytes, "seconds", r->seconds, "ideal", r->ideal);
    check(facts != NULL, "the results of %s cannot be written as JSON", r->name);
    return facts;
}

static void put_facts(struct writer *w, void *user) {
    const struct profile *p = (const struct profile *)user;
    char date[32];
    time_t now = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%d", localtime(&now));
    json_t *rows = json_array();
    for (int i = 0; i < p->count; i++) json_array_append_new(rows, row_facts(&p->row[i]));
    json_t *facts =
        json_pack("{s:o, s:o, s:o, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:o}", "title",
                  json_text(p->title, (int64_t)strlen(p->title)), "where",
                  json_text(p->where, (int64_t)strlen(p->where)), "note",
                  p->note ? json_text(p->note, (int64_t)strlen(p->note)) : json_null(), "date", date, "step",
                  p->step, "spread", p->spread, "in_ops", p->in_ops, "ideal", p->ideal, "matmul_rate",
                  p->matmul_rate, "copy_rate", p->copy_rate, "tokens", p->tokens, "model_flops",
                  p->model_flops, "repeats", (json_int_t)p->repeats, "rows", rows);
    check(facts != NULL, "the results cannot be written as JSON");
    page_put_json(w, "facts", facts);
    json_decref(facts);
}

bool profile_write_page(const struct profile *p, const char *path, struct error *err) {
    return page_write(path, "profile.html", put_facts, (void *)p, err);
}

/* MMLU's CSV, and CSV of any kind. */
#include "test/fuzz/fuzz.h"

#include "llmc/corpus/csv.h"
#include "llmc/corpus/task_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

FUZZ_TARGET(task_csv) {
    struct error err;
    struct task_file f;
    struct csv_reader r;
    char *copy = xmalloc(size + 1); /* without a NUL behind it */
    if (size) memcpy(copy, data, size);
    char *exact = xrealloc(copy, size ? size : 1);
    csv_open(&r, exact, (int64_t)size, "fuzz.csv");
    while (csv_next(&r, &err) > 0)
        for (int i = 0; i < r.count; i++) check(csv_field(&r, i)[r.length[i]] == 0, "a field without an end");
    csv_close(&r);
    free(exact);
    if (task_file_read(&f, fuzz_file("some_subject_test.csv", data, size), &err)) fuzz_accept();
    task_file_free(&f);
    return 0;
}

FUZZ_SEEDS(task_csv) {
    static const char *const texts[] = {
        "question,A,B,C,D,answer\nWhy?,a,b,c,d,D\n",
        "\"Two\nlines, \"\"quoted\"\"\",one,\"2,0\",three,,C\r\nWhy?,a,b,c,d,A",
        "question,subject,choices,answer\nWhy?,law,\"['a' \"\"b's\"\"\n 'c\\'d']\",2\n",
        "\"A \"stray quote\",one,two \"x\",three,four,1\n",
        ",question,choice0,choice_b,answer\n0,Why?,x,y,B\n"};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) add(user, texts[i], strlen(texts[i]));
}

/* Questions as JSON lines, and their tokens. */
#include "test/fuzz/fuzz.h"

#include "llmc/model/eval.h"

#include <string.h>

FUZZ_TARGET(task_json) {
    struct error err;
    struct tokenizer *t = tokenizer_bytes();
    struct eval_task *task = eval_task_open(fuzz_file("task.jsonl", data, size), t, 16, NULL, &err);
    if (task) {
        check(eval_task_longest(task) <= 16 && eval_task_questions(task) > 0, "a task that does not fit");
        fuzz_accept();
    }
    eval_task_free(task);
    tokenizer_free(t);
    return 0;
}

FUZZ_SEEDS(task_json) {
    static const char *const texts[] = {
        "{\"ind\": 4, \"ctx\": \"A man\", \"endings\": [\"sits.\", "
        "\"\\u00e9t\\u00e9\", \"x\"], \"label\": 2}\n",
        "{\"context\": \"Q: \", \"choices\": [\"yes\", \"no\"], \"answer\": "
        "\"no\"}\n\n{\"context\": \"\", \"choices\": [\"a long one, longer "
        "than sixteen\", \"b\"], \"answer\": 0}",
        "{\"question\":\"Why?\",\"subject\":\"law\",\"choices\":[\"a\",\"b\"],"
        "\"answer\":1}\n{\"question\":\"\",\"choices\":[\"a\",\"b\"],\"answer\":\"A\"}",
        "{\"text\": \"He ate the bread.\"}\n{\"text\": \"two  spaces \"}"};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) add(user, texts[i], strlen(texts[i]));
}

/* `make learn CH=N`: grades the exercise of one chapter, which is linked with this. Ends with 0 if it is
 * solved. */
#include "dev/learn/learn.h"

#include <stdio.h>

int main(void) {
    int chapter = exercise.chapter;
    const char *name = exercise_name(chapter);
    if (!exercise.done) {
        printf("chapter %d: not yet. Write %s() in dev/learn/ch%02d.c and set .done to true.\n", chapter,
               name, chapter);
        return 1;
    }
    struct grade g;
    exercise_grade(&g, &exercise);
    if (*g.wrong) {
        printf("chapter %d: %s() is right in %d cases, and wrong in the next:\n    %s\n", chapter, name,
               g.right, g.wrong);
        return 1;
    }
    printf("chapter %d: %s() is right in all %d cases", chapter, name, g.right);
    if (g.worst > 0.0) printf("; its largest error is %.0f %% of what is allowed", 100.0 * g.worst);
    printf(".\n");
    return 0;
}

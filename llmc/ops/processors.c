/* The affinity mask and CPU quotas: see processors.h. */
#include "llmc/ops/processors.h"

#include "llmc/base/base.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The first two words of a file, numbers or "max"; returns how many there are. */
static int read_numbers(const char *path, double number[2]) {
    char word[2][32] = {"", ""};
    FILE *f = fopen(path, "re");
    int count = f ? fscanf(f, "%31s %31s", word[0], word[1]) : 0;
    if (f) fclose(f);
    for (int i = 0; i < count; i++) number[i] = strcmp(word[i], "max") == 0 ? INFINITY : atof(word[i]);
    return count;
}

/* The quota of one group in processors; INFINITY: none. Version 2 has it in one file, version 1 in two. */
static double quota_of(const char *directory) {
    double number[2] = {INFINITY, 1}, period[2];
    char *path = xasprintf("%s/cpu.max", directory);
    bool known = read_numbers(path, number) == 2;
    free(path);
    if (!known) {
        path = xasprintf("%s/cpu.cfs_quota_us", directory);
        known = read_numbers(path, number) == 1 && number[0] > 0.0; /* -1: no limit */
        free(path);
        path = xasprintf("%s/cpu.cfs_period_us", directory);
        known = known && read_numbers(path, period) == 1;
        free(path);
        if (known) number[1] = period[0];
    }
    return known && number[0] > 0.0 && number[1] > 0.0 ? number[0] / number[1] : INFINITY;
}

double cgroup_quota(const char *cgroups, const char *root) {
    double least = INFINITY;
    char line[4096];
    FILE *f = fopen(cgroups, "re");
    /* "0::/path" is version 2; "4:cpu,cpuacct:/path" is version 1, mounted under its controllers' names */
    while (f && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        group[strcspn(group, "\n")] = '\0';
        controllers++;
        if (*controllers && !strstr(temp_printf(",%s,", controllers), ",cpu,")) continue;
        char *top = *controllers ? xasprintf("%s/%s", root, controllers) : xasprintf("%s", root);
        char *directory = xasprintf("%s%s", top, group);
        while (strlen(directory) >= strlen(top)) {
            least = fmin(least, quota_of(directory));
            char *slash = strrchr(directory, '/');
            if (!slash) break;
            *slash = '\0';
        }
        free(directory);
        free(top);
    }
    if (f) fclose(f);
    return isinf(least) ? 0.0 : least;
}

int processors_allowed(void) {
    cpu_set_t mask;
    long count =
        sched_getaffinity(0, sizeof mask, &mask) == 0 ? CPU_COUNT(&mask) : sysconf(_SC_NPROCESSORS_ONLN);
    double quota = cgroup_quota("/proc/self/cgroup", "/sys/fs/cgroup");
    if (quota > 0.0) count = (long)fmin((double)count, ceil(quota));
    return count > 1 ? (int)count : 1;
}

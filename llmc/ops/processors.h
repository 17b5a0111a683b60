/* How many processors this process may keep busy. */
#ifndef LLMC_PROCESSORS_H
#define LLMC_PROCESSORS_H

/* The processors of the affinity mask (taskset, a launcher's binding), but no more than the control groups
 * grant time for, as in a container with --cpus 1.5: 2. At least 1. */
int processors_allowed(void);

/* The smallest CPU quota, in processors, of the control groups that the file `cgroups` (/proc/self/cgroup)
 * names and of those above them, under `root` (/sys/fs/cgroup); 0 if there is none. Knows versions 1 and
 * 2. */
double cgroup_quota(const char *cgroups, const char *root);

#endif

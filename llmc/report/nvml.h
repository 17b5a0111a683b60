/* What a GPU says about itself while it works: power, temperature, clock, utilisation, and why its clock is
 * held down. From NVIDIA's management library (NVML), which belongs to the driver: it is loaded at run time
 * if it is there, and never needed. LLMC_NVML=FILE is loaded instead of libnvidia-ml.so.1. */
#ifndef LLMC_NVML_H
#define LLMC_NVML_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct nvml;

/* What is not known is NAN. */
struct nvml_reading {
    double watts, celsius, sm_mhz;
    double utilisation; /* share of the last moments in which any kernel ran */
    const char *slowed; /* what holds the clock down, or NULL */
    bool slowed_first;  /* this is the first reading with `slowed` */
};

/* The GPU with this UUID (device.h). NULL, without a word, if the library, the GPU or a function
 * that finds it is missing. */
struct nvml *nvml_open(const char *uuid);
/* Reads what there is; false if nothing is known, or if the last reading was less than `interval` seconds
 * ago. `nvml` may be NULL. */
bool nvml_read(struct nvml *nvml, double interval, struct nvml_reading *reading);
void nvml_close(struct nvml *nvml);

#ifdef __cplusplus
}
#endif
#endif

/* The state of a GPU while it works: power, temperature, clock, utilisation, and the reason for a reduced
 * clock. It comes from NVIDIA's management library (NVML), which is part of the driver; it is loaded at run
 * time if present, and never required. LLMC_NVML=FILE names another library than libnvidia-ml.so.1. */
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

/* Opens the GPU with this UUID (device.h). NULL without a message if the library, the GPU or a function to
 * find it is missing. */
struct nvml *nvml_open(const char *uuid);
/* Reads what is available. False if nothing is, or if the last reading is less than `interval` seconds old.
 * `nvml` may be NULL. */
bool nvml_read(struct nvml *nvml, double interval, struct nvml_reading *reading);
void nvml_close(struct nvml *nvml);

#ifdef __cplusplus
}
#endif
#endif

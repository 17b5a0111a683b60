/* Reads the state of a GPU through NVML, loaded with dlopen, so that the program builds and runs without
 * it. Every function and every reading may be missing: drivers, containers and virtual GPUs differ. */
#include "llmc/report/nvml.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- the library's interface, as far as it is used (NVML API Reference Guide); 0 is success --- */

typedef void *nvml_device;
struct nvml_utilization {
    unsigned gpu, memory; /* per cent */
};
enum { NVML_TEMPERATURE_GPU = 0, NVML_CLOCK_SM = 1 };

/* Reasons for a lower clock other than idleness or the user's own limits, the most informative first. */
static const struct {
    unsigned long long bit;
    const char *text;
} slowdowns[] = {
    {0x40, "the hardware: too hot"},
    {0x80, "the hardware: the power supply asks for it"},
    {0x08, "the hardware: too hot, or too much power"},
    {0x20, "the driver: too hot"},
    {0x04, "the power limit"},
};

struct nvml {
    void *library;
    nvml_device device;
    int (*shutdown)(void);
    /* NULL where the library lacks it */
    int (*power)(nvml_device device, unsigned *milliwatts);
    int (*temperature)(nvml_device device, int sensor, unsigned *celsius);
    int (*clock)(nvml_device device, int type, unsigned *mhz);
    int (*utilization)(nvml_device device, struct nvml_utilization *rates);
    int (*reasons)(nvml_device device, unsigned long long *reasons);
    double last; /* time of the last reading */
    bool slowed; /* one of them had a reason for a lower clock */
};

/* --- opening --- */

/* Copies dlsym's result byte by byte: ISO C has no conversion from void * to a pointer to a function. */
static bool find(void *library, const char *name, void *function) {
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, sizeof symbol);
    return symbol != NULL;
}

struct nvml *nvml_open(const char *uuid) {
    const char *file = getenv("LLMC_NVML");
    int (*init)(void), (*by_uuid)(const char *uuid, nvml_device *device);
    struct nvml n = {.library = dlopen(file ? file : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)};
    if (!n.library) return NULL;
    if (!find(n.library, "nvmlInit_v2", &init) || !find(n.library, "nvmlShutdown", &n.shutdown) ||
        !find(n.library, "nvmlDeviceGetHandleByUUID", &by_uuid) || init() != 0) {
        dlclose(n.library);
        return NULL;
    }
    if (by_uuid(uuid, &n.device) != 0) {
        n.shutdown();
        dlclose(n.library);
        return NULL;
    }
    find(n.library, "nvmlDeviceGetPowerUsage", &n.power);
    find(n.library, "nvmlDeviceGetTemperature", &n.temperature);
    find(n.library, "nvmlDeviceGetClockInfo", &n.clock);
    find(n.library, "nvmlDeviceGetUtilizationRates", &n.utilization);
    /* since CUDA 12.2; the older name remains */
    if (!find(n.library, "nvmlDeviceGetCurrentClocksEventReasons", &n.reasons))
        find(n.library, "nvmlDeviceGetCurrentClocksThrottleReasons", &n.reasons);
    n.last = -INFINITY;
    struct nvml *nvml = xmalloc(sizeof *nvml);
    *nvml = n;
    return nvml;
}

void nvml_close(struct nvml *n) {
    if (!n) return;
    n->shutdown();
    dlclose(n->library);
    free(n);
}

/* --- reading --- */

bool nvml_read(struct nvml *n, double interval, struct nvml_reading *r) {
    double now = now_seconds();
    if (!n || now - n->last < interval) return false;
    n->last = now;
    *r = (struct nvml_reading){NAN, NAN, NAN, NAN, NULL, false};
    unsigned value;
    struct nvml_utilization rates;
    unsigned long long reasons = 0;
    if (n->power && n->power(n->device, &value) == 0) r->watts = 1e-3 * value;
    if (n->temperature && n->temperature(n->device, NVML_TEMPERATURE_GPU, &value) == 0) r->celsius = value;
    if (n->clock && n->clock(n->device, NVML_CLOCK_SM, &value) == 0) r->sm_mhz = value;
    if (n->utilization && n->utilization(n->device, &rates) == 0) r->utilisation = 0.01 * rates.gpu;
    bool known = n->reasons && n->reasons(n->device, &reasons) == 0;
    for (size_t i = 0; known && !r->slowed && i < ARRAY_LENGTH(slowdowns); i++)
        if (reasons & slowdowns[i].bit) r->slowed = slowdowns[i].text;
    r->slowed_first = r->slowed && !n->slowed;
    n->slowed = n->slowed || r->slowed;
    return known || !isnan(r->watts) || !isnan(r->celsius) || !isnan(r->sm_mhz) || !isnan(r->utilisation);
}

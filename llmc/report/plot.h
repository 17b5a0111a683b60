/* loss.svg: the log of a run as a picture. */
#ifndef LLMC_PLOT_H
#define LLMC_PLOT_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Draws the rows of a log.jsonl: training and validation loss, the floor (NAN: none), and marks at steps
 * whose update was skipped or whose loss is not finite. Other lines are ignored. The file is written
 * atomically, needs no scripts, and stays below 200 kB however long the run. */
bool plot_log(const char *svg, const char *log, const char *title, double floor_loss, struct error *err);

#ifdef __cplusplus
}
#endif
#endif

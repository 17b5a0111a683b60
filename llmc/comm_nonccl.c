/* In place of llmc/cuda's NCCL collectives where those are not linked in (see the Makefile, "the CUDA back
 * end"). */
#include "comm.h"

struct comm *comm_open_nccl(struct group *g, struct device *device, struct error *err) {
    fail(err, "several processes on GPUs need NCCL, which this program was built without; `make CUDA=1` "
              "builds it with, "
              "--device cpu works everywhere");
    return NULL;
}

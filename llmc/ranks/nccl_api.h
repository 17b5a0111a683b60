/* The part of NCCL's C interface that the engine uses. It is declared here, and its functions are looked
 * up when the first communicator is opened, so that building and starting need no NCCL. The interface
 * has been stable since NCCL 2.0. Enumerations are declared as int, handles as void pointers.
 * test/sim/nccl_header.cpp compares these declarations with nccl.h if that is installed. */
#ifndef LLMC_NCCL_API_H
#define LLMC_NCCL_API_H

#include "llmc/base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

struct nccl_id {
    char bytes[128];
};

enum nccl_result {
    NCCL_SUCCESS = 0,
    NCCL_SYSTEM_ERROR = 2,
    NCCL_INVALID_ARGUMENT = 4,
    NCCL_INVALID_USAGE = 5,
    NCCL_REMOTE_ERROR = 6,
    NCCL_IN_PROGRESS = 7
};
enum nccl_type { NCCL_FLOAT32 = 7, NCCL_BFLOAT16 = 9 };
enum nccl_operation { NCCL_SUM = 0 };
/* Version 2.21.5 is 22105 (up to 2.8 it was 2804). bfloat16 came with 2.10. */
enum { NCCL_OLDEST = 21000 };

/* X(member, NCCL's name, required, result, parameters) */
#define NCCL_FUNCTIONS(X)                                                                                    \
    X(get_version, ncclGetVersion, true, int, (int *version))                                                \
    X(get_unique_id, ncclGetUniqueId, true, int, (struct nccl_id * id))                                      \
    X(comm_init_rank, ncclCommInitRank, true, int, (void **comm, int world, struct nccl_id id, int rank))    \
    X(comm_destroy, ncclCommDestroy, true, int, (void *comm))                                                \
    X(comm_abort, ncclCommAbort, true, int, (void *comm))                                                    \
    X(comm_get_async_error, ncclCommGetAsyncError, true, int, (void *comm, int *error))                      \
    X(get_error_string, ncclGetErrorString, true, const char *, (int result))                                \
    X(get_last_error, ncclGetLastError, false, const char *, (void *comm))                                   \
    X(group_start, ncclGroupStart, true, int, (void))                                                        \
    X(group_end, ncclGroupEnd, true, int, (void))                                                            \
    X(all_reduce, ncclAllReduce, true, int,                                                                  \
      (const void *send, void *receive, size_t count, int type, int op, void *comm, void *stream))           \
    X(reduce, ncclReduce, true, int,                                                                         \
      (const void *send, void *receive, size_t count, int type, int op, int root, void *comm, void *stream)) \
    X(reduce_scatter, ncclReduceScatter, true, int,                                                          \
      (const void *send, void *receive, size_t receive_count, int type, int op, void *comm, void *stream))   \
    X(all_gather, ncclAllGather, true, int,                                                                  \
      (const void *send, void *receive, size_t send_count, int type, void *comm, void *stream))              \
    X(send, ncclSend, true, int,                                                                             \
      (const void *data, size_t count, int type, int peer, void *comm, void *stream))                        \
    X(receive, ncclRecv, true, int,                                                                          \
      (void *data, size_t count, int type, int peer, void *comm, void *stream))                              \
    X(broadcast, ncclBroadcast, true, int,                                                                   \
      (const void *send, void *receive, size_t count, int type, int root, void *comm, void *stream))

struct nccl_api {
#define NCCL_MEMBER(member, name, required, result, parameters) result(*member) parameters;
    NCCL_FUNCTIONS(NCCL_MEMBER)
#undef NCCL_MEMBER
};

/* Finds the functions: in the library that LLMC_NCCL names, else in the program itself (where it is linked
 * with NCCL, or with the simulated one), else in libnccl.so.2. The library stays loaded. */
bool nccl_load(struct nccl_api *api, int *version, struct error *err);
/* "2.21.5", by temp_printf. */
const char *nccl_version_text(int version);

#ifdef __cplusplus
}
#endif
#endif

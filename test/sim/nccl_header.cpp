/* Compares the declarations of llmc/ranks/nccl_api.h with NVIDIA's, where nccl.h is installed: constants,
 * and of each function the number and sizes of its parameters. A difference does not compile. */
#include "test/sim/sim.h"

#include "llmc/ranks/nccl_api.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

namespace {

template <class A, class B> constexpr bool same_way() {
    return sizeof(A) == sizeof(B) && std::is_pointer<A>::value == std::is_pointer<B>::value;
}
template <class F, class G> struct same_call;
template <class R, class... P, class S, class... Q> struct same_call<R (*)(P...), S (*)(Q...)> {
    static constexpr bool value() {
        if constexpr (sizeof...(P) == sizeof...(Q))
            return same_way<R, S>() && (same_way<P, Q>() && ...);
        else
            return false;
    }
};

#define NCCL_COMPARE(member, name, required, result, parameters)                                             \
    static_assert(same_call<decltype(&name), decltype(nccl_api::member)>::value(), #name);
NCCL_FUNCTIONS(NCCL_COMPARE)

static_assert(sizeof(nccl_id) == sizeof(ncclUniqueId), "");
static_assert(NCCL_SUCCESS == (int)ncclSuccess && NCCL_SYSTEM_ERROR == (int)ncclSystemError, "");
static_assert(NCCL_INVALID_ARGUMENT == (int)ncclInvalidArgument &&
                  NCCL_INVALID_USAGE == (int)ncclInvalidUsage,
              "");
static_assert(NCCL_REMOTE_ERROR == (int)ncclRemoteError && NCCL_IN_PROGRESS == (int)ncclInProgress, "");
static_assert(NCCL_FLOAT32 == (int)ncclFloat32 && NCCL_BFLOAT16 == (int)ncclBfloat16 &&
                  NCCL_SUM == (int)ncclSum,
              "");

}  // namespace
#endif

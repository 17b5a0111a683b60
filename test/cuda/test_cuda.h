/* Helpers for tests of device code: a buffer with a host and a device side. */
#ifndef LLMC_TEST_CUDA_H
#define LLMC_TEST_CUDA_H

extern "C" { /* cmocka.h does not say so itself */
#include "test/test.h"
}

#include "llmc/cuda/kernel.cuh"

#include <cmath>
#include <vector>

/* n elements on each side; those of the device are NaN (all bits set) until written. */
template <class T> struct buffer {
    std::vector<T> host;
    T *device = nullptr;

    explicit buffer(int64_t n) : host((size_t)n) {
        cuda_check(cudaMalloc((void **)&device, bytes()));
        clear();
    }
    ~buffer() { cuda_check(cudaFree(device)); }
    buffer(const buffer &) = delete;
    buffer &operator=(const buffer &) = delete;

    size_t bytes() const { return host.size() * sizeof(T); }
    void clear() { cuda_check(cudaMemset(device, 0xff, bytes())); }
    void upload() { cuda_check(cudaMemcpy(device, host.data(), bytes(), cudaMemcpyHostToDevice)); }
    void download() { cuda_check(cudaMemcpy(host.data(), device, bytes(), cudaMemcpyDeviceToHost)); }
};

/* Conversions on the host that do not share code with those of the kernels. */
static inline float to_float_host(float v) { return v; }
static inline float to_float_host(bf16 v) {
    uint16_t bits;
    memcpy(&bits, &v, sizeof bits);
    return f32_from_bf16(bits);
}
template <class T> T from_float_host(float v);
template <> inline float from_float_host<float>(float v) { return v; }
template <> inline bf16 from_float_host<bf16>(float v) {
    uint16_t bits = bf16_from_f32(v);
    bf16 r;
    memcpy((void *)&r, &bits, sizeof bits);
    return r;
}

/* Ends the program with the reason if no kernel can run. */
static inline void require_device() {
    int count = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    check(e == cudaSuccess && count > 0, "these tests need a GPU, or the simulated one (make sim): %s",
          cudaGetErrorString(e));
}

#endif

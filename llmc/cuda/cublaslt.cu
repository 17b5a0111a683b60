/* Plans of cuBLASLt products: descriptors, layouts and the algorithm of each kind of product.
 *
 * A plan is made at the first call of its kind, by the host alone, and kept. With a tune file, the first call
 * of a large product times the algorithms that the library's heuristic proposes, instead of taking the first,
 * and an epilogue against the pass over memory that it saves; such a call waits, and never happens during a
 * capture. Other choices give other bits, so what is chosen once holds for all later runs, and of processes
 * that time the same product the first one decides for all. The file is text, a line for each choice:
 *     <device>|<library version>|<product> <algorithm, in hex> <microseconds>
 *     <device>|<library version>|<product>,fuse <01: with its epilogue; 00: as a pass> <microseconds> */
#include "llmc/cuda/cublaslt.cuh"

#include "llmc/base/file.h"

#include <deque>
#include <string>
#include <sys/file.h>
#include <vector>

/* --- types --- */

#define lt_check(call) lt_check_at(call, #call, __FILE__, __LINE__)
static void lt_check_at(cublasStatus_t status, const char *call, const char *file, int line) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    die_at(file, line, "cuBLASLt error %d (%s) at %s:%d in %s", (int)status, cublasLtGetStatusName(status),
           file, line, call);
}

struct plan {
    lt_product product;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
    bool possible;
    double seconds; /* of the algorithm; NAN: not timed */
    enum { UNDECIDED, FUSED, SEPARATE } way;
};

struct choice { /* a line of the tune file */
    std::string key;
    std::vector<unsigned char> value; /* an algorithm, or a byte */
    double seconds;
};

struct cublaslt {
    cublasLtHandle_t handle;
    bool tf32;
    std::string machine; /* "<device>|<library version>" */
    std::string tune_file;
    double tune_flops;
    bool warned; /* that the file cannot be written */
    std::vector<choice> choices;
    std::deque<plan> plans; /* which stay where they are */
};

/* --- plans --- */

static bool same_product(const lt_product &x, const lt_product &y) {
    return x.dtype == y.dtype && x.transpose_a == y.transpose_a && x.transpose_b == y.transpose_b &&
           x.m == y.m && x.n == y.n && x.k == y.k && x.epilogue == y.epilogue &&
           x.accumulate == y.accumulate && x.a == y.a && x.b == y.b;
}

template <class T>
static void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, T value) {
    lt_check(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof value));
}

static cublasLtMatrixLayout_t layout(cudaDataType_t type, int64_t rows, int64_t cols) {
    cublasLtMatrixLayout_t l;
    lt_check(cublasLtMatrixLayoutCreate(&l, type, (uint64_t)rows, (uint64_t)cols, rows));
    return l;
}

static bool uses_bias(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ||
           e == CUBLASLT_EPILOGUE_GELU_BIAS || e == CUBLASLT_EPILOGUE_BGRADB;
}
static bool uses_aux(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ||
           e == CUBLASLT_EPILOGUE_DGELU;
}

static size_t workspace_of(const plan &p) { return (size_t)lt_workspace(p.product.m, p.product.n); }

static void set_pointers(const plan &p, const lt_operands &o) {
    if (uses_bias(p.product.epilogue)) set(p.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.bias);
    if (uses_aux(p.product.epilogue)) set(p.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, o.aux);
    if (p.product.a == FP8_NONE) return;
    set(p.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, o.scale_a);
    set(p.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, o.scale_b);
}

static cublasStatus_t multiply(const cublaslt *lt, const plan &p, const cublasLtMatmulAlgo_t &algorithm,
                               const lt_operands &o, void *workspace, cudaStream_t stream) {
    float alpha = 1.0f, beta = p.product.accumulate ? 1.0f : 0.0f;
    set_pointers(p, o);
    return cublasLtMatmul(lt->handle, p.desc, &alpha, o.a, p.a, o.b, p.b, &beta, o.d, p.d, o.d, p.d,
                          &algorithm, workspace, workspace_of(p), stream);
}

/* Asks the library for up to `room` algorithms, best guess first; returns how many it has. */
static int candidates(const cublaslt *lt, const plan &p, cublasLtMatmulHeuristicResult_t *results, int room) {
    cublasLtMatmulPreference_t preference;
    lt_check(cublasLtMatmulPreferenceCreate(&preference));
    size_t workspace = workspace_of(p);
    uint32_t alignment = 16, schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* or the whole sum at once */
    lt_check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                  &workspace, sizeof workspace));
    /* Sums along k that are split are added in fp32; the library may also add them in bf16. */
    lt_check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                  &schemes, sizeof schemes));
    for (cublasLtMatmulPreferenceAttributes_t operand :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
        lt_check(cublasLtMatmulPreferenceSetAttribute(preference, operand, &alignment, sizeof alignment));
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(lt->handle, p.desc, p.a, p.b, p.d, p.d, preference,
                                                           room, results, &found);
    lt_check(cublasLtMatmulPreferenceDestroy(preference));
    return status == CUBLAS_STATUS_SUCCESS ? found : 0;
}

/* --- the tune file --- */

static std::string key_of(const cublaslt *lt, const lt_product &p) {
    static const char *const formats[] = {"", "/e4m3", "/e5m2"};
    char text[160];
    snprintf(text, sizeof text, "|%s%s%s%s,%c%c,%lld,%lld,%lld,%d,%d", dtype_name(p.dtype),
             lt->tf32 ? "/tf32" : "", formats[p.a], formats[p.b], p.transpose_a ? 'T' : 'N',
             p.transpose_b ? 'T' : 'N', (long long)p.m, (long long)p.n, (long long)p.k, (int)p.epilogue,
             p.accumulate);
    return lt->machine + text;
}

static const choice *find_choice(const cublaslt *lt, const std::string &key) {
    for (const choice &c : lt->choices)
        if (c.key == key) return &c;
    return nullptr;
}

/* Adds the choices of the file that are not known yet. Ignores lines that it cannot read; their choices are
 * made anew. */
static void read_choices(cublaslt *lt, FILE *f) {
    char line[1024];
    while (fgets(line, sizeof line, f)) {
        const char *p = strchr(line, ' ');
        unsigned byte;
        choice c;
        if (!p) continue;
        c.key.assign(line, (size_t)(p++ - line));
        for (; sscanf(p, "%2x", &byte) == 1 && *p != ' '; p += 2) c.value.push_back((unsigned char)byte);
        bool whole = c.value.size() == 1 || c.value.size() == sizeof(cublasLtMatmulAlgo_t);
        if (!whole || sscanf(p, "%lf", &c.seconds) != 1 || find_choice(lt, c.key)) continue;
        c.seconds *= 1e-6;
        lt->choices.push_back(c);
    }
}

/* Keeps a choice, unless another process has made it meanwhile, and returns the one that holds. */
static choice keep_choice(cublaslt *lt, const choice &c) {
    struct error err;
    char *directory = path_parent(lt->tune_file.c_str());
    bool made = make_directories(directory, &err);
    free(directory);
    FILE *f = made ? fopen(lt->tune_file.c_str(), "a+") : nullptr;
    if (!f) {
        if (!lt->warned)
            warn("cannot write %s, where the fastest matmuls are kept: they are found anew in every run, "
                 "whose bits may differ; --autotune FILE names another place",
                 lt->tune_file.c_str());
        lt->warned = true;
        lt->choices.push_back(c);
        return c;
    }
    flock(fileno(f), LOCK_EX); /* until it is closed */
    rewind(f);
    read_choices(lt, f);
    if (!find_choice(lt, c.key)) {
        lt->choices.push_back(c);
        fseek(f, 0, SEEK_END);
        fprintf(f, "%s ", c.key.c_str());
        for (unsigned char byte : c.value) fprintf(f, "%02x", byte);
        fprintf(f, " %.2f\n", c.seconds * 1e6);
    }
    fclose(f);
    return *find_choice(lt, c.key);
}

/* --- tuning --- */

static bool tunes(const cublaslt *lt, const lt_product &p) {
    return !lt->tune_file.empty() && 2.0 * (double)p.m * (double)p.n * (double)p.k >= lt->tune_flops;
}

double fastest_run(cudaStream_t stream, int runs, double least, const std::function<bool()> &work) {
    cudaEvent_t start, end;
    cuda_check(cudaEventCreate(&start));
    cuda_check(cudaEventCreate(&end));
    double best = INFINITY, total = 0.0;
    for (int run = 0; run < runs || total < least; run++) {
        cuda_check(cudaEventRecord(start, stream));
        bool works = work();
        cuda_check(cudaEventRecord(end, stream));
        cuda_check(cudaEventSynchronize(end));
        if (!works) break;
        float milliseconds = 0;
        cuda_check(cudaEventElapsedTime(&milliseconds, start, end));
        double seconds = milliseconds * 1e-3;
        total += seconds;
        if (seconds < best) best = seconds;
    }
    cuda_check(cudaEventDestroy(start));
    cuda_check(cudaEventDestroy(end));
    return best;
}

/* Takes the algorithm that the tune file has for the product, if it is one. */
static bool take_known(const cublaslt *lt, plan *p, const std::string &key) {
    const choice *known = find_choice(lt, key);
    cublasLtMatmulHeuristicResult_t result;
    cublasLtMatmulAlgo_t algorithm;
    if (!known || known->value.size() != sizeof algorithm) return false;
    memcpy(&algorithm, known->value.data(), sizeof algorithm);
    if (cublasLtMatmulAlgoCheck(lt->handle, p->desc, p->a, p->b, p->d, p->d, &algorithm, &result) !=
            CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > workspace_of(*p))
        return false;
    p->algorithm = algorithm;
    p->seconds = known->seconds;
    return true;
}

constexpr int RUNS = 4; /* of which the first one warms up */

/* Times the candidates on the real operands; a product that accumulates has its output in temporary memory.
 * If there is none, the heuristic's first proposal stays. */
static void tune(cublaslt *lt, plan *p, const std::string &key, const lt_operands &operands, void *workspace,
                 cudaStream_t stream) {
    enum { CANDIDATES = 16 };
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int found = candidates(lt, *p, results, CANDIDATES);
    lt_operands o = operands;
    void *space = nullptr;
    size_t bytes = (size_t)(p->product.m * p->product.n) * dtype_size(p->product.dtype);
    if (p->product.accumulate) {
        if (cudaMalloc(&space, bytes) != cudaSuccess) {
            cudaGetLastError();
            return;
        }
        cuda_check(cudaMemsetAsync(space, 0, bytes, stream));
        o.d = space;
    }
    const cublasLtMatmulAlgo_t *best = nullptr;
    double seconds = INFINITY;
    for (int i = 0; i < found; i++) {
        double s = fastest_run(stream, RUNS, 0.0, [&] {
            return multiply(lt, *p, results[i].algo, o, workspace, stream) == CUBLAS_STATUS_SUCCESS;
        });
        if (s < seconds) seconds = s, best = &results[i].algo;
    }
    cuda_check(cudaFree(space));
    if (!best) return;
    p->algorithm = *best;
    p->seconds = seconds;
    choice c = {key, std::vector<unsigned char>(sizeof *best), seconds};
    memcpy(c.value.data(), best, sizeof *best);
    keep_choice(lt, c);
    take_known(lt, p, key); /* that of another process, if it was faster with its choice */
}

static bool is_capturing(cudaStream_t stream) {
    cudaStreamCaptureStatus status;
    cuda_check(cudaStreamIsCapturing(stream, &status));
    return status != cudaStreamCaptureStatusNone;
}

static void choose_algorithm(cublaslt *lt, plan *p, const lt_operands &o, void *workspace,
                             cudaStream_t stream) {
    cublasLtMatmulHeuristicResult_t result;
    set_pointers(*p, o); /* the library takes pointers from the descriptor, too */
    p->possible = candidates(lt, *p, &result, 1) == 1;
    p->seconds = NAN;
    if (!p->possible) {
        bool needed =
            p->product.epilogue == CUBLASLT_EPILOGUE_DEFAULT || p->product.epilogue == CUBLASLT_EPILOGUE_BIAS;
        if (needed) warn("cuBLASLt has no algorithm for the product %s", key_of(lt, p->product).c_str());
        return;
    }
    p->algorithm = result.algo;
    if (!tunes(lt, p->product)) return;
    std::string key = key_of(lt, p->product);
    if (!take_known(lt, p, key) && !is_capturing(stream)) tune(lt, p, key, o, workspace, stream);
}

/* --- running --- */

static cudaDataType_t type_of(const lt_product &p, fp8_format f) {
    return f == FP8_E4M3           ? CUDA_R_8F_E4M3
           : f == FP8_E5M2         ? CUDA_R_8F_E5M2
           : p.dtype == DTYPE_BF16 ? CUDA_R_16BF
                                   : CUDA_R_32F;
}

static plan make_plan(const cublaslt *lt, const lt_product &product) {
    plan p = {};
    p.product = product;
    cudaDataType_t type_a = type_of(product, product.a), type_b = type_of(product, product.b);
    bool tf32 = product.dtype == DTYPE_F32 && lt->tf32;
    lt_check(cublasLtMatmulDescCreate(&p.desc, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                                      CUDA_R_32F));
    set(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, product.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(p.desc, CUBLASLT_MATMUL_DESC_TRANSB, product.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(p.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, product.epilogue);
    if (uses_aux(product.epilogue)) set(p.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, product.m);
    /* fp8 tensor cores add with about 14 bits. Fast accumulation does so over the whole sum, which is
     * accurate enough for the forward pass. For gradients, partial sums go to fp32 registers at some cost
     * in speed. */
    if (product.a == FP8_E4M3 && product.b == FP8_E4M3)
        set(p.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, (int8_t)1);
    p.a = product.transpose_a ? layout(type_a, product.k, product.m) : layout(type_a, product.m, product.k);
    p.b = product.transpose_b ? layout(type_b, product.n, product.k) : layout(type_b, product.k, product.n);
    p.d = layout(type_of(product, FP8_NONE), product.m, product.n);
    return p;
}

/* The plan of a product, made if this is its first call. */
static plan *plan_of(cublaslt *lt, const lt_product &product, const lt_operands &operands, void *workspace,
                     cudaStream_t stream) {
    for (plan &known : lt->plans)
        if (same_product(known.product, product)) return &known;
    plan made = make_plan(lt, product);
    choose_algorithm(lt, &made, operands, workspace, stream);
    lt->plans.push_back(made);
    return &lt->plans.back();
}

bool lt_run(struct cublaslt *lt, const lt_product &product, const lt_operands &operands, void *workspace,
            cudaStream_t stream) {
    const plan *p = plan_of(lt, product, operands, workspace, stream);
    if (!p->possible) return false;
    lt_check(multiply(lt, *p, p->algorithm, operands, workspace, stream));
    return true;
}

bool lt_fuses(struct cublaslt *lt, const lt_product &fused, const lt_operands &fused_operands,
              const lt_product &plain, const lt_operands &plain_operands, const std::function<void()> &pass,
              bool otherwise, void *workspace, cudaStream_t stream) {
    plan *f = plan_of(lt, fused, fused_operands, workspace, stream);
    if (!f->possible) return false;
    if (f->way != plan::UNDECIDED) return f->way == plan::FUSED;
    if (!tunes(lt, fused)) return otherwise;
    std::string key = key_of(lt, fused) + ",fuse";
    const choice *known = find_choice(lt, key);
    bool fuses;
    if (known && known->value.size() == 1) {
        fuses = known->value[0] != 0;
    } else {
        if (is_capturing(stream)) return otherwise;
        const plan *p = plan_of(lt, plain, plain_operands, workspace, stream);
        double in_pass = fastest_run(stream, RUNS, 0.0, [&] { return pass(), true; });
        double separate = p->seconds + in_pass;
        if (std::isnan(f->seconds) || std::isnan(separate)) return otherwise;
        fuses = f->seconds <= separate;
        choice c = {key, {(unsigned char)fuses}, fuses ? f->seconds : separate};
        fuses = keep_choice(lt, c).value[0] != 0;
    }
    f->way = fuses ? plan::FUSED : plan::SEPARATE;
    return fuses;
}

struct cublaslt *lt_open(const char *device_name, bool tf32, const char *tune_file, double tune_flops) {
    cublaslt *lt = new cublaslt();
    lt_check(cublasLtCreate(&lt->handle));
    lt->tf32 = tf32;
    lt->machine = device_name;
    for (char &c : lt->machine)
        if (c == ' ' || c == '|') c = '_';
    lt->machine += "|" + std::to_string(cublasLtGetVersion());
    if (tune_file) {
        lt->tune_file = tune_file;
        lt->tune_flops = tune_flops;
        if (FILE *f = fopen(tune_file, "r")) {
            read_choices(lt, f);
            fclose(f);
        }
    }
    return lt;
}

void lt_close(struct cublaslt *lt) {
    for (const plan &p : lt->plans) {
        lt_check(cublasLtMatmulDescDestroy(p.desc));
        for (cublasLtMatrixLayout_t l : {p.a, p.b, p.d}) lt_check(cublasLtMatrixLayoutDestroy(l));
    }
    lt_check(cublasLtDestroy(lt->handle));
    delete lt;
}

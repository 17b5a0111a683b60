/* A block of a matrix product. With AVX2 and AVX-512 it is computed by the method of Goto and van de Geijn
 * (2008, "Anatomy of high-performance matrix multiplication"), elsewhere by BLAS.
 *
 * The product is a sum over K, of which DEPTH terms are added at a time. The rows of b that they need are
 * first copied into panels of WIDTH columns, which the inner loop reads from one end to the other. A
 * transposed a is copied into panels of ROWS in the same way; another one is read where it is, as its rows
 * are contiguous. An element is the sum of its terms in the order of K, DEPTH at a time, wherever it is: its
 * bits depend neither on the other rows and columns nor on the cut. */
#include "llmc/cpu/product.h"

#include "llmc/cpu/tile.h"

#include <cblas.h>
#include <omp.h>
#include <string.h>

enum { STRIP = 512 /* most columns of a block */ };

/* Halves the longer side of the blocks until there are enough for the threads of a desktop, and until one
 * fits a core's cache. Blocks below 64 rows or columns would be slow. */
struct product product_cut(struct product p) {
    enum { FEWEST = 4, MOST_ELEMENTS = 1 << 17, SHORTEST = 64 };
    p.rows = p.M, p.cols = p.N;
    while (ceil_div(p.M, p.rows) * ceil_div(p.N, p.cols) < FEWEST || p.rows * p.cols > MOST_ELEMENTS) {
        int64_t *longer = p.rows > p.cols ? &p.rows : &p.cols;
        if (*longer <= SHORTEST) break;
        *longer = max_i64(SHORTEST, round_up(ceil_div(*longer, 2), 16));
    }
    p.cols = min_i64(p.cols, STRIP);
    return p;
}

struct block product_block(const struct product *p, int64_t index) {
    int64_t down = ceil_div(p->M, p->rows), row = index % down * p->rows, col = index / down * p->cols;
    return (struct block){row, col, min_i64(p->rows, p->M - row), min_i64(p->cols, p->N - col)};
}

#if defined(__AVX__)

/* Of the tile that stays in registers; 12 or 24 accumulators. ROW_STRIP is a multiple of ROWS. */
enum { ROWS = LANES == 16 ? 12 : 6, COLS = 2, WIDTH = COLS * LANES, DEPTH = 256, ROW_STRIP = 144 };
enum { SCRATCH = DEPTH * (ROW_STRIP + STRIP) /* floats of a thread */ };
enum { IN_CACHE = 1 << 19 /* floats of a matrix that a core's cache may hold */ };

int64_t product_scratch_bytes(void) {
    return omp_get_max_threads() * (int64_t)SCRATCH * (int64_t)sizeof(float);
}

/* Copies a matrix (k,count) into panels (k,width), one after another; the last one is filled with zeros.
 * Element (l,j) is at l*ld + j, or at j*ld + l if the matrix is stored transposed; whole panels of it have a
 * width that 4 divides. */
__attribute__((always_inline)) static inline void pack(int width, float *to, const float *from, int64_t ld,
                                                       bool transposed, int64_t count, int64_t k) {
    int64_t whole = count - count % width, fours = k - k % 4;
    if (!transposed) /* row by row, because the rows come from memory */
        for (int64_t l = 0; l < k; l++)
            for (int64_t j = 0; j < whole; j += width)
                memcpy(to + j * k + l * width, from + l * ld + j, (size_t)width * sizeof *to);
    for (int64_t j = 0; transposed && j < whole; j += width) {
        float *panel = to + j * k;
        for (int64_t l = 0; l < fours; l += 4)
            for (int i = 0; i < width; i += 4)
                transpose_4x4(panel + l * width + i, width, from + (j + i) * ld + l, ld, 1.0f);
        for (int64_t l = fours; l < k; l++)
            for (int i = 0; i < width; i++) panel[l * width + i] = from[(j + i) * ld + l];
    }
    for (int64_t l = 0; whole < count && l < k; l++)
        for (int i = 0; i < width; i++) {
            int64_t j = whole + i;
            to[whole * k + l * width + i] = j >= count   ? 0.0f
                                            : transposed ? from[j * ld + l]
                                                         : from[l * ld + j];
        }
}

/* Rows of a come nearer, which the next tile is the first to read. */
static inline void fetch_rows(const float *a, int64_t lda, int64_t rows, int64_t k) {
    for (int64_t i = 0; i < min_i64(ROWS, rows); i++)
        for (int64_t l = 0; l < k; l += 16) __builtin_prefetch(a + i * lda + l);
}

/* With `far`, the tile of the result comes nearer while its sums are computed. */
static inline void fetch_tile(const float *out, int64_t ldo, bool far) {
    for (int y = 0; far && y < ROWS; y++)
        for (int x = 0; x < WIDTH; x += 16) __builtin_prefetch(out + y * ldo + x, 1);
}

/* One function for rows of a where they are, and one for panels: with constant strides each. Inlined, they
 * are 4 % slower, as the loops around them take registers. */
__attribute__((noinline)) static void tile_of_rows(float *out, int64_t ldo, const float *a, int64_t lda,
                                                   const float *b, int64_t k, bool add, bool far) {
    fetch_tile(out, ldo, far);
    multiply_tile(ROWS, COLS, out, ldo, (struct matrix){a, lda, 1}, b, WIDTH, k, add);
}
__attribute__((noinline)) static void tile_of_panel(float *out, int64_t ldo, const float *a, const float *b,
                                                    int64_t k, bool add, bool far) {
    fetch_tile(out, ldo, far);
    multiply_tile(ROWS, COLS, out, ldo, (struct matrix){a, 1, ROWS}, b, WIDTH, k, add);
}

/* c (rows,cols) = or += the product of a strip of a with panels b. `a` is the first element of the strip, and
 * A has room for its panels. */
static void multiply_strip(const struct product *p, float *c, const float *a, float *A, const float *b,
                           int64_t rows, int64_t cols, int64_t k, bool add) {
    int64_t lda = p->a_transposed ? p->M : p->K, in_place = p->a_transposed ? 0 : rows - rows % ROWS;
    bool far = p->M * p->N > IN_CACHE, a_far = p->M * p->K > IN_CACHE;
    pack(ROWS, A + in_place * k, a + in_place * lda, lda, !p->a_transposed, rows - in_place, k);
    for (int64_t j = 0; j < cols; j += WIDTH)
        for (int64_t i = 0; i < rows; i += ROWS) {
            float edge[ROWS * WIDTH], *to = c + i * p->N + j;
            bool whole = i + ROWS <= rows && j + WIDTH <= cols;
            float *out = whole ? to : edge;
            int64_t ldo = whole ? p->N : WIDTH;
            int64_t next = i + ROWS;
            if (a_far && j == 0 && next < in_place) fetch_rows(a + next * lda, lda, in_place - next, k);
            if (i < in_place)
                tile_of_rows(out, ldo, a + i * lda, lda, b + j * k, k, whole && add, far);
            else
                tile_of_panel(out, ldo, A + i * k, b + j * k, k, whole && add, far);
            for (int64_t y = 0; !whole && y < min_i64(ROWS, rows - i); y++)
                for (int64_t x = 0; x < min_i64(WIDTH, cols - j); x++)
                    to[y * p->N + x] = edge[y * WIDTH + x] + (add ? to[y * p->N + x] : 0.0f);
        }
}

void product_multiply_block(const struct product *p, struct block k, void *scratch) {
    float *A = (float *)scratch + omp_get_thread_num() * (int64_t)SCRATCH, *B = A + DEPTH * ROW_STRIP;
    for (int64_t l = 0; l < p->K; l += DEPTH) {
        int64_t depth = min_i64(DEPTH, p->K - l);
        const float *b = p->b + (p->b_transposed ? k.col * p->K + l : l * p->N + k.col);
        pack(WIDTH, B, b, p->b_transposed ? p->K : p->N, p->b_transposed, k.cols, depth);
        for (int64_t row = k.row; row < k.row + k.rows; row += ROW_STRIP)
            multiply_strip(p, p->c + row * p->N + k.col,
                           p->a + (p->a_transposed ? l * p->M + row : row * p->K + l), A, B,
                           min_i64(ROW_STRIP, k.row + k.rows - row), k.cols, depth, p->add || l > 0);
    }
}

#else

int64_t product_scratch_bytes(void) { return 0; }

void product_multiply_block(const struct product *p, struct block k, void *scratch) {
    int64_t lda = p->a_transposed ? p->M : p->K, ldb = p->b_transposed ? p->K : p->N;
    cblas_sgemm(CblasRowMajor, p->a_transposed ? CblasTrans : CblasNoTrans,
                p->b_transposed ? CblasTrans : CblasNoTrans, (int)k.rows, (int)k.cols, (int)p->K, 1.0f,
                p->a + k.row * (p->a_transposed ? 1 : lda), (int)lda,
                p->b + k.col * (p->b_transposed ? ldb : 1), (int)ldb, p->add ? 1.0f : 0.0f,
                p->c + k.row * p->N + k.col, (int)p->N);
}

#endif

/* What stands between the matrix products of a training step, one pass over memory each: bias + GELU,
 * and dropout + residual. Masks are drawn again in backward instead of being kept. */

#include "simd.h"

#define ROWS 64 /* an item of work; what it adds to the bias' gradient is kept apart */

typedef enum { GELU, GELU_BACKWARD, DROPOUT } Kind;

typedef struct {
    const float *x, *bias, *residual, *dy; /* NULL where there is none */
    float *y;
    uint64_t seed;
    int dropped; /* of 65536 */
    long rows;
    int width;
} Fused;

/* V or fewer neighbours of a row, `at` floats from the first of all and `e` from the row's. */
INLINE vec values(const Fused *f, Kind kind, long at, int e, int lanes) {
    const vec x = load(f->x + at, lanes);
    if (kind == DROPOUT) {
        const vec y = x * dropout_vec(at, f->seed, f->dropped);
        return f->residual ? y + load(f->residual + at, lanes) : y;
    }
    const vec biased = x + load(f->bias + e, lanes);
    return kind == GELU ? gelu(biased) : load(f->dy + at, lanes) * gelu_slope(biased);
}

/* An item's rows of y; their sum is added to `sum`, if that is wanted. */
INLINE void some_rows(const Fused *f, Kind kind, long item, float *sum) {
    const long end = (item + 1) * ROWS < f->rows ? (item + 1) * ROWS : f->rows;
    for (long row = item * ROWS; row < end; row++)
        for (int e = 0; e < f->width; e += V) {
            const long at = row * f->width + e;
            if (e + V <= f->width) {
                const vec y = values(f, kind, at, e, V);
                store(f->y + at, y, V);
                if (sum) store(sum + e, load(sum + e, V) + y, V);
            } else {
                const int lanes = f->width - e;
                const vec y = values(f, kind, at, e, lanes);
                store(f->y + at, y, lanes);
                if (sum) store(sum + e, load(sum + e, lanes) + y, lanes);
            }
        }
}

/* All rows of y, and in `sum`, if it is not NULL, their sum. Returns 0, or -1 if memory runs out. */
static int all_rows(const Fused *f, Kind kind, float *sum, int threads) {
    const long items = ceil_div(f->rows, ROWS);
    float *parts = sum ? calloc(items * f->width + 1, sizeof(float)) : NULL;
    if (sum && !parts) return -1;
    if (f->rows * f->width < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long item = 0; item < items; item++) {
        float *part = sum ? parts + item * f->width : NULL;
        switch (kind) { /* so that each becomes a loop of its own */
        case GELU: some_rows(f, GELU, item, NULL); break;
        case GELU_BACKWARD: some_rows(f, GELU_BACKWARD, item, part); break;
        case DROPOUT: some_rows(f, DROPOUT, item, NULL); break;
        }
    }
    if (!sum) return 0;
    memset(sum, 0, f->width * sizeof(float));
    for (long item = 0; item < items; item++)
        for (int e = 0; e < f->width; e++) sum[e] += parts[item * f->width + e];
    free(parts);
    return 0;
}

/* y = gelu(x + bias); x, y [rows][width]. */
int bias_gelu(const float *x, const float *bias, float *y, long rows, int width, int threads) {
    const Fused f = {x, bias, NULL, NULL, y, 0, 0, rows, width};
    return all_rows(&f, GELU, NULL, threads);
}

/* Returns 0, or -1 if memory runs out. */
int bias_gelu_backward(const float *dy, const float *x, const float *bias, float *dx, float *dbias,
                       long rows, int width, int threads) {
    const Fused f = {x, bias, NULL, dy, dx, 0, 0, rows, width};
    return all_rows(&f, GELU_BACKWARD, dbias, threads);
}

/* y = residual + dropout(x); without residual, and of dy, what backward needs. */
int dropout_add(const float *x, const float *residual, float *y, uint64_t seed, int dropped,
                long rows, int width, int threads) {
    const Fused f = {x, NULL, residual, NULL, y, seed, dropped, rows, width};
    return all_rows(&f, DROPOUT, NULL, threads);
}

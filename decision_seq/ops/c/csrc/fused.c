/* What stands between the matrix products of a training step, one pass over memory each: LayerNorm,
 * bias + GELU or softplus, and dropout + residual. Masks and statistics are computed again in
 * backward instead of being kept. With `mixed`, what goes into or comes out of a matrix product is
 * bfloat16, everything else float32. */

#include "norm.h"

#define ROWS 64 /* an item of work; what it adds to a parameter's gradient is kept apart */

typedef enum { GELU, GELU_BACKWARD, SOFTPLUS, SOFTPLUS_BACKWARD, DROPOUT, DROPOUT_BACKWARD } Kind;

typedef struct {
    const void *x, *other; /* other: dy, or dropout's residual (may be NULL) */
    const float *bias;
    void *y;
    uint64_t seed;
    int dropped; /* of 65536 */
    long rows;
    int width;
} Fused;

INLINE long item_end(long item, long rows) {
    return (item + 1) * ROWS < rows ? (item + 1) * ROWS : rows;
}

/* V or fewer neighbours of a row, `at` numbers from the first of all and `e` from the row's. */
INLINE vec values(const Fused *f, Kind kind, int mixed, long at, int e, int lanes) {
    const vec x = load_from(f->x, at, lanes, mixed && kind != DROPOUT_BACKWARD);
    const vec biased = f->bias ? x + load(f->bias + e, lanes) : x;
    switch (kind) {
    case GELU: return gelu(biased);
    case GELU_BACKWARD: return load_from(f->other, at, lanes, mixed) * gelu_slope(biased);
    case SOFTPLUS: return softplus(biased);
    case SOFTPLUS_BACKWARD: return load_from(f->other, at, lanes, 0) * sigmoid(biased);
    default: {
        const vec y = x * dropout_vec(at, f->seed, f->dropped);
        return f->other ? y + load_from(f->other, at, lanes, 0) : y;
    }
    }
}

/* An item's rows of y; their sum is added to `sum`, if that is wanted. */
INLINE void some_rows(const Fused *f, Kind kind, int mixed, long item, float *sum) {
    const int half = mixed && kind != SOFTPLUS && kind != DROPOUT;
    for (long row = item * ROWS; row < item_end(item, f->rows); row++) {
        const long at = row * f->width;
        int e = 0;
        for (; e + V <= f->width; e += V) {
            const vec y = values(f, kind, mixed, at + e, e, V);
            store_to(f->y, at + e, y, V, half);
            if (sum) store(sum + e, load(sum + e, V) + y, V);
        }
        if (e < f->width) {
            const int lanes = f->width - e;
            const vec y = values(f, kind, mixed, at + e, e, lanes);
            store_to(f->y, at + e, y, lanes, half);
            if (sum) store(sum + e, load(sum + e, lanes) + y, lanes);
        }
    }
}

/* So that each kind becomes a loop of its own. */
INLINE void some_rows_of(const Fused *f, Kind kind, int mixed, long item, float *sum) {
    switch (kind) {
    case GELU: some_rows(f, GELU, mixed, item, NULL); break;
    case GELU_BACKWARD: some_rows(f, GELU_BACKWARD, mixed, item, sum); break;
    case SOFTPLUS: some_rows(f, SOFTPLUS, mixed, item, NULL); break;
    case SOFTPLUS_BACKWARD: some_rows(f, SOFTPLUS_BACKWARD, mixed, item, sum); break;
    case DROPOUT: some_rows(f, DROPOUT, mixed, item, NULL); break;
    case DROPOUT_BACKWARD: some_rows(f, DROPOUT_BACKWARD, mixed, item, NULL); break;
    }
}

/* sum[i] = the sum over items of parts[item][i], in order. */
static void sum_items(float *sum, const float *parts, long items, int width) {
    memset(sum, 0, width * sizeof(float));
    for (long item = 0; item < items; item++)
        for (int e = 0; e < width; e++) sum[e] += parts[item * width + e];
}

/* All rows of y, and in `sum`, if it is not NULL, their sum. Returns 0, or -1 if memory runs out. */
static int all_rows(const Fused *f, Kind kind, int mixed, float *sum, int threads) {
    const long items = ceil_div(f->rows, ROWS);
    float *parts = sum ? calloc(items * f->width + 1, sizeof(float)) : NULL;
    if (sum && !parts) return -1;
    if (f->rows * f->width < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long item = 0; item < items; item++) {
        float *part = sum ? parts + item * f->width : NULL;
        if (mixed)
            some_rows_of(f, kind, 1, item, part);
        else
            some_rows_of(f, kind, 0, item, part);
    }
    if (sum) sum_items(sum, parts, items, f->width);
    free(parts);
    return 0;
}

/* y = gelu(x + bias), or softplus of it; x [rows][width], y like it, but softplus in float32. */
int bias_activation(const void *x, const float *bias, void *y, int is_softplus, int mixed,
                    long rows, int width, int threads) {
    const Fused f = {x, NULL, bias, y, 0, 0, rows, width};
    return all_rows(&f, is_softplus ? SOFTPLUS : GELU, mixed, NULL, threads);
}

/* dx like x and dbias from dy, which is like y. Returns 0, or -1 if memory runs out. */
int bias_activation_backward(const void *dy, const void *x, const float *bias, void *dx,
                             float *dbias, int is_softplus, int mixed, long rows, int width,
                             int threads) {
    const Fused f = {x, dy, bias, dx, 0, 0, rows, width};
    return all_rows(&f, is_softplus ? SOFTPLUS_BACKWARD : GELU_BACKWARD, mixed, dbias, threads);
}

/* y = residual + dropout(x), in float32; residual may be NULL. */
int dropout_add(const void *x, const void *residual, void *y, uint64_t seed, int dropped,
                int mixed, long rows, int width, int threads) {
    const Fused f = {x, residual, NULL, y, seed, dropped, rows, width};
    return all_rows(&f, DROPOUT, mixed, NULL, threads);
}

/* dx, like x, from dy in float32. */
int dropout_backward(const void *dy, void *dx, uint64_t seed, int dropped, int mixed, long rows,
                     int width, int threads) {
    const Fused f = {dy, NULL, NULL, dx, seed, dropped, rows, width};
    return all_rows(&f, DROPOUT_BACKWARD, mixed, NULL, threads);
}

/* ---------------------------------------------------------------- transposed copies */

/* y [width][rows] from x [rows][width]. */
int transpose(const float *x, float *y, long rows, int width, int threads) {
    if (rows * width < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row += V)
        for (int e = 0; e < width; e += V) {
            const float *from = x + row * width + e;
            float *to = y + e * rows + row;
            if (row + V <= rows && e + V <= width) {
                transpose_block(from, width, to, rows);
                continue;
            }
            for (long i = 0; i < V && row + i < rows; i++)
                for (int j = 0; j < V && e + j < width; j++) to[j * rows + i] = from[i * width + j];
        }
    return 0;
}

/* ---------------------------------------------------------------- LayerNorm */

/* y = weight (x - mean) / sqrt(variance + eps) + bias over the last dimension; y is half or not. */
int norm_forward(const float *x, const float *weight, const float *bias, float eps, void *y,
                 int mixed, long rows, int width, int threads) {
    if (rows * width < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++)
        if (mixed)
            norm_row(x, weight, bias, eps, y, row * width, width, 1);
        else
            norm_row(x, weight, bias, eps, y, row * width, width, 0);
    return 0;
}

typedef struct {
    const void *dy;
    const float *x, *weight;
    float *dx;
    float eps;
    long rows;
    int width;
} Norm;

/* V or fewer numbers of a row: what they add to the row's two sums and to the parameters' gradients. */
INLINE void norm_sums(const Norm *n, int mixed, Statistics s, long row, int e, int lanes,
                      vec *total, vec *product, float *dweight, float *dbias) {
    const long at = row * n->width + e;
    const vec dy = load_from(n->dy, at, lanes, mixed), grad = dy * load(n->weight + e, lanes);
    const vec normal = (load(n->x + at, lanes) - s.mean) * s.scale;
    *total += grad;
    *product += grad * normal; /* 0 beyond the last lane, as grad is */
    store(dweight + e, load(dweight + e, lanes) + dy * normal, lanes);
    store(dbias + e, load(dbias + e, lanes) + dy, lanes);
}

/* dx = scale (g - mean(g) - normal mean(g normal)), g = weight dy. */
INLINE void norm_grad(const Norm *n, int mixed, Statistics s, long row, int e, int lanes,
                      float mean, float slope) {
    const long at = row * n->width + e;
    const vec grad = load_from(n->dy, at, lanes, mixed) * load(n->weight + e, lanes);
    const vec normal = (load(n->x + at, lanes) - s.mean) * s.scale;
    store(n->dx + at, s.scale * (grad - mean - normal * slope), lanes);
}

INLINE void norm_backward_rows(const Norm *n, int mixed, long item, float *dweight, float *dbias) {
    for (long row = item * ROWS; row < item_end(item, n->rows); row++) {
        const Statistics s = statistics(n->x + row * n->width, n->width, n->eps);
        const int whole = n->width / V * V, rest = n->width - whole;
        vec total = splat(0), product = splat(0);
        for (int e = 0; e < whole; e += V)
            norm_sums(n, mixed, s, row, e, V, &total, &product, dweight, dbias);
        if (rest) norm_sums(n, mixed, s, row, whole, rest, &total, &product, dweight, dbias);
        const float mean = sum_lanes(total) / n->width, slope = sum_lanes(product) / n->width;
        for (int e = 0; e < whole; e += V) norm_grad(n, mixed, s, row, e, V, mean, slope);
        if (rest) norm_grad(n, mixed, s, row, whole, rest, mean, slope);
    }
}

/* dx, dweight and dbias from dy, which is like y. Returns 0, or -1 if memory runs out. */
int norm_backward(const void *dy, const float *x, const float *weight, float eps, float *dx,
                  float *dweight, float *dbias, int mixed, long rows, int width, int threads) {
    const Norm n = {dy, x, weight, dx, eps, rows, width};
    const long items = ceil_div(rows, ROWS);
    float *parts = calloc(2 * items * width + 1, sizeof(float));
    if (!parts) return -1;
    if (rows * width < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long item = 0; item < items; item++) {
        float *dw = parts + item * width, *db = dw + items * width;
        if (mixed)
            norm_backward_rows(&n, 1, item, dw, db);
        else
            norm_backward_rows(&n, 0, item, dw, db);
    }
    sum_items(dweight, parts, items, width);
    sum_items(dbias, parts + items * width, items, width);
    free(parts);
    return 0;
}

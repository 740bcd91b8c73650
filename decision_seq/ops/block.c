/* One residual block around Mamba, continued by a few tokens: what streaming spends its time in.
 *
 *   x <- x + out_proj(scan(conv(in_proj(norm(x))))),   x <- x + mlp(norm(x))
 *
 * With one lane a block has 0.7 M multiply-adds, less than the two dozen calls that it would take
 * from Python. Weights are read as they lie in the model ([outputs][inputs]), so there is nothing to
 * pack and nothing to go stale. */

#include <math.h>

#include "simd.h"

#define TILE 4  /* rows and outputs whose sums fit the registers */
#define AHEAD 2 /* tiles: all layers' weights do not fit the second-level cache */

enum { NORM1, NORM1_BIAS, IN, CONV, CONV_BIAS, SELECT, DT, DT_BIAS, A_LOG, SKIP, OUT, NORM2, NORM2_BIAS,
       UP, UP_BIAS, DOWN, DOWN_BIAS };

typedef struct {
    const float *const *weights;
    float eps;
    int length, read, width, channels, states, taps, rank, hidden;
} Block;

int conv_forward(const void *x, long x_row, const float *weight, const float *bias,
                 const float *history, void *y, float *new_history, int half, int batch, int length,
                 int width, int taps, int threads);
int scan_step(const float *u, long u_row, const float *dt, long dt_row, const float *A,
              const float *B, long B_row, const float *C, long C_row, const float *D,
              const float *z, long z_row, const float *state, float *new_state, float *y,
              int batch, int length, int width, int states, int threads);

/* `rows` x `outputs` of y = x W^T + bias. */
INLINE void linear_tile(const float *x, long x_row, const float *W, const float *bias, float *y,
                        long y_row, int inputs, int rows, int outputs) {
    vec sum[TILE][TILE] = {{{0}}};
    int i = 0;
    for (; i + V <= inputs; i += V)
        for (int o = 0; o < outputs; o++) {
            __builtin_prefetch(W + (long)(o + AHEAD * TILE) * inputs + i);
            const vec w = load(W + (long)o * inputs + i, V);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sum[r][o] += w * load(x + r * x_row + i, V);
        }
    if (i < inputs)
        for (int o = 0; o < outputs; o++) {
            const vec w = load(W + (long)o * inputs + i, inputs - i);
            for (int r = 0; r < rows; r++) sum[r][o] += w * load(x + r * x_row + i, inputs - i);
        }
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o++)
            y[r * y_row + o] = sum_lanes(sum[r][o]) + (bias ? bias[o] : 0);
}

/* y = x W^T + bias for `rows` rows; W [outputs][inputs]; bias may be NULL. */
static void linear(const float *x, long x_row, int rows, const float *W, const float *bias,
                   float *y, long y_row, int inputs, int outputs) {
    for (int o = 0; o < outputs; o += TILE, W += (long)TILE * inputs) {
        const int some = min_int(TILE, outputs - o);
        const float *b = bias ? bias + o : NULL;
        for (int r = 0; r < rows; r += TILE) {
            const float *from = x + r * x_row;
            float *to = y + r * y_row + o;
            const int left = min_int(TILE, rows - r);
            if (some == TILE && left == 4)
                linear_tile(from, x_row, W, b, to, y_row, inputs, 4, TILE);
            else if (some == TILE && left == 3)
                linear_tile(from, x_row, W, b, to, y_row, inputs, 3, TILE);
            else if (some == TILE && left == 1)
                linear_tile(from, x_row, W, b, to, y_row, inputs, 1, TILE);
            else
                linear_tile(from, x_row, W, b, to, y_row, inputs, left, some);
        }
    }
}

/* y = weight (x - mean) / sqrt(variance + eps) + bias, of one row. */
static void normalise(const float *x, const float *weight, const float *bias, float *y, int width,
                      float eps) {
    float mean = 0, variance = 0;
    for (int e = 0; e < width; e++) mean += x[e];
    mean /= width;
    for (int e = 0; e < width; e++) variance += (x[e] - mean) * (x[e] - mean);
    const float scale = 1.f / sqrtf(variance / width + eps);
    for (int e = 0; e < width; e++) y[e] = (x[e] - mean) * scale * weight[e] + bias[e];
}

void softplus_values(float *values, long size) {
    for (long i = 0; i < size; i += V) {
        const int lanes = size - i < V ? size - i : V;
        store(values + i, softplus(load(values + i, lanes)), lanes);
    }
}

void gelu_values(float *values, long size) {
    for (long i = 0; i < size; i += V) {
        const int lanes = size - i < V ? size - i : V;
        store(values + i, gelu(load(values + i, lanes)), lanes);
    }
}

/* In floats, for `batch` lanes. */
static long scratch_size(const Block *k, int batch) {
    const long rows = (long)batch * k->length;
    const long wide = k->hidden > 2 * k->channels ? k->hidden : 2 * k->channels;
    return rows * (k->width + wide + 3 * k->channels + k->rank + 2 * k->states);
}

/* A few lanes, on one thread. y holds the last `read` tokens of each. */
static int block_lanes(const Block *k, const float *x, const float *A, const float *conv,
                       const float *h, float *new_conv, float *new_h, float *y, float *scratch,
                       int batch) {
    const float *const *w = k->weights;
    const int D = k->width, E = k->channels, N = k->states, chosen = k->rank + 2 * N;
    const int rows = batch * k->length, read = batch * k->read;
    const long wide = k->hidden > 2 * E ? k->hidden : 2 * E;
    float *norm = scratch, *uz = norm + (long)rows * D, *u = uz + rows * wide;
    float *dt = u + (long)rows * E, *scan = dt + (long)rows * E, *select = scan + (long)rows * E;

    for (int r = 0; r < rows; r++)
        normalise(x + (long)r * D, w[NORM1], w[NORM1_BIAS], norm + (long)r * D, D, k->eps);
    linear(norm, D, rows, w[IN], NULL, uz, 2 * E, D, 2 * E);
    if (conv_forward(uz, 2 * E, w[CONV], w[CONV_BIAS], conv, u, new_conv, 0, batch, k->length,
                     E, k->taps, 1))
        return -1;
    linear(u, E, rows, w[SELECT], NULL, select, chosen, E, chosen);
    linear(select, chosen, rows, w[DT], w[DT_BIAS], dt, E, k->rank, E);
    softplus_values(dt, (long)rows * E);
    scan_step(u, E, dt, E, A, select + k->rank, chosen, select + k->rank + N, chosen, w[SKIP],
              uz + E, 2 * E, h, new_h, scan, batch, k->length, E, N, 1);

    float *mixed = norm; /* only the tokens to be read, from here on */
    for (int b = 0; b < batch; b++) {
        const long first = (long)b * k->length + k->length - k->read;
        linear(scan + first * E, E, k->read, w[OUT], NULL, y + (long)b * k->read * D, D, E, D);
        for (long i = 0; i < (long)k->read * D; i++)
            y[(long)b * k->read * D + i] += x[first * D + i];
    }
    for (int r = 0; r < read; r++)
        normalise(y + (long)r * D, w[NORM2], w[NORM2_BIAS], mixed + (long)r * D, D, k->eps);
    float *up = uz, *down = u;
    linear(mixed, D, read, w[UP], w[UP_BIAS], up, k->hidden, D, k->hidden);
    gelu_values(up, (long)read * k->hidden);
    linear(up, k->hidden, read, w[DOWN], w[DOWN_BIAS], down, D, k->hidden, D);
    for (long i = 0; i < (long)read * D; i++) y[i] += down[i];
    return 0;
}

/* x [batch][length][D] -> y [batch][read][D], the last `read` tokens; conv [batch][taps - 1][E] and
 * h [batch][E][N] before and after them. `weights` in the order of the names above. Lanes are cut
 * into `threads` parts. Returns 0, or -1 if memory runs out. */
int block_step(const float *x, const float *const *weights, float eps, const float *conv,
               const float *h, float *new_conv, float *new_h, float *y, int batch, int length,
               int read, int width, int channels, int states, int taps, int rank, int hidden,
               int threads) {
    const Block k = {weights, eps, length, read, width, channels, states, taps, rank, hidden};
    const long decay = ceil_div((long)channels * states, V) * V;
    const int parts = min_int(threads, batch), most = ceil_div(batch, parts);
    const long each = ceil_div(scratch_size(&k, most), V) * V;
    float *memory = aligned_alloc(64, (decay + parts * each) * sizeof(float)), *A = memory;
    int failed = 0;
    if (!memory) return -1;
    for (long i = 0; i < (long)channels * states; i += V) {
        const int lanes = min_int(V, (long)channels * states - i);
        store(A + i, -exp2_vec(LOG2E * load(weights[A_LOG] + i, lanes)), lanes);
    }
#pragma omp parallel for schedule(static) num_threads(parts) reduction(| : failed)
    for (int part = 0; part < parts; part++) {
        const long b = (long)part * most;
        const int count = min_int(most, batch - b);
        if (count > 0)
            failed |= block_lanes(&k, x + b * length * width, A, conv + b * (taps - 1) * channels,
                                  h + b * channels * states, new_conv + b * (taps - 1) * channels,
                                  new_h + b * channels * states, y + b * read * width,
                                  memory + decay + part * each, count);
    }
    free(memory);
    return failed;
}

/* Matrix products and LayerNorm of a few rows, which streaming consists of. Declared in dense.h. */

#include "dense.h"
#include "norm.h"

#define ROWS 3    /* of a tile of x W^T: its 24 sums, 3 inputs and a weight fit 32 registers */
#define OUTPUTS 8

INLINE void add_products(vec sum[ROWS][OUTPUTS], const float *x, long x_row, const float *W,
                         int inputs, int rows, int outputs, int lanes) {
    vec from[ROWS];
    for (int r = 0; r < rows; r++) from[r] = load(x + r * x_row, lanes);
#pragma GCC unroll 8
    for (int o = 0; o < outputs; o++) {
        const vec w = load(W + (long)o * inputs, lanes);
        for (int r = 0; r < rows; r++) sum[r][o] += w * from[r];
    }
}

/* `rows` x `outputs` of y = x W^T + bias. */
INLINE void linear_tile(const float *x, long x_row, const float *W, const float *bias, float *y,
                        long y_row, int inputs, int rows, int outputs) {
    vec sum[ROWS][OUTPUTS] = {{{0}}};
    int i = 0;
    for (; i + V <= inputs; i += V)
        add_products(sum, x + i, x_row, W + i, inputs, rows, outputs, V);
    if (i < inputs) add_products(sum, x + i, x_row, W + i, inputs, rows, outputs, inputs - i);
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < outputs; o += 4) {
            vec4 sums = sum_lanes_of_4(sum[r] + o);
            for (int j = 0; j < 4 && o + j < outputs; j++)
                y[r * y_row + o + j] = sums[j] + (bias ? bias[o + j] : 0);
        }
}

void linear_rows(const float *x, long x_row, int rows, const float *W, const float *bias, float *y,
                 long y_row, int inputs, int outputs) {
    for (int o = 0; o < outputs; o += OUTPUTS, W += (long)OUTPUTS * inputs) {
        const int some = min_int(OUTPUTS, outputs - o);
        const float *b = bias ? bias + o : NULL;
        for (int r = 0; r < rows; r += ROWS) {
            const float *from = x + r * x_row;
            float *to = y + r * y_row + o;
            const int left = min_int(ROWS, rows - r);
            if (some == OUTPUTS && left == 3)
                linear_tile(from, x_row, W, b, to, y_row, inputs, 3, OUTPUTS);
            else if (some == OUTPUTS && left == 2)
                linear_tile(from, x_row, W, b, to, y_row, inputs, 2, OUTPUTS);
            else if (some == OUTPUTS)
                linear_tile(from, x_row, W, b, to, y_row, inputs, 1, OUTPUTS);
            else
                linear_tile(from, x_row, W, b, to, y_row, inputs, left, some);
        }
    }
}

void normalise_rows(const float *x, const float *const *weights, float *y, int rows, int width,
                    float eps) {
    for (long r = 0; r < rows; r++)
        norm_row(x, weights[0], weights[1], eps, y, r * width, width, 0);
}

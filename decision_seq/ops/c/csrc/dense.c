/* Matrix products and LayerNorm of a few rows, which streaming consists of. Declared in dense.h. */

#include "dense.h"
#include "norm.h"

#define ROWS 3    /* of a tile of x W^T: its 24 sums, 3 inputs and a weight fit 32 registers */
#define OUTPUTS 8
#ifdef __AVX512F__
#define COLUMN_VECTORS 3 /* as above, of vectors of V rows each */
#define COLUMN_OUTPUTS 8
#else
#define COLUMN_VECTORS 2
#define COLUMN_OUTPUTS 3
#endif

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

static void linear_few(const float *x, long x_row, int rows, const float *W, const float *bias,
                       float *y, long y_row, int inputs, int outputs) {
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

/* to[i][r] = from[r][i], with zeros for the rows from `rows` to `wide`, a multiple of V. */
static void transpose_rows(const float *from, long from_row, int rows, int inputs, float *to,
                           int wide) {
    for (int r = 0; r < wide; r += V)
        for (int i = 0; i < inputs; i += V) {
            const int some = min_int(V, rows - r), these = min_int(V, inputs - i);
            if (some == V && these == V) {
                transpose_block(from + r * from_row + i, from_row, to + (long)i * wide + r, wide);
                continue;
            }
            for (int j = 0; j < these; j++)
                for (int l = 0; l < V; l++)
                    to[(long)(i + j) * wide + r + l] = l < some ? from[(r + l) * from_row + i + j] : 0;
        }
}

/* y[r][o] = sums[o][r] */
static void put_back(const float *sums, int wide, int rows, int outputs, float *y, long y_row) {
    for (int o = 0; o < outputs; o += V)
        for (int r = 0; r < rows; r += V) {
            const int some = min_int(V, rows - r), these = min_int(V, outputs - o);
            if (some == V && these == V) {
                transpose_block(sums + (long)o * wide + r, wide, y + r * y_row + o, y_row);
                continue;
            }
            for (int l = 0; l < some; l++)
                for (int j = 0; j < these; j++)
                    y[(r + l) * y_row + o + j] = sums[(long)(o + j) * wide + r + l];
        }
}

/* `some` rows of y^T [outputs][wide] from x^T [inputs][wide], `vectors` of V wide: here a vector holds
 * a column's numbers, so that there is nothing to sum within vectors. */
INLINE void column_tile(const float *x, const float *W, const float *bias, float *y, int inputs,
                        int vectors, int some) {
    const int wide = vectors * V;
    vec sum[COLUMN_OUTPUTS][COLUMN_VECTORS];
#pragma GCC unroll 8
    for (int o = 0; o < some; o++)
        for (int v = 0; v < vectors; v++) sum[o][v] = splat(bias ? bias[o] : 0);
    for (int i = 0; i < inputs; i++, x += wide) {
        vec from[COLUMN_VECTORS];
        for (int v = 0; v < vectors; v++) from[v] = load(x + v * V, V);
#pragma GCC unroll 8
        for (int o = 0; o < some; o++) {
            const float w = W[(long)o * inputs + i];
            for (int v = 0; v < vectors; v++) sum[o][v] += w * from[v];
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < some; o++)
        for (int v = 0; v < vectors; v++) store(y + o * wide + v * V, sum[o][v], V);
}

INLINE void linear_columns(const float *x, const float *W, const float *bias, float *y, int inputs,
                           int outputs, int vectors) {
    const int wide = vectors * V;
    int o = 0;
    for (; o + COLUMN_OUTPUTS <= outputs; o += COLUMN_OUTPUTS)
        column_tile(x, W + (long)o * inputs, bias ? bias + o : NULL, y + (long)o * wide, inputs,
                    vectors, COLUMN_OUTPUTS);
    for (; o < outputs; o++)
        column_tile(x, W + (long)o * inputs, bias ? bias + o : NULL, y + (long)o * wide, inputs,
                    vectors, 1);
}

long columns_size(int inputs, int outputs) {
    return (long)(inputs + outputs) * COLUMN_VECTORS * V;
}

void linear_rows(const float *x, long x_row, int rows, const float *W, const float *bias, float *y,
                 long y_row, int inputs, int outputs, float *columns) {
    if (!columns) {
        linear_few(x, x_row, rows, W, bias, y, y_row, inputs, outputs);
        return;
    }
    for (int done = 0, now; done < rows; done += now) {
        const int vectors = min_int(COLUMN_VECTORS, ceil_div(rows - done, V)), wide = vectors * V;
        float *sums = columns + (long)inputs * wide;
        now = min_int(wide, rows - done);
        transpose_rows(x + done * x_row, x_row, now, inputs, columns, wide);
        if (vectors == 1)
            linear_columns(columns, W, bias, sums, inputs, outputs, 1);
        else if (vectors == 2)
            linear_columns(columns, W, bias, sums, inputs, outputs, 2);
        else
            linear_columns(columns, W, bias, sums, inputs, outputs, COLUMN_VECTORS);
        put_back(sums, wide, now, outputs, y + done * y_row, y_row);
    }
}

void normalise_rows(const float *x, const float *const *weights, float *y, int rows, int width,
                    float eps) {
    for (long r = 0; r < rows; r++)
        norm_row(x, weights[0], weights[1], eps, y, r * width, width, 0);
}

#include "dense.h"

#define ROWS 6 /* sums, weights and one input fit the registers, 32 with AVX-512 and else 16 */
#define VECTORS (V / 4)

/* `rows` x VECTORS of the outputs: weights of a tile are read in order, once for all rows. */
INLINE void tile(const float *weight, const float *bias, const float *x, long x_row, int inputs,
                 float *y, long y_row, int rows) {
    vec sum[ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = load(bias + v * V, V);
    for (int i = 0; i < inputs; i++, weight += TILE) {
        vec w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = load(weight + v * V, V);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECTORS; v++) sum[r][v] += x[r * x_row + i] * w[v];
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) store(y + r * y_row + v * V, sum[r][v], V);
}

void linear(const Linear *map, const float *x, long x_row, int rows, float *y, long y_row) {
    for (int o = 0; o < map->outputs; o += VECTORS * V) {
        const float *weight = map->weight + (long)(o / TILE) * TILE * map->inputs + o % TILE;
        int r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            tile(weight, map->bias + o, x + r * x_row, x_row, map->inputs, y + r * y_row + o, y_row,
                 ROWS);
#define REST(n)                                                                                    \
    case n:                                                                                        \
        tile(weight, map->bias + o, x + r * x_row, x_row, map->inputs, y + r * y_row + o, y_row, n); \
        break
        switch (rows - r) {
            REST(1);
            REST(2);
            REST(3);
            REST(4);
            REST(5);
        }
    }
}

void layer_norm(const float *norm, const float *x, int rows, int width, float eps, float *y) {
    const long row = padded(width);
    for (int r = 0; r < rows; r++, x += row, y += row) {
        vec total = splat(0), square = splat(0);
        int e = 0;
        for (; e < width; e += V) total += load(x + e, V);
        const float mean = sum_elements(total) / width;
        for (e = 0; e + V <= width; e += V) {
            const vec off = load(x + e, V) - mean;
            square += off * off;
        }
        float variance = sum_elements(square);
        for (; e < width; e++) variance += (x[e] - mean) * (x[e] - mean);
        variance /= width;
        const float scale = 1 / sqrtf(variance + eps) + 0 * variance; /* NaN if it overflowed */
        for (e = 0; e < row; e += V)
            store(y + e, (load(x + e, V) - mean) * scale * load(norm + e, V) + load(norm + row + e, V), V);
    }
}

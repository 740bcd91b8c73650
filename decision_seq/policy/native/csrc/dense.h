/* Linear maps and LayerNorm of a few rows, which acting consists of.
 *
 * Rows are `padded` numbers long and zero beyond their width, so that nothing here has ragged ends.
 * A row's result does not depend on the rows beside it, to the last bit. */

#ifndef DECISION_SEQ_DENSE_H
#define DECISION_SEQ_DENSE_H

#include <math.h>

#include "simd.h"

#define TILE 64 /* outputs of a packed matrix that lie together: TILE in pack.py */

typedef struct {
    const float *weight; /* [padded(outputs) / TILE][inputs][TILE] */
    const float *bias;   /* [padded(outputs)] */
    int inputs, outputs;
} Linear;

INLINE long padded(long width) { return ceil_div(width, TILE) * TILE; }

/* y [rows][padded(outputs)] = x W^T + bias; rows of x and y are x_row and y_row numbers apart. */
void linear(const Linear *map, const float *x, long x_row, int rows, float *y, long y_row);

/* y = weight (x - mean) / sqrt(variance + eps) + bias of each of `rows`; weight and bias are padded
 * with zeros, `norm` holds one after the other. y may be x. */
void layer_norm(const float *norm, const float *x, int rows, int width, float eps, float *y);

#endif

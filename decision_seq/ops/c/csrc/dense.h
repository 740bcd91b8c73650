#ifndef DECISION_SEQ_DENSE_H
#define DECISION_SEQ_DENSE_H

#include "simd.h"

#define FEW 12 /* rows below which they are not worth turning into columns */

/* Floats that turning rows into columns takes. */
long columns_size(int inputs, int outputs);

/* y = x W^T + bias for `rows` rows; W [outputs][inputs]; bias may be NULL. `columns`: memory to turn
 * rows into columns, or NULL to leave them. The two differ in the order of their sums: rows that are
 * cut into parts must all be done in one way. */
void linear_rows(const float *x, long x_row, int rows, const float *W, const float *bias, float *y,
                 long y_row, int inputs, int outputs, float *columns);

/* y = weight (x - mean) / sqrt(variance + eps) + bias of every row; `weights` holds both. */
void normalise_rows(const float *x, const float *const *weights, float *y, int rows, int width,
                    float eps);

#endif

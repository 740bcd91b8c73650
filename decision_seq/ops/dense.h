#ifndef DECISION_SEQ_DENSE_H
#define DECISION_SEQ_DENSE_H

#include "simd.h"

/* y = x W^T + bias for `rows` rows; W [outputs][inputs]; bias may be NULL. */
void linear_rows(const float *x, long x_row, int rows, const float *W, const float *bias, float *y,
                 long y_row, int inputs, int outputs);

/* y = weight (x - mean) / sqrt(variance + eps) + bias of every row; `weights` holds both. */
void normalise_rows(const float *x, const float *const *weights, float *y, int rows, int width,
                    float eps);

#endif

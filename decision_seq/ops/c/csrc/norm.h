/* LayerNorm of a row, for training and streaming. */

#ifndef DECISION_SEQ_NORM_H
#define DECISION_SEQ_NORM_H

#include <math.h>

#include "simd.h"

typedef struct {
    float mean, scale; /* (x - mean) * scale has mean 0 and variance 1 */
} Statistics;

INLINE Statistics statistics(const float *x, int width, float eps) {
    vec total = splat(0), square = splat(0);
    int e = 0;
    for (; e + V <= width; e += V) total += load(x + e, V);
    if (e < width) total += load(x + e, width - e);
    const float mean = sum_lanes(total) / width;
    for (e = 0; e + V <= width; e += V) {
        const vec off = load(x + e, V) - mean;
        square += off * off;
    }
    float rest = 0;
    for (; e < width; e++) rest += (x[e] - mean) * (x[e] - mean);
    const float variance = (sum_lanes(square) + rest) / width;
    return (Statistics){mean, 1.f / sqrtf(variance + eps) + 0.f * variance}; /* NaN if it overflowed */
}

/* y = weight (x - mean) / sqrt(variance + eps) + bias, of the `width` numbers from `at` on; y is half or
 * not. */
INLINE void norm_row(const float *x, const float *weight, const float *bias, float eps, void *y,
                     long at, int width, int half) {
    const Statistics s = statistics(x + at, width, eps);
    const int whole = width / V * V, rest = width - whole;
    for (int e = 0; e < whole; e += V) {
        const vec normal = (load(x + at + e, V) - s.mean) * s.scale;
        store_to(y, at + e, normal * load(weight + e, V) + load(bias + e, V), V, half);
    }
    if (rest) {
        const vec normal = (load(x + at + whole, rest) - s.mean) * s.scale;
        const vec sum = normal * load(weight + whole, rest) + load(bias + whole, rest);
        store_to(y, at + whole, sum, rest, half);
    }
}

#endif

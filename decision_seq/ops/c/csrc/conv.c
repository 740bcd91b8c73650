/* Causal depthwise convolution along time + SiLU on the CPU, forward and backward. */

#include "simd.h"

typedef struct {
    const void *x; /* `half` or not, and so are y, dy and dx */
    int half;
    long x_row;
    int batch, length, width, taps;
    float *weight; /* packed [taps + 1][padded width]; the last row is the bias */
} Conv;

INLINE long padded(const Conv *c) { return ceil_div(c->width, V) * V; }

static int pack_weight(Conv *c, const float *weight, const float *bias) {
    c->weight = aligned_alloc(64, (c->taps + 1) * padded(c) * sizeof(float));
    if (!c->weight) return -1;
    for (int e = 0; e < c->width; e++) {
        for (int tap = 0; tap < c->taps; tap++)
            c->weight[tap * padded(c) + e] = weight[(long)e * c->taps + tap];
        c->weight[c->taps * padded(c) + e] = bias[e];
    }
    return 0;
}

/* The inputs that the taps of step t meet; NULL for zeros before the start. */
INLINE void tap_rows(const Conv *c, int b, int t, const void **rows) {
    for (int tap = 0; tap < c->taps; tap++) {
        const int from = t - (c->taps - 1) + tap;
        if (from >= 0)
            rows[tap] = place(c->x, ((long)b * c->length + from) * c->x_row, c->half);
        else
            rows[tap] = NULL;
    }
}

INLINE vec convolve(const Conv *c, const void **rows, int e, int elements, int half) {
    vec sum = load(c->weight + c->taps * padded(c) + e, V);
    for (int tap = 0; tap < c->taps; tap++)
        if (rows[tap])
            sum += load_from(rows[tap], e, elements, half) * load(c->weight + tap * padded(c) + e, V);
    return sum;
}

INLINE void conv_forward_row(const Conv *c, int b, int t, void *y, int half) {
    const int whole = c->width / V * V, rest = c->width - whole;
    const long at = ((long)b * c->length + t) * c->width;
    const void *rows[c->taps];
    tap_rows(c, b, t, rows);
    for (int e = 0; e < whole; e += V) {
        const vec sum = convolve(c, rows, e, V, half);
        store_to(y, at + e, sum * sigmoid(sum), V, half);
    }
    if (rest) {
        const vec sum = convolve(c, rows, whole, rest, half);
        store_to(y, at + whole, sum * sigmoid(sum), rest, half);
    }
}

/* Returns 0, or -1 if memory runs out. */
int conv_forward(const void *x, long x_row, const float *weight, const float *bias, void *y, int half,
                 int batch, int length, int width, int taps, int threads) {
    Conv c = {x, half, x_row, batch, length, width, taps, NULL};
    if (pack_weight(&c, weight, bias)) return -1;
    if ((long)batch * length * width * taps < SMALL) threads = 1;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int b = 0; b < batch; b++)
        for (int t = 0; t < length; t++)
            if (half)
                conv_forward_row(&c, b, t, y, 1);
            else
                conv_forward_row(&c, b, t, y, 0);
    free(c.weight);
    return 0;
}

/* One row of the batch and one block of channels, forward in time. The last `taps` inputs and
 * gradients of the sum slide through x and dsum, so that dx follows taps - 1 steps behind. */
INLINE void conv_backward_block(const Conv *c, int b, int e, int taps, int elements, int half,
                                const void *dy, void *dx, float *dweight) {
    const vec bias = load(c->weight + taps * padded(c) + e, V);
    vec weight[taps], dw[taps], x[taps], dsum[taps], dbias = splat(0);
    for (int tap = 0; tap < taps; tap++) {
        weight[tap] = load(c->weight + tap * padded(c) + e, V);
        dw[tap] = x[tap] = dsum[tap] = splat(0);
    }
    for (int t = 0; t < c->length + taps - 1; t++) {
        const long row = (long)b * c->length + t;
        for (int tap = 1; tap < taps; tap++) {
            x[tap - 1] = x[tap];
            dsum[tap - 1] = dsum[tap];
        }
        x[taps - 1] = dsum[taps - 1] = splat(0);
        if (t < c->length) {
            x[taps - 1] = load_from(c->x, row * c->x_row + e, elements, half);
            vec sum = bias;
            for (int tap = 0; tap < taps; tap++) sum += x[tap] * weight[tap];
            const vec slope = silu_slope(sum, sigmoid(sum));
            const vec grad = load_from(dy, row * c->width + e, elements, half) * slope;
            for (int tap = 0; tap < taps; tap++) dw[tap] += x[tap] * grad;
            dbias += grad;
            dsum[taps - 1] = grad;
        }
        if (t >= taps - 1) {
            vec sum = splat(0);
            for (int tap = 0; tap < taps; tap++) sum += dsum[taps - 1 - tap] * weight[tap];
            store_to(dx, (row - (taps - 1)) * c->width + e, sum, elements, half);
        }
    }
    for (int tap = 0; tap < taps; tap++) store(dweight + tap * padded(c) + e, dw[tap], V);
    store(dweight + taps * padded(c) + e, dbias, V);
}

/* dy and all outputs are contiguous. Returns 0, or -1 if memory runs out. */
int conv_backward(const void *dy, const void *x, long x_row, const float *weight,
                  const float *bias, void *dx, float *dweight, float *dbias, int half, int batch,
                  int length, int width, int taps, int threads) {
    Conv c = {x, half, x_row, batch, length, width, taps, NULL};
    if (pack_weight(&c, weight, bias)) return -1;
    if ((long)batch * length * width * taps < SMALL) threads = 1;
    const long part = (taps + 1) * padded(&c);
    float *parts = aligned_alloc(64, batch * part * sizeof(float));
    if (!parts) {
        free(c.weight);
        return -1;
    }
#pragma omp parallel for collapse(2) schedule(dynamic, 4) num_threads(threads)
    for (int b = 0; b < batch; b++)
        for (int e = 0; e < width; e += V) {
            const int elements = min_int(V, width - e);
            float *own = parts + b * part;
            if (elements == V && taps == 4 && half)
                conv_backward_block(&c, b, e, 4, V, 1, dy, dx, own);
            else if (elements == V && taps == 4)
                conv_backward_block(&c, b, e, 4, V, 0, dy, dx, own);
            else
                conv_backward_block(&c, b, e, taps, elements, half, dy, dx, own);
        }
    for (int e = 0; e < width; e++)
        for (int tap = 0; tap <= taps; tap++) {
            float sum = 0;
            for (int b = 0; b < batch; b++) sum += parts[b * part + tap * padded(&c) + e];
            *(tap < taps ? dweight + (long)e * taps + tap : dbias + e) = sum;
        }
    free(parts);
    free(c.weight);
    return 0;
}

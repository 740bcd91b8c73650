/* The mixers of blocks that stream by one call; attention has a file of its own. */

#include "mixers.h"

void softplus_values(float *values, long size) {
    for (long i = 0; i < size; i += V)
        store_some(values + i, softplus(load_some(values + i, size - i)), size - i);
}

/* ---------------------------------------------------------------- Mamba
 *
 * out_proj(scan(conv(in_proj(x)))). State: the convolution's last inputs [taps - 1][E], and h [E][N]. */

int conv_forward(const void *x, long x_row, const float *weight, const float *bias,
                 const float *history, void *y, float *new_history, int half, int batch, int length,
                 int width, int taps, int threads);
int scan_step(const float *u, long u_row, const float *dt, long dt_row, const float *A,
              const float *B, long B_row, const float *C, long C_row, const float *D,
              const float *z, long z_row, const float *state, float *new_state, float *y,
              int batch, int length, int width, int states, int threads);

enum { IN, CONV, CONV_BIAS, SELECT, DT, DT_BIAS, A_LOG, SKIP, OUT };

static long mamba_scratch(const Layer *layer, int rows, int width) {
    const int64_t *size = layer->sizes;
    const long E = size[0], N = size[1], rank = size[3];
    return E * N + rows * (5 * E + rank + 2 * N);
}

static int mamba_widest(const Layer *layer, int width) {
    const int64_t *size = layer->sizes;
    return width + 2 * size[0] + size[3] + 2 * size[1]; /* more than any of them */
}

/* A = -exp(A_log) */
static void decay_rates(const float *A_log, float *A, long size) {
    for (long i = 0; i < size; i += V)
        store_some(A + i, -exp2_vec(LOG2E * load_some(A_log + i, size - i)), size - i);
}

static int mix_mamba(const Mix *m) {
    const int64_t *size = m->layer->sizes;
    const int D = m->width, E = size[0], N = size[1], taps = size[2], rank = size[3];
    const int chosen = rank + 2 * N, rows = m->lanes * m->length;
    const long tail = (long)(taps - 1) * E, states = (long)E * N;
    const float *const *w = m->weights;
    float *A = m->scratch, *uz = A + states, *u = uz + 2l * rows * E, *dt = u + (long)rows * E;
    float *scan = dt + (long)rows * E, *select = scan + (long)rows * E;

    linear_rows(m->x, D, rows, w[IN], NULL, uz, 2 * E, D, 2 * E, m->all);
    if (conv_forward(uz, 2 * E, w[CONV], w[CONV_BIAS], before(m, 0, tail), u, after(m, 0, tail), 0,
                     m->lanes, m->length, E, taps, 1))
        return NO_MEMORY;
    linear_rows(u, E, rows, w[SELECT], NULL, select, chosen, E, chosen, m->all);
    linear_rows(select, chosen, rows, w[DT], w[DT_BIAS], dt, E, rank, E, m->all);
    softplus_values(dt, (long)rows * E);
    decay_rates(w[A_LOG], A, states);
    scan_step(u, E, dt, E, A, select + rank, chosen, select + rank + N, chosen, w[SKIP], uz + E,
              2 * E, before(m, 1, states), after(m, 1, states), scan, m->lanes, m->length, E, N, 1);
    keep_last(scan, m->lanes, m->length, m->read, E);
    linear_rows(scan, E, m->lanes * m->read, w[OUT], NULL, m->y, D, E, D, m->some);
    return 0;
}

/* ---------------------------------------------------------------- convolution
 *
 * y_l = b + sum over k of w_k * x_{l - k}, with weights of l's place in its environment step. State: the
 * last inputs [taps - 1][D], and how many tokens have passed. */

static long no_scratch(const Layer *layer, int rows, int width) { return 0; }

static int no_products(const Layer *layer, int width) { return 0; }

static int mix_conv(const Mix *m) {
    const int D = m->width, kinds = m->layer->sizes[0], taps = m->layer->sizes[1];
    const long tail = (long)(taps - 1) * D;
    const int64_t *passed = (const int64_t *)m->layer->state[1] + m->first;
    int64_t *now_passed = (int64_t *)m->layer->new_state[1] + m->first;
    for (int b = 0; b < m->lanes; b++) {
        const float *x = m->x + (long)b * m->length * D, *last = before(m, 0, tail) + b * tail;
        float *new_last = after(m, 0, tail) + b * tail, *y = m->y + (long)b * m->read * D;
        for (int l = m->length - m->read; l < m->length; l++, y += D) {
            long kind = (passed[b] + l) % kinds;
            kind += kind < 0 ? kinds : 0;
            const float *w = m->weights[0] + kind * taps * D, *bias = m->weights[1] + kind * D;
            memcpy(y, bias, D * sizeof(float));
            for (int k = 0; k < taps; k++) {
                const float *from = l >= k ? x + (long)(l - k) * D : last + (long)(taps - 1 + l - k) * D;
                for (int e = 0; e < D; e++) y[e] += w[(long)k * D + e] * from[e];
            }
        }
        for (int k = 0; k < taps - 1; k++) { /* of the inputs seen, the last */
            const int l = m->length - (taps - 1) + k;
            const float *from = l >= 0 ? x + (long)l * D : last + (long)(taps - 1 + l) * D;
            memcpy(new_last + (long)k * D, from, D * sizeof(float));
        }
        now_passed[b] = passed[b] + m->length;
    }
    return 0;
}

/* ---------------------------------------------------------------- none: a linear map of each token */

static int pointwise_widest(const Layer *layer, int width) { return 2 * width; }

static int mix_pointwise(const Mix *m) {
    keep_last(m->x, m->lanes, m->length, m->read, m->width);
    linear_rows(m->x, m->width, m->lanes * m->read, m->weights[0], m->weights[1], m->y, m->width,
                m->width, m->width, m->some);
    return 0;
}

const Mixer MIXERS[] = { /* in the order of MIXERS in cpu_stream.py */
    {mix_attention, attention_scratch, attention_widest},
    {mix_conv, no_scratch, no_products},
    {mix_mamba, mamba_scratch, mamba_widest},
    {mix_pointwise, no_scratch, pointwise_widest},
};

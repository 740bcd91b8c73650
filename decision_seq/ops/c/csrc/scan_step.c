/* The scan of scan.c, continued by a few tokens from a state. One token gives no time to repack A, so
 * here vectors run over the states, which is how A and h lie in memory. */

#include "simd.h"

#define CHANNELS 4 /* whose sums over states are folded together */

typedef struct {
    const float *u, *dt, *A, *B, *C, *D, *z, *state; /* z may be NULL */
    float *new_state, *y;
    long u_row, dt_row, B_row, C_row, z_row;
    int length, width, states;
} Step;

/* All tokens for V or fewer states of `channels` <= CHANNELS; y collects the sums over states. */
INLINE void step_states(const Step *s, int b, int e, int n, int channels, int lanes) {
    const long at = ((long)b * s->width + e) * s->states + n;
    vec rate[CHANNELS], h[CHANNELS], product[CHANNELS] = {{0}};
    for (int c = 0; c < channels; c++) {
        rate[c] = LOG2E * load(s->A + (long)(e + c) * s->states + n, lanes);
        h[c] = load(s->state + at + (long)c * s->states, lanes);
    }
    for (int t = 0; t < s->length; t++) {
        const long row = (long)b * s->length + t;
        const vec B = load(s->B + row * s->B_row + n, lanes);
        const vec C = load(s->C + row * s->C_row + n, lanes);
        for (int c = 0; c < channels; c++) {
            const float dt = s->dt[row * s->dt_row + e + c], x = dt * s->u[row * s->u_row + e + c];
            h[c] = exp2_vec(dt * rate[c]) * h[c] + x * B;
            product[c] = h[c] * C;
        }
        const vec4 sums = sum_lanes_of_4(product);
        for (int c = 0; c < channels; c++) s->y[row * s->width + e + c] += sums[c];
    }
    for (int c = 0; c < channels; c++)
        store(s->new_state + at + (long)c * s->states, h[c], lanes);
}

INLINE void step_channels(const Step *s, int b, int e, int channels) {
    int n = 0;
    for (; n + V <= s->states; n += V) step_states(s, b, e, n, channels, V);
    if (n < s->states) step_states(s, b, e, n, channels, s->states - n);
}

INLINE void step_output(const Step *s, long row, int e, int lanes) {
    float *out = s->y + row * s->width + e;
    vec sum = load(out, lanes) + load(s->D + e, lanes) * load(s->u + row * s->u_row + e, lanes);
    if (s->z) {
        const vec z = load(s->z + row * s->z_row + e, lanes);
        sum *= z * sigmoid(z);
    }
    store(out, sum, lanes);
}

/* Continue by `length` tokens from `state` [batch][E][N]; writes y and new_state. */
int scan_step(const float *u, long u_row, const float *dt, long dt_row, const float *A,
              const float *B, long B_row, const float *C, long C_row, const float *D,
              const float *z, long z_row, const float *state, float *new_state, float *y,
              int batch, int length, int width, int states, int threads) {
    const Step s = {u,     dt,     A,     B,     C,     D,      z,     state, new_state,
                    y,     u_row,  dt_row, B_row, C_row, z_row, length, width, states};
    if ((long)batch * length * width * states < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int b = 0; b < batch; b++) {
        memset(y + (long)b * length * width, 0, (long)length * width * sizeof(float));
        int e = 0;
        for (; e + CHANNELS <= width; e += CHANNELS) step_channels(&s, b, e, CHANNELS);
        for (; e < width; e++) step_channels(&s, b, e, 1);
        for (long row = (long)b * length; row < (long)(b + 1) * length; row++) {
            for (e = 0; e + V <= width; e += V) step_output(&s, row, e, V);
            if (e < width) step_output(&s, row, e, width - e);
        }
    }
    return 0;
}

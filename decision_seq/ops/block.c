/* A stack of residual blocks around Mamba, continued by a few tokens: what streaming spends its time
 * in.
 *
 *   x <- x + out_proj(scan(conv(in_proj(norm(x))))),   x <- x + mlp(norm(x))
 *
 * With one lane a block has 0.7 M multiply-adds, less than the two dozen calls that it would take
 * from Python. Weights are read as they lie in the model ([outputs][inputs]), so there is nothing to
 * pack and nothing to go stale. */

#include "stream.h"

#define ROWS_AT_ONCE 48 /* of a part of the lanes: more fall out of the nearer caches */

enum { NORM1, NORM1_BIAS, IN, CONV, CONV_BIAS, SELECT, DT, DT_BIAS, A_LOG, SKIP, OUT, NORM2, NORM2_BIAS,
       UP, UP_BIAS, DOWN, DOWN_BIAS, WEIGHTS };

typedef struct {
    float eps;
    int lanes, length, width, channels, states, taps, rank, hidden;
} Sizes;

typedef struct { /* the arguments of stack_step */
    Sizes sizes;
    const float *const *weights, *const *norm, *x, *const *conv, *const *h;
    float *new_conv, *new_h, *y;
    int layers, read;
} Stack;

int conv_forward(const void *x, long x_row, const float *weight, const float *bias,
                 const float *history, void *y, float *new_history, int half, int batch, int length,
                 int width, int taps, int threads);
int scan_step(const float *u, long u_row, const float *dt, long dt_row, const float *A,
              const float *B, long B_row, const float *C, long C_row, const float *D,
              const float *z, long z_row, const float *state, float *new_state, float *y,
              int batch, int length, int width, int states, int threads);

static void add(float *x, const float *y, long size) {
    for (long i = 0; i < size; i++) x[i] += y[i];
}

void softplus_values(float *values, long size) {
    for (long i = 0; i < size; i += V)
        store_some(values + i, softplus(load_some(values + i, size - i)), size - i);
}

void gelu_values(float *values, long size) {
    for (long i = 0; i < size; i += V)
        store_some(values + i, gelu(load_some(values + i, size - i)), size - i);
}

/* A = -exp(A_log) */
static void decay_rates(const float *A_log, float *A, long size) {
    for (long i = 0; i < size; i += V)
        store_some(A + i, -exp2_vec(LOG2E * load_some(A_log + i, size - i)), size - i);
}

/* More than any of a block's products takes. */
static long columns_of(const Sizes *k) {
    return columns_size(k->width + k->channels + k->rank + 2 * k->states,
                        k->hidden > 2 * k->channels ? k->hidden : 2 * k->channels);
}

/* In floats, for `batch` lanes. */
static long scratch_size(const Sizes *k, int batch) {
    const long rows = (long)batch * k->length;
    const long wide = k->hidden > 2 * k->channels ? k->hidden : 2 * k->channels;
    const long row = 2 * k->width + wide + 3 * k->channels + k->rank + 2 * k->states;
    return ceil_div(rows * row + (long)k->channels * k->states, V) * V + columns_of(k);
}

/* Of each lane's `length` rows the last `read`, moved to the front. */
static void keep_last(float *rows, int batch, int length, int read, int width) {
    const size_t kept = (size_t)read * width;
    for (long b = 0; b < batch; b++)
        memmove(rows + b * kept, rows + ((b + 1) * length - read) * width, kept * sizeof(float));
}

/* x [batch][length][D] becomes the outputs [batch][read][D] at the last `read` tokens. conv and h:
 * the state before, and after. */
static int block(const Sizes *k, const float *const *w, float *x, const float *conv, const float *h,
                 float *new_conv, float *new_h, float *scratch, int batch, int read) {
    const int D = k->width, E = k->channels, N = k->states, chosen = k->rank + 2 * N;
    const int length = k->length, rows = batch * length, kept = batch * read;
    const long wide = k->hidden > 2 * E ? k->hidden : 2 * E;
    float *all = k->lanes * length < FEW ? NULL : scratch, *some = k->lanes * read < FEW ? NULL : scratch;
    float *A = scratch + columns_of(k), *norm = A + (long)E * N, *uz = norm + (long)rows * D;
    float *u = uz + rows * wide, *dt = u + (long)rows * E, *scan = dt + (long)rows * E;
    float *select = scan + (long)rows * E;

    normalise_rows(x, w + NORM1, norm, rows, D, k->eps);
    linear_rows(norm, D, rows, w[IN], NULL, uz, 2 * E, D, 2 * E, all);
    if (conv_forward(uz, 2 * E, w[CONV], w[CONV_BIAS], conv, u, new_conv, 0, batch, length, E,
                     k->taps, 1))
        return -1;
    linear_rows(u, E, rows, w[SELECT], NULL, select, chosen, E, chosen, all);
    linear_rows(select, chosen, rows, w[DT], w[DT_BIAS], dt, E, k->rank, E, all);
    softplus_values(dt, (long)rows * E);
    decay_rates(w[A_LOG], A, (long)E * N);
    scan_step(u, E, dt, E, A, select + k->rank, chosen, select + k->rank + N, chosen, w[SKIP],
              uz + E, 2 * E, h, new_h, scan, batch, length, E, N, 1);

    float *up = uz, *change = norm;
    keep_last(x, batch, length, read, D);
    keep_last(scan, batch, length, read, E);
    linear_rows(scan, E, kept, w[OUT], NULL, change, D, E, D, some);
    add(x, change, (long)kept * D);
    normalise_rows(x, w + NORM2, norm, kept, D, k->eps);
    linear_rows(norm, D, kept, w[UP], w[UP_BIAS], up, k->hidden, D, k->hidden, some);
    gelu_values(up, (long)kept * k->hidden);
    linear_rows(up, k->hidden, kept, w[DOWN], w[DOWN_BIAS], change, D, k->hidden, D, some);
    add(x, change, (long)kept * D);
    return 0;
}

/* All blocks for the lanes from `b` on, `batch` of them. */
static int stack_lanes(const Stack *s, int b, int batch, float *scratch) {
    const Sizes *k = &s->sizes;
    const long tail = (long)(k->taps - 1) * k->channels, state = (long)k->channels * k->states;
    const long rows = (long)batch * k->length, kept = (long)batch * s->read;
    float *x = scratch, *y = s->y + (long)b * s->read * k->width;
    memcpy(x, s->x + (long)b * k->length * k->width, rows * k->width * sizeof(float));
    for (int layer = 0; layer < s->layers; layer++) {
        const long at = (long)layer * k->lanes + b; /* among the new states */
        const int read = layer == s->layers - 1 ? s->read : k->length;
        if (block(k, s->weights + layer * WEIGHTS, x, s->conv[layer] + b * tail,
                  s->h[layer] + b * state, s->new_conv + at * tail, s->new_h + at * state,
                  scratch + rows * k->width, batch, read))
            return -1;
    }
    if (s->norm)
        normalise_rows(x, s->norm, y, kept, k->width, k->eps);
    else
        memcpy(y, x, kept * k->width * sizeof(float));
    return 0;
}

/* x [lanes][length][D] -> y [lanes][read][D], the last `read` tokens, through `layers` blocks and, if
 * `normed`, a LayerNorm. State: before, conv [lanes][taps - 1][E] and h [lanes][E][N] of each layer;
 * after, new_conv and new_h, all layers in one piece. `weights`: of each layer those that the names
 * above number, then the norm's two. Lanes are cut into parts for up to `threads` threads. Returns 0, or
 * -1 if memory runs out. */
int stack_step(const float *x, const float *const *weights, float eps, const float *const *conv,
               const float *const *h, float *new_conv, float *new_h, float *y, int layers,
               int normed, int lanes, int length, int read, int width, int channels, int states,
               int taps, int rank, int hidden, int threads) {
    const Stack s = {{eps, lanes, length, width, channels, states, taps, rank, hidden},
                     weights, normed ? weights + layers * WEIGHTS : NULL,
                     x, conv, h, new_conv, new_h, y, layers, read};
    const int rows = lanes * length, worth = rows < FEW ? lanes : ceil_div(rows, FEW);
    const int parts = min_int(threads, min_int(lanes, worth)), share = ceil_div(lanes, parts);
    const int most = min_int(share, length < ROWS_AT_ONCE ? ROWS_AT_ONCE / length : 1);
    const long each = scratch_size(&s.sizes, most);
    float *memory = aligned_alloc(64, parts * each * sizeof(float));
    int failed = 0;
    if (!memory) return -1;
#pragma omp parallel for schedule(static) num_threads(parts) reduction(| : failed)
    for (int part = 0; part < parts; part++) {
        const int end = min_int(lanes, (part + 1) * share);
        for (int b = part * share; b < end; b += most)
            failed |= stack_lanes(&s, b, min_int(most, end - b), memory + part * each);
    }
    free(memory);
    return failed;
}

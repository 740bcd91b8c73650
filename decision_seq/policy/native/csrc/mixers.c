#include "mixers.h"

const float *take(const float **from, long size) {
    const float *here = *from;
    *from += size;
    return here;
}

Linear take_linear(const float **from, int inputs, int outputs) {
    Linear map = {NULL, NULL, inputs, outputs};
    map.weight = take(from, padded(outputs) * inputs);
    map.bias = take(from, padded(outputs));
    return map;
}

void keep_last(const Tokens *t, float *rows, long row) {
    const long kept = t->read * row, all = t->tokens * row;
    for (long b = 0; b < t->lanes && t->read < t->tokens; b++)
        memmove(rows + b * kept, rows + (b + 1) * all - kept, kept * sizeof(float));
}

/* One lane: y_t = b + sum over k < taps of w_k x_{t-k}, each channel by itself, with weights of the
 * token's kind; `filter` [kinds][taps + 1][row] has the bias last. history [taps - 1][row]: the inputs
 * before, oldest first; then those before the next token. */
static void convolve(const Layer *own, int silu, long row, long passed, int tokens, const float *x,
                     float *history, float *y) {
    const int tail = own->taps - 1;
    for (int t = 0; t < tokens; t++, y += row) {
        const float *w = own->filter + (passed + t) % own->kinds * (own->taps + 1) * row;
        for (long e = 0; e < row; e += V) {
            vec sum = load(w + own->taps * row + e, V);
            for (int k = 0; k < own->taps; k++) {
                const float *from = t >= k ? x + (t - k) * row : history + (tail + t - k) * row;
                sum += load(w + k * row + e, V) * load(from + e, V);
            }
            store(y + e, silu ? sum * sigmoid(sum) : sum, V);
        }
    }
    const int fresh = min_int(tokens, tail);
    memmove(history, history + fresh * row, (tail - fresh) * row * sizeof(float));
    memcpy(history + (tail - fresh) * row, x + (tokens - fresh) * row, fresh * row * sizeof(float));
}

/* ------------------------------------------------------------------- Mamba (arXiv:2312.00752)
 *
 * out(scan(conv(in(x))) silu(gate(x))). State: the convolution's history [taps - 1][E], and h [N][E]. */

static void unpack_mamba(Layer *own, const int32_t *sizes, const float **from) {
    const int E = sizes[0], N = own->states = sizes[1], rank = sizes[3];
    own->taps = sizes[2], own->kinds = 1;
    own->in = take_linear(from, own->width, E);
    own->gate = take_linear(from, own->width, E);
    own->filter = take(from, (own->taps + 1) * padded(E));
    own->select = take_linear(from, E, rank + 2 * N); /* dt's factors, B, C */
    own->dt = take_linear(from, rank, E);
    own->decay = take(from, N * padded(E)); /* log2(e) A */
    own->skip = take(from, padded(E));
    own->out = take_linear(from, E, own->width);
}

static long mamba_state(const Layer *own) { return (own->taps - 1 + own->states) * padded(own->in.outputs); }

static long mamba_scratch(const Layer *own) { return 4 * padded(own->in.outputs) + padded(own->select.outputs); }

/* One lane: h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = C_t h_t + D u_t. u becomes y. */
static void scan(const Layer *own, long row, int tokens, float *u, const float *dt, const float *chosen,
                 float *h) {
    const long chosen_row = padded(own->select.outputs);
    const int N = own->states, rank = own->dt.inputs;
    for (long e = 0; e < row; e += V)
        for (int t = 0; t < tokens; t++) {
            const float *B = chosen + t * chosen_row + rank, *C = B + N;
            const vec step = load(dt + t * row + e, V), now = load(u + t * row + e, V);
            const vec input = step * now;
            vec sum = load(own->skip + e, V) * now;
            for (int n = 0; n < N; n++) {
                float *at = h + n * row + e;
                const vec state = exp2_vec(step * load(own->decay + n * row + e, V)) * load(at, V) + B[n] * input;
                store(at, state, V);
                sum += C[n] * state;
            }
            store(u + t * row + e, sum, V);
        }
}

static void mix_mamba(const Layer *own, const Tokens *t, float *x, float *y, float *scratch) {
    const long D = padded(own->width), E = padded(own->in.outputs), S = padded(own->select.outputs);
    const int rows = t->lanes * t->tokens, kept = t->lanes * t->read;
    float *in = scratch, *u = in + rows * E, *dt = u + rows * E, *z = dt + rows * E, *chosen = z + rows * E;
    linear(&own->in, x, D, rows, in, E);
    for (int b = 0; b < t->lanes; b++)
        convolve(own, 1, E, 0, t->tokens, in + b * t->tokens * E, t->state[b], u + b * t->tokens * E);
    linear(&own->select, u, E, rows, chosen, S);
    linear(&own->dt, chosen, S, rows, dt, E);
    for (long i = 0; i < rows * E; i += V) store(dt + i, softplus(load(dt + i, V)), V);
    for (int b = 0; b < t->lanes; b++) {
        const long first = (long)b * t->tokens;
        scan(own, E, t->tokens, u + first * E, dt + first * E, chosen + first * S,
             t->state[b] + (own->taps - 1) * E);
    }
    keep_last(t, x, D);
    keep_last(t, u, E);
    linear(&own->gate, x, D, kept, z, E);
    for (long i = 0; i < kept * E; i += V) {
        const vec gate = load(z + i, V);
        store(u + i, load(u + i, V) * gate * sigmoid(gate), V);
    }
    linear(&own->out, u, E, kept, y, D);
}

/* ------------------------------------------------------------------- attention
 *
 * y_i = sum over j of p_ij v_j, p_i = softmax over j of q_i . k_j / sqrt(d), of the last `window` tokens,
 * the token's own among them. State: keys [D][row of the window], so that a vector holds those of
 * several tokens, and values [window][D], both by the token's number modulo the window. */

static void unpack_attention(Layer *own, const int32_t *sizes, const float **from) {
    own->heads = sizes[0], own->window = sizes[1];
    own->in = take_linear(from, own->width, 2 * own->width); /* keys and values */
    own->gate = take_linear(from, own->width, own->width);   /* queries */
    own->out = take_linear(from, own->width, own->width);
}

static long attention_state(const Layer *own) {
    return own->width * padded(own->window) + own->window * padded(own->width);
}

static long attention_scratch(const Layer *own) {
    return padded(2 * own->width) + 2 * padded(own->width) + padded(own->window);
}

/* score[j] = e^(q . k_j / sqrt(d) - largest) of `seen` tokens; returns their sum. */
static float weigh(const float *q, const float *keys, long row, int dim, int seen, float *score) {
    vec largest = splat(-1e30f), total = splat(0);
    for (int j = 0; j < seen; j += V) {
        vec sum = splat(0);
        for (int i = 0; i < dim; i++) sum += q[i] * load(keys + i * row + j, V);
        store(score + j, sum * (1 / sqrtf(dim)), V);
    }
    for (int j = seen; j % V; j++) score[j] = -1e30f;
    for (int j = 0; j < seen; j += V) largest = larger(largest, load(score + j, V));
    const float most = max_element(largest);
    for (int j = 0; j < seen; j += V) {
        const vec p = exp_vec(at_least(load(score + j, V) - most, -150.f)); /* 0 in float32 */
        store(score + j, p, V);
        total += p;
    }
    return sum_elements(total);
}

static void attend(const Layer *own, const float *q, const float *state, int seen, float *score, float *y) {
    const long row = padded(own->window), D = padded(own->width);
    const int dim = own->width / own->heads;
    const float *values = state + own->width * row;
    for (int at = 0; at < own->width; at += dim) {
        const float total = weigh(q + at, state + at * row, row, dim, seen, score);
        for (int i = at; i < at + dim; i += V) {
            vec sum = splat(0);
            const int some = min_int(V, at + dim - i);
            for (int j = 0; j < seen; j++) sum += score[j] * load_some(values + j * D + i, some);
            store_some(y + i, sum / total, some);
        }
    }
}

static void mix_attention(const Layer *own, const Tokens *t, float *x, float *y, float *scratch) {
    const long D = padded(own->width), KV = padded(2 * own->width), row = padded(own->window);
    const int rows = t->lanes * t->tokens, kept = t->lanes * t->read;
    float *kv = scratch, *q = kv + rows * KV, *mixed = q + rows * D, *score = mixed + rows * D;
    linear(&own->in, x, D, rows, kv, KV);
    keep_last(t, x, D);
    linear(&own->gate, x, D, kept, q, D);
    memset(mixed, 0, kept * D * sizeof(float));
    for (int b = 0; b < t->lanes; b++)
        for (int i = 0; i < t->tokens; i++) {
            const float *fresh = kv + ((long)b * t->tokens + i) * KV;
            const int at = (t->passed + i) % own->window, wanted = i - (t->tokens - t->read);
            const int seen = t->passed + i < own->window ? t->passed + i + 1 : own->window;
            float *keys = t->state[b];
            for (int e = 0; e < own->width; e++) keys[e * row + at] = fresh[e];
            memcpy(keys + own->width * row + at * D, fresh + own->width, own->width * sizeof(float));
            const long to = ((long)b * t->read + wanted) * D;
            if (wanted >= 0) attend(own, q + to, keys, seen, score, mixed + to);
        }
    linear(&own->out, mixed, D, kept, y, D);
}

/* ------------------------------------------------------------------- convolution (arXiv:2310.03022)
 *
 * With weights of what the token is in its environment step. State: the last inputs [taps - 1][D]. */

static void unpack_conv(Layer *own, const int32_t *sizes, const float **from) {
    own->kinds = sizes[0], own->taps = sizes[1];
    own->filter = take(from, own->kinds * (own->taps + 1) * padded(own->width));
}

static long conv_state(const Layer *own) { return (own->taps - 1) * padded(own->width); }

static long conv_scratch(const Layer *own) { return padded(own->width); }

static void mix_conv(const Layer *own, const Tokens *t, float *x, float *y, float *scratch) {
    const long D = padded(own->width), all = t->tokens * D, kept = t->read * D;
    for (int b = 0; b < t->lanes; b++)
        convolve(own, 0, D, t->passed, t->tokens, x + b * all, t->state[b], scratch + b * all);
    keep_last(t, scratch, D);
    memcpy(y, scratch, t->lanes * kept * sizeof(float));
}

/* ------------------------------------------------------------------- a linear map of each token alone */

static void unpack_pointwise(Layer *own, const int32_t *sizes, const float **from) {
    own->out = take_linear(from, own->width, own->width);
}

static long nothing(const Layer *own) { return 0; }

static void mix_pointwise(const Layer *own, const Tokens *t, float *x, float *y, float *scratch) {
    const long D = padded(own->width);
    keep_last(t, x, D);
    linear(&own->out, x, D, t->lanes * t->read, y, D);
}

const Mixer MIXERS[] = {
    {unpack_attention, attention_state, attention_scratch, mix_attention},
    {unpack_conv, conv_state, conv_scratch, mix_conv},
    {unpack_mamba, mamba_state, mamba_scratch, mix_mamba},
    {unpack_pointwise, nothing, nothing, mix_pointwise},
};

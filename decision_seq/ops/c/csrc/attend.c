/* Causal attention of a few new tokens over those and a cache of keys and values.
 *
 *   y_i = sum over j of p_ij v_j,   p_i = softmax over j of q_i . k_j / sqrt(d),
 *
 * where token i sees itself and window - 1 before it. State: keys and values [T][D] of the last T
 * tokens, and whether they are the lane's own [T], which those before its last reset are not. */

#include <math.h>

#include "mixers.h"

enum { QKV, QKV_BIAS, OUT, OUT_BIAS };

#define UNSEEN -INFINITY /* as a score */

typedef struct { /* the tokens that a lane remembers, then those that are new */
    const float *keys, *values, *fresh; /* [T][D] both, [length][2 D] */
    const uint8_t *valid;               /* [T] */
    int cached, width;
} Tokens;

INLINE const float *key(const Tokens *t, int j) {
    return j < t->cached ? t->keys + (long)j * t->width : t->fresh + (j - t->cached) * 2l * t->width;
}

INLINE const float *value(const Tokens *t, int j) {
    return j < t->cached ? t->values + (long)j * t->width
                         : t->fresh + (j - t->cached) * 2l * t->width + t->width;
}

/* score[j - from] = q . k_j * scale of head `at`, for j in [from, to), UNSEEN for what is not valid. */
static void score_keys(const Tokens *t, const float *q, int at, int dim, float scale, int from, int to,
                       float *score) {
    for (int j = from; j < to; j += 4) {
        vec sum[4] = {{0}};
        const int some = min_int(4, to - j);
        for (int i = 0; i < dim; i += V)
            for (int r = 0; r < some; r++)
                sum[r] += load_some(q + i, dim - i) * load_some(key(t, j + r) + at + i, dim - i);
        const vec4 sums = sum_lanes_of_4(sum);
        for (int r = 0; r < some; r++)
            score[j + r - from] = j + r < t->cached && !t->valid[j + r] ? UNSEEN : scale * sums[r];
    }
}

/* The softmax of `count` scores but for its divisor, which it returns. */
static float exponentials(float *score, int count) {
    vec largest = splat(UNSEEN), total = splat(0);
    for (int j = count; j % V; j++) score[j] = UNSEEN;
    for (int j = 0; j < count; j += V) largest = larger(largest, load(score + j, V));
    const float most = max_lanes(largest);
    for (int j = 0; j < count; j += V) {
        const vec x = load(score + j, V), p = exp_vec(at_least(x - most, -150.f)); /* 0 in float32 */
        store(score + j, (vec)((x != UNSEEN) & (ivec)p), V); /* NaN stays */
        total += load(score + j, V);
    }
    return sum_lanes(total);
}

/* y = sum over j of p_j v_j / total */
static void weigh_values(const Tokens *t, const float *p, float total, int at, int dim, int from, int to,
                         float *y) {
    for (int i = 0; i < dim; i += 4 * V) {
        vec sum[4] = {{0}};
        const int some = min_int(4, ceil_div(dim - i, V));
        for (int j = from; j < to; j++) {
            const float *v = value(t, j) + at + i;
            for (int r = 0; r < some; r++)
                sum[r] += p[j - from] * load_some(v + r * V, dim - i - r * V);
        }
        for (int r = 0; r < some; r++)
            store_some(y + i + r * V, sum[r] / total, dim - i - r * V);
    }
}

static void remember(const Mix *m, const Tokens *t, int b, int kept) {
    const int first = t->cached + m->length - kept; /* of the tokens that are remembered */
    const long lane = m->first + b, D = t->width;
    float *keys = (float *)m->layer->new_state[0] + lane * kept * D;
    float *values = (float *)m->layer->new_state[1] + lane * kept * D;
    uint8_t *valid = (uint8_t *)m->layer->new_state[2] + lane * kept;
    for (int j = 0; j < kept; j++) {
        memcpy(keys + j * D, key(t, first + j), D * sizeof(float));
        memcpy(values + j * D, value(t, first + j), D * sizeof(float));
        valid[j] = first + j < t->cached ? t->valid[first + j] : 1;
    }
}

long attention_scratch(const Layer *layer, int rows, int width) {
    return 4l * rows * width + layer->sizes[2] + rows + V;
}

int attention_widest(const Layer *layer, int width) { return 3 * width; }

/* sizes: heads, window, tokens in the cache before and after. */
int mix_attention(const Mix *m) {
    const int D = m->width, heads = m->layer->sizes[0], window = m->layer->sizes[1], dim = D / heads;
    const int cached = m->layer->sizes[2], rows = m->lanes * m->length, kept = m->lanes * m->read;
    const float scale = 1 / sqrtf(dim), *const *w = m->weights;
    float *kv = m->scratch, *q = kv + 2l * rows * D, *y = q + (long)rows * D, *score = y + (long)rows * D;

    linear_rows(m->x, D, rows, w[QKV] + (long)D * D, w[QKV_BIAS] + D, kv, 2 * D, D, 2 * D, m->all);
    keep_last(m->x, m->lanes, m->length, m->read, D);
    linear_rows(m->x, D, kept, w[QKV], w[QKV_BIAS], q, D, D, D, m->some);
    for (int b = 0; b < m->lanes; b++) {
        const long lane = m->first + b;
        const Tokens t = {(const float *)m->layer->state[0] + lane * cached * D,
                          (const float *)m->layer->state[1] + lane * cached * D,
                          kv + 2l * b * m->length * D,
                          (const uint8_t *)m->layer->state[2] + lane * cached, cached, D};
        for (int i = 0; i < m->read; i++) {
            const int to = cached + m->length - m->read + i + 1, from = to > window ? to - window : 0;
            const long row = ((long)b * m->read + i) * D;
            for (int at = 0; at < D; at += dim) {
                score_keys(&t, q + row + at, at, dim, scale, from, to, score);
                const float total = exponentials(score, to - from);
                weigh_values(&t, score, total, at, dim, from, to, y + row + at);
            }
        }
        remember(m, &t, b, m->layer->sizes[3]);
    }
    linear_rows(y, D, kept, w[OUT], w[OUT_BIAS], m->y, D, D, D, m->some);
    return 0;
}

/* A trained agent that acts: from observations to predictions in one call a step, from one block of
 * packed weights (pack.py). Lanes are independent, and may be at different steps of their episodes.
 *
 * In context `stream` a lane remembers what its mixers carry from token to token; in context `window`
 * the embedded tokens of its last steps, which go through the mixers anew at every step. */

#include "mixers.h"

#define MAGIC 0x51455344
enum { HEADER = 16, OF_LAYER = 8 }; /* numbers of the block's head, and those of a layer after it */
enum { RETURN_TO_GO, OBSERVATION, ACTION };

#define ROWS_AT_ONCE 48 /* more fall out of the nearer caches */
#define WORTH_A_THREAD 12

typedef struct { /* the numbers at the block's head, 4 bytes each */
    int32_t magic, width, layers, hidden, context_length, timesteps, observation, action, discrete;
    int32_t tokens, kinds[3];
    float embed_eps, eps;
    int32_t unused;
} Header;

typedef struct {
    Header head;
    int inputs; /* tokens of a step before its action */
    const float *mean, *std, *action_scale;
    Linear embed[3]; /* by kind; a discrete action's is a table [actions][D] */
    const float *timestep, *embed_norm, *norm;
    Linear predict;
    Layer *layers;
    long largest_state, widest; /* floats: of a layer's state, of a token's widest inside */

    int lanes, window, threads, most_rows;
    long lane_size, scratch_size; /* floats of a lane's memory, of a thread's */
    int64_t *steps;               /* [lanes] taken in this episode */
    float *memory, *scratch;
    int *chunks; /* [lanes + 1] the first lane of each */
} Policy;

static long longest(long a, long b) { return a > b ? a : b; }

static void unpack_layer(Policy *p, Layer *own, const int32_t *sizes, const float **from) {
    const int D = p->head.width;
    own->mixer = MIXERS + sizes[0], own->width = D;
    own->norm_mixer = take(from, 2 * padded(D));
    own->norm_mlp = take(from, 2 * padded(D));
    own->mixer->unpack(own, sizes + 1, from);
    own->up = take_linear(from, D, p->head.hidden);
    own->down = take_linear(from, p->head.hidden, D);
    own->state = p->lane_size;
    p->lane_size += own->mixer->state(own);
    p->largest_state = longest(p->largest_state, own->mixer->state(own));
    p->widest = longest(p->widest, own->mixer->scratch(own));
}

static int unpack(Policy *p, const int32_t *block) {
    const Header *h = memcpy(&p->head, block, sizeof p->head);
    const float *from = (const float *)block + ceil_div(HEADER + OF_LAYER * h->layers, 16) * 16;
    if (h->magic != MAGIC || !(p->layers = calloc(h->layers, sizeof(Layer)))) return 0;
    p->mean = take(&from, padded(h->observation)), p->std = take(&from, padded(h->observation));
    p->action_scale = take(&from, padded(h->action));
    for (int k = 0; k < h->tokens; k++) {
        const int kind = h->kinds[k], sizes[] = {1, h->observation, h->action};
        if (kind == ACTION && h->discrete)
            p->embed[kind].weight = take(&from, h->action * padded(h->width));
        else
            p->embed[kind] = take_linear(&from, sizes[kind], h->width);
        p->inputs += kind != ACTION;
    }
    p->timestep = take(&from, h->timesteps * padded(h->width));
    p->embed_norm = take(&from, 2 * padded(h->width));
    p->widest = padded(longest(h->hidden, h->action));
    for (int l = 0; l < h->layers; l++)
        unpack_layer(p, p->layers + l, block + HEADER + OF_LAYER * l, &from);
    p->norm = take(&from, 2 * padded(h->width));
    p->predict = take_linear(&from, h->width, h->action);
    return 1;
}

static float *floats(long count) {
    void *memory;
    return posix_memalign(&memory, 64, ceil_div(count + 1, 16) * 64) ? NULL : memory;
}

void policy_close(Policy *p) {
    if (!p) return;
    free(p->layers), free(p->steps), free(p->memory), free(p->scratch), free(p->chunks);
    free(p);
}

/* `lanes` new episodes, up to `threads` at once; the block must outlive what this returns. NULL if
 * memory is short, or the block is none. */
Policy *policy_open(const void *block, int lanes, int window, int threads) {
    Policy *p = calloc(1, sizeof *p);
    if (!p || !unpack(p, block)) return policy_close(p), NULL;
    const long D = padded(p->head.width), steps = window ? p->head.context_length : 1;
    const long values = padded(longest(longest(p->head.observation, p->head.action), 1));
    p->lanes = lanes, p->window = window, p->threads = threads;
    p->most_rows = longest(ROWS_AT_ONCE, steps * p->head.tokens);
    if (window) p->lane_size = steps * p->head.tokens * D;
    p->scratch_size = p->most_rows * (4 * D + p->widest + values);
    if (window) p->scratch_size += ROWS_AT_ONCE * p->largest_state;
    p->steps = calloc(lanes + 1, sizeof *p->steps);
    p->memory = floats(lanes * p->lane_size);
    p->scratch = floats(threads * p->scratch_size);
    p->chunks = malloc((lanes + 1) * sizeof *p->chunks);
    if (!p->steps || !p->memory || !p->scratch || !p->chunks) return policy_close(p), NULL;
    memset(p->memory, 0, lanes * p->lane_size * sizeof(float));
    return p;
}

/* Bytes that a lane remembers. */
long policy_bytes(const Policy *p) { return p->lane_size * sizeof(float) + sizeof *p->steps; }

/* Lanes whose `begin` [lanes] is not 0 begin an episode. */
void policy_reset(Policy *p, const uint8_t *begin) {
    for (long b = 0; b < p->lanes; b++)
        if (begin[b]) {
            p->steps[b] = 0;
            memset(p->memory + b * p->lane_size, 0, p->lane_size * sizeof(float));
        }
}

/* Lanes whose `kept` [lanes] is 0 are no more; the others close ranks. */
void policy_keep(Policy *p, const uint8_t *kept) {
    int left = 0;
    for (long b = 0; b < p->lanes; b++)
        if (kept[b]) {
            memmove(p->memory + left * p->lane_size, p->memory + b * p->lane_size, p->lane_size * sizeof(float));
            p->steps[left++] = p->steps[b];
        }
    p->lanes = left;
}

/* ------------------------------------------------------------------- one step of some lanes */

typedef struct {
    const float *observation, *to_go; /* [lanes][S], [lanes] */
    const void *action;               /* of the step before: float [lanes][A], or int64 [lanes] */
    float *predicted;                 /* [lanes][A] */
} Inputs;

static void embed_kind(const Policy *p, const Inputs *in, int kind, int first, int lanes, long y_row,
                       float *values, float *y) {
    const Header *h = &p->head;
    const long D = padded(h->width), size = kind == OBSERVATION ? h->observation : h->action;
    if (kind == RETURN_TO_GO) {
        linear(&p->embed[kind], in->to_go + first, 1, lanes, y, y_row);
    } else if (kind == ACTION && h->discrete) {
        const int64_t *index = (const int64_t *)in->action + first;
        for (int b = 0; b < lanes; b++)
            memcpy(y + b * y_row, p->embed[kind].weight + index[b] * D, D * sizeof(float));
    } else {
        const float *from = (kind == OBSERVATION ? in->observation : (const float *)in->action) + first * size;
        for (long i = 0; i < lanes * size; i++)
            values[i] = kind == OBSERVATION ? (from[i] - p->mean[i % size]) / p->std[i % size]
                                            : from[i] / p->action_scale[i % size];
        linear(&p->embed[kind], values, size, lanes, y, y_row);
    }
}

/* The new tokens of lanes at `step`, y [lanes][tokens][D]: the action of the step before, if there is
 * one and agents see it, and the inputs of this one. Returns how many a lane. */
static int embed(const Policy *p, const Inputs *in, int first, int lanes, int64_t step, float *values,
                 float *y) {
    const Header *h = &p->head;
    const int acted = step > 0 && p->inputs < h->tokens, tokens = p->inputs + acted;
    const long D = padded(h->width), row = tokens * D;
    for (int k = 0; k < tokens; k++) {
        const int kind = k < acted ? ACTION : h->kinds[k - acted];
        embed_kind(p, in, kind, first, lanes, row, values, y + k * D);
        if (!h->timesteps) continue;
        const long at = step - (k < acted), last = h->timesteps - 1;
        const float *time = p->timestep + (at < last ? at : last) * D;
        for (int b = 0; b < lanes; b++)
            for (long e = 0; e < D; e++) y[b * row + k * D + e] += time[e];
    }
    layer_norm(p->embed_norm, y, lanes * tokens, h->width, h->embed_eps, y);
    return tokens;
}

/* Tokens of a lane at `step` that go through the mixers. */
static int tokens_at(const Policy *p, int64_t step) {
    const int K = p->head.context_length, T = p->head.tokens;
    if (p->window) return (step < K ? step : K - 1) * T + p->inputs;
    return p->inputs + (step > 0 && p->inputs < T);
}

/* Append `fresh` [tokens][D] to a lane's window, from which whole steps fall out at the other end, and
 * copy it to x. */
static void slide(const Policy *p, float *window, int64_t step, const float *fresh, int tokens, float *x) {
    const long D = padded(p->head.width), held = step ? tokens_at(p, step - 1) : 0;
    const long dropped = held + tokens - tokens_at(p, step), left = longest(held - dropped, 0);
    const long lost = dropped - (held - left); /* of the fresh ones: where K is 1 */
    memmove(window, window + (held - left) * D, left * D * sizeof(float));
    memcpy(window + left * D, fresh + lost * D, (tokens - lost) * D * sizeof(float));
    memcpy(x, window, (left + tokens - lost) * D * sizeof(float));
}

static void add(float *x, const float *y, long size) {
    for (long i = 0; i < size; i++) x[i] += y[i];
}

static void block(const Policy *p, const Layer *own, const Tokens *t, float *x, float *norm, float *mixed,
                  float *wide) {
    const int D = p->head.width, rows = t->lanes * t->read;
    const long row = padded(D), hidden = padded(p->head.hidden);
    layer_norm(own->norm_mixer, x, t->lanes * t->tokens, D, p->head.eps, norm);
    own->mixer->mix(own, t, norm, mixed, wide);
    keep_last(t, x, row);
    add(x, mixed, rows * row);
    layer_norm(own->norm_mlp, x, rows, D, p->head.eps, norm);
    linear(&own->up, norm, row, rows, wide, hidden);
    for (long i = 0; i < rows * hidden; i += V) store(wide + i, gelu(load(wide + i, V)), V);
    linear(&own->down, wide, hidden, rows, mixed, row);
    add(x, mixed, rows * row);
}

/* Lanes from `first` on, all at one step. */
static void advance(Policy *p, const Inputs *in, int first, int lanes, float *scratch) {
    const Header *h = &p->head;
    const long D = padded(h->width), room = p->most_rows * D;
    float *x = scratch, *norm = x + room, *mixed = norm + room, *fresh = mixed + room;
    float *wide = fresh + room, *values = wide + p->most_rows * p->widest;
    float *states = p->scratch_size + scratch - ROWS_AT_ONCE * p->largest_state; /* of windows */
    const int64_t step = p->steps[first];
    Tokens t = {.lanes = lanes};
    const long tokens = embed(p, in, first, lanes, step, values, p->window ? fresh : x);
    t.tokens = tokens_at(p, step), t.passed = p->window || !step ? 0 : p->inputs + (step - 1) * h->tokens;
    for (long b = 0; p->window && b < lanes; b++)
        slide(p, p->memory + (first + b) * p->lane_size, step, fresh + b * tokens * D, tokens,
              x + b * t.tokens * D);
    float *state[lanes];
    for (int l = 0; l < h->layers; l++) {
        for (long b = 0; b < lanes; b++)
            state[b] = p->window ? states + b * p->largest_state
                                 : p->memory + (first + b) * p->lane_size + p->layers[l].state;
        if (p->window) memset(states, 0, lanes * p->largest_state * sizeof(float));
        t.read = l < h->layers - 1 ? t.tokens : 1, t.state = state;
        block(p, p->layers + l, &t, x, norm, mixed, wide);
    }
    layer_norm(p->norm, x, lanes, h->width, h->eps, norm);
    linear(&p->predict, norm, D, lanes, wide, padded(h->action));
    for (long b = 0; b < lanes; b++) {
        p->steps[first + b]++;
        for (int a = 0; a < h->action; a++) {
            const float y = wide[b * padded(h->action) + a];
            in->predicted[(first + b) * h->action + a] = h->discrete ? y : tanhf(y);
        }
    }
}

/* One step of every lane. `predicted` [lanes][A]: squashed actions, or logits of discrete ones. */
void policy_step(Policy *p, const float *observation, const void *action, const float *to_go,
                 float *predicted, int threads) {
    const Inputs in = {observation, to_go, action, predicted};
    int count = 0;
    for (int b = 0; b < p->lanes; count++) { /* cut into chunks of lanes that are at one step */
        const int tokens = tokens_at(p, p->steps[b]), first = b;
        const long share = ceil_div((long)p->lanes * tokens, threads);
        const int rows = share < WORTH_A_THREAD ? WORTH_A_THREAD : min_int(share, ROWS_AT_ONCE);
        const int most = rows > tokens ? rows / tokens : 1;
        p->chunks[count] = b++;
        while (b < p->lanes && b - first < most && p->steps[b] == p->steps[first]) b++;
    }
    p->chunks[count] = p->lanes;
    if (!count) return;
#pragma omp parallel for schedule(static, 1) num_threads(min_int(min_int(threads, p->threads), count))
    for (int c = 0; c < count; c++)
        advance(p, &in, p->chunks[c], p->chunks[c + 1] - p->chunks[c],
                p->scratch + omp_get_thread_num() * p->scratch_size);
}

/* A stack of residual blocks, continued by a few tokens: what acting spends its time in.
 *
 *   x <- x + mixer(norm(x)),   x <- x + mlp(norm(x))
 *
 * With one lane a block of Mamba has 0.7 M multiply-adds, less than the two dozen calls that it would
 * take from Python. Weights are read as they lie in the model ([outputs][inputs]), so there is nothing
 * to pack and nothing to go stale. */

#include "mixers.h"

enum { NORM1, NORM1_BIAS, NORM2, NORM2_BIAS, UP, UP_BIAS, DOWN, DOWN_BIAS, OF_MIXER };

#define ROWS_AT_ONCE 48 /* of a part of the lanes: more fall out of the nearer caches */

typedef struct { /* the arguments of stack_step */
    const float *x;
    const Layer *layers;
    int count;
    const float *const *norm;
    float eps, *y;
    int lanes, length, read, width, hidden;
} Stack;

typedef struct {
    long narrow, wide, columns;
} Room;

typedef struct { /* the memory of one part of the lanes */
    float *x, *norm, *mixed; /* [rows][D] */
    float *wide;             /* of the mixer, or [rows][hidden] */
    float *columns;
} Memory;

void gelu_values(float *values, long size) {
    for (long i = 0; i < size; i += V)
        store_some(values + i, gelu(load_some(values + i, size - i)), size - i);
}

void keep_last(float *rows, int lanes, int length, int read, int width) {
    const size_t kept = (size_t)read * width;
    for (long b = 0; b < lanes; b++)
        memmove(rows + b * kept, rows + ((b + 1) * length - read) * width, kept * sizeof(float));
}

static void add(float *x, const float *y, long size) {
    for (long i = 0; i < size; i++) x[i] += y[i];
}

/* What so many tokens take, in floats: of width D, of the widest part of a block, of its products. */
static Room room_for(const Stack *s, int rows) {
    long wide = (long)rows * s->hidden, widest = s->width + s->hidden;
    for (int layer = 0; layer < s->count; layer++) {
        const Layer *own = s->layers + layer;
        const Mixer *mixer = MIXERS + own->mixer;
        const long scratch = mixer->scratch(own, rows, s->width);
        const long products = mixer->widest(own, s->width);
        wide = scratch > wide ? scratch : wide;
        widest = products > widest ? products : widest;
    }
    return (Room){ceil_div((long)rows * s->width, V) * V, ceil_div(wide, V) * V, columns_size(widest, 0)};
}

/* One layer for `lanes` of them from `first` on; m->x becomes the outputs at the last `read` tokens. */
static int block(const Stack *s, const Layer *layer, const Memory *m, int first, int lanes, int read) {
    const int D = s->width, H = s->hidden, rows = lanes * s->length, kept = lanes * read;
    const float *const *w = layer->weights;
    float *all = s->lanes * s->length < FEW ? NULL : m->columns;
    float *some = s->lanes * read < FEW ? NULL : m->columns;
    const Mix mix = {layer, w + OF_MIXER, first, lanes, s->length, read, D,
                     m->norm, m->mixed, m->wide, all, some};

    normalise_rows(m->x, w + NORM1, m->norm, rows, D, s->eps);
    if (MIXERS[layer->mixer].mix(&mix)) return NO_MEMORY;
    keep_last(m->x, lanes, s->length, read, D);
    add(m->x, m->mixed, (long)kept * D);

    normalise_rows(m->x, w + NORM2, m->norm, kept, D, s->eps);
    linear_rows(m->norm, D, kept, w[UP], w[UP_BIAS], m->wide, H, D, H, some);
    gelu_values(m->wide, (long)kept * H);
    linear_rows(m->wide, H, kept, w[DOWN], w[DOWN_BIAS], m->mixed, D, H, D, some);
    add(m->x, m->mixed, (long)kept * D);
    return 0;
}

static int all_blocks(const Stack *s, const Memory *m, int first, int lanes) {
    const long given = (long)s->length * s->width, wanted = (long)s->read * s->width;
    float *y = s->y + first * wanted;
    memcpy(m->x, s->x + first * given, lanes * given * sizeof(float));
    for (int layer = 0; layer < s->count; layer++)
        if (block(s, s->layers + layer, m, first, lanes, layer < s->count - 1 ? s->length : s->read))
            return NO_MEMORY;
    if (s->norm)
        normalise_rows(m->x, s->norm, y, lanes * s->read, s->width, s->eps);
    else
        memcpy(y, m->x, lanes * wanted * sizeof(float));
    return 0;
}

/* x [lanes][length][D] -> y [lanes][read][D], the last `read` tokens, through `count` layers and, unless
 * it is NULL, a norm. Lanes are cut into parts for up to `threads` threads. Returns 0 or NO_MEMORY. */
int stack_step(const float *x, const Layer *layers, int count, const float *const *norm, float eps,
               float *y, int lanes, int length, int read, int width, int hidden, int threads) {
    const Stack s = {x, layers, count, norm, eps, y, lanes, length, read, width, hidden};
    const int rows = lanes * length, worth = rows < FEW ? lanes : ceil_div(rows, FEW);
    const int parts = min_int(threads, min_int(lanes, worth)), share = ceil_div(lanes, parts);
    const int most = min_int(share, length < ROWS_AT_ONCE ? ROWS_AT_ONCE / length : 1);
    const Room room = room_for(&s, most * length);
    const long each = 3 * room.narrow + room.wide + room.columns;
    float *memory = aligned_alloc(64, parts * each * sizeof(float));
    int failed = 0;
    if (!memory) return NO_MEMORY;
#pragma omp parallel for schedule(static) num_threads(parts) reduction(| : failed)
    for (int part = 0; part < parts; part++) {
        const int end = min_int(lanes, (part + 1) * share);
        float *own = memory + part * each, *wide = own + 3 * room.narrow;
        const Memory m = {own, own + room.narrow, own + 2 * room.narrow, wide, wide + room.wide};
        for (int first = part * share; first < end; first += most)
            failed |= all_blocks(&s, &m, first, min_int(most, end - first));
    }
    free(memory);
    return failed;
}

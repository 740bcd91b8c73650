/* Causal attention with dropout on its weights, forward and backward, in tiles of TILE queries by TILE
 * keys that stay in cache: memory grows with L, not L^2 (FlashAttention, arXiv:2205.14135).
 *
 *   y_i = sum over j of m_ij p_ij v_j,    p_i = softmax over j of q_i . k_j / sqrt(d),
 *
 * where query i stands at token first + i * every, sees that token and window - 1 before it, and m is
 * dropout's mask, drawn from (batch, head, i, j). Tiles are copied into scratch memory with zeros for
 * what is missing, so that only whole vectors are computed with. */

#include <math.h>

#include "simd.h"

#define TILE 64
#ifdef __AVX512F__ /* of a product at a time; their sums fit the registers */
#define ROWS 8
#define COLUMNS 2 /* vectors */
#else
#define ROWS 4
#define COLUMNS 1
#endif

typedef struct {
    const void *q, *k, *v; /* [batch][asked][heads * dim], [batch][length][heads * dim] */
    long q_row, k_row, v_row;
    int half; /* these, and what is like them */
    int batch, heads, asked, length, dim, first, every, window;
    uint64_t seed;
    int dropped; /* of 65536 */
} Attention;

typedef struct {
    int wide; /* dim, rounded up to whole vectors */
    float *q, *dy, *k, *v;         /* [TILE][wide] */
    float *k_t, *v_t;              /* [wide][TILE] */
    float *y, *dk, *dv;            /* [TILE][wide], sums */
    float *dq;                     /* [asked][wide], sums over the tiles of keys */
    float *p, *mp, *ds;            /* [TILE][TILE]: p; m p; dL / d(q . k / sqrt(d)) */
    float largest[TILE], total[TILE]; /* of a query's weights so far */
    float delta[TILE];                /* y . dy */
} Tiles;

/* In floats, with what the pointers point to. `asked` is 0 where no dq is wanted. */
static long tiles_size(int dim, int asked) {
    const long wide = ceil_div(dim, V) * V, rows = ceil_div(asked, TILE) * TILE;
    return ceil_div(sizeof(Tiles), 64) * 16 + TILE * (9 * wide + 3 * TILE) + rows * wide;
}

static Tiles *place_tiles(float *memory, int dim) {
    Tiles *t = (Tiles *)memory;
    t->wide = ceil_div(dim, V) * V;
    float **wide[] = {&t->q, &t->dy, &t->k, &t->v, &t->k_t, &t->v_t, &t->y, &t->dk, &t->dv};
    float **square[] = {&t->p, &t->mp, &t->ds};
    memory += ceil_div(sizeof(Tiles), 64) * 16;
    for (int i = 0; i < 9; i++, memory += (long)TILE * t->wide) *wide[i] = memory;
    for (int i = 0; i < 3; i++, memory += TILE * TILE) *square[i] = memory;
    t->dq = memory;
    return t;
}

/* c += a b for ROWS rows of c and `columns` vectors; a[r][i] lies at a[r * a_row + i * a_step]. */
INLINE void product_tile(const float *a, long a_row, long a_step, const float *b, long b_row,
                         float *c, long c_row, int inner, int columns) {
    vec sum[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < columns; v++) sum[r][v] = load(c + r * c_row + v * V, V);
    for (int i = 0; i < inner; i++, a += a_step, b += b_row) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < columns; v++) sum[r][v] += a[r * a_row] * load(b + v * V, V);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < columns; v++) store(c + r * c_row + v * V, sum[r][v], V);
}

/* c += a b for ROWS rows of c and `width` columns, a multiple of V. */
static void product(const float *a, long a_row, long a_step, const float *b, long b_row, float *c,
                    long c_row, int inner, int width) {
    int e = 0;
    for (; e + COLUMNS * V <= width; e += COLUMNS * V)
        product_tile(a, a_row, a_step, b + e, b_row, c + e, c_row, inner, COLUMNS);
    if (e < width) product_tile(a, a_row, a_step, b + e, b_row, c + e, c_row, inner, 1);
}

/* `count` rows of `dim` numbers, the first at `at`, into a tile; zeros below and beside them. */
static void read_tile(const Attention *s, float *tile, const void *from, long at, long row,
                      int count, int wide) {
    const int whole = s->dim / V * V, rest = s->dim - whole;
    for (int r = 0; r < count; r++, at += row) {
        float *to = tile + (long)r * wide;
        for (int e = 0; e < whole; e += V) store(to + e, load_from(from, at + e, V, s->half), V);
        if (rest) store(to + whole, load_from(from, at + whole, rest, s->half), V);
    }
    memset(tile + (long)count * wide, 0, (long)(TILE - count) * wide * sizeof(float));
}

static void transpose_tile(const float *tile, float *to, int wide) {
    for (int e = 0; e < wide; e += V)
        for (int r = 0; r < TILE; r += V)
            transpose_block(tile + (long)r * wide + e, wide, to + e * TILE + r, TILE);
}

static void write_tile(const Attention *s, const float *tile, void *to, long at, long row,
                       int count, int wide) {
    const int whole = s->dim / V * V, rest = s->dim - whole;
    for (int r = 0; r < count; r++, at += row) {
        const float *from = tile + (long)r * wide;
        for (int e = 0; e < whole; e += V) store_to(to, at + e, load(from + e, V), V, s->half);
        if (rest) store_to(to, at + whole, load(from + whole, rest), rest, s->half);
    }
}

INLINE int token_of(const Attention *s, int query) { return s->first + query * s->every; }

typedef struct {
    int start, end; /* nothing if end <= start */
} Range;

/* The oldest tile of keys that queries from q0 on see. */
INLINE int first_tile(const Attention *s, int q0) {
    const int oldest = token_of(s, q0) - s->window + 1;
    return oldest > 0 ? oldest / TILE * TILE : 0;
}

/* The columns of the tile of keys from k0 on that a query sees. */
INLINE Range seen(const Attention *s, int query, int k0) {
    const int token = token_of(s, query), oldest = token - s->window + 1;
    return (Range){oldest > k0 ? oldest - k0 : 0, min_int(token + 1 - k0, TILE)};
}

/* The columns of the tile of keys from k0 on that any of ROWS queries sees, in whole vectors. */
INLINE Range columns_seen(const Attention *s, int query, int k0) {
    const int last = min_int(query + ROWS, s->asked) - 1;
    return (Range){seen(s, query, k0).start / V * V, ceil_div(seen(s, last, k0).end, V) * V};
}

/* Which of the `count` queries from q0 on see any of the `keys` tokens from `token` on. */
static Range seeing(const Attention *s, int token, int keys, int q0, int count) {
    const long low = (long)token - s->first, high = low + keys - 1 + s->window - 1;
    const long start = low > 0 ? ceil_div(low, s->every) - q0 : -q0;
    const long end = high < 0 ? 0 : high / s->every + 1 - q0;
    return (Range){start > 0 ? start : 0, end < count ? end : count};
}

/* The dot product of a row of a tile with the row of `dim` numbers at `at`. */
INLINE float dot(const Attention *s, const float *row, const void *other, long at) {
    const int whole = s->dim / V * V, rest = s->dim - whole;
    vec sum = splat(0);
    for (int e = 0; e < whole; e += V)
        sum += load(row + e, V) * load_from(other, at + e, V, s->half);
    if (rest) sum += load(row + whole, rest) * load_from(other, at + whole, rest, s->half);
    return sum_lanes(sum);
}

/* Scores q . k / sqrt(d) * log2(e) of ROWS queries, and -inf where a key is not seen. */
static void scores(const Attention *s, Tiles *t, int query, int r, int k0, Range span) {
    const vec scale = splat(LOG2E / sqrtf(s->dim)), none = splat(-INFINITY);
    float *p = t->p + r * TILE;
    for (int i = 0; i < ROWS; i++) memset(p + i * TILE + span.start, 0, (span.end - span.start) * 4);
    product(t->q + (long)r * t->wide, t->wide, 1, t->k_t + span.start, TILE, p + span.start, TILE,
            t->wide, span.end - span.start);
    for (int i = 0; i < ROWS; i++) {
        const Range one = query + i < s->asked ? seen(s, query + i, k0) : (Range){0, 0};
        for (int j = span.start; j < span.end; j += V) {
            const ivec at = (ivec)count_from(j), in = (at >= one.start) & (at < one.end);
            const vec x = load(p + i * TILE + j, V) * scale;
            store(p + i * TILE + j, (vec)((in & (ivec)x) | (~in & (ivec)none)), V);
        }
    }
}

/* 2^x, and 0 where it is next to nothing: denormal numbers would take a hundred times as long. */
INLINE vec weight_of(vec x) {
    const ivec none = x <= -120.f; /* not where x is NaN, which must show */
    return (vec)(~none & (ivec)exp2_vec(at_least(x, -120.f)));
}

/* m of V keys from j on, for a query of item (b, head). */
INLINE vec mask(const Attention *s, long item, int query, int j) {
    return dropout_vec((item * s->asked + query) * s->length + j, s->seed, s->dropped);
}

/* One query's part of a tile: p <- m exp2(score - largest), with `largest` and `total` brought up to
 * date. Returns what the sums so far are to be multiplied with. */
static float soften(const Attention *s, Tiles *t, long item, int query, int r, int k0, Range span) {
    float *p = t->p + r * TILE;
    const float before = t->largest[r];
    vec most = splat(before);
    for (int j = span.start; j < span.end; j += V) most = larger(most, load(p + j, V));
    const float largest = max_lanes(most);
    if (largest == -INFINITY) { /* nothing seen so far */
        memset(p + span.start, 0, (span.end - span.start) * sizeof(float));
        return 1;
    }
    vec total = splat(0);
    for (int j = span.start; j < span.end; j += V) {
        const vec weight = weight_of(load(p + j, V) - largest);
        total += weight;
        store(p + j, s->dropped ? weight * mask(s, item, query, k0 + j) : weight, V);
    }
    const float shrink = before == -INFINITY ? 0 : exp2f(before - largest);
    t->largest[r] = largest;
    t->total[r] = t->total[r] * shrink + sum_lanes(total);
    return shrink;
}

/* y and log2 of the softmax's denominator of a tile of queries. */
static void forward_tile(const Attention *s, Tiles *t, long item, int q0, void *y, float *lse) {
    const int count = min_int(TILE, s->asked - q0), D = s->heads * s->dim;
    const long b = item / s->heads, column = item % s->heads * s->dim;
    const int start = first_tile(s, q0), end = token_of(s, q0 + count - 1) + 1;
    read_tile(s, t->q, s->q, (b * s->asked + q0) * s->q_row + column, s->q_row, count, t->wide);
    memset(t->y, 0, (long)TILE * t->wide * sizeof(float));
    for (int r = 0; r < TILE; r++) t->largest[r] = -INFINITY, t->total[r] = 0;
    for (int k0 = start; k0 < end; k0 += TILE) {
        const int keys = min_int(TILE, s->length - k0);
        const long row = b * s->length + k0;
        read_tile(s, t->k, s->k, row * s->k_row + column, s->k_row, keys, t->wide);
        read_tile(s, t->v, s->v, row * s->v_row + column, s->v_row, keys, t->wide);
        transpose_tile(t->k, t->k_t, t->wide);
        for (int r = 0; r < count; r += ROWS) {
            const Range span = columns_seen(s, q0 + r, k0);
            if (span.end <= span.start) continue;
            scores(s, t, q0 + r, r, k0, span);
            for (int i = 0; i < ROWS; i++) {
                const float shrink = soften(s, t, item, q0 + r + i, r + i, k0, span);
                float *sum = t->y + (long)(r + i) * t->wide;
                if (shrink != 1 && k0 > start)
                    for (int e = 0; e < t->wide; e++) sum[e] *= shrink;
            }
            product(t->p + r * TILE + span.start, TILE, 1, t->v + (long)span.start * t->wide, t->wide,
                    t->y + (long)r * t->wide, t->wide, span.end - span.start, t->wide);
        }
    }
    for (int r = 0; r < count; r++) {
        const float scale = 1 / t->total[r];
        for (int e = 0; e < t->wide; e++) t->y[(long)r * t->wide + e] *= scale;
        lse[item * s->asked + q0 + r] = t->largest[r] + log2f(t->total[r]);
    }
    write_tile(s, t->y, y, (b * s->asked + q0) * D + column, D, count, t->wide);
}

/* Where a tile of keys from k0 on meets one of queries from q0 on: adds to dq, dk and dv. */
static void backward_tile(const Attention *s, Tiles *t, long item, int q0, int count, int k0,
                          const float *lse) {
    const float scale = 1 / sqrtf(s->dim);
    for (int r = 0; r < count; r += ROWS) {
        const Range span = columns_seen(s, q0 + r, k0);
        if (span.end <= span.start) continue;
        const int width = span.end - span.start;
        float *ds = t->ds + r * TILE + span.start;
        scores(s, t, q0 + r, r, k0, span);
        for (int i = 0; i < ROWS; i++) memset(ds + i * TILE, 0, width * sizeof(float));
        product(t->dy + (long)r * t->wide, t->wide, 1, t->v_t + span.start, TILE, ds, TILE, t->wide,
                width);
        for (int i = 0; i < ROWS; i++) {
            const int query = q0 + r + i, real = query < s->asked;
            const float largest = real ? lse[query] : 0, all = real ? t->delta[r + i] : 0;
            for (int j = span.start; j < span.end; j += V) {
                const long at = (r + i) * TILE + j;
                const vec p = weight_of(load(t->p + at, V) - largest);
                const vec m = s->dropped ? mask(s, item, query, k0 + j) : splat(1);
                store(t->mp + at, p * m, V);
                store(t->ds + at, p * (load(t->ds + at, V) * m - all) * scale, V);
            }
        }
        product(ds, TILE, 1, t->k + (long)span.start * t->wide, t->wide,
                t->dq + (long)(q0 + r) * t->wide, t->wide, width, t->wide);
    }
    /* Transposed: what keys j to j + ROWS get, from the queries that see any of them. */
    for (int j = 0; j < TILE; j += ROWS) {
        const Range r = seeing(s, k0 + j, ROWS, q0, count);
        if (r.end <= r.start) continue;
        product(t->mp + r.start * TILE + j, 1, TILE, t->dy + (long)r.start * t->wide, t->wide,
                t->dv + (long)j * t->wide, t->wide, r.end - r.start, t->wide);
        product(t->ds + r.start * TILE + j, 1, TILE, t->q + (long)r.start * t->wide, t->wide,
                t->dk + (long)j * t->wide, t->wide, r.end - r.start, t->wide);
    }
}

/* dq, dk and dv [batch][tokens][heads * dim] of one head of one row of the batch. */
static void backward_item(const Attention *s, Tiles *t, long item, const void *y, const void *dy,
                          const float *lse, void *dq, void *dk, void *dv, long dk_row) {
    const int D = s->heads * s->dim;
    const long b = item / s->heads, column = item % s->heads * s->dim;
    memset(t->dq, 0, ceil_div(s->asked, TILE) * TILE * t->wide * sizeof(float));
    for (int k0 = 0; k0 < s->length; k0 += TILE) {
        const int keys = min_int(TILE, s->length - k0);
        const long row = b * s->length + k0;
        read_tile(s, t->k, s->k, row * s->k_row + column, s->k_row, keys, t->wide);
        read_tile(s, t->v, s->v, row * s->v_row + column, s->v_row, keys, t->wide);
        transpose_tile(t->k, t->k_t, t->wide);
        transpose_tile(t->v, t->v_t, t->wide);
        memset(t->dk, 0, (long)TILE * t->wide * sizeof(float));
        memset(t->dv, 0, (long)TILE * t->wide * sizeof(float));
        const Range queries = seeing(s, k0, keys, 0, s->asked);
        for (int q0 = queries.start / TILE * TILE; q0 < queries.end; q0 += TILE) {
            const int count = min_int(TILE, s->asked - q0);
            const long first = b * s->asked + q0;
            read_tile(s, t->q, s->q, first * s->q_row + column, s->q_row, count, t->wide);
            read_tile(s, t->dy, dy, first * D + column, D, count, t->wide);
            for (int r = 0; r < count; r++)
                t->delta[r] = dot(s, t->dy + (long)r * t->wide, y, (first + r) * D + column);
            backward_tile(s, t, item, q0, count, k0, lse + item * s->asked);
        }
        write_tile(s, t->dk, dk, row * dk_row + column, dk_row, keys, t->wide);
        write_tile(s, t->dv, dv, row * dk_row + column, dk_row, keys, t->wide);
    }
    write_tile(s, t->dq, dq, b * s->asked * D + column, D, s->asked, t->wide);
}

/* q [batch][asked][heads * dim], k and v [batch][length][heads * dim] -> y like q, contiguous, and
 * lse [batch][heads][asked]. Returns 0, or -1 if memory runs out. */
int attention_forward(const void *q, long q_row, const void *k, long k_row, const void *v,
                      long v_row, void *y, float *lse, uint64_t seed, int dropped, int half,
                      int batch, int heads, int asked, int length, int dim, int first, int every,
                      int window, int threads) {
    const Attention s = {q, k, v, q_row, k_row, v_row, half, batch, heads, asked, length, dim, first,
                         every, window, seed, dropped};
    const long tiles = ceil_div(asked, TILE), each = tiles_size(dim, 0);
    if ((long)batch * heads * asked * dim < SMALL) threads = 1;
    float *memory = aligned_alloc(64, threads * each * sizeof(float));
    if (!memory) return -1;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (long item = 0; item < (long)batch * heads; item++)
        for (long tile = 0; tile < tiles; tile++)
            forward_tile(&s, place_tiles(memory + omp_get_thread_num() * each, dim), item,
                         tile * TILE, y, lse);
    free(memory);
    return 0;
}

/* y, dy and dq are contiguous; dk and dv share a row length. Returns 0, or -1 if memory runs out. */
int attention_backward(const void *dy, const void *y, const float *lse, const void *q, long q_row,
                       const void *k, long k_row, const void *v, long v_row, void *dq, void *dk,
                       void *dv, long dk_row, uint64_t seed, int dropped, int half, int batch,
                       int heads, int asked, int length, int dim, int first, int every, int window,
                       int threads) {
    const Attention s = {q, k, v, q_row, k_row, v_row, half, batch, heads, asked, length, dim, first,
                         every, window, seed, dropped};
    const long each = tiles_size(dim, asked);
    if ((long)batch * heads * asked * dim < SMALL) threads = 1;
    float *memory = aligned_alloc(64, threads * each * sizeof(float));
    if (!memory) return -1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long item = 0; item < (long)batch * heads; item++)
        backward_item(&s, place_tiles(memory + omp_get_thread_num() * each, dim), item, y, dy, lse,
                      dq, dk, dv, dk_row);
    free(memory);
    return 0;
}

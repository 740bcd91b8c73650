/* Selective scan on the CPU, forward and backward.
 *
 *   h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t,    y_t = (C_t h_t + D u_t) silu(z_t)
 *
 * (Mamba, arXiv:2312.00752.) Names as in the paper; lengths: `width` E channels, `states` N states
 * a channel, `length` L time steps.
 *
 * Vectors run over V channels, so the recurrence is elementwise.
 *
 * Memory: forward keeps only the state at the start of every `chunk` steps, in checkpoints
 * [batch][chunk][channel block][N][V]; backward replays one chunk at a time from there. */

#include "simd.h"

#define GROUP 8      /* states worked on together: their h, dL/dh and dA fit the registers */
#define MAX_CHUNK 32 /* most steps between checkpoints */
#define SPAN 16      /* channel blocks of one backward item */

typedef struct {
    const void *u, *z; /* z may be NULL */
    const float *dt, *B, *C;
    int half; /* u, z and what is like them */
    long u_row, dt_row, B_row, C_row, z_row;
    int batch, length, width, states, chunk;
    float *rates; /* A * log2(e), packed [block][N][V] */
    float *skip;  /* D, packed [block][V] */
    const float *initial; /* h before the first step, [batch][E][N]; NULL for zeros */
    float *final;         /* h after the last; NULL where nobody asks */
} Scan;

INLINE long block_count(const Scan *s) { return ceil_div(s->width, V); }

/* Floats needed by pack_parameters. */
static long packed_size(const Scan *s) { return block_count(s) * (s->states + 1) * V; }

static void pack_parameters(Scan *s, const float *A, const float *D, float *memory) {
    const int N = s->states;
    memset(memory, 0, packed_size(s) * sizeof(float));
    s->rates = memory;
    s->skip = memory + block_count(s) * N * V;
    for (int e = 0; e < s->width; e++) {
        for (int n = 0; n < N; n++)
            s->rates[((long)(e / V) * N + n) * V + e % V] = A[(long)e * N + n] * LOG2E;
        s->skip[e] = D[e];
    }
}

INLINE float *checkpoint_at(const Scan *s, float *checkpoints, int b, int chunk, int block, int n) {
    const long chunks = ceil_div(s->length, s->chunk);
    return checkpoints + (((b * chunks + chunk) * block_count(s) + block) * s->states + n) * V;
}

/* All steps of `count` states from n0 on, for one block of channels. `sums` [L][V] collects what the
 * groups add up to; the first group starts it with the skip term, the last one applies the gate. */
INLINE void forward_group(const Scan *s, int b, int block, int n0, int count, int elements, int half,
                          float *sums, void *y, float *checkpoints) {
    const int e = block * V, last = n0 + count == s->states;
    const float *rates = s->rates + ((long)block * s->states + n0) * V;
    const vec skip = load(s->skip + e, V);
    const long state = ((long)b * s->width + e) * s->states + n0; /* of channel e */
    vec h[GROUP] = {{0}};
    if (s->initial)
        for (int n = 0; n < count; n++)
            for (int v = 0; v < elements; v++)
                h[n][v] = s->initial[state + (long)v * s->states + n];
    for (int t = 0; t < s->length; t++) {
        const long row = (long)b * s->length + t;
        const float *B = s->B + row * s->B_row + n0, *C = s->C + row * s->C_row + n0;
        if (checkpoints && t % s->chunk == 0)
            for (int n = 0; n < count; n++)
                store(checkpoint_at(s, checkpoints, b, t / s->chunk, block, n0 + n), h[n], V);
        const vec dt = load(s->dt + row * s->dt_row + e, elements);
        const vec u = load_from(s->u, row * s->u_row + e, elements, half), x = dt * u;
        vec sum = n0 ? load(sums + (long)t * V, V) : skip * u;
#pragma GCC unroll 8
        for (int n = 0; n < count; n++) {
            h[n] = exp2_vec(dt * load(rates + n * V, V)) * h[n] + x * B[n];
            sum += h[n] * C[n];
        }
        if (!last) {
            store(sums + (long)t * V, sum, V);
            continue;
        }
        if (s->z) {
            const vec z = load_from(s->z, row * s->z_row + e, elements, half);
            sum *= z * sigmoid(z);
        }
        store_to(y, row * s->width + e, sum, elements, half);
    }
    if (s->final)
        for (int n = 0; n < count; n++)
            for (int v = 0; v < elements; v++)
                s->final[state + (long)v * s->states + n] = h[n][v];
}

INLINE void forward_block(const Scan *s, int b, int block, int elements, int half, float *sums,
                          void *y, float *checkpoints) {
    int n = 0;
    for (; n + GROUP <= s->states; n += GROUP)
        forward_group(s, b, block, n, GROUP, elements, half, sums, y, checkpoints);
    if (n < s->states)
        forward_group(s, b, block, n, s->states - n, elements, half, sums, y, checkpoints);
}

int scan_block(void) { return V; }

/* u, z and y are `half` or not; y is contiguous. checkpoints may be NULL where no backward follows;
 * chunk <= MAX_CHUNK; initial and final may be NULL. Returns 0, or -1 if memory runs out. */
int scan_forward(const void *u, long u_row, const float *dt, long dt_row, const float *A,
                 const float *B, long B_row, const float *C, long C_row, const float *D,
                 const void *z, long z_row, void *y, float *checkpoints, const float *initial,
                 float *final, int half, int batch, int length, int width, int states, int chunk,
                 int threads) {
    Scan s = {u,     z,     dt,    B,      C,     half,   u_row, dt_row, B_row,   C_row,
              z_row, batch, length, width, states, chunk, NULL,  NULL,   initial, final};
    const long sums = (long)length * V;
    if ((long)batch * length * width * states < SMALL) threads = 1;
    float *memory = aligned_alloc(64, (packed_size(&s) + threads * sums) * sizeof(float));
    if (!memory) return -1;
    pack_parameters(&s, A, D, memory);
    memory += packed_size(&s);
    const int blocks = block_count(&s);
#pragma omp parallel for collapse(2) schedule(dynamic, 4) num_threads(threads)
    for (int b = 0; b < batch; b++)
        for (int block = 0; block < blocks; block++) {
            const int elements = min_int(V, width - block * V);
            float *own = memory + omp_get_thread_num() * sums;
            if (elements == V && half)
                forward_block(&s, b, block, V, 1, own, y, checkpoints);
            else if (elements == V)
                forward_block(&s, b, block, V, 0, own, y, checkpoints);
            else
                forward_block(&s, b, block, elements, half, own, y, checkpoints);
        }
    free(s.rates);
    return 0;
}

/* Where backward puts its results. dB and dC have one part per span, [span][batch][L][N]. */
typedef struct {
    const void *dy;
    float *checkpoints;
    void *du, *dz; /* dz may be NULL */
    float *ddt;
    float *dB, *dC;
    float *dA; /* [group of rows][block][N + 1][V]; row N holds dD */
} Grads;

/* One block of channels over one chunk of time. */
typedef struct {
    vec dt[MAX_CHUNK], x[MAX_CHUNK];     /* x = dt * u */
    vec dsum[MAX_CHUNK];                 /* dL/d(C h + D u) */
    vec dgate[MAX_CHUNK];                /* dy * silu'(z) */
    vec sum[MAX_CHUNK];                  /* C h */
    vec dx[MAX_CHUNK], drate[MAX_CHUNK]; /* dL/dx; dL/d dt through the decay, times log2(e) */
    vec h[MAX_CHUNK + 1][GROUP];         /* h[t] is the state before step t */
    vec decay[MAX_CHUNK][GROUP];
} Work;

/* What a thread needs. dB and dC, still apart by lane, alternate: as two arrays a power of two
 * apart, the store to one would hold up the load from the other. */
typedef struct {
    Work work;
    float *dh;  /* [block of the span][N][V], carried from later chunks */
    float *dBC; /* [MAX_CHUNK][N][2][V] */
    long group; /* of rows, whose dA is being summed */
} Scratch;

/* In floats, with what the pointers point to. */
INLINE long scratch_size(int states) {
    return ceil_div(sizeof(Scratch), 64) * 16 + (long)(SPAN + 2 * MAX_CHUNK) * states * V;
}

static Scratch *place_scratch(float *memory, int states) {
    Scratch *k = (Scratch *)memory;
    k->dh = memory + ceil_div(sizeof(Scratch), 64) * 16;
    k->dBC = k->dh + (long)SPAN * states * V;
    return k;
}

/* Replay `count` states from n0 on through the chunk, then run the adjoint recurrence back:
 *   dh_{t} = C_t dsum_t + decay_{t+1} dh_{t+1}. */
INLINE void backward_group(const Scan *s, Grads *g, Scratch *k, int b, int block, int start,
                           int steps, int n0, int count) {
    const int N = s->states;
    Work *w = &k->work;
    const float *rates = s->rates + ((long)block * N + n0) * V;
    const float *from = checkpoint_at(s, g->checkpoints, b, start / s->chunk, block, n0);
    float *dh_at = k->dh + ((long)(block % SPAN) * N + n0) * V;
    float *dA_at = g->dA + ((k->group * block_count(s) + block) * (N + 1) + n0) * V;
    vec h[GROUP], dh[GROUP], dA[GROUP];

    for (int n = 0; n < count; n++) w->h[0][n] = h[n] = load(from + n * V, V);
    for (int t = 0; t < steps; t++) {
        const long row = (long)b * s->length + start + t;
        const float *B = s->B + row * s->B_row + n0, *C = s->C + row * s->C_row + n0;
        const vec dt = w->dt[t], x = w->x[t];
        vec sum = w->sum[t];
#pragma GCC unroll 8
        for (int n = 0; n < count; n++) {
            const vec decay = exp2_vec(dt * load(rates + n * V, V));
            h[n] = decay * h[n] + x * B[n];
            sum += h[n] * C[n];
            w->decay[t][n] = decay;
            w->h[t + 1][n] = h[n];
        }
        w->sum[t] = sum;
    }

    for (int n = 0; n < count; n++) {
        dh[n] = load(dh_at + n * V, V);
        dA[n] = load(dA_at + n * V, V);
    }
    for (int t = steps - 1; t >= 0; t--) {
        const long row = (long)b * s->length + start + t;
        const float *B = s->B + row * s->B_row + n0, *C = s->C + row * s->C_row + n0;
        float *dBC = k->dBC + ((long)t * N + n0) * 2 * V;
        const vec dt = w->dt[t], x = w->x[t], dsum = w->dsum[t];
        vec dx = w->dx[t], drate = w->drate[t];
#pragma GCC unroll 8
        for (int n = 0; n < count; n++) {
            float *dB = dBC + 2 * n * V, *dC = dB + V;
            vec grad = dh[n] + dsum * C[n];
            store(dB, load(dB, V) + grad * x, V);
            store(dC, load(dC, V) + dsum * w->h[t + 1][n], V);
            dx += grad * B[n];
            dh[n] = grad * w->decay[t][n];
            grad = dh[n] * w->h[t][n]; /* dL/d(dt A) */
            drate += grad * load(rates + n * V, V);
            dA[n] += grad * dt;
        }
        w->dx[t] = dx;
        w->drate[t] = drate;
    }
    for (int n = 0; n < count; n++) {
        store(dh_at + n * V, dh[n], V);
        store(dA_at + n * V, dA[n], V);
    }
}

INLINE void backward_block(const Scan *s, Grads *g, Scratch *k, int b, int block, int start,
                           int steps, int elements, int half) {
    const int N = s->states, e = block * V;
    Work *w = &k->work;
    for (int t = 0; t < steps; t++) {
        const long row = (long)b * s->length + start + t;
        const vec dy = load_from(g->dy, row * s->width + e, elements, half);
        w->dt[t] = load(s->dt + row * s->dt_row + e, elements);
        w->x[t] = w->dt[t] * load_from(s->u, row * s->u_row + e, elements, half);
        w->dsum[t] = dy;
        if (s->z) {
            const vec z = load_from(s->z, row * s->z_row + e, elements, half), gate = sigmoid(z);
            w->dsum[t] = dy * z * gate;
            w->dgate[t] = dy * silu_slope(z, gate);
        }
        w->sum[t] = w->dx[t] = w->drate[t] = splat(0);
    }

    int n = 0;
    for (; n + GROUP <= N; n += GROUP) backward_group(s, g, k, b, block, start, steps, n, GROUP);
    if (n < N) backward_group(s, g, k, b, block, start, steps, n, N - n);

    const vec skip = load(s->skip + e, V);
    float *dD_at = g->dA + ((k->group * block_count(s) + block) * (N + 1) + N) * V;
    vec dD = load(dD_at, V);
    for (int t = 0; t < steps; t++) {
        const long row = (long)b * s->length + start + t, at = row * s->width + e;
        const vec u = load_from(s->u, row * s->u_row + e, elements, half);
        store_to(g->du, at, w->dx[t] * w->dt[t] + w->dsum[t] * skip, elements, half);
        store(g->ddt + at, w->dx[t] * u + w->drate[t] * (1.f / LOG2E), elements);
        if (s->z) store_to(g->dz, at, w->dgate[t] * (w->sum[t] + skip * u), elements, half);
        dD += w->dsum[t] * u;
    }
    store(dD_at, dD, V);
}

/* One row of the batch, one span of channels, all chunks from the last to the first. */
static void backward_item(const Scan *s, Grads *g, Scratch *k, int b, int span) {
    const int N = s->states, first = span * SPAN, end = min_int(first + SPAN, block_count(s));
    memset(k->dh, 0, (long)SPAN * N * V * sizeof(float));
    for (int chunk = ceil_div(s->length, s->chunk) - 1; chunk >= 0; chunk--) {
        const int start = chunk * s->chunk, steps = min_int(s->chunk, s->length - start);
        memset(k->dBC, 0, (long)steps * N * 2 * V * sizeof(float));
        for (int block = first; block < end; block++) {
            const int elements = min_int(V, s->width - block * V);
            if (elements == V && s->half)
                backward_block(s, g, k, b, block, start, steps, V, 1);
            else if (elements == V)
                backward_block(s, g, k, b, block, start, steps, V, 0);
            else
                backward_block(s, g, k, b, block, start, steps, elements, s->half);
        }
        const long row = ((long)span * s->batch + b) * s->length + start;
        for (long i = 0; i < (long)steps * N; i++) {
            g->dB[row * N + i] = sum_elements(load(k->dBC + 2 * i * V, V));
            g->dC[row * N + i] = sum_elements(load(k->dBC + (2 * i + 1) * V, V));
        }
    }
}

/* A few rows of the batch, as one after the other they take no more room for dA than one. */
static void backward_rows(const Scan *s, Grads *g, Scratch *k, int group, int rows, int span) {
    const int first = span * SPAN, end = min_int(first + SPAN, block_count(s));
    const long part = (long)(s->states + 1) * V;
    k->group = group;
    memset(g->dA + (group * block_count(s) + first) * part, 0,
           (end - first) * part * sizeof(float));
    for (int b = group * rows; b < min_int((group + 1) * rows, s->batch); b++)
        backward_item(s, g, k, b, span);
}

/* to[i] = sum over parts, in order. */
static void sum_parts(float *to, const float *parts, long size, int count) {
    memcpy(to, parts, size * sizeof(float));
    for (int part = 1; part < count; part++)
        for (long i = 0; i < size; i++) to[i] += parts[part * size + i];
}

/* Gradients of all inputs from dy, [batch][L][E] contiguous, and the forward call's checkpoints.
 * All outputs are contiguous and overwritten; dy, du and dz are `half` or not, as u and z are.
 * Returns 0, or -1 if memory runs out. */
int scan_backward(const void *dy, const void *u, long u_row, const float *dt, long dt_row,
                  const float *A, const float *B, long B_row, const float *C, long C_row,
                  const float *D, const void *z, long z_row, float *checkpoints, void *du,
                  float *ddt, float *dA, float *dB, float *dC, float *dD, void *dz, int half,
                  int batch, int length, int width, int states, int chunk, int threads) {
    Scan s = {u,     z,     dt,    B,      C,     half,   u_row, dt_row, B_row, C_row,
              z_row, batch, length, width, states, chunk, NULL,  NULL};
    const int N = states, blocks = block_count(&s), spans = ceil_div(blocks, SPAN);
    if ((long)batch * length * width * states < SMALL) threads = 1;

    const int rows = length < MAX_CHUNK ? MAX_CHUNK / (length ? length : 1) : 1;
    const long groups = ceil_div(batch, rows), dA_part = (long)blocks * (N + 1) * V;
    const long matrix = (long)batch * length * N, dA_size = groups * dA_part;
    const long per_thread = scratch_size(N);
    const long parts = spans > 1 ? ceil_div(2 * spans * matrix, 16) * 16 : 0;
    const long total = packed_size(&s) + dA_size + threads * per_thread + parts;
    float *memory = aligned_alloc(64, total * sizeof(float));
    if (!memory) return -1;
    pack_parameters(&s, A, D, memory);
    float *dA_parts = memory + packed_size(&s), *scratch = dA_parts + dA_size;
    float *dB_parts = scratch + threads * per_thread, *dC_parts = dB_parts + spans * matrix;
    Grads g = {dy, checkpoints, du, dz, ddt, spans > 1 ? dB_parts : dB, spans > 1 ? dC_parts : dC,
               dA_parts};

#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long item = 0; item < groups * spans; item++) {
        Scratch *k = place_scratch(scratch + omp_get_thread_num() * per_thread, N);
        backward_rows(&s, &g, k, item / spans, rows, item % spans);
    }
    if (spans > 1) {
        sum_parts(dB, dB_parts, matrix, spans);
        sum_parts(dC, dC_parts, matrix, spans);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int block = 0; block < blocks; block++) {
        float *sum = dA_parts + (long)block * (N + 1) * V; /* the first group's, then everyone's */
        for (long group = 1; group < groups; group++)
            for (int i = 0; i < (N + 1) * V; i++) sum[i] += sum[group * dA_part + i];
        for (int e = block * V; e < min_int(width, (block + 1) * V); e++)
            for (int n = 0; n <= N; n++)
                *(n < N ? dA + (long)e * N + n : dD + e) = groups ? sum[n * V + e % V] : 0;
    }
    free(memory);
    return 0;
}

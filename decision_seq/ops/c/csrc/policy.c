/* A whole step of an acting agent: its inputs embedded, through a stack of blocks and the head.
 *
 * From Python these are some twenty small operations, and what they cost is not their arithmetic: the
 * weights have pushed their code out of the nearer caches by the time they run. */

#include <math.h>

#include "stream.h"

typedef struct { /* filled in by cpu_stream.py in this order, 8 bytes a member */
    const Token *tokens;
    const int64_t *timesteps; /* [lanes] */
    const float *time, *embed_norm, *embed_norm_bias;
    const Layer *layers;
    const float *const *norm; /* after them */
    const float *head, *head_bias; /* [outputs][D] */
    float *y;                      /* [lanes][outputs] */
    int64_t lanes, count, times, width, depth, hidden, outputs;
    int64_t squashed, threads;
} Policy;

/* y = head(stack(embedding)), through tanh if `squashed`. Returns 0, or what failed. */
int policy_step(const Policy *p, float embed_eps, float eps) {
    const long tokens = p->lanes * p->count;
    const long columns = p->lanes < FEW ? 0 : columns_size(p->width, p->outputs);
    float *x = malloc(((tokens + p->lanes) * p->width + columns) * sizeof(float));
    float *features = x + tokens * p->width;
    if (!x) return NO_MEMORY;
    int failed = embed_step(p->tokens, p->timesteps, p->time, p->embed_norm, p->embed_norm_bias,
                            embed_eps, x, p->lanes, p->count, p->width, p->times, 0);
    if (!failed)
        failed = stack_step(x, p->layers, p->depth, p->norm, eps, features, p->lanes, p->count, 1,
                            p->width, p->hidden, p->threads);
    if (!failed)
        linear_rows(features, p->width, p->lanes, p->head, p->head_bias, p->y, p->outputs, p->width,
                    p->outputs, columns ? features + p->lanes * p->width : NULL);
    free(x);
    for (long i = 0; !failed && p->squashed && i < p->lanes * p->outputs; i++) p->y[i] = tanhf(p->y[i]);
    return failed;
}

/* What streaming is made of, from the inputs of one environment step to the prediction. Structures are
 * filled in by cpu_stream.py, 8 bytes a member. */

#ifndef DECISION_SEQ_STREAM_H
#define DECISION_SEQ_STREAM_H

#include "dense.h"

enum { NO_MEMORY = -1, BAD_INDEX = 1 };

typedef struct {         /* a token of every lane */
    const void *value;   /* float [batch][inputs], or int64 [batch]: rows of a table */
    const float *weight; /* [D][inputs], or [table_rows][D] */
    const float *bias;   /* [D], or NULL for a table */
    int64_t inputs, table_rows; /* one of them is 0 */
    int64_t before;             /* how many steps ago, but not before step 0 */
    const float *mean, *std;    /* of the value, [inputs]: taken from it, divided by; NULL for none */
} Token;

typedef struct {                 /* a residual block */
    int64_t mixer;               /* its kind, as mixers.c counts them */
    const float *const *weights; /* of the block, as block.c counts them, then of the mixer */
    const void *state[3];        /* of the mixer, of every lane, before */
    void *new_state[3];          /* and after */
    int64_t sizes[4];            /* of the mixer */
} Layer;

int embed_step(const Token *tokens, const int64_t *timesteps, const float *time, const float *norm,
               const float *norm_bias, float eps, float *y, int batch, int count, int width,
               int times, int bounded);

int stack_step(const float *x, const Layer *layers, int count, const float *const *norm, float eps,
               float *y, int lanes, int length, int read, int width, int hidden, int threads);

#endif

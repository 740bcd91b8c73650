/* What streaming is made of, from the inputs of one environment step to the prediction. */

#ifndef DECISION_SEQ_STREAM_H
#define DECISION_SEQ_STREAM_H

#include "dense.h"

enum { NO_MEMORY = -1, BAD_INDEX = 1 };

typedef struct {         /* a token of every lane; filled in by cpu_stream.py, 8 bytes a member */
    const void *value;   /* float [batch][inputs], or int64 [batch]: rows of a table */
    const float *weight; /* [D][inputs], or [table_rows][D] */
    const float *bias;   /* [D], or NULL for a table */
    int64_t inputs, table_rows; /* one of them is 0 */
    int64_t before;             /* how many steps ago, but not before step 0 */
    const float *mean, *std;    /* of the value, [inputs]: taken from it, divided by; NULL for none */
} Token;

int embed_step(const Token *tokens, const int64_t *timesteps, const float *time, const float *norm,
               const float *norm_bias, float eps, float *y, int batch, int count, int width,
               int times, int bounded);

int stack_step(const float *x, const float *const *weights, float eps, const float *const *conv,
               const float *const *h, float *new_conv, float *new_h, float *y, int layers,
               int normed, int lanes, int length, int read, int width, int channels, int states,
               int taps, int rank, int hidden, int threads);

#endif

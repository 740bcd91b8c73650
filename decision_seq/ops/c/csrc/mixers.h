/* The mixers of blocks that stream by one call. */

#ifndef DECISION_SEQ_MIXERS_H
#define DECISION_SEQ_MIXERS_H

#include "stream.h"

typedef struct { /* some lanes of a layer */
    const Layer *layer;
    const float *const *weights; /* of the mixer */
    int first, lanes;            /* the first of them, and how many */
    int length, read, width;     /* tokens of a lane; of which the last `read` are wanted */
    float *x;                    /* [lanes][length][D], normalised; may be written to */
    float *y;                    /* [lanes][read][D] */
    float *scratch;
    float *all, *some;           /* `columns` of products of all tokens, and of those read */
} Mix;

typedef struct {
    int (*mix)(const Mix *);                            /* fills y and the new state; 0 or NO_MEMORY */
    long (*scratch)(const Layer *, int rows, int width); /* floats, for so many tokens */
    int (*widest)(const Layer *, int width);             /* of its products' inputs and outputs */
} Mixer;

extern const Mixer MIXERS[];

/* Of each lane's `length` rows the last `read`, moved to the front. */
void keep_last(float *rows, int lanes, int length, int read, int width);

/* Where the state of the lanes in `m` begins, of `size` numbers a lane. */
INLINE const float *before(const Mix *m, int which, long size) {
    return (const float *)m->layer->state[which] + m->first * size;
}

INLINE float *after(const Mix *m, int which, long size) {
    return (float *)m->layer->new_state[which] + m->first * size;
}

int mix_attention(const Mix *m); /* in attend.c */
long attention_scratch(const Layer *layer, int rows, int width);
int attention_widest(const Layer *layer, int width);

#endif

/* The mixers that the engine knows: how they lie in the packed block, what they remember of a lane,
 * and how they take in its next tokens. */

#ifndef DECISION_SEQ_MIXERS_H
#define DECISION_SEQ_MIXERS_H

#include "dense.h"

typedef struct Layer Layer;

typedef struct { /* the next tokens of some lanes, row after row, a lane's tokens together */
    int lanes, tokens, read; /* of each lane's `tokens` the last `read` are wanted */
    long passed;             /* tokens of these lanes before */
    float **state;           /* of this layer, by lane */
} Tokens;

typedef struct {
    void (*unpack)(Layer *, const int32_t *sizes, const float **from);
    long (*state)(const Layer *);   /* floats of a lane; zeros are a new one */
    long (*scratch)(const Layer *); /* floats of a token */
    /* x [lanes * tokens][D], normalised and free to be written to -> y [lanes * read][D] */
    void (*mix)(const Layer *, const Tokens *, float *x, float *y, float *scratch);
} Mixer;

struct Layer {
    const Mixer *mixer;
    int width; /* D */
    const float *norm_mixer, *norm_mlp;
    Linear up, down;              /* of the MLP */
    long state;                   /* where in a lane's memory its own begins */
    Linear in, gate, select, out; /* of the mixer; what they are stands there */
    Linear dt;
    const float *filter, *decay, *skip;
    int heads, window, kinds, taps, states;
};

extern const Mixer MIXERS[]; /* in the order of MIXERS in pack.py */

/* Take a matrix [outputs][inputs] and its bias, or `size` floats, from the packed block. */
Linear take_linear(const float **from, int inputs, int outputs);
const float *take(const float **from, long size);

/* Of each lane's rows the last `read`, moved to the front. */
void keep_last(const Tokens *t, float *rows, long row);

#endif

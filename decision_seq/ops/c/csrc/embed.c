/* The tokens of one environment step: of each a linear embedding, or a row of a table, plus the
 * embedding of its timestep, then LayerNorm. */

#include <math.h>

#include "stream.h"

/* to [batch][inputs] = (value - mean) / std */
static void standardise(const Token *t, float *to, int batch) {
    const float *from = t->value;
    for (int b = 0; b < batch; b++, from += t->inputs, to += t->inputs)
        for (int i = 0; i < t->inputs; i++)
            to[i] = (from[i] - (t->mean ? t->mean[i] : 0)) / t->std[i];
}

/* y: the first lane's row; those of the others are y_row apart. */
static int embed_value(const Token *t, float *memory, float *y, long y_row, int batch,
                       int width) {
    if (!t->table_rows) {
        const float *from = t->std ? memory : t->value;
        if (t->std) standardise(t, memory, batch);
        linear_rows(from, t->inputs, batch, t->weight, t->bias, y, y_row, t->inputs, width,
                    batch < FEW ? NULL : memory + (long)batch * t->inputs);
        return 0;
    }
    const int64_t *index = t->value;
    for (int b = 0; b < batch; b++) {
        if (index[b] < 0 || index[b] >= t->table_rows) return BAD_INDEX;
        memcpy(y + b * y_row, t->weight + index[b] * width, width * sizeof(float));
    }
    return 0;
}

static void add_time(const float *row, float *y, int width) {
    for (int e = 0; e < width; e++) y[e] += row[e];
}

/* y [batch][count][D]. timesteps [batch] int64; those beyond the last of the `times` share its
 * embedding. `bounded`: tanh after what is embedded. Returns 0 or what failed. */
int embed_step(const Token *tokens, const int64_t *timesteps, const float *time, const float *norm,
               const float *norm_bias, float eps, float *y, int batch, int count, int width,
               int times, int bounded) {
    const long rows = (long)batch * count;
    const float *const norms[] = {norm, norm_bias};
    int failed = 0, inputs = 1;
    for (int k = 0; k < count; k++) inputs = inputs > tokens[k].inputs ? inputs : tokens[k].inputs;
    const long columns = batch < FEW ? 0 : columns_size(inputs, width);
    float *memory = malloc(((long)batch * inputs + columns) * sizeof(float));
    if (!memory) return NO_MEMORY;
    for (int k = 0; k < count && !failed; k++)
        failed = embed_value(tokens + k, memory, y + (long)k * width, (long)count * width, batch,
                             width);
    free(memory);
    if (failed) return failed;
    for (long i = 0; bounded && i < rows * width; i++) y[i] = tanhf(y[i]);
    for (long row = 0; row < rows; row++) {
        const int64_t step = timesteps[row / count] - tokens[row % count].before;
        add_time(time + (step < 0 ? 0 : step < times ? step : times - 1) * width, y + row * width,
                 width);
    }
    normalise_rows(y, norms, y, rows, width, eps);
    return 0;
}

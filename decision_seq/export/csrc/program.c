/* agent.h for any policy: weights.bin lists operations on numbers in one piece of memory (written by
 * export/c_program.py), and they are carried out one after another, lane by lane. */

#include "agent.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

#include "read_all.h"

enum { AXES = 6, OPERANDS = 4, INDICES = 2, HEAD = 5 };
enum { OBSERVED, REWARD, TARGET, STATE, NOISE }; /* inputs */
enum { ACTED, PREDICTED, NEXT_STATE, OUTPUTS };
enum { F32, F64, I64, BOOL, U8 };
enum { POINTWISE, CONTRACT, CUMSUM, SOFTMAX, LAYER_NORM, ARGMAX, GATHER, SCATTER, SOLVE };

typedef struct {
    int64_t dtype, place, strides[AXES]; /* in numbers */
} Operand;

typedef struct {
    int64_t operation, code, sizes[AXES];
    double number;
    struct {
        int64_t stride, size;
    } step[INDICES]; /* of each indexed axis */
    int64_t count;
    Operand of[OPERANDS]; /* of[0] is made */
} Instruction;

typedef struct {
    int64_t dtype, place, count;
} End;

struct Agent {
    int64_t *words; /* the file */
    long bytes;
    const Instruction *instructions;
    const End *inputs, *outputs;
    int64_t count;
    uint8_t *memory;
    int lanes;
    float *states, *predicted; /* [lanes][state], [lanes][ACTION] */
};

static void *at(uint8_t *memory, const Operand *o) { return memory + o->place; }

static double get(const void *from, int64_t dtype, int64_t i) {
    switch (dtype) {
    case F32: return ((const float *)from)[i];
    case F64: return ((const double *)from)[i];
    case I64: return (double)((const int64_t *)from)[i];
    default: return ((const uint8_t *)from)[i];
    }
}

static void put(void *to, int64_t dtype, int64_t i, double value) {
    switch (dtype) {
    case F32: ((float *)to)[i] = (float)value; break;
    case F64: ((double *)to)[i] = value; break;
    case I64: ((int64_t *)to)[i] = (int64_t)value; break;
    case BOOL: ((uint8_t *)to)[i] = value != 0; break;
    default: ((uint8_t *)to)[i] = (uint8_t)value;
    }
}

/* Where operands are for the row number `row` along the axes before the last `inner`. */
static void seek(const Instruction *c, int inner, int64_t row, int64_t *offsets) {
    memset(offsets, 0, OPERANDS * sizeof *offsets);
    for (int axis = AXES - inner - 1; axis >= 0; axis--) {
        const int64_t i = row % c->sizes[axis];
        row /= c->sizes[axis];
        for (int o = 0; o < c->count; o++) offsets[o] += i * c->of[o].strides[axis];
    }
}

static int64_t rows(const Instruction *c, int inner) {
    int64_t count = 1;
    for (int axis = 0; axis < AXES - inner; axis++) count *= c->sizes[axis];
    return count;
}

/* In the order of POINTWISE in c_program.py; x, y and z are the numbers given. */
#define EVERY(CASE)                                                                            \
    CASE(COPY, x)                                                                              \
    CASE(ADD, x + y)                                                                           \
    CASE(SUB, x - y)                                                                           \
    CASE(MUL, x * y)                                                                           \
    CASE(DIV, x / y)                                                                           \
    CASE(POW, y == 2 ? x * x : pow(x, y))                                                      \
    CASE(REMAINDER, x - floor(x / y) * y)                                                      \
    CASE(MAXIMUM, x < y ? y : x)                                                               \
    CASE(MINIMUM, x > y ? y : x)                                                               \
    CASE(EQ, x == y)                                                                           \
    CASE(GE, x >= y)                                                                           \
    CASE(GT, x > y)                                                                            \
    CASE(LE, x <= y)                                                                           \
    CASE(LT, x < y)                                                                            \
    CASE(AND, x != 0 && y != 0)                                                                \
    CASE(WHERE, x != 0 ? y : z)                                                                \
    CASE(ADDCMUL, x + y * z)                                                                   \
    CASE(EXP, exp(x))                                                                          \
    CASE(TANH, tanh(x))                                                                        \
    CASE(SIGMOID, 1 / (1 + exp(-x)))                                                           \
    CASE(NEG, -x)                                                                              \
    CASE(RELU, x < 0 ? 0 : x)                                                                  \
    CASE(COS, cos(x))                                                                          \
    CASE(SIN, sin(x))                                                                          \
    CASE(SQRT, sqrt(x))                                                                        \
    CASE(ABS, fabs(x))                                                                         \
    CASE(EXPM1, expm1(x))                                                                      \
    CASE(SOFTPLUS, x > 20 ? x : log1p(exp(x)))                                                 \
    CASE(LOG_SIGMOID, (x < 0 ? x : 0) - log1p(exp(-fabs(x))))                                  \
    CASE(GELU, x / 2 * (1 + erf(x * (float)0.70710678118654752)))                              \
    CASE(SILU, x / (1 + exp(-x)))                                                              \
    CASE(RSQRT, 1 / sqrt(x))                                                                   \
    CASE(LOG, log(x))                                                                          \
    CASE(LOG1P, log1p(x))                                                                      \
    CASE(RECIPROCAL, 1 / x)

#define NAME(NAME, VALUE) NAME,
enum { EVERY(NAME) };

static double value_of(int64_t code, double x, double y, double z) {
#define VALUE(NAME, VALUE) case NAME: return VALUE;
    switch (code) { EVERY(VALUE) }
    return NAN;
}

/* n numbers, p[o][i * s[o]] of each operand. */
static void floats(int64_t code, int64_t n, float *const *p, const int64_t *s) {
#define LOOP(NAME, VALUE)                                                                      \
    case NAME:                                                                                 \
        for (int64_t i = 0; i < n; i++) {                                                      \
            const float x = p[1][i * s[1]], y = p[2][i * s[2]], z = p[3][i * s[3]];            \
            (void)y, (void)z;                                                                  \
            p[0][i * s[0]] = VALUE;                                                            \
        }                                                                                      \
        break;
    switch (code) { EVERY(LOOP) }
}

static void pointwise(const Instruction *c, uint8_t *memory) {
    const int64_t n = c->sizes[AXES - 1], count = rows(c, 1);
    const Operand *of[OPERANDS];
    int64_t s[OPERANDS], offset[OPERANDS];
    int all = 1;
    for (int o = 0; o < OPERANDS; o++) {
        of[o] = &c->of[o < c->count ? o : 0];
        s[o] = of[o]->strides[AXES - 1];
        all &= of[o]->dtype == F32;
    }
    for (int64_t row = 0; row < count; row++) {
        float *p[OPERANDS];
        seek(c, 1, row, offset);
        for (int o = (int)c->count; o < OPERANDS; o++) offset[o] = offset[0];
        for (int o = 0; o < OPERANDS && all; o++) p[o] = (float *)at(memory, of[o]) + offset[o];
        if (all) {
            floats(c->code, n, p, s);
            continue;
        }
        for (int64_t i = 0; i < n; i++) {
            double x[OPERANDS];
            for (int o = 1; o < OPERANDS; o++) x[o] = get(at(memory, of[o]), of[o]->dtype, offset[o] + i * s[o]);
            put(at(memory, of[0]), of[0]->dtype, offset[0] + i * s[0], value_of(c->code, x[1], x[2], x[3]));
        }
    }
}

static float dot(const float *a, const float *b, int64_t count) {
    enum { WIDE = 16 };
    float sums[WIDE] = {0}, sum = 0;
    int64_t k = 0;
    for (; k + WIDE <= count; k += WIDE)
        for (int j = 0; j < WIDE; j++) sums[j] += a[k + j] * b[k + j];
    for (; k < count; k++) sum += a[k] * b[k];
    for (int j = 0; j < WIDE; j++) sum += sums[j];
    return sum;
}

/* made[.., n] = bias[.., n] + the sum over k of a[.., n, k] b[.., n, k], over sizes (.., n, k). */
static void contract(const Instruction *c, uint8_t *memory) {
    const int64_t size = c->sizes[AXES - 2], depth = c->sizes[AXES - 1], count = rows(c, 2);
    int64_t offset[OPERANDS], n[OPERANDS], k[OPERANDS];
    for (int o = 0; o < OPERANDS; o++) n[o] = c->of[o].strides[AXES - 2], k[o] = c->of[o].strides[AXES - 1];
    for (int64_t row = 0; row < count; row++) {
        seek(c, 2, row, offset);
        float *made = (float *)at(memory, &c->of[0]) + offset[0];
        const float *a = (float *)at(memory, &c->of[1]) + offset[1];
        const float *b = (float *)at(memory, &c->of[2]) + offset[2];
        const float *bias = c->count > 3 ? (float *)at(memory, &c->of[3]) + offset[3] : NULL;
        if (k[1] == 1 && k[2] == 1) {
            for (int64_t i = 0; i < size; i++)
                made[i * n[0]] = (bias ? bias[i * n[3]] : 0) + dot(a + i * n[1], b + i * n[2], depth);
            continue;
        }
        for (int64_t i = 0; i < size; i++) made[i * n[0]] = bias ? bias[i * n[3]] : 0;
        for (int64_t j = 0; j < depth; j++, a += k[1], b += k[2]) {
            if (n[0] == 1 && n[1] == 0 && n[2] == 1)
                for (int64_t i = 0; i < size; i++) made[i] += a[0] * b[i];
            else
                for (int64_t i = 0; i < size; i++) made[i * n[0]] += a[i * n[1]] * b[i * n[2]];
        }
    }
}

/* What goes along the last axis. */
static void along(const Instruction *c, uint8_t *memory) {
    const int64_t n = c->sizes[AXES - 1], count = rows(c, 1);
    const Operand *of = c->of;
    const int64_t so = of[0].strides[AXES - 1], s = of[1].strides[AXES - 1];
    void *made = at(memory, &of[0]);
    const void *given = at(memory, &of[1]);
    for (int64_t row = 0; row < count; row++) {
        int64_t offset[OPERANDS];
        seek(c, 1, row, offset);
        double sum = 0, most = -INFINITY, mean = 0;
        int64_t best = 0;
#define X(i) get(given, of[1].dtype, offset[1] + (i) * s)
        switch (c->operation) {
        case CUMSUM:
            for (int64_t i = 0; i < n; i++) put(made, of[0].dtype, offset[0] + i * so, sum += X(i));
            break;
        case ARGMAX:
            for (int64_t i = 0; i < n; i++)
                if (X(i) > most) most = X(i), best = i;
            put(made, of[0].dtype, offset[0], (double)best);
            break;
        case SOFTMAX: /* zeros where all are -infinity */
            for (int64_t i = 0; i < n; i++) most = X(i) > most ? X(i) : most;
            for (int64_t i = 0; i < n; i++) sum += most > -INFINITY ? expf((float)(X(i) - most)) : 0;
            for (int64_t i = 0; i < n; i++)
                put(made, of[0].dtype, offset[0] + i * so, sum > 0 ? expf((float)(X(i) - most)) / sum : 0);
            break;
        case LAYER_NORM:
            for (int64_t i = 0; i < n; i++) mean += X(i) / n;
            for (int64_t i = 0; i < n; i++) sum += (X(i) - mean) * (X(i) - mean) / n;
            for (int64_t i = 0; i < n; i++) {
                const double w = get(at(memory, &of[2]), of[2].dtype, offset[2] + i * of[2].strides[AXES - 1]);
                const double b = get(at(memory, &of[3]), of[3].dtype, offset[3] + i * of[3].strides[AXES - 1]);
                put(made, of[0].dtype, offset[0] + i * so, (X(i) - mean) / sqrt(sum + c->number) * w + b);
            }
            break;
        }
    }
}

/* made[i] = given[index(i)], or the other way round: of[0] is what is indexed then. */
static void indexed(const Instruction *c, uint8_t *memory) {
    const int64_t count = rows(c, 0);
    const int source = c->operation == GATHER;
    for (int64_t row = 0; row < count; row++) {
        int64_t offset[OPERANDS];
        seek(c, 0, row, offset);
        for (int o = 2; o < c->count; o++) {
            int64_t i = (int64_t)get(at(memory, &c->of[o]), c->of[o].dtype, offset[o]);
            if (i < 0) i += c->step[o - 2].size;
            offset[source] += i * c->step[o - 2].stride;
        }
        put(at(memory, &c->of[0]), c->of[0].dtype, offset[0],
            get(at(memory, &c->of[1]), c->of[1].dtype, offset[1]));
    }
}

/* x of A x = b, A lower triangular with ones on the diagonal; over sizes (.., n, m, n). */
static void solve(const Instruction *c, uint8_t *memory) {
    const int64_t n = c->sizes[AXES - 3], m = c->sizes[AXES - 2], count = rows(c, 3);
    for (int64_t row = 0; row < count; row++) {
        int64_t offset[OPERANDS];
        seek(c, 3, row, offset);
        float *x = (float *)at(memory, &c->of[0]) + offset[0];
        const float *a = (float *)at(memory, &c->of[1]) + offset[1];
        const float *b = (float *)at(memory, &c->of[2]) + offset[2];
        const int64_t *sx = c->of[0].strides + AXES - 3, *sa = c->of[1].strides + AXES - 3;
        const int64_t *sb = c->of[2].strides + AXES - 3;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < m; j++) {
                float value = b[i * sb[0] + j * sb[1]];
                for (int64_t k = 0; k < i; k++) value -= a[i * sa[0] + k * sa[2]] * x[k * sx[0] + j * sx[1]];
                x[i * sx[0] + j * sx[1]] = value;
            }
    }
}

static void (*const CARRIED_OUT[])(const Instruction *, uint8_t *) = {
    pointwise, contract, along, along, along, along, indexed, indexed, solve};

void agent_close(Agent *a) {
    if (!a) return;
    free(a->words), free(a->memory), free(a->states), free(a->predicted), free(a);
}

Agent *agent_open(const char *weights, int lanes) {
    Agent *a = calloc(1, sizeof *a);
    if (!a || !(a->words = read_all(weights, &a->bytes)) || a->bytes <= HEAD * 8) return agent_close(a), NULL;
    const int64_t *head = a->words;
    a->lanes = lanes, a->count = head[0];
    a->inputs = (const End *)(head + HEAD);
    a->outputs = a->inputs + head[1];
    a->instructions = (const Instruction *)(a->outputs + head[2]);
    a->memory = calloc(1, head[4] ? head[4] : 1);
    a->states = calloc((long)lanes * a->inputs[STATE].count, sizeof(float));
    a->predicted = calloc((long)lanes * ACTION, sizeof(float));
    if (!a->memory || !a->states || !a->predicted) return agent_close(a), NULL;
    memcpy(a->memory, a->instructions + a->count, head[3]);
    return a;
}

void agent_begin(Agent *a, int lane) {
    const int64_t size = a->inputs[STATE].count;
    memset(a->states + lane * size, 0, size * sizeof(float));
}

static void give(Agent *a, int input, const float *values) {
    const End *end = &a->inputs[input];
    for (int64_t i = 0; i < end->count; i++)
        put(a->memory + end->place, end->dtype, i, values ? values[i] : 0);
}

void agent_act(Agent *a, const float *observation, const float *reward, const float *target_return,
               const float *noise, Action *action) {
    for (int b = 0; b < a->lanes; b++) {
        const float target = target_return ? target_return[b] : TARGET_RETURN;
        float *state = a->states + b * a->inputs[STATE].count;
        give(a, OBSERVED, observation + (long)b * OBSERVATION);
        give(a, REWARD, reward + b), give(a, TARGET, &target), give(a, STATE, state);
        if (TEMPERATURE > 0) give(a, NOISE, noise ? noise + (long)b * ACTION : NULL);
        for (int64_t i = 0; i < a->count; i++)
            CARRIED_OUT[a->instructions[i].operation](&a->instructions[i], a->memory);
        const End *out = a->outputs;
        for (int i = 0; i < NUMBERS; i++)
            action[b * NUMBERS + i] = (Action)get(a->memory + out[ACTED].place, out[ACTED].dtype, i);
        memcpy(a->predicted + (long)b * ACTION, a->memory + out[PREDICTED].place, ACTION * sizeof(float));
        memcpy(state, a->memory + out[NEXT_STATE].place, out[NEXT_STATE].count * sizeof(float));
    }
}

const float *agent_predicted(const Agent *a) { return a->predicted; }

long agent_state_bytes(const Agent *a) { return (long)(a->inputs[STATE].count * sizeof(float)); }

long agent_weight_bytes(const Agent *a) { return (long)a->words[3]; }

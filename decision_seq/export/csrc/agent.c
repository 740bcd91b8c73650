#include "agent.h"

#include <stdlib.h>
#include <string.h>

#include "read_all.h"

/* policy.c */
typedef struct Policy Policy;
Policy *policy_open(const void *block, int lanes, int window, int threads);
void policy_reset(Policy *, const uint8_t *begin);
void policy_step(Policy *, const float *observation, const void *action, const float *to_go,
                 float *predicted, int threads);
void policy_close(Policy *);
long policy_bytes(const Policy *);

#if DISCRETE
typedef int64_t Remembered; /* counted from 0 */
#else
typedef float Remembered;
#endif

struct Agent {
    Policy *policy;
    void *weights;
    long bytes;
    int lanes;
    uint8_t *begin, *acted; /* [lanes] */
    float *received, *to_go; /* [lanes], in units of RETURN_SCALE */
    float *predicted;        /* [lanes][ACTION] */
    Remembered *action;      /* [lanes][NUMBERS] */
};

void agent_close(Agent *a) {
    if (!a) return;
    policy_close(a->policy);
    free(a->weights), free(a->begin), free(a->acted), free(a->received), free(a->to_go);
    free(a->predicted), free(a->action), free(a);
}

Agent *agent_open(const char *weights, int lanes) {
    Agent *a = calloc(1, sizeof *a);
    if (!a || !(a->weights = read_all(weights, &a->bytes))) return agent_close(a), NULL;
    a->lanes = lanes;
    a->begin = calloc(lanes, 1), a->acted = calloc(lanes, 1);
    a->received = calloc(lanes, sizeof(float)), a->to_go = calloc(lanes, sizeof(float));
    a->predicted = calloc((long)lanes * ACTION, sizeof(float));
    a->action = calloc((long)lanes * NUMBERS, sizeof *a->action);
    a->policy = policy_open(a->weights, lanes, WINDOW, 1);
    if (!a->begin || !a->acted || !a->received || !a->to_go || !a->predicted || !a->action || !a->policy)
        return agent_close(a), NULL;
    return a;
}

void agent_begin(Agent *a, int lane) {
    a->begin[lane] = 1;
    policy_reset(a->policy, a->begin);
    a->begin[lane] = a->acted[lane] = 0;
    a->received[lane] = 0;
}

static float clip(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* From predictions [ACTION] of a lane to its action, and what is remembered of it. */
static void decode(const float *predicted, const float *noise, Action *action, Remembered *kept) {
#if DISCRETE
    int best = 0;
    float most = 0;
    for (int i = 0; i < ACTION; i++) {
        const float value = noise ? predicted[i] / TEMPERATURE + noise[i] : predicted[i];
        if (!i || value > most) most = value, best = i;
    }
    *action = (Action)clip(best + FIRST_ACTION, LOWEST_ACTION, HIGHEST_ACTION);
    *kept = *action - FIRST_ACTION;
#else
    for (int i = 0; i < ACTION; i++)
        kept[i] = action[i] = clip(predicted[i] * ACTION_SCALE[i], LOWEST_ACTION[i], HIGHEST_ACTION[i]);
    (void)noise;
#endif
}

void agent_act(Agent *a, const float *observation, const float *reward, const float *target_return,
               const float *noise, Action *action) {
    for (int b = 0; b < a->lanes; b++) {
        const float counted = REWARDS_CLIPPED ? clip(reward[b], -1, 1) : reward[b];
        if (a->acted[b] && !RETURNS_DELAYED) a->received[b] += counted / RETURN_SCALE;
        a->to_go[b] = (target_return ? target_return[b] : TARGET_RETURN) / RETURN_SCALE - a->received[b];
        a->acted[b] = 1;
    }
    policy_step(a->policy, observation, a->action, a->to_go, a->predicted, 1);
    for (int b = 0; b < a->lanes; b++)
        decode(a->predicted + (long)b * ACTION, noise ? noise + (long)b * ACTION : NULL,
               action + (long)b * NUMBERS, a->action + (long)b * NUMBERS);
}

const float *agent_predicted(const Agent *a) { return a->predicted; }

long agent_state_bytes(const Agent *a) {
    return policy_bytes(a->policy) + 3 * sizeof(float) + ACTION * sizeof(float) + NUMBERS * sizeof(Remembered);
}

long agent_weight_bytes(const Agent *a) { return a->bytes; }

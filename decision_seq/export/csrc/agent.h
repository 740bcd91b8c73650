/* A trained policy as one object: observations and rewards in, actions out. What it asks for, what has
 * been received and what came before are its own. Nothing is allocated after agent_open. */

#ifndef DECISION_SEQ_AGENT_H
#define DECISION_SEQ_AGENT_H

#include <stdint.h>

#include "config.h" /* OBSERVATION, ACTION, TARGET_RETURN and so on */

#if DISCRETE
typedef int32_t Action; /* [lanes], as the environment counts them */
#else
typedef float Action; /* [lanes][NUMBERS], in the environment's units; policy.json has its parts */
#endif

typedef struct Agent Agent;

/* `lanes` environments side by side, all at an episode's start. NULL: `weights`, a path, cannot be
 * read, or memory is short. */
Agent *agent_open(const char *weights, int lanes);
void agent_close(Agent *);

/* This lane begins an episode; the others are untouched. */
void agent_begin(Agent *, int lane);

/* observation [lanes][OBSERVATION], of several inputs one after another; reward [lanes] of the action
 * before, which counts for nothing at an episode's start; target_return [lanes] in the environment's
 * units, NULL for TARGET_RETURN; noise [lanes][ACTION], standard Gumbel, where TEMPERATURE is not 0, NULL
 * for the likeliest. */
void agent_act(Agent *, const float *observation, const float *reward, const float *target_return,
               const float *noise, Action *action);

/* [lanes][ACTION] what the last actions were made of: vectors in units of their scale, or logits. */
const float *agent_predicted(const Agent *);

/* Bytes that a lane remembers, and of the weights. */
long agent_state_bytes(const Agent *);
long agent_weight_bytes(const Agent *);

#endif

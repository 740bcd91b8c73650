/* A policy as a process that anything can talk to: it reads a reward and an observation a line, and
 * answers each with an action. An empty line begins an episode.
 *
 *   decision-seq export runs/dm --to c --out policy
 *   make -C policy PROGRAM=../examples/controller.c && cd policy && ./controller */

#include <stdio.h>
#include <stdlib.h>

#include "agent.h"

int main(void) {
    Agent *agent = agent_open("weights.bin", 1);
    if (!agent) return fprintf(stderr, "weights.bin: cannot be read\n"), 2;
    char line[65536], *at, *next;
    float observation[OBSERVATION], reward;
    Action action[ACTION];
    while (fgets(line, sizeof line, stdin)) {
        if (*line == '\n') {
            agent_begin(agent, 0);
            continue;
        }
        reward = strtof(line, &at);
        for (int i = 0; i < OBSERVATION; i++, at = next) observation[i] = strtof(at, &next);
        agent_act(agent, observation, &reward, NULL, NULL, action);
        for (int i = 0; i < (DISCRETE ? 1 : ACTION); i++) printf("%.9g ", (double)action[i]);
        printf("\n"), fflush(stdout);
    }
    agent_close(agent);
    return 0;
}

/* Plays a recorded episode (check.bin) through the policy: ./policy check.bin
 * Exits with 1 if what it predicts differs from the record by more than 1e-4. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "agent.h"

enum { TIMED = 20000 }; /* steps, if they take less than a second */

static float *take(float **from, long count) {
    float *here = *from;
    *from += count;
    return here;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

int main(int count, char **words) {
    const char *path = count > 1 ? words[1] : "check.bin", *weights = count > 2 ? words[2] : "weights.bin";
    FILE *file = fopen(path, "rb");
    int32_t steps = 0;
    if (!file || fread(&steps, sizeof steps, 1, file) != 1 || steps < 1) {
        fprintf(stderr, "%s: holds no record\n", path);
        return 2;
    }
    const long row = 3 + OBSERVATION + 2 * ACTION;
    float *record = malloc(steps * row * sizeof(float)), *from = record;
    if (!record || fread(record, sizeof(float), steps * row, file) != (size_t)(steps * row)) {
        fprintf(stderr, "%s: is cut off, or of another policy\n", path);
        return 2;
    }
    fclose(file);
    const float *begins = take(&from, steps), *observation = take(&from, steps * OBSERVATION);
    const float *reward = take(&from, steps), *target = take(&from, steps);
    const float *noise = take(&from, steps * ACTION), *expected = take(&from, steps * ACTION);
    Agent *agent = agent_open(weights, 1);
    if (!agent) {
        fprintf(stderr, "%s: cannot be read, or memory is short\n", weights);
        return 2;
    }
    Action action[ACTION];
    float largest = 0;
    double start = 0;
    long timed = 0;
    for (int round = 0; round < 2 || (timed < TIMED && seconds() - start < 1); round++) {
        if (round == 1) start = seconds();
        for (int t = 0; t < steps; t++, timed += round > 0) {
            if (begins[t] != 0) agent_begin(agent, 0);
            agent_act(agent, observation + (long)t * OBSERVATION, reward + t, target + t,
                      TEMPERATURE > 0 ? noise + (long)t * ACTION : NULL, action);
            for (int i = 0; i < ACTION && !round; i++) {
                const float right = expected[(long)t * ACTION + i];
                const float off = fabsf(agent_predicted(agent)[i] - right) / fmaxf(1, fabsf(right));
                largest = off <= largest ? largest : off; /* NaN stays */
            }
        }
    }
    const double taken = seconds() - start;
    printf("%d steps, largest difference %.3g\n", (int)steps, largest);
    printf("%.2f microseconds a step, %ld bytes of state a lane, %ld of weights\n", 1e6 * taken / timed,
           agent_state_bytes(agent), agent_weight_bytes(agent));
    agent_close(agent), free(record);
    return !(largest <= 1e-4f);
}

"""The same in many environments at once: python examples/vector_env.py runs/dm Hopper-v5 3600"""

import sys

import gymnasium as gym
import numpy as np

from decision_seq.policy import load_policy

run, env_id, target, lanes = sys.argv[1], sys.argv[2], float(sys.argv[3]), 4
same_step = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
envs = gym.make_vec(env_id, lanes, vectorization_mode="sync", vector_kwargs=same_step)
policy = load_policy(run, "stream", target, lanes, action_space=envs.single_action_space)
observations, _ = envs.reset(seed=0)
rewards, totals, returns = None, np.zeros(lanes), []
while len(returns) < 2 * lanes:
    actions = policy.act(observations, rewards)
    observations, rewards, terminated, truncated, _ = envs.step(actions)
    totals += rewards
    done = terminated | truncated
    policy.reset(done)  # what is observed there is a next episode's beginning
    returns += totals[done].tolist()
    totals[done] = 0
print(f"{len(returns)} episodes, mean return {np.mean(returns):.1f}, asked for {target:g}")

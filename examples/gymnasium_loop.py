"""A trained agent in a plain loop: python examples/gymnasium_loop.py runs/dm Hopper-v5 3600"""

import sys

import gymnasium as gym

from decision_seq.policy import load_policy

run, env_id, target = sys.argv[1], sys.argv[2], float(sys.argv[3])
env = gym.make(env_id)
policy = load_policy(run, "stream", target, action_space=env.action_space)
observation, _ = env.reset(seed=0)
reward, total, ended = None, 0.0, False
while not ended:
    observation, reward, terminated, truncated, _ = env.step(policy.act(observation, reward))
    total += float(reward)
    ended = terminated or truncated
print(f"return {total:.1f}, asked for {target:g}")

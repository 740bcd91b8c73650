"""Stable-Baselines3's evaluate_policy: python examples/sb3_evaluate.py runs/dm Hopper-v5 3600"""

import sys

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnvWrapper

from decision_seq.policy import load_policy

run, env_id, target = sys.argv[1], sys.argv[2], float(sys.argv[3])


class NotingRewards(VecEnvWrapper):
    """evaluate_policy hands observations on, but no rewards, which a return-to-go is counted by."""

    def reset(self):
        self.rewards = np.zeros(self.num_envs)
        return self.venv.reset()

    def step_wait(self):
        observations, self.rewards, dones, infos = self.venv.step_wait()
        return observations, self.rewards, dones, infos


class Asked:
    """The policy as Stable-Baselines3 calls it."""

    def __init__(self, envs):
        self.envs = envs
        self.policy = load_policy(run, "stream", target, envs.num_envs)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        rewards = self.envs.rewards
        return self.policy.predict(observation, state, episode_start, deterministic, rewards)


envs = NotingRewards(make_vec_env(env_id, 2))
mean, deviation = evaluate_policy(Asked(envs), envs, n_eval_episodes=4)
print(f"return {mean:.1f} +- {deviation:.1f}, asked for {target:g}")

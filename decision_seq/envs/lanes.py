"""Lanes: many copies of one environment, stepped side by side for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from decision_seq.envs.registry import env_id, make


class Lanes:
    """`count` copies of an environment. A finished lane is frozen: there is no autoreset, so no
    step of a next episode can be counted by mistake.

    Args:
        name: environment name or gymnasium id.
        count: number of lanes.
    """

    def __init__(self, name: str, count: int) -> None:
        self.id = env_id(name)
        self.envs = [make(name) for _ in range(count)]
        self.action_space = self.envs[0].action_space
        shape = self.envs[0].observation_space.shape or ()
        self._observations = np.zeros((count, *shape), np.float32)

    @property
    def limit(self) -> int | None:
        """Steps after which the environment itself ends an episode; None if it names no limit."""
        spec = self.envs[0].spec
        return spec.max_episode_steps if spec else None

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in every lane, lane i from `seeds[i]`. Returns [lanes, S] float32."""
        for lane, seed in enumerate(seeds):
            self._observations[lane] = self.envs[lane].reset(seed=int(seed))[0]
        return self._observations.copy()

    def step(
        self, actions: np.ndarray, active: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step the lanes where `active` [lanes] is True with `actions` [lanes, ...].

        Returns observations [lanes, S], rewards [lanes], terminated [lanes], truncated [lanes];
        a frozen lane repeats its last observation with reward 0.
        """
        rewards = np.zeros(len(self.envs), np.float64)
        terminated, truncated = np.zeros((2, len(self.envs)), bool)
        discrete = isinstance(self.action_space, spaces.Discrete)
        for lane in np.flatnonzero(active):
            # a copy, which an environment may clip in place
            action = int(actions[lane]) if discrete else actions[lane].copy()
            observation, reward, terminated[lane], truncated[lane], _ = self.envs[lane].step(action)
            self._observations[lane], rewards[lane] = observation, reward
        return self._observations.copy(), rewards, terminated, truncated

    def close(self) -> None:
        """Free the simulators."""
        for env in self.envs:
            env.close()

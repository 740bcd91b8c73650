"""PointRun: a tiny environment whose return a policy can choose, for fast tests and first steps."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PointRun(gym.Env[np.ndarray, np.ndarray]):
    """A point on a line runs for 20 steps; the reward of a step is how far it ran to the right.

    Observation: [position / 10, a distractor in [-1, 1]]. Action: [speed] in [-1, 1].
    The episode terminates where the point falls off the left edge, below -1. Running at speed
    R / 20 achieves any return R in [0, 20], so following a target return is easy to measure.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._position = float(self.np_random.uniform(-0.1, 0.1))
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        speed = float(np.clip(np.asarray(action).reshape(-1)[0], -1.0, 1.0))
        self._position += speed
        return self._observe(), speed, self._position < -1.0, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([self._position / 10, self.np_random.uniform(-1, 1)], np.float32)

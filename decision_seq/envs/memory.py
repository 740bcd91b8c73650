"""Memory: a tiny environment whose reward needs a cue from the episode's first observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_seq.errors import UserError

LAGS = (8, 16, 32, 64, 128)  # those with a name, memory-8 and so on


class Memory(gym.Env[np.ndarray, np.ndarray]):
    """A T-maze of `lag` steps: the first observation says which way to turn at its end.

    Observation: [cue, distractor, question]. The cue is -1 or 1 in the first observation and 0
    afterwards, the distractor uniform in [-1, 1] always, the question 1 in the last observation,
    `lag` steps after the first, and 0 before. Action: [way] in [-1, 1]; only the answer to the
    question counts. Its reward is 1 if it has the cue's sign (0 counts as positive), else 0, and
    it ends the episode, which so has `lag` + 1 steps.

    Nothing in between depends on the cue, so every policy that does not remember the first
    observation has a mean return of exactly 0.5.
    """

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, lag: int = 32) -> None:
        if lag < 1:
            raise UserError(f"lag is {lag}; the question comes at least 1 step after the cue")
        self.lag = lag

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._time = 0
        self._cue = float(self.np_random.choice((-1.0, 1.0)))
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._time < self.lag:
            self._time += 1
            return self._observe(), 0.0, False, False, {}
        positive = float(np.asarray(action).reshape(-1)[0]) >= 0
        reward = float(positive == (self._cue > 0))
        return self._observe(), reward, True, False, {}

    def _observe(self) -> np.ndarray:
        cue = self._cue if self._time == 0 else 0.0
        question = float(self._time == self.lag)
        return np.array([cue, self.np_random.uniform(-1, 1), question], np.float32)

"""Scripted players of the toy environments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RIGHT = 0.75  # share of `often_right`'s answers


def steady_runner(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Behaviour policy of PointRun: one speed for the episode, and a little noise every step."""
    speed = rng.uniform(0.0, 1.0)

    def act(_observation: np.ndarray) -> np.ndarray:
        noisy = speed + 0.05 * rng.standard_normal(1)
        return np.clip(noisy, -1.0, 1.0).astype(np.float32)  # [A]

    return act


def often_right(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Behaviour policy of Memory: 0 until the question, then right three times of four.

    Neither its returns nor its actions before the answer tell the cue. (Were it right half of the
    time, the answer would be independent of cue and of return alone: an exclusive or, which takes
    gradient descent several times as long to find, and has nothing to do with memory.)
    """
    cue = 0.0

    def act(observation: np.ndarray) -> np.ndarray:
        nonlocal cue
        cue = float(observation[0]) or cue
        answer = cue if rng.random() < RIGHT else -cue
        return np.array([answer if observation[2] > 0 else 0.0], np.float32)  # [A]

    return act


def perfect_walker(_rng: np.random.Generator) -> Callable[[np.ndarray], np.int64]:
    """Behaviour policy of TMaze: along the corridor, and at its junction to the goal's side."""
    goal = 0.0

    def act(observation: np.ndarray) -> np.int64:
        nonlocal goal
        _, hint, junction, _ = observation
        goal = float(hint) or goal
        turn = 1 if goal > 0 else 3
        return np.int64(turn if junction else 0)

    return act

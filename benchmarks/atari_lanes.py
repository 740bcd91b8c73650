"""Stepping Atari games: one and several lanes of ours, beside gymnasium's own wrappers.

    python benchmarks/atari_lanes.py [--steps 500] [--runs 3]

Random actions in Pong, 4 frames a step, 84x84, stacks of four. Median environment steps a second
over the runs, by the clock and by processor time, which other work on a machine changes less.
Gymnasium's AtariPreprocessing and FrameStackObservation do what the papers' code does: one game, in
Python.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from decision_seq.envs.fastest import open_lanes

LANES = (1, 4, 16)


def lanes_stepper(count: int) -> Callable[[np.random.Generator], int]:
    """Steps all lanes once; returns how many steps that is. No game ends within 750 steps."""
    lanes = open_lanes("pong", count)
    lanes.reset(range(count))
    active = np.ones(count, bool)

    def step(rng: np.random.Generator) -> int:
        lanes.step(rng.integers(6, size=count), active)
        return count

    return step


def wrapped_stepper() -> Callable[[np.random.Generator], int]:
    """The same by gymnasium."""
    gym.register_envs(ale_py)
    plain = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    env = FrameStackObservation(AtariPreprocessing(plain), 4, padding_type="zero")
    env.reset(seed=0)

    def step(rng: np.random.Generator) -> int:
        env.step(rng.integers(6))
        return 1

    return step


def rates(
    make: Callable[[], Callable[[np.random.Generator], int]], steps: int
) -> tuple[float, float]:
    """Environment steps a second of the clock, and of the processor."""
    step, rng = make(), np.random.default_rng(0)
    clock, processor = time.perf_counter(), time.process_time()
    done = sum(step(rng) for _ in range(steps))
    return done / (time.perf_counter() - clock), done / (time.process_time() - processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    ways: dict[str, Callable[[], Callable[[np.random.Generator], int]]]
    ways = {"gymnasium's wrappers": wrapped_stepper}
    ways |= {f"{count} lanes": partial(lanes_stepper, count) for count in LANES}
    print(f"{'':24}{'steps/s':>10}{'steps/s of processor':>24}")
    for name, make in ways.items():
        results = [rates(make, options.steps) for _ in range(options.runs)]
        clock, processor = np.median(results, axis=0)
        print(f"{name:24}{clock:10.0f}{processor:24.0f}")


if __name__ == "__main__":
    main()

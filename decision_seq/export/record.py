"""Steps of real episodes by the reference engine: what an exported policy is held against."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.agents import SequenceAgent
from decision_seq.envs.lanes import Lanes
from decision_seq.export.observed import Observed
from decision_seq.files import atomic_file
from decision_seq.policy import Policy
from decision_seq.policy.policy import gumbel_noise
from decision_seq.settings import Context

STEPS = 200
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Record:
    """T steps, one episode after another. An array an input, and a field, of check.npz."""

    begins: np.ndarray  # [T] bool, where an episode begins
    observations: dict[str, np.ndarray]  # by input, [T, ...] each: see `Observed`
    reward: np.ndarray  # [T] float32, of the step before; 0 where an episode begins
    target_return: np.ndarray  # [T] float32
    noise: np.ndarray  # [T, A] float32, of sampled actions; zeros for others
    prediction: np.ndarray  # [T, A] float32: vectors in units of their scale, or logits
    action: np.ndarray  # [T, A] or [T, W] float32, or [T] int64, as the environment took it

    def save(self, path: Path) -> None:
        """Write check.npz."""
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            fields: dict[str, Any] = self.observations | vars(self)
            del fields["observations"]
            np.savez_compressed(file, **fields)

    def step(self, t: int) -> dict[str, np.ndarray]:
        """Inputs of step t by name, [1, ...] each."""
        named = {name: getattr(self, name) for name in ("reward", "target_return", "noise")}
        return {name: values[t : t + 1] for name, values in (self.observations | named).items()}


# one lane: inputs by name, [1, ...] each -> prediction and state, [1, A] and [1, N]
Step = Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]


def play(
    agent: SequenceAgent,
    lanes: Lanes,
    context: Context,
    target: float,
    seed: int = 0,
    steps: int = STEPS,
) -> Record:
    """`steps` of `agent`, by PyTorch's operations in float32, in an environment of one lane."""
    agent = copy.deepcopy(agent).float().cpu()
    wanted = target if agent.config.follows_target else None
    policy = Policy(agent, context, wanted, 1, [seed], lanes.action_space, engine="eager")
    sampled, size = agent.config.temperature > 0, agent.spec.action_dim
    rows: list[tuple] = []
    observation, reward, ended = np.empty(0), np.zeros(1), True
    while len(rows) < steps:
        begins = ended
        if begins:
            observation, reward = lanes.reset([seed + sum(row[0] for row in rows)]), np.zeros(1)
            policy.reset()
        draws = gumbel_noise(policy.seed, policy.timestep, size) if sampled else np.zeros((1, size))
        policy.send(observation, reward)
        action = policy.receive()
        noted = (observation[0], reward[0], target, draws[0], policy.predicted[0], action[0])
        rows.append((begins, *noted))
        observation, reward, terminated, truncated = lanes.step(action, np.ones(1, bool))
        ended = bool(terminated[0] or truncated[0])
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    wide = [c.astype(np.float32) if c.dtype == np.float64 else c for c in columns]
    begun, seen, *others = wide
    return Record(begun, Observed(agent.spec, agent.config.frame_stack).split(seen), *others)


def largest_difference(record: Record, step: Step, state_size: int) -> float:
    """Between what was predicted and what `step` predicts of the same, in units of the number where
    that is above 1."""
    state = np.zeros((1, state_size), np.float32)
    largest = 0.0
    for t, expected in enumerate(record.prediction):
        state = np.zeros_like(state) if record.begins[t] else state
        prediction, state = step(record.step(t) | {"state": state})
        off = np.abs(prediction[0] - expected) / np.maximum(1, np.abs(expected))
        largest = float(np.maximum(largest, off.max()))  # NaN stays
    return largest

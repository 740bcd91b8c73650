"""Rollouts: targets x episodes as parallel lanes of one environment, one row an episode."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces

from decision_seq.agents import SequenceAgent
from decision_seq.agents.base import Context
from decision_seq.agents.fit import check_fit
from decision_seq.envs.reference_scores import normalized_score
from decision_seq.envs.registry import Lanes
from decision_seq.errors import UserError


@dataclass(frozen=True)
class Episode:
    """What one lane did."""

    target: float | None  # return asked for, None for an agent that takes none
    env_seed: int
    episode_return: float
    length: int
    normalized_score: float | None
    milliseconds_per_step: float  # wall time of one step of all lanes, agent and environments


def rollout(
    agent: SequenceAgent,
    env: str,
    targets: Sequence[float],
    episodes: int,
    seed: int,
    context: Context,
    on_step: Callable[[int, int], None] = lambda done, lanes: None,
) -> list[Episode]:
    """Run `episodes` whole episodes for each target return, side by side.

    Episode i of every target starts from environment seed `seed + i`: what a lane meets depends
    neither on how many lanes run beside it nor on the target, so agents can be compared in pairs.

    Args:
        agent: in eval mode.
        env: environment name or gymnasium id.
        targets: returns to ask for; ignored by an agent that takes none.
        episodes: number for each target.
        seed: of the first episode.
        context: "window" or "stream".
        on_step: called after every step with (finished lanes, lanes).

    Raises:
        UserError: the agent does not fit the environment, or has no target to follow.
    """
    conditioned = agent.config.follows_target
    if conditioned and not targets:
        raise UserError("this agent follows a target return; name at least one with --targets")
    wanted = [float(t) for t in targets] if conditioned else [None]
    lane_targets = [t for t in wanted for _ in range(episodes)]
    lane_seeds = [seed + i for _ in wanted for i in range(episodes)]
    lanes = Lanes(env, len(lane_seeds))
    try:
        check_fit(agent.spec, lanes.envs[0])
        returns, lengths, milliseconds = _run(
            agent, lanes, lane_targets, lane_seeds, context, on_step
        )
    finally:
        lanes.close()
    return [
        Episode(
            target=lane_targets[i],
            env_seed=lane_seeds[i],
            episode_return=float(returns[i]),
            length=int(lengths[i]),
            normalized_score=normalized_score(lanes.id, float(returns[i])),
            milliseconds_per_step=round(float(milliseconds[i] / lengths[i]), 4),
        )
        for i in range(len(lane_seeds))
    ]


def _run(
    agent: SequenceAgent,
    lanes: Lanes,
    targets: list[float | None],
    seeds: list[int],
    context: Context,
    on_step: Callable[[int, int], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, lengths and milliseconds of every lane's episode, each [lanes]."""
    count = len(seeds)
    target = None if targets[0] is None else torch.tensor(targets, dtype=torch.float32)
    state = agent.init_state(count, context, target, torch.tensor(seeds))
    shape = (count,) if agent.spec.discrete else (count, agent.spec.action_dim)
    action = torch.zeros(shape, dtype=torch.int64 if agent.spec.discrete else torch.float32)
    rewards = np.zeros(count)
    returns, lengths, milliseconds = np.zeros(count), np.zeros(count, np.int64), np.zeros(count)
    active = np.ones(count, bool)
    observations = lanes.reset(seeds)
    while active.any():
        start = time.perf_counter()
        action, state = agent.act(
            torch.from_numpy(observations),
            action,
            torch.from_numpy(rewards.astype(np.float32)),
            state,
        )
        observations, rewards, terminated, truncated = lanes.step(
            _to_environment(action, lanes.action_space), active
        )
        milliseconds[active] += 1e3 * (time.perf_counter() - start)
        returns[active] += rewards[active]
        lengths[active] += 1
        active &= ~(terminated | truncated)
        on_step(count - int(active.sum()), count)
    return returns, lengths, milliseconds


def _to_environment(action: torch.Tensor, space: spaces.Space) -> np.ndarray:
    values = action.cpu().numpy()
    return np.clip(values, space.low, space.high) if isinstance(space, spaces.Box) else values

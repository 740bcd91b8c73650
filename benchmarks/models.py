"""The models and data that the benchmarks share: Decision Transformer's Gym setting.

Batch 64, K = 20 steps of 3 tokens, 3 layers, width 128, dropout 0.1, Hopper's widths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from decision_seq.agents import AgentSpec, SequenceAgent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.data.episodes import from_flat
from decision_seq.data.store import EpisodeStore, returns_to_go
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import WindowSampler
from decision_seq.run_config import TrainConfig
from decision_seq.training.faults import FiniteGuard
from decision_seq.training.optim import make_optimizer
from decision_seq.training.random import RandomStream
from decision_seq.training.step import Learner

BATCH, STEPS, TOKENS, WIDTH, LAYERS = 64, 20, 60, 128, 3
OBSERVATIONS, ACTIONS, EPISODE, EPISODES = 11, 3, 1000, 200


def agent(
    backbone: str, observations: int = OBSERVATIONS, actions: int = ACTIONS, **fields: object
) -> SequenceAgent:
    """Untrained; a decision-transformer or decision-mamba of the Gym setting."""
    torch.manual_seed(0)
    config = ReturnConditionedConfig(
        returns=ReturnSpec(scale=1000.0),
        backbone=BackboneConfig.registry[backbone](width=WIDTH, layers=LAYERS, **fields),  # type: ignore[arg-type]
    )
    spec = AgentSpec((observations,), actions, discrete=False, max_timestep=EPISODE - 1)
    return config.agent(config, spec)


def learner(agent: SequenceAgent, settings: TrainConfig) -> Learner:
    """What `decision-seq train` begins with."""
    guard = FiniteGuard(0, agent.device)
    loss_sum, loss_count = torch.zeros(2, device=agent.device)
    optimizer, random = make_optimizer(agent, settings), RandomStream(0, agent.device)
    return Learner(agent, agent, optimizer, guard, loss_sum, loss_count, random=random)


def store() -> EpisodeStore:
    """200 episodes of 1000 steps, noise."""
    rng = np.random.default_rng(0)
    steps = EPISODE * EPISODES
    ends = np.arange(1, steps + 1) % EPISODE == 0
    episodes = from_flat(
        "noise",
        rng.standard_normal((steps, OBSERVATIONS), dtype=np.float32),
        rng.uniform(-1, 1, (steps, ACTIONS)).astype(np.float32),
        rng.standard_normal(steps, dtype=np.float32),
        np.zeros(steps, bool),
        ends,
        {},
    )
    offsets = np.arange(EPISODES + 1) * EPISODE
    return EpisodeStore(
        observations=episodes.observations,
        actions=episodes.actions,
        rewards=episodes.rewards,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
        returns_to_go=returns_to_go(episodes.rewards, offsets),
        timesteps=np.tile(np.arange(EPISODE), EPISODES),
        offsets=offsets,
        info={},
        hash="",
        name="noise",
    )


def sampler(data: EpisodeStore, device: str) -> WindowSampler:
    """Ours, over all episodes."""
    return WindowSampler(
        data, np.arange(data.episodes), STEPS, ReturnSpec(scale=1000.0), 0, torch.device(device)
    )


@contextmanager
def scan_backend(name: str | None) -> Iterator[None]:
    """Scans by this backend only; None: by the best."""
    import os

    before = os.environ.pop("DECISION_SEQ_SCAN", None)
    if name:
        os.environ["DECISION_SEQ_SCAN"] = name
    try:
        yield
    finally:
        os.environ.pop("DECISION_SEQ_SCAN", None)
        if before:
            os.environ["DECISION_SEQ_SCAN"] = before

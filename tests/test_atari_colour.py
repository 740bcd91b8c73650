"""Minari's Atari data: colour frames as JPEG, and lanes that show the same pixels."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_agents import tiny_run

from decision_seq.agents import load_agent
from decision_seq.data.store import open_store
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.eval.rollout import rollout
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

ale_py = pytest.importorskip("ale_py")
STEPS = 12


def recorded(dataset_id: str) -> np.ndarray:
    """A dataset as Minari's own writer makes them, JPEG by default. Returns what was seen."""
    import minari
    from minari.data_collector import EpisodeBuffer

    gym.register_envs(ale_py)
    env = gym.make("ALE/Breakout-v5")
    buffers, seen = [], []
    for number in range(2):
        frames = [env.reset(seed=number)[0]]
        actions = [1, *np.random.default_rng(number).integers(4, size=STEPS - 1).tolist()]
        rewards = []
        for action in actions:
            frame, reward, *_ = env.step(action)
            frames.append(frame)
            rewards.append(float(reward))
        cut = [False] * (STEPS - 1) + [True]
        buffers.append(
            EpisodeBuffer(
                id=number,
                seed=number,
                observations=np.stack(frames),
                actions=np.array(actions),
                rewards=rewards,
                terminations=[False] * STEPS,
                truncations=cut,
            )
        )
        seen += frames[:-1]
    minari.create_dataset_from_buffers(
        dataset_id, buffers, env=env, algorithm_name="random", author="x", author_email="x@y"
    )
    return np.stack(seen)


def test_the_lane_shows_what_ale_shows() -> None:
    gym.register_envs(ale_py)
    theirs = gym.make("ALE/Breakout-v5", repeat_action_probability=0.0)
    ours = make("breakout?colour=true")
    frame, own = theirs.reset(seed=3)[0], ours.reset(seed=3)[0]
    for action in (1, 2, 2, 3, 0, 3, 1, 2):
        np.testing.assert_array_equal(frame, own)
        frame, own = theirs.step(action)[0], ours.step(action)[0]
    assert own.shape == (210, 160, 3) and own.std(axis=-1).max() > 20  # in colour


def test_from_minari_to_a_rollout(tmp_path: Path) -> None:
    seen = recorded("atari/breakout/random-v0")
    store = open_store(["atari/breakout/random-v0"])
    assert store.observations.shape == (2 * STEPS, 210, 160, 3)
    # JPEG changes pixels a little, most of all at the edges of bricks
    assert np.abs(store.observations.astype(int) - seen).mean() < 3
    assert store.info["images"] == "jpeg" and store.info["env_id"] == "Atari/Breakout-sticky-v0"
    with pytest.raises(UserError, match=r"`breakout-sticky\?colour=true`"):
        train(
            tiny_run("breakout", "atari/breakout/random-v0"), tmp_path / "no", torch.device("cpu")
        )
    coloured = tiny_run("breakout-sticky?colour=true", "atari/breakout/random-v0")
    train(coloured, tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run"))
    (row,) = rollout(agent, str(coloured.env), [3.0], 1, 0, "window", max_steps=3)
    assert row.length == 3

"""MiniGrid's Memory: its player, and data from it that an agent learns and acts on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_agents import tiny_run

from decision_seq.agents import load_agent
from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.data.store import open_store
from decision_seq.data.tools.collect import collect
from decision_seq.data.tools.info import summarize
from decision_seq.envs.registry import make
from decision_seq.eval.rollout import rollout
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

pytest.importorskip("minigrid", reason="the extra `memory` is not installed")

NAME = "minigrid:MiniGrid-MemoryS7-v0"
KEY, BALL = 5, 6  # MiniGrid's numbers of what a cell holds


@pytest.mark.parametrize("name", [NAME, "minigrid:MiniGrid-MemoryS13Random-v0"])
def test_the_player_sees_the_object_and_goes_to_its_like(name: str) -> None:
    behaviour, provenance = behaviour_for(name, "expert", None)
    assert provenance == {"behaviour": "scripted, always right", "tier": "expert"}
    env = make(name)
    first = set()
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        hint = env.unwrapped.grid.get(1, env.unwrapped.height // 2 - 1).type  # type: ignore[attr-defined]
        act, ended, reward, in_sight = behaviour(np.random.default_rng(0), env), False, 0.0, set()
        while not ended:
            facing_back = env.unwrapped.agent_dir == 2  # type: ignore[attr-defined]
            if facing_back:
                in_sight |= set(np.unique(observation["image"][..., 0])) & {KEY, BALL}
            observation, received, terminated, truncated, _ = env.step(act(observation))
            reward, ended = float(received), terminated or truncated
        assert reward > 0 and not truncated
        assert in_sight == {KEY if hint == "key" else BALL}  # it could be told from what was seen
        first.add(hint)
    assert first == {"key", "ball"}


def test_from_its_data_to_an_agent(tmp_path: Path) -> None:
    behaviour, provenance = behaviour_for(NAME, "expert", None)
    collect(NAME, behaviour, 60, "toy/recall-v0", 0, provenance)
    store = open_store(["toy/recall-v0"])
    assert store.episode_returns.min() > 0.9
    config = tiny_run(NAME, "toy/recall-v0", leave_out=["mission"])
    train(config, tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run"))
    named = str(summarize(store)["env_id"])  # which commands take
    rows = rollout(agent, named, [1.0], 2, 0, "stream", max_steps=9)
    assert [row.length for row in rows] == [9, 9]

"""MiniGrid's tasks in colour pictures: what is seen, what is refused, from players to a rollout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_agents import tiny_run

from decision_seq.agents import load_agent
from decision_seq.behaviours.tiers import uniform
from decision_seq.data.store import open_store
from decision_seq.data.tools.check import check, read
from decision_seq.data.tools.collect import collect
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.eval.rollout import rollout
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

pytest.importorskip("minigrid")
NAME = "minigrid-pixels?task=MiniGrid-DoorKey-5x5-v0&max_episode_steps=9"


def test_the_view_is_the_agents_or_the_rooms() -> None:
    own, room = make("minigrid-pixels"), make("minigrid-pixels?view=all&tile=6")
    assert own.observation_space.shape == (56, 56, 3)
    assert room.observation_space.shape == (36, 36, 3)
    seen = own.reset(seed=1)[0]
    turned = own.step(0)[0]
    assert seen.shape == (56, 56, 3) and (seen != turned).any()
    assert (make("minigrid-pixels").reset(seed=1)[0] == seen).all()  # determined by its seed
    green = room.reset(seed=1)[0][..., 1].astype(int) - room.reset(seed=1)[0][..., 0]
    assert (green > 150).sum() >= 20  # the goal, a square of 6 x 6 pixels, in colour


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minigrid-pixels?task=CartPole-v1", "minigrid has no task of that name"),
        ("minigrid-pixels?view=none", "view is 'none'; it must be agent or all"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(name)


def test_from_random_players_to_a_rollout(tmp_path: Path) -> None:
    source = "grid/doors-v0"
    collect(NAME, uniform, 20, source, 0, {"behaviour": "random", "tier": "random"})
    assert [f for f in check(read([source]), make(NAME)) if f.severity != "note"] == []
    store = open_store([source])
    assert store.observations.shape[1:] == (56, 56, 3) and store.observations.dtype == np.uint8
    train(tiny_run(NAME, source), tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run"))
    (row,) = rollout(agent, NAME, [0.9], 1, 0, "window")
    assert row.length == 9

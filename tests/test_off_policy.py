"""Fitted Q evaluation: values that are known exactly, and an agent's on its own data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_npz

from decision_seq.agents import load_agent
from decision_seq.api.estimates import off_policy
from decision_seq.data.episodes import from_flat
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.errors import UserError
from decision_seq.run_config import run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train
from decision_seq.values.critic import ValuesConfig
from decision_seq.values.off_policy import actions_on_data, estimate, fitted_q
from decision_seq.values.transitions import Transitions

GAMMA = 0.9
# P(next | state, action): the third state is the end; rewards by state and action
NEXT = np.array([[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], [[0.5, 0.4, 0.1], [0.0, 0.7, 0.3]]])
REWARD = np.array([[0.0, 1.0], [2.0, -1.0]])


def exact(policy: np.ndarray) -> float:
    """Value of [2, 2] action probabilities from the first state, by linear equations."""
    move = np.einsum("sa,sat->st", policy, NEXT)[:, :2]
    return float(np.linalg.solve(np.eye(2) - GAMMA * move, (policy * REWARD).sum(1))[0])


def random_players(path: Path, episodes: int = 300) -> EpisodeStore:
    """Uniform actions from the first state to the end."""
    rng = np.random.default_rng(0)
    seen, done, got, ends = [], [], [], []
    for _ in range(episodes):
        state = 0
        while state < 2:
            action = int(rng.integers(2))
            seen.append(np.eye(2)[state])
            done.append(action)
            got.append(REWARD[state, action])
            state = int(rng.choice(3, p=NEXT[state, action]))
            ends.append(state == 2)
    arrays: Any = (np.array(seen, np.float32), np.array(done), np.array(got, np.float32))
    flat = from_flat("mdp", *arrays, np.array(ends), np.zeros(len(ends), bool), {})
    return open_store([str(write_npz(path / "mdp.npz", flat))])


def test_values_are_the_exact_ones(tmp_path: Path) -> None:
    store = random_players(tmp_path)
    config = ValuesConfig(
        steps=500, discount=GAMMA, learning_rate=6e-3, width=16, ensemble=4, target_rate=0.06
    )
    states = store.observations.argmax(1)
    found = {}
    for name, policy in {
        "uniform": [[0.5, 0.5], [0.5, 0.5]],
        "good": [[0.0, 1.0], [1.0, 0.0]],
        "bad": [[1.0, 0.0], [0.0, 1.0]],
    }.items():
        chances = np.array(policy)
        logits = torch.from_numpy(np.log(chances[states] + 1e-9)).float()
        transitions = Transitions.of(store, torch.ones(()))
        values, _ = fitted_q(store, transitions, logits, config, 0, scale=1.0)
        found[name] = values
        # the data are a sample: the exact value lies within its chance, which the spread shows
        assert np.mean(values) == pytest.approx(exact(chances), abs=0.45), (name, values)
        assert 0 < np.std(values) < 1
    assert min(found["good"]) > max(found["uniform"]) > min(found["uniform"]) > max(found["bad"])
    assert exact(np.array([[0, 1.0], [1.0, 0]])) > 6  # far from what the data's players got


def config(tmp_path: Path, source: str, **agent: Any) -> Any:
    plain = {
        "data": {"sources": [source]},
        "agent": {
            "preset": "decision-transformer", "context_length": 6,
            "backbone": {"width": 8, "layers": 1, "heads": 1, "dropout": 0.0}, **agent,
        },
        "train": {"steps": 3, "batch_size": 4, "checkpoint_interval": 3},
        "eval": {"targets": [5.0]},
    }  # fmt: skip
    return run_config(plain, {}, "test")


def test_actions_are_those_of_rollouts_on_the_same_histories(tmp_path: Path) -> None:
    """A window of the whole past and one of half a context say the same where both begin at the
    episode's start."""
    store = random_players(tmp_path, 20)
    train(config(tmp_path, str(tmp_path / "mdp.npz")), tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run"))
    acts = actions_on_data(agent, store, 5.0)
    first, steps = store.offsets[3], min(int(store.lengths[3]), 6)
    rows = slice(first, first + steps)
    before = np.cumsum(store.rewards[rows]) - store.rewards[rows]
    to_go = torch.from_numpy((5.0 - before).astype(np.float32))[None] / agent.config.returns.scale
    seen = torch.from_numpy(store.observations[rows])[None]
    did = torch.from_numpy(store.actions[rows])[None]
    with torch.no_grad():
        whole = agent(agent.preprocess(seen, did, to_go), torch.arange(steps)[None])[0]
    torch.testing.assert_close(acts[rows], whole * 1e3, rtol=1e-3, atol=1e-2)
    assert (actions_on_data(agent, store, 50.0) - acts).abs().max() > 1e-4  # targets count


def test_a_run_without_an_environment_is_estimated(tmp_path: Path) -> None:
    random_players(tmp_path, 20)
    run = tmp_path / "run"
    train(config(tmp_path, str(tmp_path / "mdp.npz")), run, torch.device("cpu"))
    done = off_policy(run, [3.0, 6.0], steps=20)
    kept = json.loads((run / "off_policy.json").read_text())
    assert [row["target"] for row in kept["estimates"]] == [3.0, 6.0]
    assert len(done.table().rows) == 2 and "usually says too much" in done.notes()[1]
    assert off_policy(run, [3.0], steps=20).estimates[0] == done.estimates[0]  # by its seed
    with pytest.raises(UserError, match="missing"):
        off_policy(tmp_path / "missing")
    # what an agent does after the last step of a truncated episode is not asked
    store, agent = open_store([str(tmp_path / "mdp.npz")]), load_agent(agent_path(run))
    cut = replace(store, terminated=np.zeros_like(store.terminated), truncated=store.terminated)
    known = replace(cut, final_observations=store.observations[: store.episodes])
    without, found = (
        estimate(agent, data, 3.0, ValuesConfig(steps=3, width=16)) for data in (cut, known)
    )
    assert found == without


def test_what_is_not_evaluated_off_policy_is_one_sentence(tmp_path: Path) -> None:
    random_players(tmp_path, 20)
    own_return = config(tmp_path, str(tmp_path / "mdp.npz"), kind="max_return", preset="reinformer")
    train(own_return, tmp_path / "run", torch.device("cpu"))
    with pytest.raises(UserError, match="make up their return as they act"):
        off_policy(tmp_path / "run")

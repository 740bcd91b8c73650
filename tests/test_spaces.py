"""Every space: collected, stored, trained on and acted in; each kind of leaf and part by itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_seq.agents import SequenceAgent, load_agent
from decision_seq.agents.fit import check_fit
from decision_seq.behaviours.tiers import uniform
from decision_seq.config import to_plain
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.tools.check import check, read
from decision_seq.data.tools.collect import collect
from decision_seq.data.tools.export import to_npz
from decision_seq.data.windows import WindowSampler
from decision_seq.envs.lanes import Lanes
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.eval.rollout import rollout
from decision_seq.model.actions import ActionCodec
from decision_seq.policy import Policy
from decision_seq.run_config import RunConfig, run_config
from decision_seq.run_folder import agent_path
from decision_seq.spaces import Table, table_of
from decision_seq.spaces.steps import StepForm
from decision_seq.spaces.table import from_json, to_json
from decision_seq.training.loop import train
from decision_seq.training.stacked import train_seeds
from decision_seq.values.transitions import Transitions

BOX = spaces.Box(-1, 1, (3,), np.float32)
LENGTH = 12


def image(*shape: int, dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(0, 255 if dtype == np.uint8 else 1, shape, dtype)


OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "nested": spaces.Dict(a=BOX, b=spaces.Discrete(4), c=spaces.Dict(d=spaces.MultiBinary(3))),
    "tuple": spaces.Tuple((spaces.Discrete(32), spaces.Discrete(11, start=-2))),
    "discrete": spaces.Discrete(16, start=1),
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
    "matrix": spaces.Box(-np.inf, np.inf, (5, 5), np.float64),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "rgb": image(40, 36, 3),
    "channels-first": image(3, 12, 9),
    "float-image": image(12, 10, 3, dtype=np.float32),
    "gray": image(36, 36),
    "gray-stack": image(4, 36, 36),
    "images-and-vector": spaces.Dict(eye=image(7, 7, 3), hand=image(9, 9, 1), state=BOX),
    "images-alone": spaces.Dict(right=image(9, 9), left=image(3, 8, 7)),
    "unsorted": spaces.Dict(b=BOX, a=spaces.Dict(d=spaces.MultiBinary(3), c=spaces.Discrete(2))),
    "text-beside": spaces.Dict(say=spaces.Text(8), state=BOX),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "matrix": spaces.Box(-1, 1, (2, 2), np.float32),
    "scalar": spaces.Box(-2, 2, (), np.float32),
    "one-sided": spaces.Box(np.array([0, -np.inf]), np.array([np.inf, 3]), dtype=np.float32),
    "half": spaces.Box(-1, 1, (2,), np.float16),
    "whole": spaces.Box(-3, 5, (2,), np.int64),
    "start": spaces.Discrete(3, start=4),
    "multidiscrete": spaces.MultiDiscrete([3, 4], start=[1, -1]),
    "multibinary": spaces.MultiBinary((2, 2)),
    "nested": spaces.Dict(
        go=BOX, how=spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary(2)))
    ),
}
PAIRS = [(o, "start") for o in OBSERVATIONS] + [("nested", a) for a in ACTIONS if a != "start"]


class Anything(gym.Env[Any, Any]):
    """Random observations, and a reward for every action that is one."""

    def __init__(self, seen: str, acts: str) -> None:
        # of its own: what draws actions must not change what is seen
        self.observation_space = copy.deepcopy(OBSERVATIONS[seen])
        self.action_space = copy.deepcopy(ACTIONS[acts])
        self.stacks = seen == "gray-stack"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.seen = self.observation_space.sample()
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        new = self.observation_space.sample()
        self.seen = np.concatenate([self.seen[1:], new[-1:]]) if self.stacks else new
        return self.seen, 1.0, False, False, {}


@pytest.fixture(scope="module", autouse=True)
def environments() -> Any:
    """Register one environment a pair of spaces."""
    for seen, acts in PAIRS:
        gym.register(
            f"Any/{seen}-{acts}-v0",
            Anything,
            max_episode_steps=LENGTH,
            kwargs={"seen": seen, "acts": acts},
        )
    yield
    for seen, acts in PAIRS:
        del gym.registry[f"Any/{seen}-{acts}-v0"]


def collected(seen: str, acts: str) -> EpisodeStore:
    name = f"any/{seen}-{acts}-v0"
    said = {"behaviour": "random", "tier": "random"}
    collect(f"Any/{seen}-{acts}-v0", uniform, 3 * LENGTH, name, 0, said)
    return open_store([name])


def small(seen: str, acts: str, **agent: Any) -> RunConfig:
    return run_config(
        {
            "env": f"Any/{seen}-{acts}-v0",
            "data": {"sources": [f"any/{seen}-{acts}-v0"]},
            "agent": {
                "preset": "decision-transformer",
                "context_length": 3,
                "backbone": {"width": 8, "layers": 1, "heads": 1},
                **agent,
            },
            "train": {"steps": 2, "batch_size": 4, "checkpoint_interval": 2},
        },
        {},
        "test",
    )


@pytest.mark.parametrize(("seen", "acts"), PAIRS)
def test_the_whole_journey(seen: str, acts: str, tmp_path: Path) -> None:
    store = collected(seen, acts)
    env = make(f"Any/{seen}-{acts}-v0")
    observation, _ = env.reset(seed=store.seeds[0])
    form, first = StepForm(env), store.info.get("action_start", 0)
    for action in store.actions[:LENGTH] + first:
        observation, *_ = env.step(form.action(action))
    assert store.final_observations is not None
    final = store.final_observations[0]
    assert final.tobytes() == np.asarray(form.observe(observation), final.dtype).tobytes()
    # nothing to find, and what was recorded is what its seeds give
    assert [f for f in check(read([f"any/{seen}-{acts}-v0"]), env) if f.severity != "note"] == []
    text = seen == "text-beside"
    config = small(seen, acts)
    if text:
        with pytest.raises(UserError, match=r"`say`.*data.leave_out: \[say\]"):
            train(config, tmp_path / "run", torch.device("cpu"))
        plain = {"data": {"leave_out": ["say"]}}
        config = run_config(to_plain(config), plain, "test")
    train(config, tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run"))
    train_seeds(config, (0, 1), tmp_path, torch.device("cpu"))  # the first is the same
    stacked = load_agent(agent_path(tmp_path / "seed0"))
    torch.testing.assert_close(stacked.state_dict(), agent.state_dict(), rtol=1e-4, atol=1e-5)
    (episode,) = rollout(agent, str(config.env), [5.0], 1, 7, "window")
    assert episode.episode_return == LENGTH  # every action was one of its space
    # a person's own loop: what the environment gives, and takes
    if agent.config.frame_stack in (None, 1):
        policy = Policy(agent, "stream", 5.0, action_space=env.action_space)
        observation, _ = env.reset(seed=0)
        for _ in range(3):
            observation, *_ = env.step(policy.act(observation, 1.0))
    assert store.steps == 3 * LENGTH


def test_npz_keeps_what_a_step_looks_like(tmp_path: Path) -> None:
    for seen, acts in (("nested", "nested"), ("images-and-vector", "start")):
        store = collected(seen, acts)
        to_npz(store, str(tmp_path / f"{seen}.npz"))
        again = open_store([str(tmp_path / f"{seen}.npz")])
        assert (again.hash, again.finals_hash) == (store.hash, store.finals_hash)
        assert (again.observation_table, again.action_table) == (
            store.observation_table,
            store.action_table,
        )


def test_windows_of_records_hold_what_was_stored() -> None:
    store = collected("images-and-vector", "start")
    agent = SequenceAgent.for_dataset(
        small("images-and-vector", "start", frame_stack=2).agent, store
    )
    sampler = WindowSampler(store, np.arange(3), 3, agent.config.returns, 0, stack=2)
    batch = sampler.windows([0, 5])
    assert batch.observations.shape == (2, 3, 2, store.observations.dtype.itemsize)
    found = batch.observations.numpy().view(store.observations.dtype)[..., 0]  # [B, K, n]
    assert (found[1, 2, 1] == store.observations[7]) and (found[1, 2, 0] == store.observations[6])
    assert not batch.observations[0, 0, 0].any()  # before the episode began
    values = Transitions.of(store, torch.ones(()), 2)
    after = values.observe(values.following[[LENGTH - 1]]).numpy().view(store.observations.dtype)
    assert after[0, 0] == store.observations[LENGTH - 1]
    assert store.final_observations is not None and after[0, 1] == store.final_observations[0]
    lanes = Lanes("Any/images-and-vector-start-v0", 2, 2)
    assert lanes.reset([0, 1]).shape == (2, 2, store.observations.dtype.itemsize)


def test_another_environment_is_one_sentence_before_training() -> None:
    agent = SequenceAgent.for_dataset(
        small("nested", "nested").agent, collected("nested", "nested")
    )
    with pytest.raises(UserError, match=r"observations of a vector .* gives .*category"):
        check_fit(agent.spec, make("Any/tuple-start-v0"))
    with pytest.raises(UserError, match="the data has actions of go vector"):
        check_fit(agent.spec, make("Any/nested-multibinary-v0"))


@pytest.mark.parametrize("space", [*OBSERVATIONS.values(), *ACTIONS.values()], ids=str)
def test_a_table_survives_json(space: spaces.Space[Any]) -> None:
    table = table_of(space)
    assert from_json(json.loads(json.dumps(to_json(table))), "here") == table


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_actions_come_back(space: spaces.Space[Any]) -> None:
    table = table_of(space, acts=True)
    low, high = table.limits(space)
    for _ in range(20):
        action = space.sample()
        row = table.pack(action)
        assert (low <= row).all() and (row <= high).all()
        back = table.unpack(row.astype(np.float32))
        assert space.contains(back)
        np.testing.assert_array_equal(table.pack(back), row)


def test_predictions_of_parts_are_chosen_as_they_were_encoded() -> None:
    table = table_of(ACTIONS["nested"], acts=True)
    codec = ActionCodec(table)
    rows = np.stack([table.pack(ACTIONS["nested"].sample()) for _ in range(8)]).astype(np.float32)
    encoded = codec.encode(torch.from_numpy(rows))
    assert encoded.shape == (8, table.features) == (8, 3 + 3 + 2)
    sure = torch.where(torch.arange(8) < 3, encoded, 40 * (2 * encoded - 1))  # logits
    np.testing.assert_array_equal(codec.choose(sure), rows)
    assert codec.errors(sure, encoded, "mse").abs().max() < 1e-6
    assert codec.errors(-sure, encoded, "mse").min() > 1
    off = sure + torch.where(torch.arange(8) < 3, 0.5, 0.0)  # the vector's numbers alone
    for loss, error in (("mse", 0.25), ("l1", 0.5)):
        torch.testing.assert_close(codec.errors(off, encoded, loss), torch.full((8,), error))
    noise = torch.from_numpy(np.random.default_rng(0).gumbel(size=(8, 8)))
    np.testing.assert_array_equal(codec.choose(sure, noise), rows)


def test_sampled_parts_have_the_odds_of_their_logits() -> None:
    codec = ActionCodec(table_of(spaces.Tuple((spaces.Discrete(2), spaces.MultiBinary(1))), True))
    noise = torch.from_numpy(np.random.default_rng(0).gumbel(size=(40_000, 3)))
    logits = torch.tensor([0.0, 1.0, 1.0]).expand(40_000, 3)
    for temperature in (1.0, 2.0):
        odds = 1 / (1 + np.exp(-1 / temperature))
        chosen = codec.choose(logits, noise, temperature).mean(dim=0)
        np.testing.assert_allclose(chosen, [odds, odds], atol=0.01)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Text(5), "is text alone"),
        (spaces.Dict(a=spaces.Dict(b=spaces.Sequence(BOX))), r"`a.b` is Sequence"),
        (spaces.Dict(a=spaces.Discrete(10**6)), r"`a` has 1000000 categories"),
        (spaces.Dict(), "has no parts"),
    ],
)
def test_what_no_agent_reads_is_named(space: spaces.Space[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        table_of(space)


def test_goals_and_other_leaves_have_columns() -> None:
    table: Table = table_of(OBSERVATIONS["nested"])
    assert (table.columns("a"), table.columns("c")) == (slice(0, 3), slice(7, 10))
    with pytest.raises(UserError, match=r"no numbers `goal` \(there are: a, b, c.d\)"):
        table.columns("goal")

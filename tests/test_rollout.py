"""Rollouts: the same episodes as a plain gymnasium loop, whatever runs beside them."""

from __future__ import annotations

from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
import torch

from decision_seq.agents import AgentSpec, SequenceAgent
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.agents.return_prior import ReturnPrior
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import ReturnSpec
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.lanes import Lanes
from decision_seq.envs.reference_scores import normalized_score
from decision_seq.envs.registry import MUJOCO_IDS, env_id, make
from decision_seq.errors import UserError
from decision_seq.eval.rollout import episodes
from decision_seq.eval.rollout.episodes import KEPT, rollout
from decision_seq.policy import Policy
from decision_seq.settings import Context


def agent_for(
    observations: int,
    actions: int,
    discrete: bool = False,
    bc: bool = False,
    scale: float = 1000.0,
    temperature: float = 0.0,
) -> SequenceAgent:
    torch.manual_seed(0)
    kind = BehaviourCloningConfig if bc else ReturnConditionedConfig
    backbone, returns = MambaConfig(width=16, layers=1, dropout=0.0), ReturnSpec(scale=scale)
    config = kind(4, returns=returns, temperature=temperature, backbone=backbone)
    agent = config.agent(config, AgentSpec((observations,), actions, discrete, 1000)).eval()
    with torch.no_grad():  # a decisive policy, so that episodes differ by what is observed
        agent.action_head.weight.normal_(std=1.0)
    return agent


@pytest.mark.parametrize("context", ["window", "stream"])
def test_a_lane_is_a_plain_gymnasium_episode(context: Context) -> None:
    agent = agent_for(11, 3)
    row = rollout(agent, "hopper", [1000.0], 1, 5, context)[0]
    env = gym.make("Hopper-v5")
    observation, _ = env.reset(seed=5)
    policy = Policy(agent, context, 1000.0, action_space=env.action_space)
    reward, total, length, ended = 0.0, 0.0, 0, False
    while not ended:
        action = policy.act(observation.astype(np.float32), reward)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, length, ended = total + reward, length + 1, terminated or truncated
    assert (row.length, row.episode_return) == (length, pytest.approx(total, rel=1e-12))
    assert row.normalized_score == pytest.approx(100 * (total + 20.272305) / (3234.3 + 20.272305))


@pytest.mark.parametrize("context", ["window", "stream"])
@pytest.mark.parametrize("env", ["hopper", "CartPole-v1"])
def test_lanes_do_not_depend_on_what_runs_beside_them(context: Context, env: str) -> None:
    """Whatever ended before: rewards, seeds of sampled actions and states stay with their lane."""
    discrete = env != "hopper"
    sizes = (4, 2) if discrete else (11, 3)
    agent = agent_for(*sizes, discrete, scale=1.0, temperature=1.0 if discrete else 0.0)
    many = rollout(agent, env, [20.0, 5.0], 4, 10, context)
    assert [(r.target, r.env_seed) for r in many] == [
        (t, s) for t in (20.0, 5.0) for s in range(10, 14)
    ]
    alone = [rollout(agent, env, [r.target or 0.0], 1, r.env_seed, context)[0] for r in many]
    assert len({r.length for r in many}) > 1  # some lanes had ended while others went on
    for together, single in zip(many, alone, strict=True):
        assert together.length == single.length
        assert together.episode_return == pytest.approx(single.episode_return, rel=1e-3)


class Endless(gym.Env):
    """Never ends, and names no limit."""

    observation_space = gym.spaces.Box(-9, 9, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple:
        return np.zeros(3, np.float32), 1.0, False, False, {}


def test_episodes_that_never_end_are_cut_off() -> None:
    gym.register("Endless-v0", Endless)
    agent = agent_for(3, 1)
    longest = agent.spec.max_timestep + 1

    def lengths(env: str, limit: int | None = None) -> tuple[int, int | None]:
        first, second = rollout(agent, env, [5.0], 2, 0, "window", max_steps=limit)
        assert first.length == second.length == first.episode_return
        return first.length, first.max_steps

    try:
        assert lengths("Endless-v0") == (10 * longest, 10 * longest)
        assert lengths("Endless-v0", 4) == (4, 4)
        assert lengths("Endless-v0?max_episode_steps=6") == (6, None)
        assert lengths("Endless-v0?max_episode_steps=6", 4) == (4, 4)
    finally:
        del gym.registry["Endless-v0"]
    assert open_lanes("hopper", 4).limit == 1000 == open_lanes("hopper", 1).limit


class Clipping(Endless):
    """Changes the action that it is given."""

    def step(self, action: np.ndarray) -> tuple:
        action *= 0
        return super().step(action)


def test_an_environment_that_changes_its_action_changes_no_other() -> None:
    gym.register("Clipping-v0", Clipping, max_episode_steps=5)
    taken: list[np.ndarray] = []
    try:
        rollout(agent_for(3, 1), "Clipping-v0", [5.0], 2, 0, "window", actions=taken)
    finally:
        del gym.registry["Clipping-v0"]
    assert len(taken) == 5 and all(np.abs(step).min() > 0 for step in taken)


def test_an_agent_looks_no_more_at_lanes_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, looked, actions = agent_for(11, 3), [], []
    send = Policy.send

    def watched(self: Policy, seen: np.ndarray, rewards: np.ndarray) -> None:
        looked.append(len(seen))
        send(self, seen, rewards)

    monkeypatch.setattr(Policy, "send", watched)
    rows = rollout(agent, "hopper", [1000.0], 8, 10, "stream", actions=actions)
    going = [sum(row.length > step for row in rows) for step in range(len(looked))]
    assert looked[0] == 8 and looked[-1] < 8
    assert all(few <= seen < max(few / KEPT, 2) for few, seen in zip(going, looked, strict=True))
    assert {len(taken) for taken in actions} == {8}


@pytest.mark.parametrize("env", ["hopper", "point-run"])
def test_lanes_in_two_groups_are_those_in_one(
    env: str, toy_store: EpisodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit by the native engine; on a GPU a group acts while the other is simulated."""
    agent = agent_for(*((11, 3) if env == "hopper" else (2, 1)))
    prior = None if env == "hopper" else ReturnPrior.fit(toy_store, np.arange(8), 0)

    def rows(groups: int) -> tuple[list[dict[str, object]], np.ndarray]:
        monkeypatch.setattr(episodes, "_groups", lambda agent, count, simulator: groups)
        taken: list[np.ndarray] = []
        found = rollout(
            agent, env, [1000.0, 5.0], 4, 10, "stream", prior=prior, actions=taken, max_steps=60
        )
        kept = [{**asdict(row), "milliseconds_per_step": None} for row in found]
        return kept, np.stack(taken)

    (alone, actions), (groups, acted) = rows(1), rows(2)
    assert alone == groups and (env != "hopper" or len({row["length"] for row in alone}) > 1)
    for lane, row in enumerate(alone):
        assert np.array_equal(actions[: row["length"], lane], acted[: row["length"], lane])


def test_repeating_a_rollout_gives_the_same_rows() -> None:
    agent = agent_for(2, 1)
    first, second = (rollout(agent, "point-run", [5.0], 6, 0, "window") for _ in range(2))
    assert [(r.episode_return, r.length) for r in first] == [
        (r.episode_return, r.length) for r in second
    ]


def test_rows_have_the_target_that_was_named() -> None:
    (row,) = rollout(agent_for(2, 1), "point-run", [0.1], 1, 0, "window")
    assert row.target == 0.1  # or `compare` would take the episode for another's and run it again


def test_what_is_not_finite_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"1 of 1 episodes met NaN.*seed 3"):
        rollout(agent_for(2, 1), "point-run", [1e39], 1, 3, "window")  # beyond float32


def test_an_agent_without_return_tokens_needs_no_target() -> None:
    rows = rollout(agent_for(2, 1, bc=True), "point-run", [5.0, 7.0], 3, 0, "stream")
    assert [r.target for r in rows] == [None] * 3


def test_discrete_environments_of_gymnasium_work() -> None:
    rows = rollout(agent_for(4, 2, discrete=True), "CartPole-v1", [100.0], 3, 0, "stream")
    assert all(r.episode_return == r.length >= 8 for r in rows)
    assert rows[0].normalized_score is None


def test_frozen_lanes_are_not_stepped() -> None:
    lanes = Lanes("CartPole-v1", 2)
    before = lanes.reset([0, 1])
    active = np.array([True, False])
    observations, rewards, _, _ = lanes.step(np.array([1, 1]), active)
    assert rewards.tolist() == [1.0, 0.0]
    assert not np.array_equal(observations[0], before[0])
    assert np.array_equal(observations[1], before[1])


@pytest.mark.parametrize("name", MUJOCO_IDS)
def test_every_mujoco_environment_steps(name: str, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    env = make(name)
    env.reset(seed=0)
    observation, reward, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
    assert np.isfinite(observation).all() and np.isfinite(reward)
    assert not list(tmp_path.iterdir())  # MuJoCo leaves no log behind


def test_reference_scores() -> None:
    assert normalized_score("Hopper-v5", 3234.3) == pytest.approx(100)
    assert normalized_score("Walker2d-v4", 1.629008) == pytest.approx(0)
    assert normalized_score("Ant-v5", 3879.7) == pytest.approx(100)
    assert normalized_score("CartPole-v1", 1.0) is None
    assert env_id("HalfCheetah") == "HalfCheetah-v5" == env_id("halfcheetah")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Hoper-v5", "Hopper-v5"),
        ("walker", "walker2d"),
        ("Hopper-v3", "Hopper-v5"),
        (":Hopper-v5", "cannot be imported"),
        (".package:Hopper-v5", "cannot be imported"),
    ],
)
def test_unknown_environments_are_one_sentence(name: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        make(name)
    assert "\n" not in str(error.value)


def test_an_agent_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"width 11.*width 2"):
        rollout(agent_for(11, 3), "point-run", [1.0], 1, 0, "window")
    with pytest.raises(UserError, match=r"actions of width 2.*takes width 1"):
        rollout(agent_for(2, 2), "point-run", [1.0], 1, 0, "window")
    with pytest.raises(UserError, match="discrete actions"):
        rollout(agent_for(2, 1, discrete=True), "point-run", [1.0], 1, 0, "window")
    with pytest.raises(UserError, match="--targets"):
        rollout(agent_for(2, 1), "point-run", [], 1, 0, "window")

"""Goals: tokens, hindsight, success; an agent that goes where it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from decision_seq.agents import SequenceAgent, load_agent
from decision_seq.behaviours.maze_players import path
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.tools.collect import collect
from decision_seq.data.windows import Hindsight, WindowSampler
from decision_seq.envs.fastest import open_lanes
from decision_seq.errors import UserError
from decision_seq.eval.report.page import write_report
from decision_seq.eval.rollout import rollout
from decision_seq.eval.rollout.protocol import evaluate_agent
from decision_seq.policy import Policy
from decision_seq.run_config import RunConfig, run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

NAME, DATA = "Goals/Line-v0", "goals/line-v0"
POINT = spaces.Box(-9, 9, (1,), np.float64)


class Line(gym.Env[Any, Any]):
    """A point on a line, asked for a place; `success` where it is near."""

    observation_space = spaces.Dict(achieved_goal=POINT, desired_goal=POINT, observation=POINT)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.goal = 0.0, float(self.np_random.choice([-3.0, 3.0]))
        return self._seen(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 0.5 * float(np.clip(action[0], -1, 1))
        near = abs(self.place - self.goal) < 0.4
        return self._seen(), float(near), False, False, {"success": near}

    def _seen(self) -> dict[str, np.ndarray]:
        place = np.array([self.place])
        return {"achieved_goal": place, "desired_goal": np.array([self.goal]), "observation": place}


@pytest.fixture
def line() -> Any:
    gym.register(NAME, Line, max_episode_steps=16)
    yield NAME
    del gym.registry[NAME]


def wander(rng: np.random.Generator, _env: Any) -> Any:
    """One way an episode, whatever goal is asked for."""
    way = rng.choice([-1.0, 1.0])
    return lambda _seen: np.array([way + 0.1 * rng.standard_normal()], np.float32).clip(-1, 1)


def collected(steps: int) -> EpisodeStore:
    collect(NAME, wander, steps, DATA, 0, {"behaviour": "wander", "tier": "wander"})
    return open_store([DATA])


def config(steps: int = 1, **agent: Any) -> RunConfig:
    plain = {
        "env": NAME,
        "data": {"sources": [DATA]},
        "agent": {
            "preset": "goal-decision-transformer",
            "context_length": 4,
            "backbone": {"width": 16, "layers": 1, "heads": 1, "dropout": 0.0},
            **agent,
        },
        "train": {"steps": steps, "batch_size": 32, "learning_rate": 3e-3, "warmup_steps": 1},
        "eval": {"episodes": 4},
    }
    return run_config(plain, {}, "test")


def test_an_agent_that_only_wandered_goes_where_it_is_asked(line: str, tmp_path: Path) -> None:
    collected(640)
    train(config(150), tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run"))
    rows = rollout(agent, line, [], 8, 0, "window")
    assert sum(bool(row.success) for row in rows) >= 7  # by chance it is one way of two
    evaluate_agent(agent, config(150), tmp_path / "run", 150, "last")
    (report,) = write_report([tmp_path / "run"], tmp_path / "report.md")[:1]
    assert "Is the goal reached?" in report.read_text(encoding="utf-8")
    train(config(150, hindsight=0.0), tmp_path / "blind", torch.device("cpu"))
    blind = load_agent(agent_path(tmp_path / "blind"))
    rows = rollout(blind, line, [], 8, 0, "window")
    assert sum(bool(row.success) for row in rows) <= 6


def test_goals_are_later_steps_of_the_same_episode(line: str) -> None:
    store = collected(64)
    table = store.observation_table
    assert table is not None
    goal, achieved = table.columns("desired_goal"), table.columns("achieved_goal")
    store.observations[:, achieved] = np.arange(store.steps)[:, None]  # every step its own place
    own = store.observations[:, goal].copy()

    def sampler(share: float) -> WindowSampler:
        hindsight = Hindsight(goal, achieved, share)
        returns = config().agent.returns
        return WindowSampler(store, np.arange(4), 4, returns, 0, hindsight=hindsight)

    batch = sampler(1.0).batch(3, 200)
    goals, places = batch.observations[..., goal], batch.observations[..., achieved]
    assert (goals == goals[:, :1]).all()  # one a window
    for i in range(200):
        last = int(places[i, batch.mask[i]].max())
        episode = last // 16
        assert last <= int(goals[i, 0]) < 16 * (episode + 1)
    again = sampler(1.0).batch(3, 200)
    assert torch.equal(again.observations, batch.observations)  # of seed and number alone
    part = sampler(1.0).batch(3, 200, slice(50, 60))
    assert torch.equal(part.observations, batch.observations[50:60])
    half = sampler(0.5).batch(3, 200).observations[:, 0, goal]
    kept = np.isin(half.numpy(), own).mean()
    assert 0.3 < kept < 0.7


def test_the_goal_is_a_token_and_no_part_of_the_observation(line: str) -> None:
    agent = SequenceAgent.for_dataset(config().agent, collected(32)).eval()
    seen = torch.tensor([[[1.0, 2.0, 3.0]]])
    other = torch.tensor([[[1.0, -2.0, 3.0]]])
    none = torch.zeros(1, 1, 1), torch.zeros(1, 1)
    one, two = (agent.preprocess(x, *none) for x in (seen, other))
    assert torch.equal(one["observation"], two["observation"])
    assert not torch.equal(one["goal"], two["goal"]) and one["goal"].shape == (1, 1, 1)
    assert agent.features == 2


@pytest.mark.parametrize("context", ["window", "stream"])
def test_both_contexts_agree_with_the_forward_pass(line: str, context: Any) -> None:
    store = collected(32)
    agent = SequenceAgent.for_dataset(config().agent, store).eval()
    sampler = WindowSampler(store, np.arange(2), 4, agent.config.returns, 0)
    batch = sampler.windows([0])
    values = agent.preprocess(batch.observations, batch.actions, batch.returns_to_go)
    expected = agent(values, batch.timesteps)[0].detach().numpy()
    policy = Policy(agent, context)
    for step in range(4):
        action = policy.act(store.observations[step])
        np.testing.assert_allclose(action, expected[step], rtol=1e-4, atol=1e-5)
        policy.action = store.actions[step : step + 1].copy()


def test_what_has_no_goals_is_one_sentence(toy_store: EpisodeStore, line: str) -> None:
    with pytest.raises(UserError, match="needs observations with a part `desired_goal`"):
        SequenceAgent.for_dataset(config().agent, toy_store)
    with pytest.raises(UserError, match=r"no numbers `aim` \(there are: achieved_goal"):
        SequenceAgent.for_dataset(config(goal="aim").agent, collected(16))


def test_success_is_that_of_some_step(line: str) -> None:
    lanes = open_lanes(line, 2)
    lanes.reset([0, 0])
    active = np.ones(2, bool)
    goal = lanes.envs[0].unwrapped.goal  # type: ignore[attr-defined]
    toward = np.array([[np.sign(goal)], [-np.sign(goal)]], np.float32)
    for _ in range(12):  # there, and beyond
        lanes.step(toward, active)
    assert lanes.success is not None and lanes.success.tolist() == [True, False]
    plain = open_lanes("point-run", 1)
    plain.reset([0])
    plain.step(np.zeros((1, 1), np.float32), np.ones(1, bool))
    assert plain.success is None


def test_the_maze_controller_takes_the_shortest_way() -> None:
    free = {(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)}
    assert path(free, (1, 1), (3, 3)) == [(1, 2), (1, 3), (2, 3), (3, 3)]
    assert path({(1, 1), (5, 5)}, (1, 1), (5, 5)) == [(5, 5)]

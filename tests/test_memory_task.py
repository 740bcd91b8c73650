"""The memory task: solvable by memory alone, with data that give nothing away."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz

from decision_seq.agents import load_agent
from decision_seq.behaviours.tiers import TOYS, behaviour_for
from decision_seq.behaviours.toy_players import RIGHT
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.tools.collect import collect
from decision_seq.data.transforms import ReturnSpec
from decision_seq.data.windows import WindowSampler
from decision_seq.envs.memory import LAGS, Memory
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.run_config import load_run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

CONFIG = Path(__file__).parents[1] / "configs" / "memory.yaml"


def play(env: gym.Env, seed: int, answer: float, cue: float | None = None) -> tuple:
    """Observations [T + 1, 3] and rewards [T] of an episode; `cue` replaces the one drawn."""
    first, _ = env.reset(seed=seed)
    if cue is not None:
        env.unwrapped._cue = cue  # type: ignore[attr-defined]
        first = np.array([cue, *first[1:]], np.float32)
    observations, rewards, ended = [first], [], False
    while not ended:
        action = np.array([answer if observations[-1][2] else 0.0], np.float32)
        observation, reward, ended, truncated, _ = env.step(action)
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


@pytest.mark.parametrize("lag", LAGS)
def test_the_question_comes_lag_steps_after_the_cue(lag: int) -> None:
    env = make(f"memory-{lag}")
    observations, rewards = play(env, 0, 1.0)
    assert len(rewards) == lag + 1 and not rewards[:-1].any()
    seen = observations[:-1]  # the last one follows the answer
    assert np.flatnonzero(seen[:, 0]).tolist() == [0] and abs(seen[0, 0]) == 1
    assert np.flatnonzero(seen[:, 2]).tolist() == [lag]
    assert all(env.observation_space.contains(row) for row in observations)


@pytest.mark.parametrize("answer", [-1.0, -0.01, 0.0, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_after_the_cue_nothing_tells_it_and_one_cue_answers_right(answer: float, seed: int) -> None:
    """So what does not depend on the first observation has a mean return of exactly 1/2."""
    env = make("memory-8")
    (left, r_left), (right, r_right) = (play(env, seed, answer, cue) for cue in (-1.0, 1.0))
    assert np.array_equal(left[1:], right[1:]) and np.array_equal(left[0, 1:], right[0, 1:])
    assert r_left[-1] + r_right[-1] == 1
    assert r_right[-1] == (answer >= 0)


def test_remembering_solves_it_and_cues_are_fair() -> None:
    env = make("memory-8")
    cues = [env.reset(seed=seed)[0][0] for seed in range(400)]
    assert 160 < sum(cue > 0 for cue in cues) < 240
    for seed, cue in enumerate(cues[:20]):
        assert play(env, seed, cue)[1].sum() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps"), [("attention", 300), ("mamba", 1000), ("pointwise", 200)]
)
def test_the_config_separates_memory_from_none(kind: str, steps: int, tmp_path: Path) -> None:
    behaviour, provenance = behaviour_for("memory-32", "medium", None)
    collect("memory-32", behaviour, 33_000, "decision-seq/memory-32/medium-v0", 0, provenance)
    config = load_run_config(CONFIG, [f"agent.backbone.kind={kind}", f"train.steps={steps}"])
    train(config, tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run", "last"))
    for context in ("window", "stream"):
        rows = rollout(agent, "memory-32", [1.0], 200, 0, context)
        mean = np.mean([row.episode_return for row in rows])
        assert 0.35 < mean < 0.65 if kind == "pointwise" else mean > 0.95, (context, mean)


@pytest.fixture
def store() -> EpisodeStore:
    behaviour, provenance = behaviour_for("memory-8", "medium", None)
    collect("memory-8", behaviour, 9 * 800, "toy/memory-v0", 0, provenance)
    return open_store(["toy/memory-v0"])


def test_the_data_do_not_give_the_cue_away(store: EpisodeStore) -> None:
    first, last = store.offsets[:-1], store.offsets[1:] - 1
    cue, answer = store.observations[first, 0], store.actions[last, 0]
    returns = store.episode_returns
    assert np.array_equal(returns, (answer == cue).astype(np.float32))  # but tell right from wrong
    assert abs(np.corrcoef(returns, cue)[0, 1]) < 0.12  # of 800: a standard deviation is 0.035
    assert abs(cue.mean()) < 0.12 and abs(returns.mean() - RIGHT) < 0.06
    between = np.setdiff1d(np.arange(store.steps), last)
    assert not store.actions[between].any()
    assert np.array_equal(store.returns_to_go, np.repeat(returns, store.lengths))  # until the end


def test_any_lag_can_be_made_and_bad_ones_are_one_sentence() -> None:
    env = gym.make("decision-seq/Memory8-v0", lag=5)
    assert len(play(env, 0, 1.0)[1]) == 6
    with pytest.raises(UserError, match="lag is 0"):
        Memory(lag=0)
    with pytest.raises(UserError, match="'expert'; there is: medium"):
        behaviour_for("memory-8", "expert", None)
    assert {tier for (env_id, tier) in TOYS if "Memory" in env_id} == {"medium"}


def test_full_windows_are_cut_off_by_nothing_and_leave_no_step_out(tmp_path: Path) -> None:
    store = open_store([str(write_npz(tmp_path / "a.npz", random_episodes([7, 3, 4, 12])))])
    sampler = WindowSampler(store, np.arange(4), 4, ReturnSpec(), seed=0, full=True)
    windows = sampler.windows(torch.arange(sampler.steps))
    starts = windows.timesteps[:, 0].tolist()
    assert starts == [*range(4), 0, 0, *range(9)]
    assert windows.mask.sum(1).tolist() == [4] * 4 + [3] + [4] * 10
    seen = {tuple(row) for row in windows.observations[windows.mask].tolist()}
    assert len(seen) == store.steps

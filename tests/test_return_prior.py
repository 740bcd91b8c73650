"""ReturnPrior: targets that the data make probable, and how far a state lies from them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from small_agents import evaluated

from decision_seq.agents.return_prior import FILE, ReturnPrior, ensure_prior, load_prior
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.envs.toy import PointRun
from decision_seq.errors import UserError
from decision_seq.eval.compare.evaluations import finished
from decision_seq.eval.report.archive import load_runs
from decision_seq.eval.report.data import Data
from decision_seq.eval.report.page import write_report
from decision_seq.eval.report.runs import find_runs
from decision_seq.eval.rows import read_rows, target_label
from decision_seq.run_config import RunConfig, load_run_config
from decision_seq.run_config import run_config as resolve
from decision_seq.training.loop import train


@pytest.fixture
def two_kinds(tmp_path: Path) -> EpisodeStore:
    """80 episodes of 5 steps: those that begin left return about 10, those on the right, 50."""
    episodes = random_episodes([5] * 80, width=2)
    side = np.repeat(np.where(np.arange(80) % 4 == 0, 1.0, -1.0), 5)
    observations = episodes.observations * 0.1
    observations[:, 0] += 3 * side
    rewards = 6 + 4 * side + 0.1 * episodes.rewards
    return open_store(
        [
            str(
                write_npz(
                    tmp_path / "two.npz",
                    episodes,
                    observations=observations.astype(np.float32),
                    rewards=rewards.astype(np.float32),
                )
            )
        ]
    )


def fitted(store: EpisodeStore, seed: int = 0) -> ReturnPrior:
    return ReturnPrior.fit(store, np.arange(store.episodes), seed)


def test_the_proposal_follows_the_first_observation(two_kinds: EpisodeStore) -> None:
    prior = fitted(two_kinds)
    starts = torch.tensor([[-3.0, 0.0], [3.0, 0.0]])
    low, middle, high = (prior.propose(starts, q) for q in (0.1, 0.5, 0.9))
    assert middle.tolist() == pytest.approx([10, 50], abs=0.5)
    assert (low < middle).all() and (middle < high).all()
    left = two_kinds.episode_returns[two_kinds.observations[two_kinds.offsets[:-1], 0] < 0]
    assert float(high[0]) == pytest.approx(np.quantile(left, 0.9), abs=0.3)


def test_where_the_first_observation_says_nothing_it_is_the_quantile_of_the_returns(
    toy_store: EpisodeStore,
) -> None:
    prior = fitted(toy_store)
    starts = torch.from_numpy(toy_store.observations[toy_store.offsets[:-1]])
    for quantile in (0.25, 0.5, 0.9):
        proposed = prior.propose(starts, quantile)
        wanted = np.quantile(toy_store.episode_returns, quantile)
        assert float((proposed - wanted).abs().max()) < 1.5


def test_novelty_is_standardised_on_the_data_and_grows_away_from_it(
    toy_store: EpisodeStore,
) -> None:
    prior = fitted(toy_store)
    seen = torch.from_numpy(toy_store.observations)
    novelty = prior.novelty(seen)
    assert float(novelty.mean()) == pytest.approx(0, abs=1e-6)
    assert float(novelty.std(correction=0)) == pytest.approx(1, abs=1e-6)
    shifts = [float(prior.novelty(seen + shift).mean()) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert all(b > a + 0.2 for a, b in itertools.pairwise(shifts))


def test_the_missing_return_is_integrated_out(two_kinds: EpisodeStore) -> None:
    states = fitted(two_kinds).states
    observation = torch.from_numpy(two_kinds.observations[:3]).double()
    spread = torch.linspace(-40, 110, 20_001, dtype=torch.float64)
    for i in range(3):
        rows = torch.cat([observation[i].expand(len(spread), 2), spread[:, None]], dim=1)
        mass = states.log_prob_of_first(rows).exp().sum() * (spread[1] - spread[0])
        expected = float((mass / states.width[-1]).log())
        assert float(states.log_prob_of_first(observation[i : i + 1])) == pytest.approx(
            expected, abs=1e-6
        )


def test_fitting_repeats_by_seed_and_leaves_the_global_generators_alone(
    toy_store: EpisodeStore,
) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    first, second, other = fitted(toy_store), fitted(toy_store), fitted(toy_store, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index,union-attr]
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.states.machine.weight, other.states.machine.weight)


@pytest.mark.parametrize("lengths", [[1], [4], [1, 1]])
def test_the_smallest_datasets_and_constant_features(tmp_path: Path, lengths: list[int]) -> None:
    episodes = random_episodes(lengths)
    flat = episodes.observations.copy()
    flat[:, 1] = 7.0
    store = open_store([str(write_npz(tmp_path / "few.npz", episodes, observations=flat))])
    prior = fitted(store)
    seen = torch.from_numpy(store.observations)
    returns = store.episode_returns
    assert torch.isfinite(prior.novelty(seen)).all()
    proposed = prior.propose(seen[:1], 0.5)
    assert returns.min() - 0.5 <= float(proposed) <= returns.max() + 0.5


# ---- in a run -----------------------------------------------------------------------------


def toy_run(toy_file: Path, **changes: object) -> RunConfig:
    backbone = {"kind": "mamba", "width": 16, "layers": 1, "dropout": 0.0}
    agent = {
        "kind": "return_conditioned",
        "context_length": 5,
        "returns": {"scale": 20},
        "backbone": backbone,
    }
    plain = {
        "env": "point-run",
        "data": {"sources": [str(toy_file)]},
        "agent": agent,
        "train": {"steps": 120, "batch_size": 32, "learning_rate": 5e-3, "warmup_steps": 10},
        "eval": {"targets": "auto", "episodes": 6, "context": "stream"},
    }
    return resolve(plain, changes, "test")


def test_auto_targets_from_training_to_report(
    toy_file: Path, toy_store: EpisodeStore, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", toy_run(toy_file)
    train(config, run, torch.device("cpu"))
    assert load_run_config(run / "config.yaml") == config
    best = np.quantile(toy_store.episode_returns, 0.9)
    rows = evaluated(run)
    assert [row["env_seed"] for row in rows] == list(range(6))
    for row in rows:
        assert (row["target_rule"], row["target_quantile"]) == ("auto", 0.9)
        assert row["target"] == pytest.approx(best, abs=1.5)
        assert row["episode_return"] == pytest.approx(row["target"], abs=5)
        assert -3 < row["ood_mean"] < 3 and row["ood_max"] >= row["ood_mean"]
        assert len(row["ood"]) == row["length"]
        assert max(row["ood"]) == pytest.approx(row["ood_max"], abs=0.01)
        assert np.mean(row["ood"]) == pytest.approx(row["ood_mean"], abs=0.01)
    assert len({row["target"] for row in rows}) > 1  # each from its own first observation
    evaluated(run)  # replaces its rows
    assert len(read_rows(run)) == 6
    modest = evaluated(run, target_quantile=0.25)
    assert max(row["target"] for row in modest) < min(row["target"] for row in rows)
    given = evaluated(run, targets=[12.0])
    assert {(r["target_rule"], r["target_quantile"]) for r in given} == {("given", None)}
    assert len(read_rows(run)) == 18
    data = Data(load_runs(find_runs([run])), {})
    scores = data.scores
    assert sorted(s.target for s in scores) == ["12", "auto (quantile 0.25)", "auto (quantile 0.9)"]
    assert all(s.episodes == 6 for s in scores)
    assert "when asked for 1" in data.summary[0]
    for name in ("report.html", "report.md"):
        write_report([run], tmp_path / name)
        text = (tmp_path / name).read_text()
        assert "auto (quantile 0.9)" in text and "auto: quantile 0.25 of the data" in text


def test_compare_knows_when_an_auto_evaluation_is_finished(toy_file: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", toy_run(toy_file, train={"steps": 2})
    train(config, run, torch.device("cpu"))
    assert not finished(run, config)
    assert {target_label(row) for row in evaluated(run)} == {"auto (quantile 0.9)"}
    assert finished(run, config)
    other = replace(config, eval=replace(config.eval, target_quantile=0.8))
    assert not finished(run, other)
    assert not finished(run, replace(config, eval=replace(config.eval, targets=(5.0,))))


class ShiftedRun(PointRun):
    """PointRun with another origin: the same task, from states that the data do not hold."""

    def _observe(self) -> np.ndarray:
        return super()._observe() + np.array([-1.5, 0.0], np.float32)


def test_states_that_the_data_do_not_hold_raise_the_score(toy_file: Path, tmp_path: Path) -> None:
    gym.register("tests/ShiftedRun-v0", ShiftedRun, max_episode_steps=20)
    run = tmp_path / "run"
    train(toy_run(toy_file, train={"steps": 2}), run, torch.device("cpu"))
    usual, shifted = evaluated(run), evaluated(run, env="tests/ShiftedRun-v0")
    for before, after in zip(usual, shifted, strict=True):
        assert after["ood_mean"] > before["ood_mean"] + 3
        assert after["ood_max"] > before["ood_max"] + 3


def test_an_agent_without_return_tokens_is_scored_as_well(toy_file: Path, tmp_path: Path) -> None:
    config = toy_run(toy_file, agent={"preset": "bc"}, train={"steps": 2})
    train(config, tmp_path / "run", torch.device("cpu"))
    rows = evaluated(tmp_path / "run")
    for row in rows:
        assert (row["target"], row["target_rule"], row["target_quantile"]) == (None, None, None)
        assert np.isfinite(row["ood_mean"])
    assert target_label(rows[0]) == "none"


def test_the_prior_is_kept_on_resuming_and_fitted_anew_for_other_data(
    toy_store: EpisodeStore, two_kinds: EpisodeStore, tmp_path: Path
) -> None:
    ensure_prior(tmp_path, toy_store, 1.0, 0)
    first = (tmp_path / FILE).stat().st_ino
    ensure_prior(tmp_path, toy_store, 1.0, 0)
    assert (tmp_path / FILE).stat().st_ino == first
    loaded, direct = load_prior(tmp_path), fitted(toy_store)
    assert loaded is not None
    seen = torch.from_numpy(toy_store.observations[:5])
    assert torch.equal(loaded.novelty(seen), direct.novelty(seen))
    assert torch.equal(loaded.propose(seen, 0.9), direct.propose(seen, 0.9))
    ensure_prior(tmp_path, toy_store, 0.2, 0)  # %BC: what the agent learns from
    best = load_prior(tmp_path)
    assert best is not None and (best.propose(seen, 0.5) > loaded.propose(seen, 0.5) + 2).all()
    ensure_prior(tmp_path, two_kinds, 1.0, 0)
    other = load_prior(tmp_path)
    assert other is not None and float(other.propose(torch.tensor([[3.0, 0.0]]), 0.5)) > 40


def test_a_run_without_a_prior_or_with_a_damaged_one(toy_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(toy_run(toy_file, train={"steps": 2}), run, torch.device("cpu"))
    data, fitted_first = (run / FILE).read_bytes(), load_prior(run)
    (run / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"return_prior\.safetensors: is damaged.*--resume"):
        evaluated(run)
    (run / FILE).unlink()
    with pytest.raises(UserError, match=r"no return prior.*--resume"):
        evaluated(run)
    rows = evaluated(run, targets=[5.0])
    assert rows[0]["ood_mean"] is None and rows[0]["target"] == 5.0
    train(toy_run(toy_file, train={"steps": 2}), run, torch.device("cpu"), resume=True)
    again = load_prior(run)
    assert again is not None and fitted_first is not None
    pairs = zip(again.state_dict().values(), fitted_first.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("protocol", "word"),
    [
        ({"targets": "autoo"}, "it must be auto or a list of numbers"),
        ({"targets": 5}, "must be a list"),
        ({"target_quantile": 1.0}, "target_quantile is 1.0"),
    ],
)
def test_bad_settings_are_one_sentence(toy_file: Path, protocol: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        toy_run(toy_file, eval=protocol)

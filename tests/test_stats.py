"""Statistics against cases worked out by hand, simulated coverage, and rliable's definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from decision_seq.eval import stats
from decision_seq.eval.report import Run, score_table, summary
from decision_seq.run_config import run_config


def test_interquartile_mean_by_hand() -> None:
    assert stats.interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == 3.5
    assert stats.interquartile_mean(np.array([1.0, 2, 6])) == 3  # a quarter of three is none
    assert stats.interquartile_mean(np.array([9.0, 1, 2, 3, 100])) == pytest.approx(14 / 3)


def test_median_and_optimality_gap_by_hand() -> None:
    scores = np.array([20.0, 50, 140])
    assert stats.median(scores) == 50
    assert stats.optimality_gap(scores) == pytest.approx((80 + 50 + 0) / 3)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706205), (4, 2.776445), (9, 2.262157), (30, 2.042272)]
)
def test_student_quantile_against_tables(freedom: int, quantile: float) -> None:
    assert stats.student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-5)


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("statistic", [stats.mean, stats.interquartile_mean])
def test_interval_holds_the_truth_as_often_as_it_says(
    seeds: int, statistic: stats.Statistic
) -> None:
    rng = np.random.default_rng(0)
    centres = {"a": 50.0, "b": 50.0, "c": 50.0}
    held, trials = 0, 500
    for trial in range(trials):
        scores = {task: rng.normal(centre, 10, seeds) for task, centre in centres.items()}
        interval = stats.estimate(scores, statistic, seed=trial).interval
        assert interval is not None
        held += interval.low <= 50 <= interval.high
    assert 0.93 <= held / trials <= 0.97


def test_too_few_seeds_give_no_interval() -> None:
    few = stats.estimate({"a": [1.0, 2, 3], "b": [1.0, 2, 3, 4, 5]}, stats.mean)
    assert few.interval is None and few.value == pytest.approx(21 / 8)


def test_tasks_are_strata() -> None:
    """Tasks far apart widen nothing: only seeds of the same task stand for each other."""
    scores = {"low": [0.0, 1, 2, 3], "high": [1000.0, 1001, 1002, 1003]}
    interval = stats.estimate(scores, stats.mean).interval
    assert interval is not None and interval.high - interval.low < 3


def test_same_seed_same_interval() -> None:
    scores = {"a": np.random.default_rng(0).normal(size=20)}
    assert stats.estimate(scores, stats.mean, 1) == stats.estimate(scores, stats.mean, 1)
    assert stats.estimate(scores, stats.mean, 1) != stats.estimate(scores, stats.mean, 2)


def test_performance_profile_by_hand() -> None:
    scores = {"a": [10.0, 30], "b": [20.0, 20, 20, 40]}
    profile = stats.performance_profile(scores, np.array([0.0, 20, 30]))
    np.testing.assert_allclose(profile, [1, (0.5 + 0.25) / 2, (0 + 0.25) / 2])


def test_probability_of_improvement_by_hand() -> None:
    x = {"a": [1.0, 3], "b": [5.0, 5], "only x": [0.0]}
    y = {"a": [2.0, 3], "b": [1.0, 2]}
    # a: 1 loses twice; 3 beats 2 and ties 3: (0 + 1.5) / 4; b: wins all
    assert stats.probability_of_improvement(x, y).value == pytest.approx((1.5 / 4 + 1) / 2)


def test_probability_of_improvement_has_an_interval_around_it() -> None:
    rng = np.random.default_rng(0)
    x, y = {"a": rng.normal(1, 1, 10)}, {"a": rng.normal(0, 1, 10)}
    result = stats.probability_of_improvement(x, y)
    assert result.interval is not None
    assert result.interval.low < result.value < result.interval.high


def test_pairing_cancels_what_both_share() -> None:
    luck = np.random.default_rng(0).normal(0, 50, 8)
    x = {("hopper", i): luck[i] + 5 + 0.1 * i for i in range(8)}
    y = {("hopper", i): luck[i] for i in range(8)} | {("ant", 0): 1.0}
    result = stats.paired_difference(x, y)
    assert result.value == pytest.approx(5.35)
    assert result.interval is not None
    assert 5 < result.interval.low < result.interval.high < 5.7


def test_best_of_by_enumeration() -> None:
    estimates, truths = np.array([3.0, 1, 2]), np.array([10.0, 20, 60])
    assert stats.best_of(estimates, truths, 1) == pytest.approx(30)
    assert stats.best_of(estimates, truths, 2) == pytest.approx((10 + 10 + 60) / 3)
    assert stats.best_of(estimates, truths, 3) == pytest.approx(10)


@pytest.mark.parametrize("seeds", [3, 4])
def test_the_report_gives_an_interval_where_there_are_seeds_enough(
    seeds: int, tmp_path: Path
) -> None:
    plain = {"env": "point-run", "data": {"sources": ["toy.npz"]}, "agent": {"preset": "bc"}}
    config = run_config(plain, {}, "test")
    runs = []
    for seed in range(seeds):
        row = {"env": "PointRun-v0", "target": None, "context": "window", "target_quantile": None}
        row |= {"train_seed": seed, "normalized_score": None, "episode_return": 10.0 + seed}
        dataset = {"name": "toy", "hash": "0", "return_mean": 9.0}
        runs.append(Run(tmp_path, config, dataset, [row], "agent", None))
    (line,) = score_table(runs)
    assert line.mean == pytest.approx(10 + (seeds - 1) / 2)
    if seeds < stats.FEWEST:
        assert line.interval is None and "no interval" in summary([line], runs)[-1]
    else:
        assert line.interval is not None
        assert line.interval.low < line.mean < line.interval.high

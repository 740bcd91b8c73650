"""Statistics against cases worked out by hand, simulated coverage, and rliable's definitions."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from decision_seq.eval.report import statistics as stats


def test_interquartile_mean_by_hand() -> None:
    assert stats.interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == 3.5
    assert stats.interquartile_mean(np.array([1.0, 2, 6])) == 3  # a quarter of three is none
    assert stats.interquartile_mean(np.array([9.0, 1, 2, 3, 100])) == pytest.approx(14 / 3)


def test_median_and_optimality_gap_by_hand() -> None:
    scores = np.array([20.0, 50, 140])
    assert stats.median(scores) == 50
    assert stats.optimality_gap(scores) == pytest.approx((80 + 50 + 0) / 3)


def test_the_interval_of_a_gap_is_never_below_zero() -> None:
    gap = stats.estimate({"": [105.9, 89.2, 90.1, 102.6, 106.9]}, stats.optimality_gap)
    assert gap.interval and gap.interval.low == 0 < gap.value < gap.interval.high


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706205), (4, 2.776445), (9, 2.262157), (30, 2.042272)]
)
def test_student_quantile_against_tables(freedom: int, quantile: float) -> None:
    assert stats.student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-5)


def coverage(intervals: list[stats.Interval | None], truth: float) -> float:
    return sum(i is not None and i.low <= truth <= i.high for i in intervals) / len(intervals)


# what the report draws: the mean of one task in the score table, pooled statistics of several
@pytest.mark.parametrize(
    ("statistic", "tasks", "seeds"),
    [
        (stats.mean, 1, stats.FEWEST),
        (stats.mean, 1, 10),
        (stats.interquartile_mean, 1, stats.FEWEST),
        (stats.mean, 3, stats.FEWEST),
        (stats.interquartile_mean, 3, stats.FEWEST),
        (stats.interquartile_mean, 3, 10),
    ],
)
def test_interval_holds_the_truth_as_often_as_it_says(
    statistic: stats.Statistic, tasks: int, seeds: int
) -> None:
    rng = np.random.default_rng(0)
    intervals = []
    for trial in range(500):
        scores = {str(task): rng.normal(50, 10, seeds) for task in range(tasks)}
        intervals.append(stats.estimate(scores, statistic, seed=trial).interval)
    assert 0.93 <= coverage(intervals, 50) <= 0.97


def test_interval_of_a_paired_difference_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = []
    for trial in range(500):
        luck = rng.normal(0, 50, stats.FEWEST)  # shared, so it must not count
        x = {("task", i): value for i, value in enumerate(luck + rng.normal(3, 2, len(luck)))}
        y = {("task", i): value for i, value in enumerate(luck + rng.normal(0, 2, len(luck)))}
        intervals.append(stats.paired_difference(x, y, trial).interval)
    assert 0.93 <= coverage(intervals, 3) <= 0.97


@pytest.mark.parametrize("shift", [0.0, 1.5, 2.5])
def test_interval_of_the_probability_of_improvement_holds_the_truth(shift: float) -> None:
    """Also where every seed of one side wins, at which a bootstrap interval has no width."""
    rng = np.random.default_rng(2)
    intervals = []
    for _ in range(2000):
        x, y = rng.normal(shift, 1, stats.FEWEST), rng.normal(0, 1, stats.FEWEST)
        intervals.append(stats.probability_of_improvement({"a": x}, {"a": y}).interval)
    assert 0.93 <= coverage(intervals, NormalDist().cdf(shift / 2**0.5)) <= 0.98


def test_too_few_seeds_give_no_interval() -> None:
    few = stats.estimate({"a": [1.0, 2, 3, 4], "b": [1.0, 2, 3, 4, 5]}, stats.mean)
    assert few.interval is None and few.value == pytest.approx(25 / 9)


def test_tasks_are_strata() -> None:
    """Tasks far apart widen nothing: only seeds of the same task stand for each other."""
    scores = {"low": [0.0, 1, 2, 3, 4], "high": [1000.0, 1001, 1002, 1003, 1004]}
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


def test_the_band_of_a_profile_holds_the_truth() -> None:
    """Of five seeds none or all lie above the median in 6 % of repetitions, without any width."""
    rng, held = np.random.default_rng(0), []
    for trial in range(500):
        band = stats.profile_band({"": rng.normal(50, 10, 5)}, np.array([0.0, 50, 99]), trial)
        assert band is not None and band[:, 0].tolist() == [1, 1] and band[:, 2].tolist() == [0, 0]
        held.append(band[0, 1] <= 0.5 <= band[1, 1])
    assert 0.91 <= np.mean(held) <= 0.97
    assert stats.profile_band({"": [1.0] * 4}, np.array([0.0])) is None


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
    np.testing.assert_allclose(stats.best_of(estimates, truths), [30, (10 + 10 + 60) / 3, 10])


def test_selection_by_few_rollouts_is_worse_than_by_many() -> None:
    """Policies differ by 1, rollouts by 3: one rollout finds the best policy less often than 50,
    and with none to choose from the score is the mean."""
    rng = np.random.default_rng(0)
    truths = np.arange(10.0)
    rollouts = truths[:, None] + rng.normal(0, 3, (10, 50))
    one, many = (stats.selection_curve(rollouts, truths, episodes) for episodes in (1, 50))
    assert one[0] == many[0] == pytest.approx(4.5)
    assert many[-1] == truths[rollouts.mean(axis=1).argmax()] >= 8
    assert 5 < one[-1] < many[-1] and (one < many + 1e-9).all()
    expected = [truths[rollouts[:, i].argmax()] for i in range(50)]
    assert one[-1] == pytest.approx(np.mean(expected), abs=0.4)


def test_against_rliable() -> None:
    """What rliable 1.2.0 (with numpy 2.2.6, pandas 2.3.3, arch 7.2.0; it breaks against pandas 3)
    says of the same scores. Made in an environment of its own by

        from rliable import library as rly, metrics
        [metrics.aggregate_iqm(x), metrics.aggregate_mean(x), metrics.aggregate_optimality_gap(
            x, gamma=100.0), metrics.aggregate_median(x)]
        metrics.probability_of_improvement(x, y)
        [rly.run_score_deviation(x, t) for t in (20, 40, 60, 80)]
        rly.get_interval_estimates({"x": x}, lambda s: np.array([metrics.aggregate_iqm(s),
            metrics.aggregate_mean(s)]), reps=20000, random_state=np.random.RandomState(0))
    """
    rng = np.random.default_rng(0)
    x = rng.normal(50, 20, (10, 4)).round(2)  # [runs, tasks]
    y = rng.normal(40, 20, (8, 4)).round(2)
    scores, others = ({str(t): a[:, t] for t in range(4)} for a in (x, y))
    iqm, mean = (stats.estimate(scores, s) for s in (stats.interquartile_mean, stats.mean))
    assert iqm.value == pytest.approx(48.4145)
    assert mean.value == pytest.approx(48.79125)
    assert stats.estimate(scores, stats.optimality_gap).value == pytest.approx(51.20875)
    assert stats.median(x.mean(axis=0)) == pytest.approx(49.5875)  # rliable's is of task means
    improvement = stats.probability_of_improvement(scores, others)
    assert improvement.value == pytest.approx(0.521875)
    profile = stats.performance_profile(scores, np.array([20.0, 40, 60, 80]))
    np.testing.assert_allclose(profile, [0.975, 0.675, 0.225, 0])
    # its interval is the plain percentile one; ours is that one stretched for 10 seeds a task
    stretch = stats.student_quantile(0.975, 36) / 1.959964 * (40 / 36) ** 0.5
    for ours, low, high in ((iqm, 43.5398125, 53.5831375), (mean, 44.0699625, 53.38281875)):
        assert ours.interval is not None
        expected = [ours.value + stretch * (end - ours.value) for end in (low, high)]
        assert [ours.interval.low, ours.interval.high] == pytest.approx(expected, abs=0.4)

"""Statistics over tasks and training seeds, after rliable (arXiv:2108.13264).

The unit is one training seed: its score on a task is the mean over its evaluation episodes. Seeds
are resampled within their task (stratified). Everything is numpy and seeded. With fewer than
`FEWEST` seeds on a task there is no interval: None. From there on a 95 % interval holds the truth
in 93 to 97 % of repetitions on simulated normal scores; of two-humped ones as well, of skewed ones
(a gamma distribution) in 92 to 93 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

Scores = Mapping[str, Sequence[float]]  # task -> one score a training seed
Statistic = Callable[[np.ndarray], np.ndarray]  # [..., n] -> [...]
FEWEST = 5  # seeds a task below which an interval would be a guess
RESAMPLES = 2000
SELECTIONS = 500  # draws of the episodes that judge a candidate


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a statistic."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A statistic and, where there are seeds enough, its interval."""

    value: float
    interval: Interval | None


# ---- statistics of all scores together ----------------------------------------------------------


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return scores.mean(axis=-1)


def median(scores: np.ndarray) -> np.ndarray:
    """Median over the last axis."""
    return np.median(scores, axis=-1)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half over the last axis: a quarter, rounded down, is cut at each end."""
    cut = scores.shape[-1] // 4
    ordered = np.sort(scores, axis=-1)
    return ordered[..., cut : scores.shape[-1] - cut].mean(axis=-1)


def optimality_gap(scores: np.ndarray, optimum: float = 100.0) -> np.ndarray:
    """By how much scores fall short of `optimum` on average; what is above it counts as reached."""
    return (optimum - np.minimum(scores, optimum)).mean(axis=-1)


STATISTICS: dict[str, Statistic] = {
    "interquartile mean": interquartile_mean,
    "mean": mean,
    "median": median,
    "optimality gap": optimality_gap,
}


# ---- intervals ------------------------------------------------------------------------------


def estimate(
    scores: Scores, statistic: Statistic, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """`statistic` of all scores of all tasks, with a stratified bootstrap interval over seeds.

    Args:
        scores: task -> one score a training seed; at least one each.
        statistic: maps [..., n] to [...].
        seed: of the resampling.
        confidence: share of repetitions in which the interval should hold the truth.
    """
    groups = [np.asarray(values, np.float64) for values in scores.values()]
    value = float(statistic(np.concatenate(groups)))
    if min(map(len, groups)) < FEWEST:
        return Estimate(value, None)
    rng = np.random.default_rng(seed)
    drawn = statistic(np.concatenate([_resample(rng, group) for group in groups], axis=-1))
    low, high = _ends(value, drawn, [len(group) for group in groups], confidence).tolist()
    if statistic is optimality_gap:  # which is never negative, as stretching does not know
        low = max(0.0, low)
    return Estimate(value, Interval(low, high))


def _resample(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """[RESAMPLES, n] draws with replacement."""
    return values[rng.integers(len(values), size=(RESAMPLES, len(values)))]


def _ends(
    value: float | np.ndarray, drawn: np.ndarray, seeds: Sequence[int], confidence: float
) -> np.ndarray:
    """Quantiles of the bootstrap distribution `drawn` [RESAMPLES, ...], stretched about `value`
    [...] for as few `seeds` as each task has: the lower and the upper end, [2, ...].

    Plain percentile intervals are too narrow for few seeds: resampling n values has a variance too
    small by (n - 1) / n, and normal instead of Student tails (Hesterberg, arXiv:1411.5279, section
    3.3). Both are put right by one factor on the distance from the estimate. Hesterberg takes wider
    quantiles instead, but no resample of five values lies outside them: on one task that holds the
    truth in 91 % of repetitions with 5 seeds and in 87 % with 4.
    """
    freedom = sum(n - 1 for n in seeds)
    normal = NormalDist().inv_cdf(0.5 + confidence / 2)
    stretch = student_quantile(0.5 + confidence / 2, freedom) / normal
    stretch *= math.sqrt(sum(seeds) / freedom)
    ends = np.quantile(drawn, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    return value + stretch * (ends - value)


@cache
def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t for `probability` in (0.5, 1), by bisection of its integral."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    scale /= math.sqrt(freedom * math.pi)

    def mass(t: float) -> float:  # between 0 and t
        x = np.linspace(0, math.atan(t / math.sqrt(freedom)), 2001)  # t = sqrt(freedom) tan x
        return scale * math.sqrt(freedom) * float(np.trapezoid(np.cos(x) ** (freedom - 1), x))

    low, high = 0.0, 1e4
    while high - low > 1e-9 * (1 + low):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < probability - 0.5 else (low, middle)
    return low


# ---- comparisons ----------------------------------------------------------------------------


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Share of scores above each threshold [T], tasks counting alike: [T] in [0, 1]."""
    groups = [np.asarray(values)[:, None] > thresholds for values in scores.values()]
    return np.mean([group.mean(axis=0) for group in groups], axis=0)


def profile_band(
    scores: Scores, thresholds: np.ndarray, seed: int = 0, confidence: float = 0.95
) -> np.ndarray | None:
    """Lower and upper end of the interval of each share of `performance_profile`: [2, T], each
    threshold by itself. None where a task has fewer than `FEWEST` seeds."""
    groups = [np.asarray(values, np.float64) for values in scores.values()]
    if min(map(len, groups)) < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    above = [(_resample(rng, group)[..., None] > thresholds).mean(axis=1) for group in groups]
    shares = performance_profile(scores, thresholds)
    seeds = [len(group) for group in groups]
    return np.clip(_ends(shares, np.mean(above, axis=0), seeds, confidence), 0, 1)


def probability_of_improvement(x: Scores, y: Scores) -> Estimate:
    """How likely a seed of `x` scores higher than one of `y` on the same task (ties count half),
    averaged over the tasks of both: Mann and Whitney's U over the number of pairs.

    The interval is Newcombe's (Statistics in Medicine 25, 2006, part 2, method 5): all values that
    lie no further from the estimate than their own standard error allows. A bootstrap has no width
    where every seed of `x` wins, and there holds the truth less than half of the time.
    """
    tasks = [task for task in x if task in y]
    value = float(np.mean([_wins(np.asarray(x[task]), np.asarray(y[task])) for task in tasks]))
    sizes = [(len(x[task]), len(y[task])) for task in tasks]
    if min(map(min, sizes)) < FEWEST:
        return Estimate(value, None)
    p = np.linspace(0, 1, 1001)
    spread = (1 - p) / (2 - p) + p / (1 + p)
    variances = [p * (1 - p) * (1 + ((m + n) / 2 - 1) * spread) / (m * n) for m, n in sizes]
    error = np.sqrt(np.sum(variances, axis=0)) / len(tasks)
    near = p[np.abs(p - value) <= NormalDist().inv_cdf(0.975) * error + 1e-9]
    return Estimate(value, Interval(float(min(value, *near)), float(max(value, *near))))


def _wins(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean())


def paired_difference(
    x: Mapping[tuple[str, int], float], y: Mapping[tuple[str, int], float], seed: int = 0
) -> Estimate:
    """Mean of x - y over what both were measured on.

    Args:
        x: (task, training seed) -> score, from the same environment seeds as in `y`: luck that both
            share then cancels.
        y: likewise.
        seed: of the resampling.
    """
    differences: dict[str, list[float]] = {}
    for task, train_seed in sorted(x.keys() & y.keys()):
        differences.setdefault(task, []).append(x[task, train_seed] - y[task, train_seed])
    return estimate(differences, mean, seed)


def best_of(estimates: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Expected true score of the policy that looks best among 1 to n candidates drawn at random:
    [n]. With one candidate this is the honest score, with all of them what is often reported.

    Args:
        estimates: [n] score of each candidate in the rollouts that choose.
        truths: [n] score of each in other rollouts.
    """
    count = len(estimates)
    order = np.argsort(estimates, kind="stable")
    # the i-th smallest is the best of C(i, spent - 1) of the C(count, spent) draws
    chances = [
        [math.comb(i, spent - 1) / math.comb(count, spent) for i in range(count)]
        for spent in range(1, count + 1)
    ]
    return np.array(chances) @ truths[order]


def selection_curve(
    rollouts: np.ndarray, truths: np.ndarray, episodes: int, seed: int = 0
) -> np.ndarray:
    """`best_of` where every candidate is judged by only `episodes` of its rollouts, averaged over
    which: the score as a function of the online evaluations spent. Choosing a checkpoint or target
    by rollouts costs rollouts (Unifloral, arXiv:2504.11453).

    Args:
        rollouts: [n, m] scores of n candidates in m episodes each.
        truths: [n] score of each in other rollouts.
        episodes: that judge a candidate, 1 to m.
        seed: of their choice.

    Returns:
        [n] expected true score after 1 to n candidates, so `episodes` times as many rollouts.
    """
    rng = np.random.default_rng(seed)
    draws = 1 if episodes == rollouts.shape[1] else SELECTIONS
    curves = []
    for _ in range(draws):
        judged = rng.permuted(rollouts, axis=1)[:, :episodes]
        curves.append(best_of(judged.mean(axis=1), truths))
    return np.mean(curves, axis=0)

"""Statistics over tasks and training seeds, after rliable (arXiv:2108.13264).

The unit is one training seed: its score on a task is the mean over its evaluation episodes. Seeds
are resampled within their task (stratified). Everything is numpy and seeded. With fewer than
`FEWEST` seeds on a task there is no interval: None.
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
FEWEST = 4  # seeds a task below which an interval would be a guess
RESAMPLES = 2000


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
    return Estimate(value, _interval(drawn, [len(group) for group in groups], confidence))


def _resample(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """[RESAMPLES, n] draws with replacement."""
    return values[rng.integers(len(values), size=(RESAMPLES, len(values)))]


def _interval(drawn: np.ndarray, seeds: Sequence[int], confidence: float) -> Interval:
    """Quantiles of the bootstrap distribution, widened for few seeds.

    Plain percentile intervals are too narrow for few seeds: resampling n values has a variance too
    small by (n - 1) / n, and normal instead of Student tails. Both are put right by taking wider
    quantiles (the expanded percentile interval of Hesterberg, arXiv:1411.5279, section 3.3).
    """
    count, freedom = sum(seeds), sum(n - 1 for n in seeds)
    widening = math.sqrt(count / freedom) * student_quantile(0.5 + confidence / 2, freedom)
    tail = NormalDist().cdf(-widening)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low), float(high))


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


def probability_of_improvement(x: Scores, y: Scores, seed: int = 0) -> Estimate:
    """How likely a seed of `x` scores higher than one of `y` on the same task (ties count half),
    averaged over the tasks of both: Mann and Whitney's U over the number of pairs."""
    tasks = [task for task in x if task in y]
    rng = np.random.default_rng(seed)
    values, draws = [], []
    for task in tasks:
        a, b = np.asarray(x[task], np.float64), np.asarray(y[task], np.float64)
        values.append(_wins(a, b))
        draws.append(_wins(_resample(rng, a), _resample(rng, b)))
    seeds = [min(len(x[task]), len(y[task])) for task in tasks]
    value = float(np.mean(values))
    if min(seeds) < FEWEST:
        return Estimate(value, None)
    interval = _interval(np.mean(draws, axis=0), seeds, 0.95)
    return Estimate(value, interval)


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a[..., :, None], b[..., None, :]
    return ((a > b) + 0.5 * (a == b)).mean(axis=(-1, -2))


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


def best_of(estimates: np.ndarray, truths: np.ndarray, spent: int) -> float:
    """Expected true score of the policy that looks best among `spent` candidates drawn at random.

    Choosing a checkpoint or target by rollouts costs rollouts (Unifloral, arXiv:2504.11453); with
    one candidate this is the honest score, with all of them what is often reported as the score.

    Args:
        estimates: [n] score of each candidate in the rollouts that choose.
        truths: [n] score of each in other rollouts.
        spent: how many candidates are evaluated, 1 to n.
    """
    order = np.argsort(estimates)  # the i-th smallest is the best of C(i, spent - 1) of the draws
    total = math.comb(len(estimates), spent)
    weights = [math.comb(i, spent - 1) / total for i in range(len(estimates))]
    return float(np.dot(weights, truths[order]))

"""Mixtures of unit Gaussians, what an AttnBM and its conditionals are, and their fit by EM."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1024  # points looked at together: [points, components] stays in the processor's cache


@dataclass(frozen=True)
class GaussianMixture:
    """M unit Gaussians over n dimensions, with weights of its own for each of B cases."""

    log_weights: Tensor  # [B, M], each row's exponentials sum to 1
    means: Tensor  # [M, n]

    def cdf(self, value: Tensor) -> Tensor:
        """Probability [B] of at most `value` [B]; for n = 1."""
        below = torch.special.ndtr(value[:, None] - self.means[:, 0])  # [B, M]
        return (self.log_weights.exp() * below).sum(-1)

    @torch.no_grad()
    def quantile(self, probability: float) -> Tensor:
        """Value [B] with `cdf` equal to `probability`, by bisection; for n = 1."""
        low = (self.means.min() - 10).expand(len(self.log_weights)).clone()
        high = (self.means.max() + 10).expand(len(self.log_weights)).clone()
        for _ in range(60):
            middle = (low + high) / 2
            under = self.cdf(middle) < probability
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class Fit:
    """A mixture of Gaussians that share one width a dimension, in the units of the points."""

    log_weights: Tensor  # [M]
    means: Tensor  # [M, N]
    widths: Tensor  # [N], standard deviation of every component in each dimension


def fit_mixture(
    points: Tensor,
    components: int,
    generator: torch.Generator,
    steps: int = 20,
    narrowest: float = 0.05,
) -> Fit:
    """Maximum likelihood by expectation-maximisation, started from points drawn at random.

    Divided by its widths the result is a mixture of unit Gaussians: the resolution of the
    whitening in front of an AttnBM is fitted with it, not chosen. EM never lowers the likelihood
    and has no step size.

    Args:
        points: [n, N] standardised, mean 0 and deviation 1 in every dimension.
        components: M, at most n.
        generator: draws the first means.
        steps: passes over the points.
        narrowest: least width, so that repeated points are no singularity.
    """
    chosen = torch.randperm(len(points), generator=generator)[:components]
    fit = Fit(
        log_weights=torch.full((len(chosen),), -math.log(len(chosen)), dtype=points.dtype),
        means=points[chosen],
        widths=torch.full(points.shape[1:], 0.5, dtype=points.dtype),
    )
    for _ in range(steps):
        fit = _em_step(fit, points, narrowest)
    return fit


def _em_step(fit: Fit, points: Tensor, narrowest: float) -> Fit:
    """Responsibilities of the components, then the means, widths and weights they imply."""
    mass = torch.zeros_like(fit.log_weights)  # [M]
    sums = torch.zeros_like(fit.means)  # [M, N]
    centres = fit.means / fit.widths
    offset = fit.log_weights - centres.square().sum(-1) / 2  # [M]
    for chunk in points.split(CHUNK):
        share = torch.addmm(offset, chunk / fit.widths, centres.T).softmax(-1)  # [n, M]
        mass += share.sum(0)
        sums += share.T @ chunk
    # a component that nothing belongs to stays where it is, with next to no weight
    empty = mass < 1e-8
    means = torch.where(empty[:, None], fit.means, sums / mass.clamp(min=1e-8)[:, None])
    explained = (mass[:, None] * means.square()).sum(0)
    variance = (points.square().sum(0) - explained) / len(points)
    return Fit(
        log_weights=(mass.clamp(min=1e-8) / mass.clamp(min=1e-8).sum()).log(),
        means=means,
        widths=variance.clamp(min=narrowest**2).sqrt(),
    )

"""The attentional Boltzmann machine (AttnBM, arXiv:2212.04692).

The machine has N Gaussian visible units and one softmax hidden unit with M states. Its energy is
that of a modern Hopfield network, and unlike most Boltzmann machines it has an exact likelihood,
because it is a mixture of M unit Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from decision_seq.hopfield.mixture import GaussianMixture


class AttnBM(nn.Module):
    """E(v) = |v - b|^2 / 2 - logsumexp_mu(w_mu . v + c_mu), a stored pattern w_mu in each row.

    Args:
        weight: [M, N], W.
        bias: [N], b.
        hidden_bias: [M], c.
    """

    def __init__(self, weight: Tensor, bias: Tensor, hidden_bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.hidden_bias = nn.Parameter(hidden_bias.detach().clone())

    @classmethod
    def from_mixture(cls, log_weights: Tensor, means: Tensor) -> AttnBM:
        """The machine whose distribution is sum_mu exp(log_weights[mu]) N(means[mu], 1).

        Only b + w_mu is fixed by that; b is set to the mixture's mean.
        """
        bias = log_weights.softmax(-1) @ means
        weight = means - bias
        return cls(weight, bias, log_weights - weight.square().sum(-1) / 2 - weight @ bias)

    def inputs(self, v: Tensor) -> Tensor:
        """What the hidden unit's states get from `v` [B, N]: W v + c, [B, M]."""
        return v @ self.weight.T + self.hidden_bias

    def energy(self, v: Tensor) -> Tensor:
        """E [B] of `v` [B, N]."""
        return (v - self.bias).square().sum(-1) / 2 - torch.logsumexp(self.inputs(v), dim=-1)

    def log_partition(self) -> Tensor:
        """log Z, a scalar."""
        log_masses = self.weight.square().sum(-1) / 2 + self.inputs(self.bias)  # [M]
        return torch.logsumexp(log_masses, dim=-1) + self.weight.shape[1] / 2 * math.log(
            2 * math.pi
        )

    def log_prob(self, v: Tensor) -> Tensor:
        """Exact log-density [B] of `v` [B, N]."""
        return -self.energy(v) - self.log_partition()

    def marginal(self, dims: Sequence[int]) -> AttnBM:
        """The machine over `dims` alone, the others integrated out exactly: only c changes."""
        kept = list(dims)
        lost = self._others(kept)
        weight, bias = self.weight[:, lost], self.bias[lost]
        carried = self.hidden_bias + weight.square().sum(-1) / 2 + weight @ bias
        return AttnBM(self.weight[:, kept], self.bias[kept], carried)

    def conditional(self, observed: Tensor, dims: Sequence[int]) -> GaussianMixture:
        """Distribution of the other dimensions (in ascending order) given `observed` [B, len(dims)]
        at `dims`: again a mixture, whose mean is one step of attention from the observed part."""
        missing = self._others(dims)
        log_weights = self.marginal(dims).inputs(observed).log_softmax(-1)
        return GaussianMixture(log_weights, self.bias[missing] + self.weight[:, missing])

    def _others(self, dims: Sequence[int]) -> list[int]:
        given = set(dims)
        return [i for i in range(len(self.bias)) if i not in given]

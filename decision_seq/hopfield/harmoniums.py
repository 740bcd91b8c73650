"""Boltzmann machines of many hidden units: Gaussian-Bernoulli, and of dense associative memory.

Both are exponential family harmoniums: given one layer the units of the other are independent, so
Gibbs sampling goes layer by layer. Both are relatives of the AttnBM (arXiv:2212.04692), whose
hidden layer is a single softmax unit instead.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq.hopfield.boltzmann import AttnBM, BoltzmannMachine
from decision_seq.hopfield.mixture import LOG_2PI

EXACT_UNITS = 12  # a sum over 2^12 states is still cheap
NODES = 64  # of the quadrature over a hidden unit of the dense associative memory


class Harmonium(BoltzmannMachine, ABC):
    """p(v, h) ~ exp(b . v + c . s(h) + s(h)^T W v + terms of single units)."""

    @abstractmethod
    def free_energy(self, v: Tensor) -> Tensor:
        """-log of the sum over hidden states of exp(-E(v, h)), [B], for `v` [B, N]."""

    @abstractmethod
    def log_partition(self) -> Tensor:
        """Exact log Z. Raises ValueError where the sum has more than 2^12 terms."""

    @abstractmethod
    def hidden_mean(self, v: Tensor) -> Tensor:
        """E[s(h) | v], [B, M]."""

    @abstractmethod
    def sample_hidden(self, v: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of s(h) given `v`, [B, M]."""

    @abstractmethod
    def sample_visible(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of v given s(h) [B, M], [B, N]."""

    def log_prob(self, v: Tensor) -> Tensor:
        """Exact log-probability (or density) [B] of `v` [B, N], where `log_partition` is exact."""
        return -self.free_energy(v) - self.log_partition()

    @torch.no_grad()
    def gibbs(self, v: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        """`v` [B, N] after `steps` rounds of block Gibbs sampling."""
        for _ in range(steps):
            v = self.sample_visible(self.sample_hidden(v, generator), generator)
        return v

    @torch.no_grad()
    def contrastive_gradient(
        self, v: Tensor, generator: torch.Generator, steps: int = 1
    ) -> dict[str, Tensor]:
        """Contrastive divergence: the gradient of the mean log-likelihood of `v` [B, N], with
        `steps` rounds of Gibbs sampling from the data in place of the machine's expectation."""
        dreamt = self.gibbs(v, steps, generator)
        seen, imagined = self.hidden_mean(v), self.hidden_mean(dreamt)
        return {
            "weight": (seen.T @ v - imagined.T @ dreamt) / len(v),
            "bias": (v - dreamt).mean(0),
            "hidden_bias": (seen - imagined).mean(0),
        }

    def gradient(self, v: Tensor, generator: torch.Generator, steps: int = 1) -> dict[str, Tensor]:
        """Of the mean log-likelihood of `v` [B, N]: exact for a machine small enough for it, else
        by contrastive divergence."""
        if self._summed_units() > EXACT_UNITS:
            return self.contrastive_gradient(v, generator, steps)
        names, parameters = zip(*self.named_parameters(), strict=True)
        exact = torch.autograd.grad(self.log_prob(v).mean(), parameters)
        return dict(zip(names, exact, strict=True))

    @abstractmethod
    def _summed_units(self) -> int:
        """Number of binary units that the exact partition function sums over."""

    def _states(self, units: int, values: tuple[float, float]) -> Tensor:
        """All states [2^units, units] of so many two-valued units."""
        if units > EXACT_UNITS:
            raise ValueError(
                f"{units} units have too many states; at most {EXACT_UNITS} are summed"
            )
        return torch.tensor(list(itertools.product(values, repeat=units)), dtype=self.weight.dtype)


class GaussianBernoulliRBM(Harmonium):
    """E(v, h) = |v - b|^2 / 2 - h . (W v + c) with h in {0, 1}^M and v real."""

    def free_energy(self, v: Tensor) -> Tensor:
        return (v - self.bias).square().sum(-1) / 2 - F.softplus(self.inputs(v)).sum(-1)

    def log_partition(self) -> Tensor:
        states = self._states(len(self.hidden_bias), (0.0, 1.0))  # [2^M, M]
        patterns = states @ self.weight  # [2^M, N]
        masses = patterns.square().sum(-1) / 2 + patterns @ self.bias + states @ self.hidden_bias
        return torch.logsumexp(masses, dim=0) + len(self.bias) / 2 * LOG_2PI

    def as_attn_bm(self) -> AttnBM:
        """The AttnBM with the same distribution: one pattern W^T h for each of the 2^M states h."""
        states = self._states(len(self.hidden_bias), (0.0, 1.0))
        return AttnBM(states @ self.weight, self.bias, states @ self.hidden_bias)

    def hidden_mean(self, v: Tensor) -> Tensor:
        return torch.sigmoid(self.inputs(v))

    def sample_hidden(self, v: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(self.hidden_mean(v), generator=generator)

    def sample_visible(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        means = self.bias + hidden @ self.weight
        return means + torch.randn(means.shape, generator=generator, dtype=means.dtype)

    def _summed_units(self) -> int:
        return len(self.hidden_bias)


class DenseAssociativeMemory(Harmonium):
    """The Boltzmann machine of dense associative memory, F(x) = max(x, 0)^n / n, v in {-1, 1}^N.

    E(v, h) = sum_mu [h f(h) - F(h)] - sum_mu f(h_mu) (w_mu . v + c_mu) - b . v with f = F' and
    h >= 0. Its lowest value over h is the memory's own energy -b . v - sum F(w_mu . v + c_mu), at
    h = max(W v + c, 0). Summed over s = f(h) instead, each pattern contributes
    A(x) = log integral exp(-(h f(h) - F(h)) + x f(h)) f'(h) dh, whose derivative is E[f(h) | v];
    A(x) / F(x) tends to 1 for strong patterns. The integral is taken by Gauss-Legendre quadrature.

    Args:
        weight: [M, N] patterns.
        bias: [N].
        hidden_bias: [M].
        power: n, at least 2; 2 is the classical Hopfield network with rectified hidden units.
    """

    def __init__(self, weight: Tensor, bias: Tensor, hidden_bias: Tensor, power: int = 3) -> None:
        super().__init__(weight, bias, hidden_bias)
        self.power = power
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        self._nodes = torch.from_numpy((nodes + 1) / 2).to(weight.dtype)  # on [0, 1]
        self._log_node_weights = torch.from_numpy(np.log(weights / 2)).to(weight.dtype)

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E [B] of visible `v` [B, N] and hidden `h` [B, M], not negative."""
        n = self.power
        own = (1 - 1 / n) * h**n  # h f(h) - F(h)
        return (own - h ** (n - 1) * self.inputs(v)).sum(-1) - v @ self.bias

    def memory_energy(self, v: Tensor) -> Tensor:
        """Energy [B] of the associative memory, without fluctuations of the hidden units."""
        return -v @ self.bias - (F.relu(self.inputs(v)) ** self.power).sum(-1) / self.power

    def free_energy(self, v: Tensor) -> Tensor:
        return -v @ self.bias - self.cumulant(self.inputs(v)).sum(-1)

    def log_partition(self) -> Tensor:
        return torch.logsumexp(-self.free_energy(self._states(len(self.bias), (-1.0, 1.0))), dim=0)

    def cumulant(self, x: Tensor) -> Tensor:
        """A(x), elementwise."""
        return torch.logsumexp(self._log_terms(x)[1], dim=-1)

    def hidden_mean(self, v: Tensor) -> Tensor:
        h, terms = self._log_terms(self.inputs(v))
        return (terms.softmax(-1) * h ** (self.power - 1)).sum(-1)

    def sample_hidden(self, v: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of f(h) among the quadrature's nodes, so the chain of `v` follows the machine to
        the precision of the quadrature."""
        h, terms = self._log_terms(self.inputs(v))  # [B, M, NODES]
        below = terms.softmax(-1).cumsum(-1)
        uniform = torch.rand(*h.shape[:2], 1, generator=generator, dtype=h.dtype)
        chosen = (below < uniform).sum(-1, keepdim=True).clamp(max=NODES - 1)
        return h.gather(-1, chosen)[..., 0] ** (self.power - 1)

    def sample_visible(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        up = torch.sigmoid(2 * (self.bias + hidden @ self.weight))
        return 2 * torch.bernoulli(up, generator=generator) - 1

    def _summed_units(self) -> int:
        return len(self.bias)

    def _log_terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes h and logs of the summands of exp(A(x)), each [..., NODES].

        The integrand peaks at h = x with a width of ((n - 1) x^(n - 2))^(-1/2); ten of those on
        either side hold all of it that a float can tell.
        """
        n = self.power
        with torch.no_grad():
            width = ((n - 1) * x.clamp(min=1.0) ** (n - 2)) ** -0.5
            low = (x - 10 * width).clamp(min=0.0)
            span = x.clamp(min=0.0) + 10 * width - low
            h = low[..., None] + span[..., None] * self._nodes
        jacobian = torch.log((n - 1) * h ** (n - 2)) + span.log()[..., None]  # f'(h) dh
        exponent = h ** (n - 1) * x[..., None] - (1 - 1 / n) * h**n
        return h, exponent + jacobian + self._log_node_weights

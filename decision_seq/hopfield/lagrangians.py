"""Lagrangians of associative memories: each layer's activation is the gradient of one.

Krotov's hierarchical associative memory (arXiv:2107.06446) gives every layer of neurons x a scalar
L(x); what the other layers see of it is g = dL/dx. The Jacobian dg/dx is then symmetric, and the
energy falls wherever it is positive semidefinite, which it is where L is convex.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq.errors import UserError

_EDGE = math.sqrt(2)  # GELU is steepest at sqrt 2, and falls fastest at -sqrt 2
_CUMULATIVE = (1 + math.erf(_EDGE / math.sqrt(2))) / 2  # of the standard normal, at sqrt 2
_DENSITY = math.exp(-1.0) / math.sqrt(2 * math.pi)  # its density there
GELU_SLOPES = (1 - _CUMULATIVE - _EDGE * _DENSITY, _CUMULATIVE + _EDGE * _DENSITY)


class Lagrangian(ABC):
    """L and its gradient. A layer is the last `dims` dimensions of a tensor; others are batch."""

    @abstractmethod
    def value(self, x: Tensor, dims: int = 1) -> Tensor:
        """L: [..., layer] -> [...]"""

    @abstractmethod
    def activation(self, x: Tensor, dims: int = 1) -> Tensor:
        """g = dL/dx: [..., layer] -> [..., layer]"""

    @property
    @abstractmethod
    def slopes(self) -> tuple[float, float]:
        """Bounds of the eigenvalues of dg/dx over all x; the first is negative if L is not
        convex, the second infinite if there is none."""


@dataclass(frozen=True)
class Identity(Lagrangian):
    """L = |x|^2 / 2, g = x."""

    def value(self, x: Tensor, dims: int = 1) -> Tensor:
        return _sum(x.square(), dims) / 2

    def activation(self, x: Tensor, dims: int = 1) -> Tensor:
        return x

    @property
    def slopes(self) -> tuple[float, float]:
        return 1.0, 1.0


@dataclass(frozen=True)
class ReluPower(Lagrangian):
    """L = sum of relu(x)^(n + 1) / (n + 1), g = relu(x)^n; n = 1 is ReLU."""

    power: int = 1  # n

    def __post_init__(self) -> None:
        if self.power < 1:
            raise UserError(f"power is {self.power}; it must be at least 1")

    def value(self, x: Tensor, dims: int = 1) -> Tensor:
        return _sum(F.relu(x) ** (self.power + 1), dims) / (self.power + 1)

    def activation(self, x: Tensor, dims: int = 1) -> Tensor:
        return F.relu(x) ** self.power

    @property
    def slopes(self) -> tuple[float, float]:
        return 0.0, 1.0 if self.power == 1 else math.inf


@dataclass(frozen=True)
class Softmax(Lagrangian):
    """L = logsumexp(beta x) / beta, g = softmax(beta x), along the layer's last dimension; where
    it has more dimensions, L is the sum over the others."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise UserError(f"beta is {self.beta}; it must be above 0")

    def value(self, x: Tensor, dims: int = 1) -> Tensor:
        return _sum(torch.logsumexp(self.beta * x, dim=-1), dims - 1) / self.beta

    def activation(self, x: Tensor, dims: int = 1) -> Tensor:
        return (self.beta * x).softmax(dim=-1)

    @property
    def slopes(self) -> tuple[float, float]:
        return 0.0, self.beta / 2  # beta (diag p - p p^T)


@dataclass(frozen=True)
class LayerNorm(Lagrangian):
    """L = N sqrt(var x + eps), g = (x - mean x) / sqrt(var x + eps), over all N units of the layer
    together. With eps = 0, L = sqrt(N) |x - mean x|, and x.g = L for every x (arXiv:2406.12220).
    """

    eps: float = 0.0

    def value(self, x: Tensor, dims: int = 1) -> Tensor:
        units = math.prod(x.shape[x.ndim - dims :])
        return units * self._deviation(x, dims).flatten(x.ndim - dims).squeeze(-1)

    def activation(self, x: Tensor, dims: int = 1) -> Tensor:
        return (x - x.mean(_last(dims), keepdim=True)) / self._deviation(x, dims)

    def _deviation(self, x: Tensor, dims: int) -> Tensor:
        return (x.var(_last(dims), correction=0, keepdim=True) + self.eps).sqrt()

    @property
    def slopes(self) -> tuple[float, float]:
        return 0.0, self.eps**-0.5 if self.eps > 0 else math.inf


@dataclass(frozen=True)
class Gelu(Lagrangian):
    """L = sum of Phi(x), g = GELU(x) = x (1 + erf(x / sqrt 2)) / 2. Not convex: GELU falls, by
    0.129 at most, where x < -0.75."""

    def value(self, x: Tensor, dims: int = 1) -> Tensor:
        square, erf = x.square(), torch.erf(x / math.sqrt(2))
        bell = math.sqrt(2 / math.pi) * torch.exp(-square / 2)
        return _sum(square + (square - 1) * erf + x * bell, dims) / 4

    def activation(self, x: Tensor, dims: int = 1) -> Tensor:
        return F.gelu(x)

    @property
    def slopes(self) -> tuple[float, float]:
        return GELU_SLOPES


def _last(dims: int) -> list[int]:
    return list(range(-dims, 0))


def _sum(x: Tensor, dims: int) -> Tensor:
    return x.sum(_last(dims)) if dims else x  # an empty list would mean every dimension

"""Small mixers along time, and their weights as dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from decision_seq.backbones import Backbone, BackboneConfig, Layout

D, P, M = 6, 5, 3  # width, window, hidden units a position
every_length = pytest.mark.parametrize("length", [1, 3, P, 3 * P + 2])


def build(settings: BackboneConfig, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return settings.build(Layout(context_length=P)).double().eval()


def randn(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def seen(t: int) -> range:
    """Positions that position t reaches."""
    return range(max(0, t - P + 1), t + 1)


def row(weight: Tensor, t: int) -> Tensor:
    """[P, O, I], the weights of position t by lag."""
    return weight[min(t, len(weight) - 1)]


def dense(weight: Tensor, length: int) -> Tensor:
    """[L O, L I], written entry by entry."""
    _, _, outputs, inputs = weight.shape
    matrix = weight.new_zeros(length, outputs, length, inputs)
    for t in range(length):
        for s in seen(t):
            matrix[t, :, s] = row(weight, t)[t - s]
    return matrix.reshape(length * outputs, length * inputs)


def gelu_integral(x: Tensor) -> Tensor:
    """Phi, whose derivative is GELU."""
    gauss = x * math.sqrt(2 / math.pi) * torch.exp(-(x**2) / 2)
    return (x**2 + (x**2 - 1) * torch.erf(x / math.sqrt(2)) + gauss) / 4

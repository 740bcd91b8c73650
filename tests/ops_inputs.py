"""Inputs of the scan and the convolution, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decision_seq.ops.dispatch import BACKENDS

AVAILABLE = [name for name, backend in BACKENDS.items() if not backend.unusable()]
needs_c = pytest.mark.skipif(
    bool(BACKENDS["c"].unusable()), reason=f"no C kernel: {BACKENDS['c'].unusable()}"
)


def scan_inputs(shape: tuple[int, ...], gated: bool = True) -> list[Tensor | None]:
    """Inputs with the value ranges of a trained Mamba block, float64."""
    batch, length, width, states = shape
    torch.manual_seed(sum(shape))
    normal = lambda *size: torch.randn(*size, dtype=torch.float64)  # noqa: E731
    uniform = lambda *size: torch.rand(*size, dtype=torch.float64)  # noqa: E731
    return [
        normal(batch, length, width),
        10 ** (uniform(batch, length, width) * 3 - 2.5),
        -(10 ** (uniform(width, states) * 2 - 0.5)),
        normal(batch, length, states),
        normal(batch, length, states),
        normal(width),
        normal(batch, length, width) * 3 if gated else None,
    ]


def conv_inputs(shape: tuple[int, ...], taps: int) -> list[Tensor]:
    batch, length, width, _ = shape
    torch.manual_seed(sum(shape) * 10 + taps)
    sizes = ((batch, length, width), (width, 1, taps), (width,))
    return [torch.randn(*size, dtype=torch.float64) for size in sizes]


def single(tensors: list) -> list:
    return [None if t is None else t.float() for t in tensors]


def with_grads(
    function, tensors: list, rounded: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor]]:
    """Output and the gradient of a fixed random projection of it for every input; `rounded` is a
    dtype in which the projection is exact."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves)
    torch.manual_seed(0)
    loss = (y * torch.randn(y.shape, dtype=torch.float64).to(rounded).to(y.dtype)).sum()
    leaves = [t for t in leaves if t is not None]
    return y.detach(), list(torch.autograd.grad(loss, leaves, materialize_grads=True))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    error = (actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    assert error < tolerance, f"{what}: relative error {error:.1e}"

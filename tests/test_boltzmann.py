"""AttnBM: its density, its parts and its fit, to rounding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_seq.hopfield.boltzmann import AttnBM
from decision_seq.hopfield.mixture import Fit, fit_mixture

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(
    hidden: int, visible: int, seed: int = 0, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = generator(seed)
    shapes = ((hidden, visible), (visible,), (hidden,))
    weight, bias, hidden_bias = (torch.randn(s, generator=g, dtype=F64) for s in shapes)
    return scale * weight, bias, hidden_bias


def points(count: int, dims: int, seed: int = 1) -> torch.Tensor:
    return 2 * torch.randn(count, dims, generator=generator(seed), dtype=F64)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 10**6))
def test_attn_bm_is_the_mixture_of_gaussians(hidden: int, visible: int, seed: int) -> None:
    weight, bias, hidden_bias = parameters(hidden, visible, seed)
    machine, v = AttnBM(weight, bias, hidden_bias), points(5, visible, seed)
    masses = 0.5 * (weight**2).sum(1) + weight @ bias + hidden_bias
    densities = [
        pi * np.exp(-0.5 * ((v - mean) ** 2).sum(1).numpy()) / (2 * np.pi) ** (visible / 2)
        for pi, mean in zip(masses.softmax(0).numpy(), bias + weight, strict=True)
    ]
    ours = machine.log_prob(v).detach().numpy()
    assert np.abs(ours - np.log(sum(densities))).max() < 1e-10
    again = AttnBM.from_mixture(masses.log_softmax(0), bias + weight)
    assert torch.allclose(again.log_prob(v), machine.log_prob(v), atol=1e-10)


def test_partition_function_against_integration() -> None:
    machine = AttnBM(*parameters(3, 2))
    axis = torch.linspace(-12, 12, 601, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    area = float(axis[1] - axis[0]) ** 2
    total = torch.exp(-machine.energy(grid)).sum() * area
    assert machine.log_partition().item() == pytest.approx(total.log().item(), abs=1e-9)


def test_conditional_of_the_missing_against_integration() -> None:
    machine, dims = AttnBM(*parameters(4, 3)), [2, 0]
    seen = points(3, 2)
    law = machine.conditional(seen, dims)
    axis = torch.linspace(-15, 15, 6001, dtype=F64)
    for case in range(3):
        full = torch.stack([seen[case, 1].expand(6001), axis, seen[case, 0].expand(6001)], dim=1)
        density = machine.log_prob(full).exp().detach() * (axis[1] - axis[0])
        evidence = density.sum()
        marginal = machine.marginal(dims).log_prob(seen[case : case + 1]).exp().item()
        assert marginal == pytest.approx(evidence.item(), rel=1e-9)
        below = torch.cumsum(density, 0) / evidence
        for probability in (0.1, 0.5, 0.95):
            value = float(law.quantile(probability)[case])
            assert value == pytest.approx(
                float(axis[torch.searchsorted(below, probability)]), abs=0.01
            )


def test_conditional_mean_is_the_stated_formula() -> None:
    weight, bias, hidden_bias = parameters(5, 4)
    seen, o, m = points(6, 2), [0, 2], [1, 3]
    logits = (
        seen @ weight[:, o].T
        + weight[:, m] @ bias[m]
        + hidden_bias
        + 0.5 * weight[:, m].square().sum(1)
    )
    stated = bias[m] + logits.softmax(-1) @ weight[:, m]
    law = AttnBM(weight, bias, hidden_bias).conditional(seen, o)
    assert torch.allclose(law.log_weights.exp() @ law.means, stated, atol=1e-12)


def log_likelihood(fit: Fit, x: torch.Tensor) -> float:
    """Mean over the points, through the machine that the fit becomes."""
    machine = AttnBM.from_mixture(fit.log_weights, fit.means / fit.widths)
    return (machine.log_prob(x / fit.widths).mean() - fit.widths.log().sum()).item()


def test_em_finds_the_mixture_and_never_lowers_the_likelihood() -> None:
    g = generator(0)
    centres = torch.tensor([[-1.2, 0.4], [0.9, 0.8], [0.2, -1.3]], dtype=F64)
    true = torch.tensor([0.2, 0.1], dtype=F64)
    x = centres[torch.randint(3, (1500,), generator=g)]
    x = x + true * torch.randn(x.shape, generator=g, dtype=F64)
    likelihoods = [log_likelihood(fit_mixture(x, 3, generator(1), steps=s), x) for s in range(25)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(likelihoods))
    fit = fit_mixture(x, 3, generator(1), steps=60)
    nearest = torch.cdist(centres, fit.means).min(1).values
    assert (nearest < 0.03).all()
    assert torch.allclose(fit.widths, true, rtol=0.05)
    machine = AttnBM.from_mixture(fit.log_weights, fit.means / fit.widths)
    machine.log_prob(
        x / fit.widths
    ).mean().backward()  # maximum likelihood: nothing is left to learn
    for parameter in machine.parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() < 1e-4


def test_em_survives_repeated_points_and_empty_components() -> None:
    x = torch.cat([torch.zeros(30, 2, dtype=F64), torch.ones(30, 2, dtype=F64)])
    fit = fit_mixture(x, 10, generator(0), steps=20)
    assert torch.isfinite(fit.means).all() and torch.isfinite(fit.log_weights).all()
    assert torch.allclose(fit.widths, torch.full((2,), 0.05, dtype=F64))
    assert fit.log_weights.exp().sum().item() == pytest.approx(1)

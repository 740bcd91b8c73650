"""AttnBM and its relatives: every identity of the family, to rounding."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_seq.hopfield.boltzmann import AttnBM, SoftmaxAutoencoder
from decision_seq.hopfield.harmoniums import (
    DenseAssociativeMemory,
    GaussianBernoulliRBM,
    Harmonium,
)
from decision_seq.hopfield.mixture import fit_mixture

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
    assert torch.allclose(machine.mixture().log_prob(v), machine.log_prob(v), atol=1e-10)
    again = AttnBM.from_mixture(machine.mixture().log_weights[0], machine.mixture().means)
    assert torch.allclose(again.log_prob(v), machine.log_prob(v), atol=1e-10)


def test_partition_function_against_integration() -> None:
    machine = AttnBM(*parameters(3, 2))
    axis = torch.linspace(-12, 12, 601, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    area = float(axis[1] - axis[0]) ** 2
    total = torch.exp(-machine.energy(grid)).sum() * area
    assert machine.log_partition().item() == pytest.approx(total.log().item(), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.floats(0.1, 5), st.integers(0, 10**6))
def test_attention_never_raises_the_energy(
    hidden: int, visible: int, scale: float, seed: int
) -> None:
    machine, v = AttnBM(*parameters(hidden, visible, seed, scale)), points(20, visible, seed)
    for _ in range(4):
        following = machine.attention(v)
        assert (machine.energy(following) <= machine.energy(v) + 1e-10).all()
        v = following


def test_score_and_gradient_are_those_of_autograd() -> None:
    machine, v = AttnBM(*parameters(6, 4)), points(7, 4).requires_grad_()
    (score,) = torch.autograd.grad(machine.log_prob(v).sum(), v)
    assert torch.allclose(machine.score(v), score, atol=1e-12)
    machine.log_prob(v).mean().backward()
    closed = machine.gradient(v)
    for name, parameter in machine.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(closed[name], parameter.grad, atol=1e-12), name
    assert closed.keys() == dict(machine.named_parameters()).keys()


def test_denoising_score_matching_is_the_softmax_autoencoder() -> None:
    numbers, clean = parameters(5, 3), points(40, 3)
    noisy = clean + torch.randn(clean.shape, generator=generator(3), dtype=F64)
    machine, autoencoder = AttnBM(*numbers), SoftmaxAutoencoder(*numbers)
    matching = machine.score_matching_loss(clean, noisy, sigma=1.0)
    loss = autoencoder.loss(clean, noisy)
    assert matching.item() == pytest.approx(loss.item(), rel=1e-12)
    matching.backward()
    loss.backward()
    pairs = (
        (machine.weight, autoencoder.encoder.weight),
        (machine.bias, autoencoder.decoder_bias),
        (machine.hidden_bias, autoencoder.encoder.bias),
    )
    for ours, theirs in pairs:
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-12)
    other = machine.score_matching_loss(clean, noisy, sigma=0.5)
    assert other.item() != pytest.approx(loss.item(), rel=1e-3)  # at sigma = 1 only


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
        assert law.mean()[case, 0].item() == pytest.approx(
            float((density * axis).sum() / evidence), abs=1e-9
        )
        below = torch.cumsum(density, 0) / evidence
        for probability in (0.1, 0.5, 0.95):
            value = float(law.quantile(probability)[case])
            assert value == pytest.approx(
                float(axis[torch.searchsorted(below, probability)]), abs=0.01
            )
        at = law.log_prob(axis[3000:3001, None].expand(3, 1))[case].exp()
        assert at.item() == pytest.approx(
            float(density[3000] / evidence / (axis[1] - axis[0])), rel=1e-8
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
    assert torch.allclose(law.mean(), stated, atol=1e-12)


def test_samples_have_the_moments_of_the_machine_and_follow_the_generator() -> None:
    machine = AttnBM(*parameters(4, 2))
    before = torch.get_rng_state()
    drawn = machine.sample(40_000, generator(7))
    assert torch.equal(drawn, machine.sample(40_000, generator(7)))
    assert torch.equal(torch.get_rng_state(), before)
    law = machine.mixture()
    weights = law.log_weights[0].exp()
    second = torch.eye(2, dtype=F64) + (law.means.T * weights) @ law.means
    assert torch.allclose(drawn.mean(0), law.mean()[0], atol=0.05)
    assert torch.allclose(drawn.T @ drawn / len(drawn), second, atol=0.15)


def test_em_finds_the_mixture_and_never_lowers_the_likelihood() -> None:
    g = generator(0)
    centres = torch.tensor([[-1.2, 0.4], [0.9, 0.8], [0.2, -1.3]], dtype=F64)
    true = torch.tensor([0.2, 0.1], dtype=F64)
    x = centres[torch.randint(3, (1500,), generator=g)]
    x = x + true * torch.randn(x.shape, generator=g, dtype=F64)
    likelihoods = [fit_mixture(x, 3, generator(1), steps=s).log_likelihood for s in range(1, 25)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(likelihoods))
    fit = fit_mixture(x, 3, generator(1), steps=60)
    nearest = torch.cdist(centres, fit.means).min(1).values
    assert (nearest < 0.03).all()
    assert torch.allclose(fit.widths, true, rtol=0.05)
    machine = AttnBM.from_mixture(fit.log_weights, fit.means / fit.widths)
    ours = machine.log_prob(x / fit.widths).mean() - fit.widths.log().sum()
    assert ours.item() == pytest.approx(fit.log_likelihood, abs=1e-6)
    drift = machine.gradient(x / fit.widths)  # maximum likelihood: nothing is left to learn
    assert max(float(d.abs().max()) for d in drift.values()) < 1e-4


def test_em_survives_repeated_points_and_empty_components() -> None:
    x = torch.cat([torch.zeros(30, 2, dtype=F64), torch.ones(30, 2, dtype=F64)])
    fit = fit_mixture(x, 10, generator(0), steps=20)
    assert torch.isfinite(fit.means).all() and torch.isfinite(fit.log_weights).all()
    assert torch.allclose(fit.widths, torch.full((2,), 0.05, dtype=F64))
    assert fit.log_weights.exp().sum().item() == pytest.approx(1)


# ---- harmoniums ---------------------------------------------------------------------------


def test_rbm_partition_against_integration_and_attn_bm() -> None:
    rbm = GaussianBernoulliRBM(*parameters(3, 2))
    axis = torch.linspace(-14, 14, 601, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    total = torch.exp(-rbm.free_energy(grid)).sum() * float(axis[1] - axis[0]) ** 2
    assert rbm.log_partition().item() == pytest.approx(total.log().item(), abs=1e-9)
    v = points(6, 2)
    assert torch.allclose(rbm.as_attn_bm().log_prob(v), rbm.log_prob(v), atol=1e-10)
    # one hidden unit: the AttnBM with two states, one of them empty
    small = GaussianBernoulliRBM(*parameters(1, 2))
    empty = torch.zeros(1, 2, dtype=F64)
    pair = AttnBM(
        torch.cat([empty, small.weight]), small.bias, torch.cat([empty[0, :1], small.hidden_bias])
    )
    assert torch.allclose(pair.log_prob(v), small.log_prob(v), atol=1e-10)


def machines(units: int) -> list[Harmonium]:
    return [
        GaussianBernoulliRBM(*parameters(units, 4, scale=0.5)),
        DenseAssociativeMemory(*parameters(3, units, scale=0.4), power=3),
    ]


@pytest.mark.parametrize("machine", machines(4), ids=lambda m: type(m).__name__)
def test_contrastive_divergence_points_where_the_likelihood_rises(machine: Harmonium) -> None:
    other = type(machine)(*parameters(*machine.weight.shape, seed=5, scale=0.8))
    start = torch.ones(2000, machine.weight.shape[1], dtype=F64)
    data = other.gibbs(start, 30, generator(2))
    exact = machine.gradient(data, generator(0))
    for steps, least in ((1, 0.5), (10, 0.95)):
        rough = machine.contrastive_gradient(data, generator(1), steps)
        pairs = [(exact[name].flatten(), rough[name].flatten()) for name in exact]
        a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
        assert float(a @ b / a.norm() / b.norm()) > least


@pytest.mark.parametrize("machine", machines(4), ids=lambda m: type(m).__name__)
def test_gibbs_sampling_keeps_the_distribution(machine: Harmonium) -> None:
    start = torch.ones(4000, machine.weight.shape[1], dtype=F64)
    drawn = machine.gibbs(start, 12, generator(0))
    # at the machine's own samples the exact gradient is zero: that is what stationary means
    drift = machine.gradient(drawn, generator(0))
    assert max(float(d.abs().max()) for d in drift.values()) < 0.08


@pytest.mark.parametrize("machine", machines(13), ids=lambda m: type(m).__name__)
def test_large_machines_fall_back_to_contrastive_divergence(machine: Harmonium) -> None:
    with pytest.raises(ValueError, match="13 units"):
        machine.log_partition()
    data = machine.gibbs(points(8, machine.weight.shape[1]).sign(), 1, generator(0))
    ours = machine.gradient(data, generator(4), steps=2)
    direct = machine.contrastive_gradient(data, generator(4), steps=2)
    assert all(torch.equal(ours[name], direct[name]) for name in direct)


@pytest.mark.parametrize("power", [2, 3, 4])
def test_cumulant_of_a_hidden_unit_against_integration(power: int) -> None:
    machine = DenseAssociativeMemory(*parameters(2, 3), power=power)
    x = torch.tensor([-4.0, -0.5, 0.0, 0.7, 2.0, 6.0], dtype=F64)
    s = torch.linspace(0, 12 ** (power - 1), 400_001, dtype=F64)  # s = f(h), on a fine grid
    conjugate = (1 - 1 / power) * s ** (power / (power - 1))
    direct = [
        float(torch.trapezoid(torch.exp(s * one - conjugate - peak), s).log() + peak)
        for one, peak in zip(x, torch.relu(x) ** power / power, strict=True)
    ]
    assert torch.allclose(machine.cumulant(x), torch.tensor(direct, dtype=F64), atol=1e-4)
    if power == 2:  # rectified Gaussian
        closed = x**2 / 2 + torch.special.log_ndtr(x) + 0.5 * math.log(2 * math.pi)
        assert torch.allclose(machine.cumulant(x), closed, atol=1e-10)
    strong = torch.tensor([40.0], dtype=F64)
    assert float(machine.cumulant(strong) / (strong**power / power)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("power", [2, 3])
def test_dense_associative_memory_identities(power: int) -> None:
    machine = DenseAssociativeMemory(*parameters(3, 4), power=power)
    states = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=F64)
    # lowest over the hidden units: the memory's own energy, at h = max(W v + c, 0)
    h = torch.relu(states @ machine.weight.T + machine.hidden_bias)
    assert torch.allclose(machine.energy(states, h), machine.memory_energy(states), atol=1e-10)
    for shift in (0.9, 1.1):
        assert (machine.energy(states, h * shift) >= machine.memory_energy(states) - 1e-10).all()
    # probabilities sum to one, and the mean of f(h) is the derivative of the cumulant
    assert machine.log_prob(states).exp().sum().item() == pytest.approx(1, abs=1e-10)
    x = (states @ machine.weight.T + machine.hidden_bias).detach().requires_grad_()
    (slope,) = torch.autograd.grad(machine.cumulant(x).sum(), x)
    assert torch.allclose(machine.hidden_mean(states), slope, atol=1e-10)
    # exponential family harmonium: given h, the visible units are independent
    fixed = torch.tensor([[0.3, 0.0, 1.2]], dtype=F64).expand(16, 3)
    joint = torch.softmax(-machine.energy(states, fixed), 0)
    logits = 2 * (machine.bias + fixed[0] ** (power - 1) @ machine.weight)
    product = torch.where(states > 0, torch.sigmoid(logits), torch.sigmoid(-logits)).prod(-1)
    assert torch.allclose(joint, product, atol=1e-10)

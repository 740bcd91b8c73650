"""The energies that mixers descend, whole and causal, and the block that is trained."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_memories import normal, rises, seeds, sizes, some_states
from torch import Tensor

from decision_seq.backbones import Layout
from decision_seq.backbones.mixer import MixerConfig, ParallelBlock
from decision_seq.hopfield.energies import (
    causal_mixer_memory,
    largest_mixer_step,
    mixer_memory,
)
from decision_seq.hopfield.lagrangians import Gelu, Identity, LayerNorm
from decision_seq.hopfield.memory import AssociativeMemory, Layer, Synapse


def mixers(seed: int, n: int, strength: float, eps: float = 0.0) -> list[AssociativeMemory]:
    """A whole one of n tokens, and one token of a causal one; both of n + 1 channels."""
    token, channel = normal(3, n, seed=seed), normal(4, n + 1, seed=seed + 1)
    past = normal(3, 3, n + 1, seed=seed + 2)
    return [
        mixer_memory(strength * token, strength * channel, eps),
        causal_mixer_memory(strength * token[:, 0], strength * channel, strength * past, eps),
    ]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=sizes, strength=st.floats(0.05, 5), share=st.floats(0.05, 1))
def test_mixer_energy_never_rises(seed: int, n: int, strength: float, share: float) -> None:
    seed %= 10**6
    for memory in mixers(seed, n, strength):
        (states, energy) = some_states(memory, seed + 9), None
        for _ in range(8):
            dt = share * largest_mixer_step(memory, states["x"])
            assert ((dt > 0) & (dt <= 1)).all()
            states = memory.step(states, dt.view(-1, *[1] * (states["x"].ndim - 1)))
            following = memory.energy(states)
            if energy is not None:
                assert (following <= energy + 1e-10 * (1 + energy.abs())).all()
            energy = following


def test_full_step_bound_is_tight_where_gelu_is_steepest() -> None:
    """E = x^2 / 2 - Phi(w x + b) has a minimum where GELU falls fastest; it is w^2 times as sharp
    as GELU is steep, and a step of more than twice its inverse leaves it."""
    w, fall = 10.0, -Gelu().slopes[0]
    bottom = -math.sqrt(2)
    x = torch.tensor([[w * float(Gelu().activation(torch.tensor(bottom)))]], dtype=torch.float64)
    layers = {
        "x": Layer((1,), Identity()),
        "h": Layer((1,), Gelu(), bias=bottom - w * x[0], tau=0),
    }
    memory = AssociativeMemory(
        layers, [Synapse("x", "h", torch.tensor([[w]], dtype=torch.float64), "hx,x->h")]
    )
    assert memory.largest_step() == pytest.approx(1 / (1 + fall * w**2 / 2))
    beside = {"x": x + 1e-4}
    assert not rises(memory, beside, memory.largest_step())
    assert rises(memory, beside, 2.01 / (1 + fall * w**2))


@pytest.mark.parametrize(("share", "outward"), [(1.0, 0.0), (0.25, -0.75)])
def test_mixer_step_bound_is_needed_where_gelu_falls(share: float, outward: float) -> None:
    """Hidden units where GELU falls fastest make the energy grow with |g - share g0|^2: it is
    lowest at g0, and its force there points inwards by (1 - share) mu R."""
    peak = LayerNorm().activation(normal(3, seed=1))  # g0
    own = torch.tensor([0.05, -0.05], dtype=torch.float64)
    past = -math.sqrt(2) - share * torch.outer(own, peak)
    memory = causal_mixer_memory(own, torch.zeros(1, 3, dtype=torch.float64), past)
    x = 1e-3 * peak[None] + 1e-6 * normal(1, 3, seed=2)
    spread = float((x - x.mean()).norm())
    fall = -Gelu().slopes[0] * 2 * 0.05**2 * math.sqrt(3)  # mu R
    bound = largest_mixer_step(memory, x)
    expected = spread / (spread - outward * fall + fall / 2)
    assert float(bound) == pytest.approx(expected, rel=1e-3)
    assert not rises(memory, {"x": x}, bound, steps=1, tolerance=1e-14)
    too_long = 1.01 * spread / (spread + fall / 2)
    assert rises(memory, {"x": x}, too_long, steps=1, tolerance=1e-14)


def test_mixer_energies_equal_their_formulas() -> None:
    whole, causal = mixers(seed=4, n=5, strength=0.7)
    token, channel = (synapse.weight for synapse in whole.synapses)
    x = some_states(whole, seed=1)["x"]  # [3, 5, 6]
    g = F.layer_norm(x, (5, 6), eps=0)
    expected = (x * g).sum((1, 2)) - LayerNorm().value(x, 2)
    expected -= Gelu().value(token @ g, 2) + Gelu().value(g @ channel.mT, 2)
    torch.testing.assert_close(whole.energy({"x": x}), expected)

    own, past = causal.synapses[0].weight, causal.layers["token"].bias
    assert past is not None
    x = some_states(causal, seed=1)["x"]  # [3, 6]
    g = F.layer_norm(x, (6,), eps=0)
    hidden = past + torch.stack([torch.outer(own, row) for row in g])  # [3, m, 6]
    expected = -Gelu().value(hidden, 2) - Gelu().value(g @ channel.mT)  # x.g = L
    torch.testing.assert_close(causal.energy({"x": x}), expected)


def test_a_residual_block_is_half_a_step_of_twice_the_size() -> None:
    """Layer norm does not see the size of x, so x + f lies where (x + f) / 2 does."""
    memory = mixers(seed=2, n=4, strength=0.3)[0]
    x = some_states(memory, seed=3)["x"]
    force = memory.inputs(memory.activations({"x": x}))["x"]
    half = memory.step({"x": x}, 0.5)["x"]
    torch.testing.assert_close(memory.energy({"x": x + force}), memory.energy({"x": half}))


def test_energy_rises_where_the_way_back_is_not_the_transpose() -> None:
    risen = 0
    for seed in range(10):
        memory = mixers(seed, n=4, strength=0.7)[0]
        token, channel = memory.synapses
        back = normal(*token.weight.shape, seed=seed + 50)
        broken = AssociativeMemory(
            memory.layers,
            [Synapse(token.source, token.target, token.weight, token.axes, back), channel],
        )
        risen += rises(broken, some_states(memory, seed + 9), 0.05, steps=60)
    assert risen >= 5


# ---- the causal block that is trained ------------------------------------------------------


def trained_block(positions: str) -> ParallelBlock:
    """A parallel symmetric block whose weights, as after training, are nothing special."""
    torch.manual_seed(0)
    config = MixerConfig(
        width=10,
        layers=1,
        dropout=0.0,
        mixing="symmetric",
        block="parallel",
        positions=positions,  # type: ignore[arg-type]
        hidden=3,
    )
    block = config.build(Layout(context_length=3, tokens_per_step=2)).blocks[0].double()
    assert isinstance(block, ParallelBlock)
    with torch.no_grad():
        for parameter in (block.mixer.W.weight, block.mlp.W):
            parameter.copy_(torch.randn_like(parameter) * (parameter != 0) * 0.4)
    return block


def memory_of(block: ParallelBlock, g: Tensor, t: int) -> AssociativeMemory:
    """Token t of `block`, with the tokens before it as in g [B, L, D]."""
    rows = slice(3 * t, 3 * t + 3)
    matrix = block.mixer.W.matrix(g.shape[1]).detach()  # [L m, L]
    past = matrix[rows, :t] @ g[:, :t]
    return causal_mixer_memory(matrix[rows, t], block.mlp.W.detach(), past, eps=1e-5)


@pytest.mark.parametrize("positions", ["absolute", "toeplitz"])
def test_the_trained_block_is_one_descent_step_without_the_decay(positions: str) -> None:
    block, x = trained_block(positions), normal(2, 6, 10, seed=7)
    with torch.no_grad():
        block.norm_mixer.weight.normal_(mean=1.0, std=0.2)  # holds for any g, also a weighted norm
        block.norm_mixer.bias.normal_()
    update, g = (block(x) - x).detach(), block.norm_mixer(x).detach()
    for t in range(6):
        memory, own = memory_of(block, g, t), g[:, t].clone().requires_grad_()
        energy = memory.energy({"x": x[:, t]}, {"x": own})
        (gradient,) = torch.autograd.grad(energy.sum(), own)
        torch.testing.assert_close(update[:, t], -gradient + x[:, t], rtol=0, atol=1e-10)


@pytest.mark.parametrize("positions", ["absolute", "toeplitz"])
def test_the_trained_block_lowers_the_energy_of_its_tokens(positions: str) -> None:
    block, x, dt = trained_block(positions), normal(2, 6, 10, seed=7), 0.01
    g = block.norm_mixer(x).detach()
    for t in range(6):
        memory, moved = memory_of(block, g, t), x.clone()
        energies = [memory.energy({"x": moved[:, t]})]
        for _ in range(100):
            with torch.no_grad():
                force = block(moved)[:, t] - moved[:, t]
            moved[:, t] += dt * (force - moved[:, t])
            energies.append(memory.energy({"x": moved[:, t]}))
        path = torch.stack(energies)
        assert (path.diff(dim=0) < 1e-12).all() and (path[-1] < path[0] - 0.05).all()

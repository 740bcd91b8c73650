"""Lagrangians, associative memories, and the energies that mixers descend."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decision_seq.backbones import Layout
from decision_seq.backbones.mixer import MixerConfig, ParallelBlock
from decision_seq.errors import UserError
from decision_seq.hopfield.energies import (
    causal_mixer_memory,
    largest_mixer_step,
    mixer_memory,
)
from decision_seq.hopfield.lagrangians import (
    Gelu,
    Identity,
    Lagrangian,
    LayerNorm,
    ReluPower,
    Softmax,
)
from decision_seq.hopfield.memory import AssociativeMemory, Layer, States, Synapse

LAGRANGIANS: list[Lagrangian] = [
    Identity(),
    ReluPower(),
    ReluPower(3),
    Softmax(),
    Softmax(2.5),
    LayerNorm(),
    LayerNorm(0.1),
    Gelu(),
]
every_lagrangian = pytest.mark.parametrize("lagrangian", LAGRANGIANS, ids=repr)
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(2, 7)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---- Lagrangians ---------------------------------------------------------------------------


@every_lagrangian
@pytest.mark.parametrize("dims", [1, 2])
def test_activation_is_the_gradient_of_the_lagrangian(lagrangian: Lagrangian, dims: int) -> None:
    x = normal(3, 4, 5, scale=2).requires_grad_()
    value = lagrangian.value(x, dims)
    assert value.shape == x.shape[: 3 - dims]
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(lagrangian.activation(x, dims), gradient, rtol=1e-12, atol=1e-12)


@every_lagrangian
def test_slopes_bound_the_jacobian(lagrangian: Lagrangian) -> None:
    low, high = lagrangian.slopes
    for seed in range(20):
        x = normal(5, seed=seed, scale=2)
        jacobian = torch.autograd.functional.jacobian(lagrangian.activation, x)
        torch.testing.assert_close(jacobian, jacobian.mT)
        eigenvalues = torch.linalg.eigvalsh(jacobian)
        assert low - 1e-12 <= eigenvalues[0] and eigenvalues[-1] <= high + 1e-12


def test_layer_norm_is_convex_and_gelu_is_not() -> None:
    assert LayerNorm().slopes[0] == 0  # with the test above: its Jacobian is positive semidefinite
    slope = torch.func.vmap(torch.func.grad(Gelu().activation))
    slopes = slope(torch.linspace(-6, 6, 100_001, dtype=torch.float64))
    assert (slopes.min(), slopes.max()) == pytest.approx(Gelu().slopes, abs=1e-7)
    assert Gelu().slopes == pytest.approx((-0.1289, 1.1289), abs=1e-4)


def test_layer_norm_is_that_of_torch_and_its_own_dual() -> None:
    x = normal(3, 4, 5)
    torch.testing.assert_close(LayerNorm(1e-5).activation(x, 2), F.layer_norm(x, (4, 5)))
    g = LayerNorm().activation(x, 2)
    value = LayerNorm().value(x, 2)
    torch.testing.assert_close((x * g).sum((1, 2)), value)
    centred = x - x.mean((1, 2), keepdim=True)
    torch.testing.assert_close(value, math.sqrt(20) * centred.flatten(1).norm(dim=1))


@pytest.mark.parametrize("bad", [lambda: ReluPower(0), lambda: Softmax(0.0)])
def test_a_bad_lagrangian_is_refused(bad: object) -> None:
    with pytest.raises(UserError, match="must be"):
        bad()  # type: ignore[operator]


# ---- the memory ----------------------------------------------------------------------------


def three_layers(seed: int, n: int, strength: float, asymmetric: bool = False) -> AssociativeMemory:
    """Identity, softmax and ReLU in a chain with a bias and two time constants."""
    layers = {
        "a": Layer((n,), Identity(), bias=normal(n, seed=seed)),
        "b": Layer((2, n + 1), Softmax(2.0), tau=1.5),
        "c": Layer((n + 2,), ReluPower()),
    }
    scale = strength / math.sqrt(n)
    ab, bc = normal(2, n + 1, n, seed=seed + 1), normal(n + 2, 2, n + 1, seed=seed + 2)
    back = normal(n + 2, 2, n + 1, seed=seed + 3, scale=scale) if asymmetric else None
    synapses = [
        Synapse("a", "b", scale * ab, "zba,a->zb"),
        Synapse("b", "c", scale * bc, "czb,zb->c", back),
    ]
    return AssociativeMemory(layers, synapses)


def some_states(memory: AssociativeMemory, seed: int, batch: int = 3) -> States:
    moving = {n: layer for n, layer in memory.layers.items() if n not in memory.settled}
    return {
        name: normal(batch, *layer.shape, seed=seed + i, scale=2)
        for i, (name, layer) in enumerate(moving.items())
    }


def rises(
    memory: AssociativeMemory,
    states: States,
    dt: float | Tensor,
    steps: int = 10,
    tolerance: float = 1e-11,
) -> bool:
    """Does the energy rise in any of the steps, beyond rounding?"""
    energy = memory.energy(states)
    for _ in range(steps):
        states = memory.step(states, dt)
        following = memory.energy(states)
        if (following > energy + tolerance * (1 + energy.abs())).any():
            return True
        energy = following
    return False


def test_the_force_is_the_gradient_of_the_energy() -> None:
    memory = three_layers(seed=3, n=4, strength=1.0)
    states = some_states(memory, seed=5)
    g = {name: t.requires_grad_() for name, t in memory.activations(states).items()}
    gradients = torch.autograd.grad(memory.energy(states, g).sum(), list(g.values()))
    inputs = memory.inputs(g)
    for name, gradient in zip(g, gradients, strict=True):
        torch.testing.assert_close(inputs[name] - states[name], -gradient)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=sizes, strength=st.floats(0.1, 20))
def test_energy_never_rises_when_all_layers_move(seed: int, n: int, strength: float) -> None:
    memory = three_layers(seed % 10**6, n, strength)
    dt = memory.largest_step()
    assert 0 < dt < 1
    assert not rises(memory, some_states(memory, seed % 10**6 + 9), dt)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=sizes, strength=st.floats(0.1, 20), dt=st.floats(0.05, 1))
def test_energy_never_rises_when_one_layer_moves(
    seed: int, n: int, strength: float, dt: float
) -> None:
    memory = three_layers(seed % 10**6, n, strength)
    states = some_states(memory, seed % 10**6 + 9)
    for name in ["b", "a", "c", "b"]:
        before = memory.energy(states)
        new = memory.step(states, dt, only=[name])
        assert all(torch.equal(new[other], states[other]) for other in states if other != name)
        after = memory.energy(new)
        assert (after <= before + 1e-11 * (1 + before.abs())).all()
        states = new


def test_the_step_matters_and_so_does_symmetry() -> None:
    too_long, broken = 0, 0
    for seed in range(20):
        memory = three_layers(seed, n=5, strength=4.0)
        states, dt = some_states(memory, seed + 100), memory.largest_step()
        assert not rises(memory, states, dt)
        too_long += rises(memory, states, 1.0)
        asymmetric = three_layers(seed, n=5, strength=4.0, asymmetric=True)
        broken += rises(asymmetric, states, dt, steps=60)
    assert too_long > 10 and broken > 10


def test_energy_falls_at_the_rate_of_the_equation() -> None:
    memory, dt = three_layers(seed=1, n=4, strength=1.0), 1e-7
    states = some_states(memory, seed=2, batch=1)
    inputs = memory.inputs(memory.activations(states))
    rate = torch.zeros(1, dtype=torch.float64)
    for name, layer in memory.layers.items():
        velocity = (inputs[name] - states[name]) / layer.tau
        _, change = torch.autograd.functional.jvp(layer.activation, states[name], velocity)
        rate -= layer.tau * (velocity * change).sum()
    measured = (memory.energy(memory.step(states, dt)) - memory.energy(states)) / dt
    torch.testing.assert_close(measured, rate, rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=sizes, strength=st.floats(0.1, 20))
def test_settled_layers_need_not_be_convex(seed: int, n: int, strength: float) -> None:
    seed %= 10**6
    bias = normal(6, seed=seed)
    layers = {
        "x": Layer((n,), Identity()),
        "y": Layer((n,), Softmax()),
        "h": Layer((6,), Gelu(), bias=bias, tau=0),
    }
    weights = [normal(6, n, seed=seed + i, scale=strength / math.sqrt(n)) for i in (1, 2)]
    synapses = [Synapse("x", "h", weights[0], "hx,x->h"), Synapse("y", "h", weights[1], "hy,y->h")]
    memory = AssociativeMemory(layers, synapses)
    states = some_states(memory, seed + 5)
    assert not rises(memory, states, memory.largest_step())
    h = weights[0] @ states["x"][0] + weights[1] @ states["y"][0].softmax(0) + bias
    own = states["x"][0].square().sum() / 2
    own = own + (states["y"][0] * states["y"][0].softmax(0)).sum() - states["y"][0].logsumexp(0)
    torch.testing.assert_close(memory.energy(states)[0], own - Gelu().value(h))


def test_no_full_step_is_safe_where_a_moving_layer_is_not_convex() -> None:
    synapse = Synapse("a", "b", normal(3, 3), "ba,a->b")
    for lagrangian in (Gelu(), LayerNorm(), ReluPower(2)):
        layers = {"a": Layer((3,), lagrangian), "b": Layer((3,), Identity())}
        assert AssociativeMemory(layers, [synapse]).largest_step() == 0


def test_a_memory_with_impossible_synapses_is_refused() -> None:
    synapse = Synapse("a", "b", normal(3, 3), "ba,a->b")
    settled = Layer((3,), Identity(), tau=0)
    with pytest.raises(UserError, match="two of the layers"):
        AssociativeMemory({"a": settled}, [synapse])
    with pytest.raises(UserError, match="both settled"):
        AssociativeMemory({"a": settled, "b": settled}, [synapse])


def test_a_synapse_is_a_matrix_and_its_transpose() -> None:
    synapse = Synapse("x", "h", normal(3, 4), "mp,pd->md")
    eye = torch.eye(20, dtype=torch.float64).view(20, 4, 5)
    matrix = synapse.forward(eye).reshape(20, 15)  # [x, h]
    back = synapse.backward(torch.eye(15, dtype=torch.float64).view(15, 3, 5)).reshape(15, 20)
    torch.testing.assert_close(matrix, back.mT)
    assert synapse.norm() == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)))


# ---- mixers --------------------------------------------------------------------------------


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

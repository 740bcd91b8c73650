"""Lagrangians and associative memories: their energies, and that they never rise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_memories import normal, rises, seeds, sizes, some_states

from decision_seq.errors import UserError
from decision_seq.hopfield.lagrangians import (
    Gelu,
    Identity,
    Lagrangian,
    LayerNorm,
    ReluPower,
    Softmax,
)
from decision_seq.hopfield.memory import AssociativeMemory, Layer, Synapse

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

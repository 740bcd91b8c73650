"""A hierarchical associative memory: layers of neurons, symmetric synapses, one energy.

Krotov's dynamics (arXiv:2107.06446) of layers A with states x, activations g = dL/dx and constant
inputs b, over synapses S between pairs of them:

    tau dx_A/dt = I_A - x_A,   I_A = b_A + sum over A's synapses of S g (or S^T g)
    E = sum_A [(x_A - b_A).g_A - L_A(x_A)] - sum_S g_target . S g_source
    dE/dt = - sum_A tau (dx_A/dt) . (dg_A/dx_A) (dx_A/dt) <= 0 where every L_A is convex.

A layer with tau = 0 is settled: it is always at its fixed point x = I, contributes -L(I) to the
energy, and may have a Lagrangian that is not convex.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decision_seq.errors import UserError
from decision_seq.hopfield.lagrangians import Lagrangian

States = dict[str, Tensor]  # by layer name: [..., layer shape]; settled layers may be left out


@dataclass(frozen=True)
class Layer:
    """Neurons of one kind."""

    shape: tuple[int, ...]
    lagrangian: Lagrangian
    bias: Tensor | None = None  # b [..., shape], constant input; None: zero
    tau: float = 1.0  # time constant; 0: settled

    def value(self, x: Tensor) -> Tensor:
        """L: [..., shape] -> [...]"""
        return self.lagrangian.value(x, len(self.shape))

    def activation(self, x: Tensor) -> Tensor:
        """g: [..., shape] -> [..., shape]"""
        return self.lagrangian.activation(x, len(self.shape))


@dataclass(frozen=True)
class Synapse:
    """A linear map between two layers, and the same weights the other way.

    `axes` names the dimensions of weight, source and target like an einsum: "mp,pd->md" mixes
    patches p into hidden units m, for every channel d alike.
    """

    source: str
    target: str
    weight: Tensor
    axes: str
    back: Tensor | None = None  # weight of the way back; None: the same, so that there is an energy

    def forward(self, source: Tensor) -> Tensor:
        """S g: what the target receives."""
        weight, inner, outer = self._names()
        return torch.einsum(f"{weight},...{inner}->...{outer}", self.weight, source)

    def backward(self, target: Tensor) -> Tensor:
        """S^T g, or with `back` in its place: what the source receives."""
        weight, inner, outer = self._names()
        back = self.weight if self.back is None else self.back
        return torch.einsum(f"{weight},...{outer}->...{inner}", back, target)

    def norm(self) -> float:
        """Largest singular value of the whole map S. Axes that the weight has not are copied."""
        weight, _, outer = self._names()
        rows = [i for i, axis in enumerate(weight) if axis in outer]
        columns = [i for i, axis in enumerate(weight) if axis not in outer]
        ordered = self.weight.detach().permute(rows + columns)
        matrix = ordered.reshape(math.prod(ordered.shape[: len(rows)]), -1)
        return float(torch.linalg.matrix_norm(matrix, 2))

    def _names(self) -> tuple[str, str, str]:
        inputs, outer = self.axes.split("->")
        weight, inner = inputs.split(",")
        return weight, inner, outer


class AssociativeMemory:
    """Layers and the synapses between them."""

    def __init__(self, layers: Mapping[str, Layer], synapses: Sequence[Synapse]) -> None:
        self.layers, self.synapses = dict(layers), list(synapses)
        self.settled = {name for name, layer in self.layers.items() if layer.tau == 0}
        for synapse in self.synapses:
            ends = {synapse.source, synapse.target}
            if ends - set(self.layers) or len(ends) == 1:
                raise UserError(f"a synapse joins {sorted(ends)}; it must join two of the layers")
            if ends <= self.settled:
                raise UserError(f"{sorted(ends)} are both settled; one must have tau above 0")

    def activations(self, states: Mapping[str, Tensor]) -> States:
        """g of every layer; those of settled layers follow from the others."""
        g = {n: self.layers[n].activation(states[n]) for n in self.layers if n not in self.settled}
        settled = {n: self.layers[n].activation(self._input(n, g)) for n in self.settled}
        return g | settled

    def inputs(self, activations: Mapping[str, Tensor]) -> States:
        """I of every layer, from the activations of all."""
        return {name: self._input(name, activations) for name in self.layers}

    def energy(
        self, states: Mapping[str, Tensor], activations: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """E, [...]. For derivatives with respect to activations, give those of the layers that are
        not settled; by default they are those of the states.

        Where a synapse has weights of its own for the way back, no energy exists; this is that of
        the forward weights.
        """
        g = dict(self.activations(states) if activations is None else activations)
        x = dict(states)
        for name in self.settled:
            x[name] = self._input(name, g)
            g[name] = self.layers[name].activation(x[name])
        total = torch.zeros(())
        for name, layer in self.layers.items():
            drive = x[name] if layer.bias is None else x[name] - layer.bias
            total = total + self._dot(name, drive, g[name]) - layer.value(x[name])
        for synapse in self.synapses:
            target = synapse.target
            total = total - self._dot(target, g[target], synapse.forward(g[synapse.source]))
        return total

    def step(
        self, states: Mapping[str, Tensor], dt: float | Tensor, only: Collection[str] | None = None
    ) -> States:
        """x + dt / tau (I - x): one Euler step of every layer at once, or (asynchronous) of the
        layers `only`. Returns all layers, the settled ones at their fixed point.

        Where synapses are symmetric, the energy does not rise
        - if `only` is one layer with a convex Lagrangian, for any dt <= tau, however strong the
          synapses: along the way to I, a layer's own energy falls as long as I stands still;
        - if all move at once, for any dt <= `largest_step()`.

        Args:
            dt: a number, or [..., 1, ...] one for every item of the batch.
        """
        inputs = self.inputs(self.activations(states))
        moving = set(self.layers) - self.settled if only is None else set(only)
        new = dict(states) | {name: inputs[name] for name in self.settled}
        for name in moving - self.settled:
            new[name] = states[name] + dt / self.layers[name].tau * (inputs[name] - states[name])
        if self.settled:
            g = self.activations(new)
            new |= {name: self._input(name, g) for name in self.settled}
        return new

    def largest_step(self) -> float:
        """The longest dt of a full step that is sure not to raise the energy, from any state.

        With K the largest slope of a moving layer's activation and w the norm of a synapse,
        dt <= min tau / (1 + lambda), lambda being the largest eigenvalue of
            M = N / 2 + sum over settled layers h of (mu_h / 2) v_h v_h^T,
        where N_AB = w sqrt(K_A K_B) for synapses between moving layers, v_hA = w sqrt(K_A), and
        mu_h is how far the slope of h's activation falls below zero. Derivation: docs/hopfield.md.
        Zero where a moving layer's Lagrangian is not convex or its slope has no bound.
        """
        moving = [name for name in self.layers if name not in self.settled]
        slopes = [self.layers[name].lagrangian.slopes for name in moving]
        if any(low < 0 or not math.isfinite(high) for low, high in slopes):
            return 0.0
        reach = {name: math.sqrt(high) for name, (_, high) in zip(moving, slopes, strict=True)}
        coupling = torch.zeros(len(moving), len(moving), dtype=torch.float64)
        towards = {h: torch.zeros(len(moving), dtype=torch.float64) for h in self.settled}
        for synapse in self.synapses:
            ends, norm = (synapse.source, synapse.target), synapse.norm()
            if settled := self.settled & set(ends):
                (hidden,) = settled
                (seen,) = set(ends) - settled
                towards[hidden][moving.index(seen)] += norm * reach[seen]
            else:
                a, b = (moving.index(end) for end in ends)
                coupling[a, b] += norm * reach[ends[0]] * reach[ends[1]] / 2
                coupling[b, a] = coupling[a, b]
        for hidden, v in towards.items():
            falls = max(0.0, -self.layers[hidden].lagrangian.slopes[0])
            coupling += falls / 2 * torch.outer(v, v)
        strongest = float(torch.linalg.eigvalsh(coupling)[-1])
        return min(self.layers[name].tau for name in moving) / (1 + strongest)

    def _input(self, name: str, activations: Mapping[str, Tensor]) -> Tensor:
        parts = [s.forward(activations[s.source]) for s in self.synapses if s.target == name]
        parts += [s.backward(activations[s.target]) for s in self.synapses if s.source == name]
        bias = self.layers[name].bias
        return sum(parts, start=torch.zeros(()) if bias is None else bias)

    def _dot(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(list(range(-len(self.layers[name].shape), 0)))

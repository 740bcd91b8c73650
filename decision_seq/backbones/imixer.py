"""iMixer (arXiv:2304.13061): a token mixer whose hidden layer is iterated towards a fixed point.

The published one mixes over all tokens of an image; here every matrix is block-lower-triangular in
the token position, so that a position reaches itself and earlier ones only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq.backbones.block import BackboneConfig
from decision_seq.backbones.contract import LayerState, Layout, Mixer
from decision_seq.backbones.lags import LagLinear, TimeMixer, append, positions_of
from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.ops.spectral import SpectralScale


@register("imixer", "iterative mixer along time, causal; cost L^2; streams by the last K steps")
@dataclass(frozen=True)
class IMixerConfig(BackboneConfig):
    """An MLP along time with an inner residual module, iterated."""

    hidden: int = 2  # m, hidden units a token position
    n_iter: int = 2  # 0: the plain MLP along time
    contraction: float = 0.85  # c, bound of the inner matrices' spectral norms; the paper has 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1 or self.n_iter < 0:
            raise UserError(
                f"hidden must be at least 1 and n_iter at least 0, got {self.hidden}, {self.n_iter}"
            )
        if self.contraction <= 0:
            raise UserError(f"contraction is {self.contraction}; it must be above 0")

    def make_mixer(self, layout: Layout) -> Mixer:
        return IMixer(self, layout.context_tokens)


class IMixer(TimeMixer):
    """z_0 = W1 x + b1;  z_{k+1} = z_0 + F(z_k), k < n_iter;  out = W2 phi(z_n) + b2, where
    F(z) = S2 phi(S1 phi(z) + c1) + c2 and phi = GELU, along time, every channel alike.

    S = W / max(1, sigma(W) / c) bounds the spectral norm of both over a window, so that for
    c < 1 / 1.1289 = 0.8858 F is a contraction there and z = z_0 + F(z) has one solution.

    Beyond the window, the sliding rule of `lags` continues the matrices by their last row, and the
    bound of the window's norm is no bound for the longer ones. The fixed point stays: F is causal
    and its part from a position to itself is a block of the window's, hence a contraction; so it
    exists, is unique, and is reached position by position. What may be lost is the rate.
    """

    def __init__(self, config: IMixerConfig, window: int) -> None:
        super().__init__()
        self.window, self.width, self.n_iter = window, config.width, config.n_iter
        self.hidden = m = config.hidden
        self.W1 = LagLinear(window, 1, m, bias=True)
        self.W2 = LagLinear(window, m, 1, bias=True, gain=(2 * config.layers) ** -0.5)
        if config.n_iter:
            self.S1 = ContractiveLagLinear(window, m, config.contraction)
            self.S2 = ContractiveLagLinear(window, m, config.contraction)

    def _dense(self, x: Tensor) -> Tensor:
        length = x.shape[0]
        z = self.W1.matrix(length) @ x + self.W1.biases(length)  # [L m, N]
        z = self.iterate(z)
        return self.W2.matrix(length) @ F.gelu(z) + self.W2.biases(length)

    def iterate(self, z0: Tensor, n_iter: int | None = None) -> Tensor:
        """z_n from z_0 [L m, N], hidden units of a position together; n = `n_iter` if given."""
        z, n_iter = z0, self.n_iter if n_iter is None else n_iter
        if n_iter == 0:
            return z
        length = z0.shape[0] // self.hidden
        S1, S2 = self.S1.matrix(length), self.S2.matrix(length)
        c1, c2 = self.S1.biases(length), self.S2.biases(length)
        z0 = z0 + c2
        for _ in range(n_iter):
            z = z0 + S2 @ F.gelu(S1 @ F.gelu(z) + c1)
        return z

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """What every matrix has read at the last P - 1 tokens, and tokens seen so far.

        tokens [B, P - 1, 1, D] by W1; outer_k = phi(z_k) by S1, or at k = n_iter by W2; inner_k by
        S2, both [B, P - 1, m, D].
        """
        past = torch.zeros(batch_size, self.window - 1, 1, self.width, device=device, dtype=dtype)
        hidden = past.repeat(1, 1, self.hidden, 1)
        state = {
            "tokens": past,
            "position": torch.zeros(batch_size, dtype=torch.int64, device=device),
            f"outer_{self.n_iter}": hidden,
        }
        for k in range(self.n_iter):
            state |= {f"outer_{k}": hidden, f"inner_{k}": hidden}
        return state

    def _advance(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        position = positions_of(state, x.shape[1])  # [B, n]
        new_state = {"position": state["position"] + x.shape[1]}

        contractions = (self.S1, self.S2) if self.n_iter else ()
        scales: dict[LagLinear, Tensor] = {layer: layer.scale() for layer in contractions}

        def apply(layer: LagLinear, name: str, now: Tensor) -> Tensor:
            both, new_state[name] = append(state[name], now)
            return layer.step(both, position) / scales.get(layer, 1) + layer.bias_at(position)

        z0 = z = apply(self.W1, "tokens", x.unsqueeze(2))  # [B, n, m, D]
        for k in range(self.n_iter):
            inner = apply(self.S1, f"outer_{k}", F.gelu(z))
            z = z0 + apply(self.S2, f"inner_{k}", F.gelu(inner))
        return apply(self.W2, f"outer_{self.n_iter}", F.gelu(z)).squeeze(2), new_state


class ContractiveLagLinear(LagLinear):
    """m numbers a position to m, divided by max(1, sigma / c): spectral norm c at most.

    sigma is that of the matrix of a whole window, after the mask.
    """

    def __init__(self, window: int, hidden: int, contraction: float) -> None:
        super().__init__(window, hidden, hidden, bias=True)
        self.spectral = SpectralScale(super().matrix(window), contraction, iterations=1)

    def matrix(self, length: int) -> Tensor:
        """[L m, L m], scaled."""
        size = length * self.weight.shape[-1]
        return self.spectral(super().matrix(self.window))[:size, :size]

    def scale(self) -> Tensor:
        """What divides the result of `step`."""
        return self.spectral.scale(super().matrix(self.window))

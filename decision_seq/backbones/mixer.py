"""MLP-Mixers along time, made causal: vanilla (arXiv:2105.01601), and the symmetric and asymmetric
ones that are energy descents, or nearly (arXiv:2406.12220).

The published mixers mix over all tokens and normalise over tokens and channels together, and so
show the future to the past. Here hidden units belong to a token position, m to each, a position
reaches earlier ones only, and normalisation is per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig, Block
from decision_seq.backbones.contract import EVERY, LayerState, Layout, Mixer
from decision_seq.backbones.lags import LagLinear, Positions, TimeMixer, append, positions_of
from decision_seq.config import register
from decision_seq.errors import UserError

Mixing = Literal["vanilla", "symmetric", "asymmetric"]
TIED: frozenset[Mixing] = frozenset({"symmetric", "asymmetric"})  # the way back has W^T
FREE: frozenset[Mixing] = frozenset({"vanilla", "asymmetric"})  # the way back has weights V


@register("mixer", "MLP-Mixer along time, causal; cost L^2; streams by the last K steps")
@dataclass(frozen=True)
class MixerConfig(BackboneConfig):
    """Token and channel mixing, both of the kind `mixing`."""

    mixing: Mixing = "vanilla"
    block: Literal["serial", "parallel"] = "serial"
    n_iter: int = 1  # how often a parallel block is applied, with the same weights
    symmetry_penalty: float = 0.0  # lambda of the asymmetric mixer
    positions: Positions = "absolute"  # toeplitz: weights depend on the lag only
    hidden: int = 4  # m, hidden units a token position (channel mixing has 4 width)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1 or self.n_iter < 1:
            raise UserError(
                f"hidden and n_iter must be at least 1, got {self.hidden}, {self.n_iter}"
            )
        if self.n_iter > 1 and self.block == "serial":
            raise UserError(
                f"n_iter is {self.n_iter}, which needs block parallel: a serial one runs once"
            )
        if self.symmetry_penalty < 0:
            raise UserError(f"symmetry_penalty is {self.symmetry_penalty}; it must be at least 0")
        if self.symmetry_penalty > 0 and self.mixing != "asymmetric":
            raise UserError(
                f"symmetry_penalty is {self.symmetry_penalty}, which needs mixing asymmetric; "
                f"{self.mixing} has nothing to penalise"
            )

    def make_mixer(self, layout: Layout) -> Mixer:
        return TokenMixer(self, layout.context_tokens)

    def make_block(self, layout: Layout, layer: int) -> Block:
        return BLOCKS[self.block](self, layout)


class TokenMixer(TimeMixer):
    """H[t] = sum over s <= t of W[t, :, s] x_s in R^{m x D}, then with phi = GELU

    vanilla:     out[t] = sum over u <= t of V[t, u, :]^T phi(H[u])
    symmetric:   out[t] = W[t, :, t]^T phi(H[t])
    asymmetric:  the sum of both.
    """

    def __init__(self, config: MixerConfig, window: int) -> None:
        super().__init__()
        self.window, self.hidden, self.width = window, config.hidden, config.width
        self.penalty_weight = config.symmetry_penalty
        self.tied = config.mixing in TIED
        self.W = LagLinear(window, 1, config.hidden, config.positions)
        self.V = None
        if config.mixing in FREE:
            shrink = (2 * config.layers) ** -0.5
            self.V = LagLinear(window, config.hidden, 1, config.positions, gain=shrink)

    def _dense(self, x: Tensor) -> Tensor:
        length, columns = x.shape
        hidden = F.gelu(self.W.matrix(length) @ x)  # [L m, N]
        own = self._own(torch.arange(length, device=x.device))  # [L, m]
        if self.V is None:
            return (own[:, None] @ hidden.view(length, self.hidden, columns)).squeeze(1)
        back = self.V.matrix(length)  # [L, L m]
        if self.tied:
            diagonal = torch.diag_embed(own.T).permute(1, 2, 0)  # [L, L, m]
            back = back + diagonal.reshape(back.shape)
        return back @ hidden

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The last P - 1 tokens, phi(H) of them if it is read again, and tokens seen so far."""
        past = torch.zeros(batch_size, self.window - 1, 1, self.width, device=device, dtype=dtype)
        state = {
            "tokens": past,  # [B, P - 1, 1, D]
            "position": torch.zeros(batch_size, dtype=torch.int64, device=device),
        }
        if self.V is not None:
            state["hidden"] = past.repeat(1, 1, self.hidden, 1)  # [B, P - 1, m, D]
        return state

    def _advance(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        position = positions_of(state, x.shape[1])  # [B, n]
        tokens, kept = append(state["tokens"], x.unsqueeze(2))
        new_state = {"tokens": kept, "position": state["position"] + x.shape[1]}
        hidden = F.gelu(self.W.step(tokens, position))  # [B, n, m, D]
        y = torch.zeros_like(x)
        if self.tied:
            y = (self._own(position).unsqueeze(-1) * hidden).sum(2)
        if self.V is not None:
            past, new_state["hidden"] = append(state["hidden"], hidden)
            y = y + self.V.step(past, position).squeeze(2)
        return y, new_state

    def _own(self, position: Tensor) -> Tensor:
        """W[t, :, t], what a position's hidden units read of the position itself: [..., m]."""
        return self.W.weight[self.W.rows(position), 0, :, 0]

    def penalty(self) -> Tensor | float:
        """lambda times the sum of squares of V."""
        if self.V is None or self.penalty_weight == 0:
            return 0.0
        return self.penalty_weight * self.V.weight.square().sum()

    def eta(self) -> Tensor:
        """How far the module is from symmetric: see `symmetry_breaking`.

        W2[t, u, :] are the weights of the way back, hidden units of u to token t. W1^T[t, u, :] is
        W[t, :, t] where u = t and zero where u < t: the transpose of the way there, less what
        causality rules out (there, hidden units read earlier tokens; back, tokens read earlier
        hidden units; the two meet on the diagonal).
        """
        there = torch.zeros_like(self.W.weight).transpose(2, 3)  # [rows, P, 1, m], by lag
        there[:, 0] = self.W.weight[:, 0].transpose(1, 2)
        back = there if self.tied else torch.zeros_like(there)
        if self.V is not None:
            back = back + self.V.weight
        return symmetry_breaking(there, back)


class ChannelMixer(nn.Module):
    """Every token by itself, with 4D hidden units and phi = GELU

    vanilla:     V phi(W g)
    symmetric:   W^T phi(W g)
    asymmetric:  W^T phi(W g) + V phi(W g).
    """

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        width, self.penalty_weight = config.width, config.symmetry_penalty
        self.tied = config.mixing in TIED
        self.W = nn.Parameter(0.02 * torch.randn(4 * width, width))
        self.V = None
        if config.mixing in FREE:
            scale = 0.02 / math.sqrt(2 * config.layers)
            self.V = nn.Parameter(scale * torch.randn(width, 4 * width))

    def forward(self, g: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]"""
        return F.linear(F.gelu(F.linear(g, self.W)), self.back())

    def back(self) -> Tensor:
        """[D, 4D], weights of the way back."""
        if self.V is None:
            return self.W.T
        return self.W.T + self.V if self.tied else self.V

    def penalty(self) -> Tensor | float:
        """lambda times the sum of squares of V."""
        if self.V is None or self.penalty_weight == 0:
            return 0.0
        return self.penalty_weight * self.V.square().sum()

    def eta(self) -> Tensor:
        """How far the module is from symmetric, W1 = W and W2 the way back: `symmetry_breaking`."""
        return symmetry_breaking(self.W.T, self.back())


class SerialBlock(Block):
    """x + token(LN x), then x + channel(LN x)."""

    mixer: TokenMixer
    mlp: ChannelMixer  # type: ignore[assignment]

    def __init__(self, config: MixerConfig, layout: Layout) -> None:
        super().__init__(TokenMixer(config, layout.context_tokens), config)
        self.mlp = ChannelMixer(config)

    def penalty(self) -> Tensor | float:
        """Of both modules."""
        return self.mixer.penalty() + self.mlp.penalty()

    def eta(self) -> dict[str, Tensor]:
        """The symmetry-breaking order parameter of both modules."""
        return {"token": self.mixer.eta(), "channel": self.mlp.eta()}


class ParallelBlock(SerialBlock):
    """x + token(LN x) + channel(LN x), `n_iter` times with the same weights.

    Both modules read the same g = LN x, so with symmetric mixing one application moves x_t down
    the gradient, with respect to g_t and the past held fixed, of
    E_t = x_t . g_t - sqrt(D) ||x_t - mean x_t|| - sum Phi(H[t]) - sum Phi(C g_t), Phi' = GELU,
    up to the decay term - x_t (arXiv:2406.12220).
    """

    def __init__(self, config: MixerConfig, layout: Layout) -> None:
        super().__init__(config, layout)
        self.n_iter = config.n_iter
        del self.norm_mlp

    def forward(self, x: Tensor, output_slice: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D], the outputs at the l tokens of `output_slice` only."""
        for i in range(self.n_iter):
            wanted = output_slice if i == self.n_iter - 1 else EVERY
            g = self.norm_mixer(x)
            update = self.mixer(g)[:, wanted] + self.mlp(g[:, wanted])
            x = self.dropout(update, x[:, wanted])
        return x

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """A state of the token mixer for every iteration: each sees other tokens."""
        one = self.mixer.init_state(batch_size, device, dtype)
        return {f"{i}.{name}": t for i in range(self.n_iter) for name, t in one.items()}

    def step(
        self, x: Tensor, state: LayerState, output_slice: slice = EVERY
    ) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, l, D], state"""
        new_state: LayerState = {}
        for i in range(self.n_iter):
            g, start = self.norm_mixer(x), f"{i}."
            own = {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
            mixed, own = self.mixer.step(g, own)
            x = self.dropout(mixed + self.mlp(g), x)
            new_state |= {start + name: t for name, t in own.items()}
        return x[:, output_slice], new_state


BLOCKS: dict[str, type[SerialBlock]] = {"serial": SerialBlock, "parallel": ParallelBlock}


def symmetry_breaking(there: Tensor, back: Tensor) -> Tensor:
    """eta = ||W2 - W1^T||^2 / (||W1||^2 + ||W2||^2), given W1^T and W2 (arXiv:2406.12220).

    0 when the way back is the transpose of the way there, about 1 for independent weights.
    """
    scale = there.square().sum() + back.square().sum()
    return ((back - there).square().sum() / scale).detach()

"""Trajectories as tokens: each step becomes a few, in a named order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TimestepInit = Literal["zero", "published", "none"]


class TokenEmbedding(nn.Module):
    """A linear embedding of each kind of token plus a learned one of the episode timestep, then
    LayerNorm, as in Decision Transformer (arXiv:2106.01345). D = width.

    Args:
        kinds: the tokens of a step in order, e.g. ("return_to_go", "observation", "action").
        observation_dim: S, or the features of an image.
        action_dim: A, or the number of discrete actions.
        discrete: actions are indices.
        max_timestep: largest timestep with an embedding of its own; later ones share it.
        width: D.
        bounded: as in that paper's Atari code, tanh after each linear embedding, actions starting
            small and timesteps at zero.
        timestep_init: the timestep embedding starts at "zero", so that at first a token is what it
            stands for; at N(0, 1) as in the "published" code, unless bounded, which is longer than
            the embedded value beside it; or there is "none".
        others: numbers of further kinds of tokens.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        observation_dim: int,
        action_dim: int,
        discrete: bool,
        max_timestep: int,
        width: int,
        bounded: bool = False,
        timestep_init: TimestepInit = "zero",
        others: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.kinds, self.bounded = tuple(kinds), bounded
        self.max_timestep = max_timestep
        makers = {
            "return_to_go": lambda: nn.Linear(1, width),
            "observation": lambda: nn.Linear(observation_dim, width),
            "action": lambda: (
                nn.Embedding(action_dim, width) if discrete else nn.Linear(action_dim, width)
            ),
        }
        for kind, numbers in (others or {}).items():
            makers[kind] = partial(nn.Linear, numbers, width)
        self.embed = nn.ModuleDict({kind: makers[kind]() for kind in self.kinds})
        self.timestep = None if timestep_init == "none" else nn.Embedding(max_timestep + 1, width)
        self.norm = nn.LayerNorm(width)
        if self.timestep is not None and (bounded or timestep_init == "zero"):
            nn.init.zeros_(self.timestep.weight)
        if bounded and discrete and "action" in self.embed:
            nn.init.normal_(self.embed["action"].weight, std=0.02)  # type: ignore[arg-type]

    def forward(
        self, values: dict[str, Tensor], timesteps: Tensor, kinds: Sequence[str] | None = None
    ) -> Tensor:
        """Embed K steps, interleaving their tokens.

        Args:
            values: by kind: return_to_go [B, K], observation [B, K, S], action [B, K, A] or [B, K].
            timesteps: [B, K] int64, or [B, K, len(kinds)] where a step's tokens differ in it.
            kinds: which tokens of the step to embed; all by default.

        Returns:
            [B, K * len(kinds), D]
        """
        kinds = self.kinds if kinds is None else kinds
        tokens = self._tokens(values, kinds)  # [B, K, len(kinds), D]
        if self.timestep is not None:
            if timesteps.ndim == 2:
                timesteps = timesteps.unsqueeze(2)
            tokens = tokens + self.timestep(timesteps.clamp(max=self.max_timestep))
        return self.norm(tokens.flatten(1, 2))

    def step(self, values: dict[str, Tensor], timestep: Tensor, kinds: Sequence[str]) -> Tensor:
        """Embed tokens of one step: of the one at `timestep`, but its action is that of the step
        before, the newest that there is when an agent acts.

        Args:
            values: by kind, as in `forward` but without K.
            timestep: [B] int64.
            kinds: which tokens, in order.

        Returns:
            [B, len(kinds), D]
        """
        before = torch.stack([timestep - int(kind == "action") for kind in kinds], dim=1)
        one = {kind: values[kind].unsqueeze(1) for kind in kinds}  # K = 1
        return self(one, before.clamp(min=0).unsqueeze(1), kinds)

    def _tokens(self, values: dict[str, Tensor], kinds: Sequence[str]) -> Tensor:
        """[B, K, len(kinds), D]"""
        layers = [self.embed[kind] for kind in kinds]
        inputs = [features(kind, values[kind]) for kind in kinds]
        if all(isinstance(layer, nn.Linear) for layer in layers):  # one product for a whole step
            weight = block_diagonal([layer.weight for layer in layers])  # type: ignore[misc]
            bias = torch.cat([layer.bias for layer in layers])  # type: ignore[misc]
            tokens = F.linear(torch.cat(inputs, dim=-1), weight, bias)  # [B, K, len(kinds) * D]
            tokens = tokens.unflatten(-1, (len(kinds), -1))
        else:
            pairs = zip(layers, inputs, strict=True)
            tokens = torch.stack([layer(value) for layer, value in pairs], dim=2)
        return torch.tanh(tokens) if self.bounded else tokens


def features(kind: str, value: Tensor) -> Tensor:
    """What the embedding of a kind of token takes: a return is a vector of one number."""
    return value.unsqueeze(-1) if kind == "return_to_go" else value


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """As torch.block_diag, of matrices, by operations that ONNX has."""
    ends = list(accumulate([block.shape[1] for block in blocks]))  # torch 2.7 compiles lists alone
    padded = [
        F.pad(block, (end - block.shape[1], ends[-1] - end))
        for block, end in zip(blocks, ends, strict=True)
    ]
    return torch.cat(padded)

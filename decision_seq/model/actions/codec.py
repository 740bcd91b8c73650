"""ActionCodec: the parts of an action side by side."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from decision_seq.model.actions.part import ActionLoss, part_of
from decision_seq.spaces import Table


class ActionCodec:
    """Packed rows [.., W] <-> features [.., A], part by part."""

    def __init__(self, table: Table) -> None:
        self.parts = [part_of(leaf) for leaf in table.numbers]
        self.widths = [part.width for part in self.parts]
        self.features = [part.features for part in self.parts]

    def encode(self, rows: Tensor) -> Tensor:
        """[.., W] -> [.., A]"""
        pieces = zip(self.parts, rows.split(self.widths, -1), strict=True)
        return torch.cat([part.encode(piece) for part, piece in pieces], dim=-1)

    def squash(self, predicted: Tensor) -> Tensor:
        """[.., A] of a linear map -> predictions [.., A]"""
        pieces = zip(self.parts, predicted.split(self.features, -1), strict=True)
        return torch.cat([part.squash(piece) for part, piece in pieces], dim=-1)

    def errors(self, predicted: Tensor, wanted: Tensor, loss: ActionLoss) -> Tensor:
        """[..]: the sum over parts, for predictions and encoded actions [.., A]."""
        pairs = zip(
            predicted.split(self.features, -1), wanted.split(self.features, -1), strict=True
        )
        errors = [part.errors(*pair, loss) for part, pair in zip(self.parts, pairs, strict=True)]
        return torch.stack(errors).sum(0)

    def choose(
        self, predicted: Tensor, noise: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Predictions [lanes, A] -> rows [lanes, W] float32. With standard Gumbel noise
        [lanes, A] what is no vector is sampled at the temperature."""
        pieces = predicted.split(self.features, -1)
        cold = [
            p if part.leaf.scaled else p / temperature
            for part, p in zip(self.parts, pieces, strict=True)
        ]
        drawn = [None] * len(pieces) if noise is None else noise.split(self.features, -1)
        rows = [p.choose(v, n) for p, v, n in zip(self.parts, cold, drawn, strict=True)]
        return torch.cat(rows, dim=-1).to(torch.float32)

    def scale(self, actions: np.ndarray) -> np.ndarray:
        """[A]: what brings vectors among `actions` [N, W] into tanh's range; 1 for the others."""
        scales = []
        for part, rows in zip(
            self.parts, np.split(actions, np.cumsum(self.widths)[:-1], -1), strict=True
        ):
            largest = np.abs(rows).max(axis=0).clip(min=1.0)
            scales.append(largest if part.leaf.scaled else np.ones(part.features))
        return np.concatenate(scales).astype(np.float32)

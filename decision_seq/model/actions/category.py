"""Choices: logits and cross-entropy, a choice at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from decision_seq.model.actions.part import ActionLoss, ActionPart, register
from decision_seq.spaces.kinds.category import CategoryLeaf


@register("category")
class CategoryPart(ActionPart):
    """As single discrete actions are predicted, side by side."""

    def __init__(self, leaf: CategoryLeaf) -> None:
        super().__init__(leaf)
        self.counts = list(leaf.counts)

    def encode(self, rows: Tensor) -> Tensor:
        """1 for what is chosen, else 0."""
        pairs = zip(rows.split(1, -1), self.counts, strict=True)
        spread = [row == torch.arange(n, device=rows.device) for row, n in pairs]
        return torch.cat(spread, dim=-1).to(rows.dtype)

    def errors(self, predicted: Tensor, wanted: Tensor, loss: ActionLoss) -> Tensor:
        """Sum of cross-entropies."""
        pairs = zip(predicted.split(self.counts, -1), wanted.split(self.counts, -1), strict=True)
        return torch.stack([-(w * p.log_softmax(-1)).sum(-1) for p, w in pairs]).sum(0)

    def choose(self, predicted: Tensor, noise: Tensor | None) -> Tensor:
        """The likeliest, or a sample: the likeliest under Gumbel noise."""
        scores = predicted if noise is None else predicted + noise
        chosen = [piece.argmax(-1) for piece in scores.split(self.counts, -1)]
        return torch.stack(chosen, dim=-1).to(scores.dtype)

"""Switches: logits and binary cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from decision_seq.model.actions.part import ActionLoss, ActionPart, register


@register("bits")
class BitsPart(ActionPart):
    """Each switch by itself."""

    def encode(self, rows: Tensor) -> Tensor:
        """Themselves."""
        return rows

    def errors(self, predicted: Tensor, wanted: Tensor, loss: ActionLoss) -> Tensor:
        """Sum of binary cross-entropies."""
        return F.binary_cross_entropy_with_logits(predicted, wanted, reduction="none").sum(-1)

    def choose(self, predicted: Tensor, noise: Tensor | None) -> Tensor:
        """On where that is likelier; sampled, the logit meets logistic noise, which is what the
        standard Gumbel noise of on and off differs by."""
        if noise is not None:
            uniform = torch.exp(-torch.exp(-noise))  # Gumbel's distribution function
            logistic = torch.log(uniform) - torch.log1p(-uniform)
            predicted = predicted + torch.where(noise == 0, 0.0, logistic)  # 0 is no draw
        return (predicted > 0).to(predicted.dtype)

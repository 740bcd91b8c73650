"""Switches: logits and binary cross-entropy."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from decision_seq.model.actions.part import ActionPart, register


@register("bits")
class BitsPart(ActionPart):
    """Each switch by itself."""

    def encode(self, rows: Tensor) -> Tensor:
        """Themselves."""
        return rows

    def errors(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Sum of binary cross-entropies."""
        return F.binary_cross_entropy_with_logits(predicted, wanted, reduction="none").sum(-1)

    def choose(self, predicted: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """On where that is likelier; sampled, the logit meets logistic noise, which is what the
        standard Gumbel noise of on and off differs by."""
        if noise is not None:
            with np.errstate(divide="ignore", over="ignore"):
                uniform = np.exp(-np.exp(-noise))  # Gumbel's distribution function
                predicted = predicted + np.log(uniform) - np.log1p(-uniform)
        return (predicted > 0).astype(np.float32)

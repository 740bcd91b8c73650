"""Vectors: tanh and squared error, in units of the largest in the data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from decision_seq.model.actions.part import ActionPart, register


@register("vector")
class BoxPart(ActionPart):
    """As single vectors are predicted."""

    def encode(self, rows: Tensor) -> Tensor:
        """Themselves."""
        return rows

    def squash(self, predicted: Tensor) -> Tensor:
        """tanh"""
        return torch.tanh(predicted)

    def errors(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Mean of squares."""
        return (predicted - wanted).square().mean(dim=-1)

    def choose(self, predicted: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """What is predicted."""
        return predicted

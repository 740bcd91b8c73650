"""Vectors: tanh and the error of numbers, in units of the largest in the data."""

from __future__ import annotations

import torch
from torch import Tensor

from decision_seq.model.actions.part import ActionLoss, ActionPart, number_errors, register


@register("vector")
class BoxPart(ActionPart):
    """As single vectors are predicted."""

    def encode(self, rows: Tensor) -> Tensor:
        """Themselves."""
        return rows

    def squash(self, predicted: Tensor) -> Tensor:
        """tanh"""
        return torch.tanh(predicted)

    def errors(self, predicted: Tensor, wanted: Tensor, loss: ActionLoss) -> Tensor:
        """Mean over the numbers."""
        return number_errors(predicted, wanted, loss)

    def choose(self, predicted: Tensor, noise: Tensor | None) -> Tensor:
        """What is predicted."""
        return predicted

"""Dropout as a module."""

from __future__ import annotations

from torch import Tensor, nn

from decision_seq import ops


class Dropout(nn.Module):
    """Zero elements with probability `p` in training and scale the others by 1 / (1 - p).

    Drawn from torch's global generator: the seed fixes it, and its state restores it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """residual + dropout(x); any shape and dtype."""
        return ops.dropout_add(x, residual, self.p if self.training else 0.0)

"""Layers whose arithmetic is that of `decision_seq.ops`; parameters are torch.nn's."""

from __future__ import annotations

from torch import Tensor, nn

from decision_seq import ops


class Linear(nn.Linear):
    """x W^T + bias."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]"""
        return ops.linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """Over the last dimension, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]; under autocast in the dtype of the matrix products that follow."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Dropout(nn.Module):
    """As nn.Dropout: in training each element is zeroed with probability p, the others divided by
    1 - p.

    Its mask is a function of torch's global generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """residual + dropout(x); any shape and dtype."""
        return ops.dropout_add(x, residual, self.p if self.training else 0.0)

"""Weights held below a spectral norm, so that what is built of them is a contraction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralScale(nn.Module):
    """weight / max(1, sigma / limit), sigma being its largest singular value.

    sigma = u . W v is differentiated with u and v held fixed. Each call in training improves them
    by a few power iterations; in evaluation they stay as they are, and so does the result.

    Args:
        weight: [M, N] the initial weight, after any mask; u and v start at its singular vectors.
        limit: c, the largest singular value let through.
        iterations: power iterations a training call.
    """

    def __init__(self, weight: Tensor, limit: float, iterations: int) -> None:
        super().__init__()
        self.limit, self.iterations = limit, iterations
        left, _, right = torch.linalg.svd(weight.detach(), full_matrices=False)
        self.u: Tensor
        self.v: Tensor
        self.register_buffer("u", left[:, 0].contiguous())  # [M]
        self.register_buffer("v", right[0].contiguous())  # [N]

    def forward(self, weight: Tensor) -> Tensor:
        """[M, N] -> [M, N]"""
        if self.training:
            self._iterate(weight.detach())
        sigma = self.u.clone() @ (weight @ self.v.clone())  # clones: later calls change u and v
        return weight / (sigma / self.limit).clamp(min=1.0)

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        for _ in range(self.iterations):
            self.v.copy_(F.normalize(self.u @ weight, dim=0))
            self.u.copy_(F.normalize(weight @ self.v, dim=0))

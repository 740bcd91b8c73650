"""Weights held below a spectral norm, so that what is built of them is a contraction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralScale(nn.Module):
    """weight / max(1, sigma / limit), sigma being the weight's largest singular value.

    sigma = |W^T u| is differentiated with u, the leading left singular vector, held fixed. Each
    call in training improves u by a few power iterations; in evaluation it stays as it is.

    Args:
        weight: [M, N] the initial weight, after any mask; u starts at its singular vector.
        limit: c, the largest singular value let through.
        iterations: power iterations a training call.
    """

    def __init__(self, weight: Tensor, limit: float, iterations: int) -> None:
        super().__init__()
        self.limit, self.iterations = limit, iterations
        left = torch.linalg.svd(weight.detach(), full_matrices=False).U
        self.register_buffer("u", left[:, 0].contiguous())  # [M]
        self.u: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """[M, N] -> [M, N]"""
        return weight / self.scale(weight)

    def scale(self, weight: Tensor) -> Tensor:
        """max(1, sigma / limit) of `weight` [M, N]; its gradient is exact given u."""
        with torch.autocast(weight.device.type, enabled=False):  # u would lose its direction
            if self.training:
                self._iterate(weight.detach())
            sigma = (self.u.clone() @ weight).norm()  # a copy: later calls overwrite u
            return (sigma / self.limit).clamp(min=1.0)

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        for _ in range(self.iterations):
            v = F.normalize(self.u @ weight, dim=0)
            self.u.copy_(F.normalize(weight @ v, dim=0))

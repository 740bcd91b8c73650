"""A dense mixer of the last few tokens before another mixer: Decision MetaMamba (arXiv:2602.19805).

Mamba's own convolution takes each channel by itself, and its gate can lose a token; this one takes
all channels of a few neighbours at once, in a residual of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.backbones.block import BackboneConfig, Block
from decision_seq.backbones.contract import EVERY, LayerState, Mixer


class DenseBlock(Block):
    """x + W [n_{l-k+1}; ...; n_l] with n = norm(x), W [D, k D], then what `Block` does."""

    def __init__(self, mixer: Mixer, config: BackboneConfig, kernel_size: int) -> None:
        super().__init__(mixer, config)
        self.norm_dense = nn.LayerNorm(config.width)
        self.dense = nn.Conv1d(config.width, config.width, kernel_size, bias=False)

    def forward(self, x: Tensor, output_slice: slice = EVERY) -> Tensor:
        """[B, L, D] -> [B, l, D], the outputs at the l tokens of `output_slice` only."""
        seen = F.pad(self.norm_dense(x), (0, 0, self.dense.kernel_size[0] - 1, 0))
        return super().forward(x + self._mix(seen), output_slice)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> LayerState:
        """The mixer's, and the last k - 1 tokens."""
        past, width = self.dense.kernel_size[0] - 1, self.dense.in_channels
        zeros = torch.zeros(batch_size, past, width, device=device, dtype=dtype)
        return super().init_state(batch_size, device, dtype) | {"dense": zeros}

    def step(
        self, x: Tensor, state: LayerState, output_slice: slice = EVERY
    ) -> tuple[Tensor, LayerState]:
        """[B, n, D], state -> [B, l, D], state; the outputs at the l tokens of the slice."""
        seen = torch.cat([state["dense"], self.norm_dense(x)], dim=1)  # [B, k - 1 + n, D]
        y, new = super().step(x + self._mix(seen), state, output_slice)
        return y, new | {"dense": seen[:, x.shape[1] :]}

    def _mix(self, seen: Tensor) -> Tensor:
        """[B, k - 1 + n, D] -> [B, n, D]"""
        mixed: Tensor = self.dense(seen.transpose(1, 2)).transpose(1, 2)
        return mixed

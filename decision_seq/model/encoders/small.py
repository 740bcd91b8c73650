"""Convolutions for small pictures and grids, such as MiniGrid's 7 x 7 squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.config import register
from decision_seq.model.encoders.base import ImageEncoder, ImageEncoderConfig, ImageShape

LAYERS = ((32, 1), (64, 2), (64, 2))  # channels, stride; kernels of 3 x 3


@register("small", "three convolutions of 3 x 3; the default below 36 pixels")
@dataclass(frozen=True)
class SmallConfig(ImageEncoderConfig):
    """Convolutions that leave a picture of any size something."""

    def build(self, shape: ImageShape) -> SmallEncoder:
        return SmallEncoder(shape)


class SmallEncoder(ImageEncoder):
    """Three convolutions with ReLU, edges padded; 7 x 7 squares become 64 x 2 x 2 features."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        channels, height, width = shape
        self.convolutions = nn.ModuleList()
        for out, stride in LAYERS:
            self.convolutions.append(nn.Conv2d(channels, out, 3, stride, padding=1))
            channels = out
            height, width = ((side - 1) // stride + 1 for side in (height, width))
        self.features = channels * height * width

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, F]"""
        x = images
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x.flatten(1)

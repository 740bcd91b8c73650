"""Convolutions, one after another: of DQN's kind for frames, and small ones for grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.model.encoders.base import ImageEncoder, ImageEncoderConfig, ImageShape

NATURE = ((32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0))  # channels, kernel, stride, padding
SMALL = ((32, 3, 1, 1), (64, 3, 2, 1), (64, 3, 2, 1))
SMALLEST = 36  # side of an image of which NATURE leaves one pixel


@register("nature", "DQN's three convolutions; the default for frames")
@dataclass(frozen=True)
class NatureConfig(ImageEncoderConfig):
    """The convolutions of DQN (Mnih et al., Nature 518, 2015), as Decision Transformer's Atari code
    has them: its last layer, linear to the backbone's width and then tanh, is the token
    embedding's. 84 x 84 pixels become 64 x 7 x 7 = 3136 features."""

    def build(self, shape: ImageShape) -> ConvolutionEncoder:
        _, height, width = shape
        if min(height, width) < SMALLEST:
            raise UserError(
                f"frames are {height} x {width}; agent.encoder nature needs at least "
                f"{SMALLEST} x {SMALLEST}"
            )
        return ConvolutionEncoder(shape, NATURE)


@register("small", "three convolutions of 3 x 3; the default below 36 pixels")
@dataclass(frozen=True)
class SmallConfig(ImageEncoderConfig):
    """Convolutions that leave a picture of any size something, for small pictures and grids such as
    MiniGrid's 7 x 7 squares, which become 64 x 2 x 2 features."""

    def build(self, shape: ImageShape) -> ConvolutionEncoder:
        return ConvolutionEncoder(shape, SMALL)


class ConvolutionEncoder(ImageEncoder):
    """Convolutions with ReLU.

    Args:
        shape: of an image, (C, H, W).
        layers: (channels, kernel, stride, padding) of each.
    """

    def __init__(self, shape: ImageShape, layers: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        channels, height, width = shape
        self.convolutions = nn.ModuleList()
        for out, kernel, stride, padding in layers:
            self.convolutions.append(nn.Conv2d(channels, out, kernel, stride, padding))
            channels = out
            height, width = ((n + 2 * padding - kernel) // stride + 1 for n in (height, width))
        self.features = channels * height * width

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, F]"""
        x = images
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x.flatten(1)

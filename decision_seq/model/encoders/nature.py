"""The convolutional encoder of DQN (Mnih et al., Nature 518, 2015), as Decision Transformer's Atari
code has it: its last layer, linear to the backbone's width and then tanh, is the token embedding's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.model.encoders.base import ImageEncoder, ImageEncoderConfig, ImageShape

LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
SMALLEST = 36  # side of an image that leaves one pixel


@register("nature", "DQN's three convolutions; the default for frames")
@dataclass(frozen=True)
class NatureConfig(ImageEncoderConfig):
    """The convolutions of DQN."""

    def build(self, shape: ImageShape) -> NatureEncoder:
        return NatureEncoder(shape)


class NatureEncoder(ImageEncoder):
    """Three convolutions with ReLU; 84 x 84 pixels become 64 x 7 x 7 = 3136 features."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < SMALLEST:
            raise UserError(
                f"frames are {height} x {width}; agent.encoder nature needs at least "
                f"{SMALLEST} x {SMALLEST}"
            )
        self.convolutions = nn.ModuleList()
        for out, kernel, stride in LAYERS:
            self.convolutions.append(nn.Conv2d(channels, out, kernel, stride))
            channels = out
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
        self.features = channels * height * width

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, F]"""
        x = images
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return x.flatten(1)

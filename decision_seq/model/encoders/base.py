"""What turns an image observation into features, and the registry of such encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.data.transforms import ObservationNorm
from decision_seq.errors import UserError
from decision_seq.ops.seeds import each_seed, stacked

ImageShape = tuple[int, int, int]  # C, H, W


class ImageEncoder(nn.Module, ABC):
    """Images to features."""

    features: int  # F

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] floats, scaled by the caller -> [B, F]"""

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return 0.0


@dataclass(frozen=True)
class ImageEncoderConfig(ABC):
    """Fields that every image encoder has."""

    registry: ClassVar[dict[str, type[ImageEncoderConfig]]] = {}
    kind: ClassVar[str]
    summary: ClassVar[str]

    random_shift: int = 0  # pixels by which training moves images at most, a window as a whole

    def __post_init__(self) -> None:
        if not 0 <= self.random_shift <= 32:
            raise UserError(f"random_shift is {self.random_shift}; it must be from 0 to 32 pixels")

    @abstractmethod
    def build(self, shape: ImageShape) -> ImageEncoder:
        """An untrained encoder of images [C, H, W]."""


class FrameEncoder(nn.Module):
    """Images as they are stored to features: standardised here, on the device that needs them.

    Most of a game's picture stands still, and what moves may be a few faint pixels, which a network
    takes long to find; less the mean and in units of `std` it sees little else.

    Args:
        config: of the network.
        shape: of what it sees: n images or, of colour, n x C channels, H, W.
        colours: C of a colour image, 0 of a gray one.
    """

    mean: Tensor  # [H, W] or [H, W, C]; of uint8 whole levels, which bfloat16 holds exactly
    std: Tensor  # [] levels

    def __init__(self, config: ImageEncoderConfig, shape: ImageShape, colours: int = 0) -> None:
        super().__init__()
        self.net = config.build(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.shift, self.colours = config.random_shift, colours
        self.register_buffer("mean", torch.zeros(*shape[1:], *[colours] * bool(colours)))
        self.register_buffer("std", torch.tensor(255.0))

    def fit(self, images: np.ndarray) -> None:
        """Take the statistics of stored images [N, H, W(, C)]."""
        norm = ObservationNorm.of_frames(images)
        self.mean.copy_(torch.as_tensor(norm.mean))
        self.std.copy_(torch.as_tensor(norm.std))

    @property
    def features(self) -> int:
        """F"""
        return self.net.features

    def forward(self, frames: Tensor) -> Tensor:
        """Stacks [..., n, H, W(, C)] -> [..., F]. In training, [B, K, n, ...] may be shifted."""
        if self.colours:  # [..., n * C, H, W]
            frames = frames.movedim(-1, -3).flatten(-4, -3)
        lead = frames.shape[:-3]
        images = self._standardised(frames.flatten(0, -4))
        if self.training and self.shift:
            shifted = partial(random_shift, most=self.shift)
            images = each_seed(shifted, images.unflatten(0, lead)).flatten(0, 1)
        if not stacked():  # a convolution in groups, of several seeds, has no order that it prefers
            images = images.contiguous(memory_format=torch.channels_last)
        return self.net(images).unflatten(0, lead)

    def _standardised(self, images: Tensor) -> Tensor:
        """[B, C, H, W] uint8 -> floats, channels first yet: channels last, the mean would be
        repeated along the innermost axis, which takes a CPU ten times as long."""
        kind = images.device.type
        dtype = next(self.net.parameters()).dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        mean = self.mean.to(dtype)
        if self.colours:
            mean = mean.movedim(-1, 0).repeat(images.shape[1] // self.colours, 1, 1)
        return images.to(dtype).sub_(mean).div_(self.std.to(dtype))

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return self.net.penalty()


def image_encoder(config: ImageEncoderConfig, kept: tuple[int, ...], stack: int) -> FrameEncoder:
    """An encoder of stacks of `stack` images [H, W] or [H, W, C]."""
    height, width, *rest = kept
    colours = rest[0] if rest else 0
    return FrameEncoder(config, (stack * max(colours, 1), height, width), colours)


def random_shift(images: Tensor, most: int) -> Tensor:
    """[B, K, C, H, W] with each window b moved by up to `most` pixels either way, all its images
    alike; what comes in repeats the edge (arXiv:2004.13649). Drawn from torch's CPU generator."""
    (batch, steps), (height, width) = images.shape[:2], images.shape[-2:]
    y, x = torch.randint(2 * most + 1, (2, batch)).to(images.device, non_blocking=True)
    with torch.autocast(images.device.type, enabled=False):  # which pads in float32
        padded = F.pad(images.flatten(1, 2), (most,) * 4, mode="replicate")
    moved = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, K * C, y, x, H, W], a view
    window = torch.arange(batch, device=images.device)
    return moved.permute(0, 2, 3, 1, 4, 5)[window, y, x].unflatten(1, (steps, -1))

"""What turns an image observation into features, and the registry of such encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from decision_seq.errors import UserError

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
    """Frames as they are stored to features: scaled here, on the device where they are needed."""

    def __init__(self, config: ImageEncoderConfig, shape: ImageShape) -> None:
        super().__init__()
        self.net = config.build(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.shift = config.random_shift

    @property
    def features(self) -> int:
        """F"""
        return self.net.features

    def forward(self, frames: Tensor) -> Tensor:
        """[..., C, H, W] uint8 -> [..., F]. In training, [B, K, C, H, W] may be shifted."""
        if self.training and self.shift:
            frames = random_shift(frames, self.shift)
        lead = frames.shape[:-3]
        return self.net(self._scaled(frames.flatten(0, -4))).unflatten(0, lead)

    def _scaled(self, images: Tensor) -> Tensor:
        """[B, C, H, W] uint8 -> floats in [0, 1], in the order that convolutions are fastest in."""
        kind = images.device.type
        dtype = next(self.net.parameters()).dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return images.to(dtype, memory_format=torch.channels_last).div_(255)

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return self.net.penalty()


def random_shift(frames: Tensor, most: int) -> Tensor:
    """[B, K, C, H, W] with each window b moved by up to `most` pixels either way, all its frames
    alike; what comes in repeats the edge (arXiv:2004.13649). Drawn from torch's CPU generator."""
    batch, height, width = len(frames), *frames.shape[-2:]
    move = torch.randint(-most, most + 1, (2, batch, 1)).to(frames.device, non_blocking=True)
    y = (torch.arange(height, device=frames.device) + move[0]).clamp(0, height - 1)  # [B, H]
    x = (torch.arange(width, device=frames.device) + move[1]).clamp(0, width - 1)  # [B, W]
    window = torch.arange(batch, device=frames.device)[:, None, None]
    moved = frames[window, :, :, y[:, :, None], x[:, None, :]]  # [B, H, W, K, C]
    return moved.movedim((1, 2), (-2, -1))

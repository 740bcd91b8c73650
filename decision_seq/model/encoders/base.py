"""What turns an image observation into features, and the registry of such encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from decision_seq.errors import UserError

ImageShape = tuple[int, int, int]  # C, H, W


class ImageEncoder(nn.Module, ABC):
    """Images to features. D = width."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] floats, scaled by the caller -> [B, D]"""

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        return 0.0


@dataclass(frozen=True)
class ImageEncoderConfig(ABC):
    """Fields that every image encoder has."""

    registry: ClassVar[dict[str, type[ImageEncoderConfig]]] = {}
    kind: ClassVar[str]
    summary: ClassVar[str]

    width: int = 128  # D, features an image

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"width is {self.width}; it must be at least 1")

    @abstractmethod
    def build(self, shape: ImageShape) -> ImageEncoder:
        """An untrained encoder of images [C, H, W]."""

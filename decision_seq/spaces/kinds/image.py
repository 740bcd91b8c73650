"""Pictures: H x W, H x W x C or C x H x W, whole numbers or floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decision_seq.config import register
from decision_seq.spaces.leaf import Leaf, lead

SMALLEST_GRAY = 16  # sides of a matrix that is taken for a gray picture
MOST_CHANNELS = 4
STACK = 4  # gray frames that are recorded as stacks [4, H, W] are no colours


def channels(shape: tuple[int, ...], dtype: str, bounded: bool = True) -> int | None:
    """Which dimension counts the colours of a picture of that shape: -1 or 0; 2 of a gray one that
    has none; None where it is no picture. Matrices of floats without bounds are none."""
    if len(shape) == 2:
        gray = min(shape) >= SMALLEST_GRAY and (dtype == "uint8" or bounded)
        return 2 if gray else None
    if len(shape) != 3 or not (dtype == "uint8" or dtype.startswith("float")):
        return None
    return -1 if shape[-1] <= MOST_CHANNELS else 0 if shape[0] <= MOST_CHANNELS else None


@register("image", "pictures: H x W, H x W x C or C x H x W, uint8 or float")
@dataclass(frozen=True)
class ImageLeaf(Leaf):
    """Kept as [H, W] or [H, W, C], uint8 or float32."""

    @property
    def kept(self) -> tuple[int, ...]:
        """Its shape as it is kept."""
        if (axis := channels(self.shape, self.dtype)) == 2:
            return self.shape
        sides = self.shape[1:] if axis == 0 else self.shape[:-1]
        return sides if self.shape[axis or 0] == 1 else (*sides, self.shape[axis or 0])

    @property
    def kept_dtype(self) -> np.dtype:
        """Its type as it is kept."""
        return np.dtype(np.uint8 if self.dtype == "uint8" else np.float32)

    def keep(self, values: np.ndarray) -> np.ndarray:
        """[..., *shape] -> [..., H, W] or [..., H, W, C]"""
        before = lead(values, self.shape)
        if channels(self.shape, self.dtype) == 0:
            values = np.moveaxis(values, -3, -1)
        return values.reshape((*before, *self.kept)).astype(self.kept_dtype, copy=False)

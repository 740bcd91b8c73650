"""Numbers with a unit: Box of any shape, bounds and type that is no picture."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from gymnasium import spaces

from decision_seq.config import register
from decision_seq.spaces.kinds.image import ImageLeaf, channels
from decision_seq.spaces.leaf import Leaf, NumberLeaf, lead, leaf_of


@register("vector", "numbers: a Box of any shape that is no picture")
@dataclass(frozen=True)
class VectorLeaf(NumberLeaf):
    """Laid out flat; integers are rounded back to integers."""

    scaled = True

    @property
    def width(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    def row(self, values: np.ndarray) -> np.ndarray:
        """[..., *shape] -> [..., width]"""
        return values.reshape((*lead(values, self.shape), self.width))

    def value(self, rows: np.ndarray) -> np.ndarray:
        """[..., width] -> [..., *shape]"""
        dtype = np.dtype(self.dtype)
        values = rows.reshape((*rows.shape[:-1], *self.shape))
        return (values if dtype.kind == "f" else values.round()).astype(dtype)

    def limits(self, space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
        """Those of the Box."""
        return space.low.reshape(-1), space.high.reshape(-1)


@leaf_of.register
def _(space: spaces.Box, path: str, acts: bool) -> Leaf:
    dtype = str(space.dtype)
    bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
    if not acts and channels(space.shape, dtype, bounded) is not None:
        return ImageLeaf(path, space.shape, dtype)
    return VectorLeaf(path, space.shape, dtype)

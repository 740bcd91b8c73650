"""Switches: MultiBinary."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from gymnasium import spaces

from decision_seq.config import register
from decision_seq.spaces.leaf import Leaf, NumberLeaf, lead, leaf_of


@register("bits", "switches: MultiBinary")
@dataclass(frozen=True)
class BitsLeaf(NumberLeaf):
    """Each 0 or 1."""

    @property
    def width(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    def row(self, values: np.ndarray) -> np.ndarray:
        """[..., *shape] -> [..., width] uint8"""
        return values.reshape((*lead(values, self.shape), self.width)).astype(np.uint8)

    def value(self, rows: np.ndarray) -> np.ndarray:
        """[..., width] -> [..., *shape]"""
        return rows.round().astype(self.dtype).reshape((*rows.shape[:-1], *self.shape))

    def limits(self, space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
        """0 and 1."""
        return np.zeros(self.width), np.ones(self.width)


@leaf_of.register
def _(space: spaces.MultiBinary, path: str, acts: bool) -> Leaf:
    return BitsLeaf(path, space.shape, str(space.dtype))

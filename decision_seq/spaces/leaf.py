"""Leaf: one part of a step, such as a vector, a category or an image; and which spaces make one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from decision_seq.errors import UserError


@dataclass(frozen=True)
class Leaf(ABC):
    """One part of an observation or action. `path` says where it stands: `state.position`."""

    registry: ClassVar[dict[str, type[Leaf]]] = {}
    kind: ClassVar[str]
    summary: ClassVar[str]

    path: str
    shape: tuple[int, ...] = ()  # of one value, as the environment has it
    dtype: str = "float32"  # the same


@dataclass(frozen=True)
class NumberLeaf(Leaf):
    """A leaf that is a row of `width` numbers, of which a network is given `features`."""

    scaled: ClassVar[bool] = False  # whether features have a unit, to be normalised

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers in a row."""

    @property
    def features(self) -> int:
        """Numbers that a network is given: as many, unless categories are spread out."""
        return self.width

    @abstractmethod
    def row(self, values: np.ndarray) -> np.ndarray:
        """[..., *shape] -> [..., width]"""

    def spread(self, rows: np.ndarray) -> np.ndarray:
        """[..., width] -> [..., features]"""
        return rows

    @abstractmethod
    def value(self, rows: np.ndarray) -> np.ndarray:
        """[..., width] -> [..., *shape], of the environment's type."""

    def limits(self, space: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest number [width] of a row that the `space` of this leaf takes."""
        return np.full(self.width, -np.inf), np.full(self.width, np.inf)


def lead(values: np.ndarray, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions before those of one value. Raises ValueError where the others are not `shape`."""
    before = values.ndim - len(shape)
    if before < 0 or values.shape[before:] != shape:
        raise ValueError(f"has shape {values.shape}, not {shape}")
    return values.shape[:before]


@singledispatch
def leaf_of(space: Any, path: str, acts: bool) -> Leaf:
    """The leaf that a space is; `acts` where it is one of actions. Kinds register theirs."""
    sampled = space.sample() if isinstance(space, spaces.Space) else None
    if isinstance(sampled, str):  # MiniGrid's missions have a class of their own
        return Leaf.registry["text"](path)
    where = f"`{path}` is" if path else "is"
    raise UserError(f"{where} {space}, which no agent reads; wrap the environment to give arrays")

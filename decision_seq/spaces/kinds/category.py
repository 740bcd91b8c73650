"""Choices among numbered things: Discrete with any start, MultiDiscrete."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from decision_seq.config import register
from decision_seq.errors import UserError
from decision_seq.spaces.leaf import Leaf, NumberLeaf, lead, leaf_of

MOST = 65_536  # categories of one leaf: each is a feature


@register("category", "choices among numbered things: Discrete, MultiDiscrete")
@dataclass(frozen=True)
class CategoryLeaf(NumberLeaf):
    """A row holds each choice, counted from 0; its features are 1 for what is chosen, else 0."""

    counts: tuple[int, ...] = ()  # of each choice
    starts: tuple[int, ...] = ()  # what the environment calls the first of each

    @property
    def width(self) -> int:
        """Choices."""
        return len(self.counts)

    @property
    def features(self) -> int:
        """Things to choose from, in all."""
        return sum(self.counts)

    def row(self, values: np.ndarray) -> np.ndarray:
        """[..., *shape] -> [..., choices], counted from 0. Raises ValueError beyond the counts."""
        rows = values.reshape((*lead(values, self.shape), self.width)) - np.array(self.starts)
        if (rows < 0).any() or (rows >= np.array(self.counts)).any():
            raise ValueError(f"`{self.path}` holds a category that its space does not have")
        return rows

    def spread(self, rows: np.ndarray) -> np.ndarray:
        """[..., choices] -> [..., features] uint8"""
        spread = np.zeros((*rows.shape[:-1], self.features), np.uint8)
        firsts = np.cumsum((0, *self.counts[:-1]))
        np.put_along_axis(spread, rows.astype(np.int64) + firsts, 1, axis=-1)
        return spread

    def value(self, rows: np.ndarray) -> np.ndarray:
        """[..., choices] -> [..., *shape], as the environment counts"""
        numbers = rows.round().astype(self.dtype) + np.array(self.starts, self.dtype)
        return numbers.reshape((*rows.shape[:-1], *self.shape))[()]  # a single one as a number

    def limits(self, space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
        """0 to count - 1."""
        return np.zeros(self.width), np.array(self.counts) - 1.0


@leaf_of.register
def _(space: spaces.Discrete, path: str, acts: bool) -> Leaf:
    return _leaf(path, (), str(space.dtype), (int(space.n),), (int(space.start),))


@leaf_of.register
def _(space: spaces.MultiDiscrete, path: str, acts: bool) -> Leaf:
    counts = tuple(int(n) for n in space.nvec.reshape(-1))
    starts = tuple(int(n) for n in space.start.reshape(-1))
    return _leaf(path, space.shape, str(space.dtype), counts, starts)


def _leaf(
    path: str, shape: tuple[int, ...], dtype: str, counts: tuple[int, ...], starts: tuple[int, ...]
) -> CategoryLeaf:
    if sum(counts) > MOST:
        where = f"`{path}` has" if path else "has"
        raise UserError(f"{where} {sum(counts)} categories; up to {MOST} are read")
    return CategoryLeaf(path, shape, dtype, counts, starts)

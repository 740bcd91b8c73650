"""Table: the leaves of a space in order, and how their values become arrays and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from decision_seq.config import build, to_plain
from decision_seq.errors import UserError
from decision_seq.spaces.kinds.category import CategoryLeaf
from decision_seq.spaces.kinds.image import STACK, ImageLeaf
from decision_seq.spaces.kinds.text import TextLeaf
from decision_seq.spaces.kinds.vector import VectorLeaf
from decision_seq.spaces.leaf import Leaf, NumberLeaf, leaf_of

VECTOR = "*"  # field of all numbers beside images, which no path is called


@dataclass(frozen=True)
class Table:
    """Leaves and how they hang together.

    All numbers of an observation are one vector [S]: float32, or uint8 where it has categories and
    switches alone. With one image and nothing else an observation is that image; with more it is a
    record with a field `*` of them and one for each image, named by its path.
    """

    leaves: tuple[Leaf, ...]
    tree: Any = 0  # numbers of leaves as values of dicts and lists, nested as the space is

    @cached_property
    def numbers(self) -> tuple[NumberLeaf, ...]:
        """Leaves that are rows of numbers."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, NumberLeaf))

    @cached_property
    def images(self) -> tuple[ImageLeaf, ...]:
        """Leaves that are pictures."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, ImageLeaf))

    @property
    def texts(self) -> list[str]:
        """Paths of what is left out."""
        return [leaf.path for leaf in self.leaves if isinstance(leaf, TextLeaf)]

    @property
    def features(self) -> int:
        """S, numbers of an observation's vector."""
        return sum(leaf.features for leaf in self.numbers)

    @property
    def width(self) -> int:
        """Numbers of a packed action."""
        return sum(leaf.width for leaf in self.numbers)

    @property
    def plain_observation(self) -> bool:
        """Whether an observation is one flat vector already."""
        (leaf, *more) = self.leaves
        return not more and isinstance(leaf, VectorLeaf) and len(leaf.shape) == 1 and self.tree == 0

    @property
    def is_gray(self) -> bool:
        """Whether an observation is one gray uint8 frame, or a stack of four."""
        (leaf, *more) = self.leaves
        if more or self.tree != 0 or not isinstance(leaf, ImageLeaf) or leaf.dtype != "uint8":
            return False
        return len(leaf.kept) == 2 or (leaf.shape[0] == STACK and leaf.shape[-1] > STACK)

    @property
    def plain_action(self) -> bool:
        """Whether an action is one flat vector of floats, or one number, already."""
        (leaf, *more) = self.leaves
        floats = (
            isinstance(leaf, VectorLeaf)
            and len(leaf.shape) == 1
            and leaf.dtype in ("float32", "float64")  # which take rows of float32
        )
        single = isinstance(leaf, CategoryLeaf) and leaf.shape == ()
        return not more and (floats or single) and self.tree == 0

    def columns(self, path: str) -> slice:
        """Where in the vector the leaf `path`, or what hangs below it, stands. Raises UserError
        where there is none."""
        start = 0
        inside: list[int] = []
        for leaf in self.numbers:
            if leaf.path == path or leaf.path.startswith(f"{path}."):
                inside += [start, start + leaf.features]
            start += leaf.features
        if not inside:
            there = ", ".join(leaf.path for leaf in self.numbers) or "none"
            raise UserError(f"observations have no numbers `{path}` (there are: {there})")
        return slice(inside[0], inside[-1])

    @property
    def scaled(self) -> np.ndarray:
        """[S] bool: columns that have a unit; the others are categories and switches."""
        parts = [np.full(leaf.features, leaf.scaled) for leaf in self.numbers]
        return np.concatenate(parts) if parts else np.ones(0, bool)

    @property
    def form(self) -> np.dtype:
        """Type of one observation as it is kept, with its shape."""
        fields: dict[str, np.dtype] = {}
        if self.numbers:
            kinds = {np.dtype(leaf.dtype if leaf.scaled else np.uint8) for leaf in self.numbers}
            number = np.uint8 if kinds == {np.dtype(np.uint8)} else np.float32
            fields[VECTOR] = np.dtype((number, (self.features,)))
        fields |= {leaf.path: np.dtype((leaf.kept_dtype, leaf.kept)) for leaf in self.images}
        (first, *more) = fields.values()
        return np.dtype(list(fields.items())) if more else first

    def observe(self, value: Any) -> np.ndarray:
        """An observation, or many in arrays [..., *shape], as it is kept (`form`).

        Raises ValueError, KeyError or TypeError where it does not fit the space."""
        found = dict(self._parts(self.tree, value))
        parts: dict[str, np.ndarray] = {}
        if self.numbers:
            parts[VECTOR] = self.vector(value)
        for leaf in self.images:
            parts[leaf.path] = leaf.keep(found[leaf.path])
        (first, *more), form = parts.values(), self.form
        if not more:
            return first.astype(form.base, copy=False)
        of_one = form[next(iter(parts))].shape
        packed = np.empty(first.shape[: first.ndim - len(of_one)], form)
        for name, part in parts.items():
            packed[name] = part
        return packed

    def vector(self, value: Any) -> np.ndarray:
        """All numbers of an observation, or of many, [..., S], in a type that holds them all."""
        found = dict(self._parts(self.tree, value))
        rows = [leaf.spread(leaf.row(found[leaf.path])) for leaf in self.numbers]
        return np.concatenate(rows, axis=-1) if len(rows) > 1 else rows[0]

    def pack(self, value: Any) -> np.ndarray:
        """An action, or many, as rows of numbers [..., width]. Raises as `observe`."""
        found = dict(self._parts(self.tree, value))
        return np.concatenate([leaf.row(found[leaf.path]) for leaf in self.numbers], axis=-1)

    def unpack(self, rows: np.ndarray) -> Any:
        """Rows [..., width] as the environment takes them, nested as its space is."""
        widths = np.cumsum([leaf.width for leaf in self.numbers])[:-1]
        pieces = np.split(rows, widths, axis=-1)
        values = [leaf.value(p) for leaf, p in zip(self.numbers, pieces, strict=True)]
        return _nested(self.tree, values)

    def limits(self, space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest rows [width] that `space`, of which the table is, takes."""
        found = dict(_spaces(space, ""))
        pairs = [leaf.limits(found[leaf.path]) for leaf in self.numbers]
        low, high = (np.concatenate(side) for side in zip(*pairs, strict=True))
        return low, high

    def _parts(self, tree: Any, value: Any) -> Iterator[tuple[str, np.ndarray]]:
        """(path, array) of every leaf but texts."""
        if isinstance(tree, Mapping):
            for key, below in tree.items():
                yield from self._parts(below, value[key])
        elif isinstance(tree, list | tuple):
            for below, one in zip(tree, value, strict=True):
                yield from self._parts(below, one)
        elif not isinstance(leaf := self.leaves[tree], TextLeaf):
            array = np.asarray(value)
            if array.dtype.kind not in "fiub":
                raise TypeError(f"`{leaf.path}` holds {array.dtype}, not numbers")
            yield leaf.path, array

    def __str__(self) -> str:
        """`state vector (3,), camera image (48, 48, 3)`, for people."""
        return ", ".join(
            " ".join([*filter(None, [leaf.path]), leaf.kind, str(leaf.shape)])
            for leaf in self.leaves
        )


def table_of(space: Any, acts: bool = False) -> Table:
    """The table of a space of observations, or of actions, of which no part is a picture.

    Raises UserError, naming the path, where a part is of a kind that is not read.
    """
    leaves: list[Leaf] = []

    def grow(space: Any, path: str) -> Any:
        if isinstance(space, spaces.Dict):
            keys = sorted(space.spaces)  # in some environments they are not, in data always
            return {key: grow(space[key], _join(path, key)) for key in keys}
        if isinstance(space, spaces.Tuple):
            return [grow(sub, _join(path, str(i))) for i, sub in enumerate(space.spaces)]
        leaves.append(leaf_of(space, path, acts))
        return len(leaves) - 1

    table = Table((), grow(space, ""))
    if all(isinstance(leaf, TextLeaf) for leaf in leaves):
        what = "is text alone, which no agent reads" if leaves else "has no parts"
        raise UserError(f"{what}; wrap the environment to give numbers")
    if acts and any(isinstance(leaf, TextLeaf) for leaf in leaves):
        raise UserError("has text in it, which no agent writes")
    return Table(tuple(leaves), table.tree)


def to_json(table: Table) -> dict[str, Any]:
    """Plain data, for headers and metadata."""
    return to_plain(table)


def from_json(plain: Any, source: str) -> Table:
    """The inverse. Raises UserError for anything else."""
    return build(Table, plain, source)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _spaces(space: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, space) of every leaf."""
    if isinstance(space, spaces.Dict):
        for key, below in space.spaces.items():
            yield from _spaces(below, _join(path, key))
    elif isinstance(space, spaces.Tuple):
        for i, below in enumerate(space.spaces):
            yield from _spaces(below, _join(path, str(i)))
    else:
        yield path, space


def _nested(tree: Any, values: list[Any]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _nested(below, values) for key, below in tree.items()}
    if isinstance(tree, list | tuple):
        return tuple(_nested(below, values) for below in tree)
    return values[tree]

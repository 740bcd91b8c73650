"""StepForm: how the steps of an environment become arrays, and rows of numbers its actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from decision_seq.errors import UserError
from decision_seq.spaces.kinds.image import STACK
from decision_seq.spaces.leaf import Leaf
from decision_seq.spaces.table import Table, table_of


class StepForm:
    """The spaces of an environment. Observations are those of `Table.observe`; an action is a row
    [A], or the number of a single choice as the environment counts it.

    Raises UserError, naming the path, where a part of a space is of a kind that is not read.
    """

    def __init__(self, env: Any) -> None:
        self.observations = _named(env.observation_space, "observation space", acts=False)
        self.actions = _named(env.action_space, "action space", acts=True)
        self.action_space = env.action_space
        seen: tuple[int, ...] = getattr(env.observation_space, "shape", None) or ()
        first = seen[0] if len(seen) == 3 else 0
        self.stacked = self.observations.is_gray and first == STACK
        self.discrete = isinstance(env.action_space, spaces.Discrete)
        form = self.observations.form
        self.dtype = np.dtype(form.base if form.subdtype else form)
        self.shape: tuple[int, ...] = form.shape  # of one observation; () of records
        if self.stacked:  # a store keeps single frames
            self.shape = seen[1:]

    def observe(self, value: Any) -> np.ndarray:
        """One observation as it is kept; of a stack of gray frames the newest."""
        if self.stacked:
            return np.asarray(value)[-1]
        if self.observations.plain_observation:
            return np.asarray(value)
        return self.observations.observe(value)

    def action(self, row: Any) -> Any:
        """As the environment takes it: a copy, which it may clip in place."""
        if self.discrete:
            return int(row)
        return row.copy() if self.actions.plain_action else self.actions.unpack(row)

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest row that it takes."""
        return self.actions.limits(self.action_space)

    def holds(self, observations: np.ndarray) -> bool:
        """Whether rows [N, ...] are such as `observe` gives."""
        if observations.dtype.names or self.dtype.names:
            return bool(observations.dtype == self.dtype)
        return observations.shape[1:] == self.shape


def alike(one: Table, other: Table) -> bool:
    """Whether values of the one are values of the other: the same parts, of any number type; of
    vectors and nothing else only the width counts, whatever they are called."""
    if all(leaf.kind == "vector" for leaf in (*one.leaves, *other.leaves)):
        return one.features == other.features
    return [_essence(leaf) for leaf in one.leaves] == [_essence(leaf) for leaf in other.leaves]


def _essence(leaf: Leaf) -> dict[str, Any]:
    number = leaf.dtype if leaf.kind == "image" else None
    return {**vars(leaf), "kind": leaf.kind, "dtype": number}


def _named(space: Any, what: str, acts: bool) -> Table:
    try:
        return table_of(space, acts)
    except UserError as error:
        raise UserError(f"its {what} {error}") from None

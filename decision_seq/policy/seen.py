"""What a policy is given to see, as its engine takes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from decision_seq.agents.spec import AgentSpec
from decision_seq.data.frames import as_bytes
from decision_seq.envs.atari import FRAME_STACK
from decision_seq.errors import UserError


class Seen:
    """Observations of an agent with `spec` that sees the last `stack` images of a step.

    `shape` is that of one as the engine takes it: (S,); (n, H, W(, C)) of images; (n, bytes) of
    records with images in them.
    """

    def __init__(self, spec: AgentSpec, stack: int | None) -> None:
        self.table, own = spec.observation_space, spec.observation_shape
        self.form: np.dtype[Any] | None = None  # of records
        self.stack = stack or (FRAME_STACK if len(own) == 2 else 1)
        if own:
            self.shape: tuple[int, ...] = (self.stack, *own) if spec.frames else own
        else:
            assert self.table is not None
            self.form = self.table.form
            self.shape = self.stack, self.form.itemsize

    def __call__(self, observation: Any, lanes: int) -> tuple[np.ndarray, bool]:
        """[lanes, *shape], and whether it was one without that dimension. An observation may also
        be such as the environment gives: nested, or an image by itself where one is seen.

        Raises UserError where it is neither.
        """
        if self.table is None or self._is_own(observation, lanes):
            seen = np.asarray(observation)
        else:
            seen = self._observed(observation)
        single = lanes == 1 and seen.shape == self.shape
        if not single and seen.shape != (lanes, *self.shape):
            raise UserError(
                f"observation has shape {list(seen.shape)}; this policy takes "
                f"{[lanes, *self.shape]}"
            )
        return (seen[None] if single else seen), single

    def parts(self, seen: np.ndarray) -> list[np.ndarray]:
        """Arrays [lanes, ...] of the numbers of `seen`: those that records hold as bytes too."""
        if self.form is None:
            return [seen]
        records = np.ascontiguousarray(seen).view(self.form)[..., 0]  # [lanes, n]
        return [records[name] for name in self.form.names or ()]

    def _is_own(self, observation: Any, lanes: int) -> bool:
        shape = getattr(observation, "shape", None)
        return shape == (lanes, *self.shape) or (lanes == 1 and shape == self.shape)

    def _observed(self, observation: Any) -> np.ndarray:
        assert self.table is not None
        try:
            seen = self.table.observe(observation)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"the observation does not fit ({error}); this policy takes {self.table}"
            ) from None
        if len(self.shape) == 1:
            return seen
        if self.stack > 1:
            raise UserError(
                f"this policy sees the last {self.stack} images of a step; give it "
                f"{list(self.shape)}, oldest first"
            )
        if seen.dtype.names:  # [...] -> [..., 1, bytes]
            return as_bytes(seen.reshape(-1)).reshape(*seen.shape, *self.shape)
        return np.expand_dims(seen, seen.ndim + 1 - len(self.shape))

"""What an exported policy sees: one array or, where an observation holds images and more, the
numbers and each image as inputs of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decision_seq.agents.spec import AgentSpec
from decision_seq.policy.seen import Seen
from decision_seq.spaces.table import VECTOR

OBSERVATION = "observation"


@dataclass(frozen=True)
class ObservationInput:
    """One input, [lanes, *shape]."""

    name: str  # observation; of an image beside other parts observation.PATH
    field: str  # of a record, else ""
    shape: tuple[int, ...]
    dtype: torch.dtype


class Observed:
    """The inputs that make an observation of an agent with `spec`, which sees the last `stack`
    images of a step."""

    def __init__(self, spec: AgentSpec, stack: int | None) -> None:
        self.table, seen = spec.observation_space, Seen(spec, stack)
        self.record = np.dtype(np.uint8) if spec.observation_shape else self._record()
        if self.record.names is None:
            kept = self.table.form.base if self.table and spec.frames else np.dtype(np.uint8)
            kind = _kind(kept) if spec.frames else torch.float32
            self.inputs = [ObservationInput(OBSERVATION, "", seen.shape, kind)]
            return
        self.inputs = []
        for name in self.record.names:
            form: np.dtype = self.record.fields[name][0]  # type: ignore[index]
            if name == VECTOR:
                one = ObservationInput(OBSERVATION, name, form.shape, torch.float32)
            else:
                shape = (seen.stack, *form.shape)
                one = ObservationInput(f"{OBSERVATION}.{name}", name, shape, _kind(form.base))
            self.inputs.append(one)

    def _record(self) -> np.dtype:
        assert self.table is not None
        return self.table.form

    def split(self, seen: np.ndarray) -> dict[str, np.ndarray]:
        """Observations [T, ...] as lanes give them, by input."""
        if self.record.names is None:
            return {OBSERVATION: seen}
        records = np.ascontiguousarray(seen).view(self.record)[..., 0]  # [T, n]
        parts = {one.name: records[one.field] for one in self.inputs}
        if OBSERVATION in parts:  # the newest of the numbers
            parts[OBSERVATION] = parts[OBSERVATION][:, -1].astype(np.float32)
        return parts

    def joined(self, given: Mapping[str, Tensor]) -> Any:
        """Inputs by name as the agent takes an observation."""
        if self.record.names is None:
            return given[OBSERVATION]
        return {one.field: given[one.name] for one in self.inputs}

    def described(self) -> list[dict[str, Any]]:
        """The parts of an observation that has several, for policy.json: where each one goes."""
        if self.table is None:
            return []
        start, parts = 0, []
        for leaf in self.table.leaves:
            part = {"path": leaf.path, "kind": leaf.kind, "shape": list(leaf.shape)}
            if leaf in self.table.numbers:
                part |= {"input": OBSERVATION, "columns": [start, start + leaf.features]}
                start += leaf.features
            elif leaf in self.table.images:
                alone = self.record.names is None
                part |= {"input": OBSERVATION if alone else f"{OBSERVATION}.{leaf.path}"}
            parts.append(part)
        return parts


def _kind(dtype: np.dtype) -> torch.dtype:
    return torch.uint8 if dtype == np.uint8 else torch.float32

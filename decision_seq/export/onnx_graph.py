"""An ONNX graph that is being written, and the register of rules that say an operation in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decision_seq.ops.calls import Call, register_of


@dataclass(frozen=True)
class Lanes:
    """So many times the number of lanes."""

    times: int


class Graph:
    """The nodes so far. A value is a name in the graph, or a tensor or number known by now."""

    def __init__(self, lanes_of: str) -> None:
        self.nodes: list[Any] = []
        self.stored: dict[str, np.ndarray] = {}
        self.names: dict[Any, str] = {}  # of what is stored, by content
        self.lanes_of, self.lanes = lanes_of, ""  # an input whose dimension 0 they are

    def add(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output's name, or a list of them."""
        from onnx import helper

        given = [self.name(value) for value in inputs]
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, given, names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, value: Any) -> str:
        """The name of a value; what is known is stored."""
        if isinstance(value, str):
            return value
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        content = (array.dtype, array.shape, array.tobytes())  # a weight that is used twice is one
        if content not in self.names:
            self.names[content] = f"c{len(self.stored)}"
            own = np.ascontiguousarray(array).reshape(array.shape)
            self.stored[self.names[content]] = own
        return self.names[content]

    def numbers(self, values: Sequence[int | Lanes]) -> Any:
        """Integers as a vector, where some may depend on the lanes."""
        if not any(isinstance(value, Lanes) for value in values):
            return np.array(values, np.int64)
        if not self.lanes:
            self.lanes = self.add("Shape", self.lanes_of, start=0, end=1)
        parts = [
            self.add("Mul", self.lanes, np.array([value.times], np.int64))
            if isinstance(value, Lanes)
            else np.array([value], np.int64)
            for value in values
        ]
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)

    def cast(self, value: Any, dtype: torch.dtype, of: Any = None) -> Any:
        """A value in `dtype`; `of` is the tensor that a named one stands for."""
        if isinstance(value, Tensor):
            return value.to(dtype)
        if not isinstance(value, str):
            return torch.tensor(value, dtype=dtype)
        same = isinstance(of, Tensor) and of.dtype == dtype
        return value if same else self.add("Cast", value, to=kind(dtype))


Rule = Callable[[Graph, Call, list[Any]], Any]
RULES: dict[str, Rule] = {}
rule = register_of(RULES)


def kind(dtype: torch.dtype) -> int:
    """ONNX's number of a dtype."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(torch.zeros((), dtype=dtype).numpy().dtype)

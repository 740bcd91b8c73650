"""What PyTorch carries out within a function, written down call by call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

Rule = TypeVar("Rule")


@dataclass
class Call:
    """An operation of PyTorch that was carried out."""

    function: Any
    arguments: list[Any]  # by position, those left out as their defaults
    result: Any

    @property
    def name(self) -> str:
        """Without what tells forms of it apart: what changes a tensor in place meets none here
        that is looked at again as it was."""
        return self.function._schema.name.removeprefix("aten::").rstrip("_")

    @property
    def in_place(self) -> bool:
        """Whether it writes to what it is given."""
        return self.function._schema.is_mutable

    @property
    def dtype(self) -> torch.dtype:
        """Of its result."""
        return self.result.dtype

    @property
    def axes(self) -> int:
        """Of its result."""
        return self.result.ndim


class Recorder(TorchDispatchMode):
    """Writes down what is carried out within. It keeps every tensor, so that none takes the place
    of another."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if isinstance(result, Tensor | list | tuple):
            places = enumerate(function._schema.arguments)
            given = [
                args[i] if i < len(args) else kwargs.get(a.name, a.default_value) for i, a in places
            ]
            self.calls.append(Call(function, given, result))
        return result


def recorded_calls(
    function: Callable[..., tuple[Tensor, ...]], example: list[Tensor]
) -> tuple[list[Call], tuple[Tensor, ...]]:
    """What is carried out, in small operations: no fused attention, no LSTM in one."""
    with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # of settings beside the one that is changed
        with torch.backends.mkldnn.flags(enabled=False), Recorder() as recorder:
            made = function(*example)
    return recorder.calls, made


def register_of(rules: dict[str, Rule]) -> Callable[..., Callable[[Rule], Rule]]:
    """A decorator that takes names of calls and puts what is decorated in `rules` under each."""

    def rule(*names: str) -> Callable[[Rule], Rule]:
        def add(function: Rule) -> Rule:
            rules.update(dict.fromkeys(names, function))
            return function

        return add

    return rule

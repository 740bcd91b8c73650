"""What a part of an action has to say for itself, and the registry of such parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from decision_seq.spaces import NumberLeaf

ActionLoss = Literal["mse", "l1"]
# the least of the first is at the mean of what is wanted, of the second at its median
DISTANCES: dict[ActionLoss, Callable[[Tensor], Tensor]] = {"mse": torch.square, "l1": torch.abs}


def number_errors(predicted: Tensor, wanted: Tensor, loss: ActionLoss) -> Tensor:
    """[..] of numbers [.., A]: the mean over them of their squared or absolute differences."""
    return DISTANCES[loss](predicted - wanted).mean(dim=-1)


class ActionPart(ABC):
    """One leaf of an action: `width` numbers of a packed row, `features` of what is predicted."""

    registry: ClassVar[dict[str, type[ActionPart]]] = {}

    def __init__(self, leaf: Any) -> None:
        self.leaf: Any = leaf
        self.width, self.features = leaf.width, leaf.features

    @abstractmethod
    def encode(self, rows: Tensor) -> Tensor:
        """[.., width] -> [.., features]: what tokens hold and predictions are compared with."""

    def squash(self, predicted: Tensor) -> Tensor:
        """[.., features] of a linear map as predictions."""
        return predicted

    @abstractmethod
    def errors(self, predicted: Tensor, wanted: Tensor, loss: ActionLoss) -> Tensor:
        """[..] of predictions [.., features]; `loss` is for numbers."""

    @abstractmethod
    def choose(self, predicted: Tensor, noise: Tensor | None) -> Tensor:
        """Predictions [lanes, features] -> rows [lanes, width]. `noise` [lanes, features] is
        standard Gumbel noise, where actions are sampled; zeros take the likeliest."""


def register(kind: str) -> Callable[[type[ActionPart]], type[ActionPart]]:
    """Class decorator: leaves of this kind can be parts of an action."""

    def add(part: type[ActionPart]) -> type[ActionPart]:
        ActionPart.registry[kind] = part
        return part

    return add


def part_of(leaf: NumberLeaf) -> ActionPart:
    """The part that a leaf is."""
    return ActionPart.registry[leaf.kind](leaf)

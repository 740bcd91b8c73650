"""Text, which no agent reads: it is left out once somebody says so."""

from __future__ import annotations

from dataclasses import dataclass

from gymnasium import spaces

from decision_seq.config import register
from decision_seq.spaces.leaf import Leaf, leaf_of


@register("text", "text, which is left out by data.leave_out")
@dataclass(frozen=True)
class TextLeaf(Leaf):
    """No numbers."""


@leaf_of.register
def _(space: spaces.Text, path: str, acts: bool) -> Leaf:
    return TextLeaf(path)

"""Which environment it is: a gymnasium id and the arguments it is made with, as one line of text.

    Ant-v4?use_contact_forces=true&max_episode_steps=500
    my_package:Task-v0?map=[[1,0],[0,1]]&mode=hard

A value is JSON, or else text. In front of a colon stands the module that registers the id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from decision_seq.errors import UserError
from decision_seq.settings import Simulator


@dataclass(frozen=True)
class Identity:
    """An environment's id and arguments; equal ones make the same environment."""

    id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = field(default=None, compare=False)  # to import, where one was named

    @classmethod
    def parse(cls, text: str) -> Identity:
        """Take the text apart. Raises UserError where an argument has no value."""
        head, _, tail = text.partition("?")
        module, colon, identifier = head.rpartition(":")
        example = "Ant-v4?use_contact_forces=true&max_episode_steps=500"
        arguments = arguments_in(tail, f"environment {text!r}", example)
        return cls(identifier, arguments, module if colon else None)

    def __str__(self) -> str:
        """The text, without the module."""
        parts = [
            f"{quote(key)}={quote(_text(value), safe='[]{},._-/')}"
            for key, value in sorted(self.arguments.items())
        ]
        return self.id + ("?" + "&".join(parts) if parts else "")


def simulated(env: str, simulator: Simulator) -> str:
    """How rows name an environment: by its id, and by the simulator where that is another than its
    own, so that nothing is compared across the two."""
    return env if simulator == "auto" else f"{env} ({simulator})"


def arguments_in(text: str, of: str, example: str = "name?key=value&key=value") -> dict[str, Any]:
    """Arguments by name, of what stands behind a question mark. Raises UserError, which begins with
    what they are `of`, where one has no value."""
    found = {}
    for part in filter(None, text.split("&")):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise UserError(f"{of}: {part!r} is no argument; write them like {example}")
        found[unquote(key)] = _value(unquote(value))
    return found


def plain(value: Any) -> Any:
    """`value` as JSON gives it back: tuples and arrays as lists, whole floats as integers."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _value(text: str) -> Any:
    try:
        return plain(json.loads(text))
    except ValueError:
        return text


def _text(value: Any) -> str:
    if isinstance(value, str) and _value(value) == value:
        return value
    return json.dumps(plain(value), separators=(",", ":"), sort_keys=True)

"""Settings document their fields by comments; the API reference shows these, with the defaults.

    steps: int = 100_000  # gradient steps

An extension of griffe, which mkdocstrings reads the package with (mkdocs.yml).
"""

from __future__ import annotations

import re
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Makes of a config's fields the section "Attributes" of its docstring."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called for every class that is read."""
        if not cls.name.endswith(("Config", "Spec")) or cls.docstring is None:
            return
        own = [m for m in cls.members.values() if isinstance(m, griffe.Attribute)]
        fields = [a for a in own if "instance-attribute" in a.labels]  # no ClassVar, no property
        if fields:
            lines = [f"    {field.name}: {described(field)}" for field in fields]
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(lines)


def described(field: griffe.Attribute) -> str:
    """The comment beside a field, or above it, and its default."""
    beside, alone = comments(Path(str(field.filepath)))
    start, end = field.lineno or 0, field.endlineno or 0
    first = start
    while first - 1 in alone:
        first -= 1
    lines = [alone[line] for line in range(first, start)]
    text = " ".join([*lines, *(beside[line] for line in range(start, end + 1) if line in beside)])
    default = re.sub(r"^field\(default_factory=(\w+)\)$", r"\1()", str(field.value or ""))
    parts = [text[:1].upper() + text[1:], f"Default: `{default}`." if default else "Required."]
    return ". ".join(filter(None, parts))


@cache
def comments(file: Path) -> tuple[dict[int, str], dict[int, str]]:
    """By line: comments beside code, and comments alone on their line."""
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    with file.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type == tokenize.COMMENT and "noqa" not in token.string:
                own = not token.line[: token.start[1]].strip()
                (alone if own else beside)[token.start[0]] = token.string.lstrip("# ")
    return beside, alone

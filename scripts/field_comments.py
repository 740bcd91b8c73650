"""Settings document their fields by comments; the API reference shows these.

    steps: int = 100_000  # gradient steps

An extension of griffe, which mkdocstrings reads the package with (mkdocs.yml).
"""

from __future__ import annotations

import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Makes the comment beside a field, or above it, its docstring."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Called for every attribute that is read."""
        inside = attr.parent is not None and attr.parent.is_class
        if not inside or attr.docstring or attr.lineno is None or attr.endlineno is None:
            return
        beside, alone = comments(Path(str(attr.filepath)))
        first = attr.lineno
        while first - 1 in alone:
            first -= 1
        lines = [alone[line] for line in range(first, attr.lineno)]
        lines += [beside[n] for n in range(attr.lineno, attr.endlineno + 1) if n in beside]
        text = " ".join(lines).removesuffix("  noqa")
        if text:
            attr.docstring = griffe.Docstring(text[0].upper() + text[1:], parent=attr)


@cache
def comments(file: Path) -> tuple[dict[int, str], dict[int, str]]:
    """By line: comments beside code, and comments alone on their line."""
    beside, alone = {}, {}
    with file.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type == tokenize.COMMENT:
                own = not token.line[: token.start[1]].strip()
                (alone if own else beside)[token.start[0]] = token.string.lstrip("# ")
    return beside, alone

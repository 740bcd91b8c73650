"""Printing on whatever there is: a terminal or file of any encoding, or none at all."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decision_seq.api.shown import Shown

NEAREST = {"█": "#", "±": "+-", "…": "...", "─": "-", "━": "-", "│": "|", "┃": "|", "•": "*"}
BOXES = range(0x2500, 0x2580)  # lines and corners


def print_anywhere() -> None:
    """Let standard output and error take any text: what their encoding lacks becomes the nearest
    they have, and where one was closed, what is printed there vanishes."""
    codecs.register_error("decision-seq", _nearest)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="decision-seq")


def print_result(result: Shown) -> None:
    """Its table, and the sentences below."""
    from rich.console import Console

    Console().print(result)
    for note in result.notes():
        print(note)


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    return NEAREST.get(character, "+" if ord(character) in BOXES else "?")

"""`decision-seq config`."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

from decision_seq.shipped import config_file


def config(name: Annotated[Positional[str], arg(metavar="NAME")]) -> None:
    """Print a shipped config, to change and keep: `decision-seq config hopper > mine.yaml`.

    Args:
        name: one of `list configs`.
    """
    print(config_file(name).read_text(encoding="utf-8"), end="")

"""`decision-seq config`."""

from __future__ import annotations

from tyro.conf import Positional

from decision_seq.shipped import config_file


def config(name: Positional[str]) -> None:
    """Print a shipped config, to change and keep: `decision-seq config hopper > mine.yaml`.

    Args:
        name: one of `list configs`.
    """
    print(config_file(name).read_text(encoding="utf-8"), end="")

"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import UseAppendAction, arg

Assignments = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="KEY=VALUE", help="override a config key; may be repeated"),
]
Device = Annotated[str, arg(help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one")]

"""Arguments that several commands take, as --help calls them, and how a command is found."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from decision_seq.errors import UserError

Assignments = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(name="set", metavar="KEY=VALUE", help="override a config key; may be repeated"),
]
Device = Annotated[str, arg(help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one")]
Config = Annotated[Positional[Path], arg(metavar="CONFIG")]
Run = Annotated[Positional[Path], arg(metavar="RUN")]
Seeds = Annotated[tuple[int, ...], arg(metavar="INT [INT ...]", help_behavior_hint="")]
# what may be left out: without this, {None}|INT and (default: None)
Context = Annotated[
    Literal["window", "stream"] | None, arg(metavar="{window,stream}", help_behavior_hint="")
]
OptionalInt = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")]
OptionalStr = Annotated[str | None, arg(metavar="STR", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]


def run_command(
    commands: Mapping[str, Callable[..., Any]], prog: str, about: str, arguments: Sequence[str]
) -> None:
    """Call the command that `arguments` begin with; with none, print what there are.

    Raises UserError where there is no such command.
    """
    name, *words = arguments or ["--help"]
    if name in commands:
        command = commands[name]
        # help of an argument on one line: the terminal's width breaks it
        command.__doc__ = re.sub(r"\n {12,}", " ", command.__doc__ or "")
        tyro.cli(command, prog=f"{prog} {name}", args=words)
    elif name.startswith("-"):
        tyro.extras.subcommand_cli_from_dict(
            dict(commands), prog=prog, description=about, args=[name, *words]
        )
    else:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"`{prog} --help` lists them"
        raise UserError(f"{prog} has no command {name!r}; {hint}")

"""`decision-seq data ...`: commands about datasets; as in main.py, one command is one function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from decision_seq.cli.arguments import OptionalPath, OptionalStr, run_command

Sources = Annotated[
    Positional[tuple[str, ...]],
    arg(
        metavar="SOURCE [SOURCE ...]",
        help="files, folders, imported names or Minari ids; several are one dataset",
        help_behavior_hint="",
    ),
]

Name = Annotated[str, arg(name="as", metavar="NAME")]


def info(source: Sources, png: OptionalPath = None) -> None:
    """Sum a dataset up: sizes, returns, lengths, action ranges, environment.

    Args:
        png: also write the distributions of returns and lengths as a figure.
    """
    from decision_seq.api import datasets
    from decision_seq.data.tools.distribution import histogram, write_figure

    dataset = datasets.info(*source)
    store = dataset.store
    for name, value in dataset.table().rows:
        print(f"{name:22} {value}")
    for line in dataset.notes():
        print(line)
    for title, values in (("return", store.episode_returns), ("length", store.lengths)):
        print(f"\nepisodes by {title}")
        for line in histogram(values):
            print(line)
    if png is not None:
        write_figure(png, store)
        print(f"\nfigure: {png}")


def check(source: Sources, env: OptionalStr = None, drop_bad: OptionalPath = None) -> None:
    """List what may be wrong with a dataset. Errors among it: exit code 1.

    Args:
        env: environment it is from, where it does not say so itself.
        drop_bad: write a copy without the bad episodes to this .npz file; the source is only read.
    """
    from decision_seq.data.findings import SEVERITIES
    from decision_seq.data.tools.check import drop_bad as drop
    from decision_seq.data.tools.check import examine

    label = " + ".join(source)
    examined = examine(source, env)
    for finding in examined.findings:
        print(f"{label}: {finding}")
    errors, warnings, _ = (
        sum(finding.severity == severity for finding in examined.findings)
        for severity in SEVERITIES
    )
    found = "1 finding" if errors + warnings == 1 else f"{errors + warnings} findings"
    print(f"{label}: {found}, {errors} of them {'an error' if errors == 1 else 'errors'}")
    if drop_bad is not None:
        dropped = drop(examined, drop_bad)
        if dropped:
            lists = f"{drop_bad}.dropped.json lists them"
            print(f"{drop_bad}: written without {len(dropped)} episodes; {lists}")
        else:
            print(f"{drop_bad}: nothing was dropped, every episode is in this copy")
    if errors:
        sys.exit(1)


def import_(source: Sources, name: Name, env: OptionalStr = None) -> None:
    """Keep a dataset under a name, in a layout that opens at once.

    The name then works wherever a source does.

    Args:
        name: what to call it.
        env: environment it is from (a name, gymnasium id or module:Id-v0), where it does not say.
    """
    from decision_seq.api import datasets

    store = datasets.import_(*source, name=name, env=env).store
    print(f"{name}: {store.episodes} episodes, {store.steps} steps, hash {store.hash}")


def list_() -> None:
    """List the datasets here: imported ones, and those in Minari's local storage."""
    from decision_seq.api import datasets

    for line in datasets.list_():
        print(line)


def export(source: Sources, to: Literal["npz", "minari"], out: str) -> None:
    """Write a dataset in a format that others read.

    Args:
        to: npz (one file) or minari (a dataset in Minari's local storage).
        out: file, or Minari id such as mine/logs-v0.
    """
    from decision_seq.api import datasets

    print(datasets.export(*source, to=to, out=out))


COMMANDS: dict[str, Callable[..., Any]] = {
    "info": info,
    "check": check,
    "import": import_,
    "list": list_,
    "export": export,
}


def main(arguments: list[str]) -> None:
    """Run `decision-seq data ARGUMENTS`."""
    run_command(
        COMMANDS,
        "decision-seq data",
        "Look at datasets, check, import and export them.",
        arguments,
    )


def data() -> None:
    """Look at datasets, check, import and export them: info, check, import, list, export."""
    main([])

"""The command line: every command is one function, whose signature is its interface."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import decision_seq
from decision_seq.cli import data as cli_data
from decision_seq.cli.arguments import run_command
from decision_seq.cli.collect import collect
from decision_seq.cli.compare import compare, report
from decision_seq.cli.config import config
from decision_seq.cli.demo import demo
from decision_seq.cli.evaluate import evaluate
from decision_seq.cli.export import export
from decision_seq.cli.inspect import inspect
from decision_seq.cli.listing import list_
from decision_seq.cli.output import print_anywhere
from decision_seq.cli.quickstart import quickstart
from decision_seq.cli.share import push, share
from decision_seq.cli.sweep import sweep
from decision_seq.cli.train import train
from decision_seq.errors import UserError
from decision_seq.hardware import keep_freed_memory

COMMANDS: dict[str, Callable[..., Any]] = {
    "quickstart": quickstart,
    "collect": collect,
    "data": cli_data.data,
    "train": train,
    "evaluate": evaluate,
    "inspect": inspect,
    "export": export,
    "demo": demo,
    "share": share,
    "push": push,
    "compare": compare,
    "sweep": sweep,
    "report": report,
    "list": list_,
    "config": config,
}


def main() -> None:
    """Entry point. Bad input: one sentence on stderr and exit code 2."""
    keep_freed_memory()
    print_anywhere()
    try:
        try:
            _run_command()
        finally:
            sys.stdout.flush()  # here, where a closed pipe is met below
    except UserError as error:
        print(f"decision-seq: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        amount = re.search(r"to allocate ([\d.]+ \w+)", str(error))
        asked = f" ({amount[1]} were asked for at once)" if amount else ""
        print(
            f"decision-seq: out of memory{asked}; lower train.batch_size, agent.backbone.width or "
            "agent.context_length, or the episodes of an evaluation, or use a machine with more",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print("; ".join(["decision-seq: interrupted", *map(str, stopped.args)]), file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough: no fault of ours or theirs
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor of the flush at exit
        sys.exit(141)  # as a program that SIGPIPE ended


def _run_command() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["data"]:  # has commands of its own
        cli_data.main(arguments[1:])
    elif arguments == ["--version"]:
        print(f"decision-seq {decision_seq.__version__}")
    else:
        run_command(COMMANDS, "decision-seq", str(decision_seq.__doc__), arguments)


def _out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: Python's or NumPy's, torch's on a GPU, or torch's on a CPU,
    which is a plain RuntimeError. Without torch loaded the error is not torch's."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and (
        isinstance(error, torch.OutOfMemoryError)
        or "DefaultCPUAllocator" in str(error)
        or "not enough memory" in str(error)
    )

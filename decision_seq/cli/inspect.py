"""`decision-seq inspect`."""

from __future__ import annotations

from typing import Literal

from decision_seq.cli.arguments import Assignments, Device, OptionalInt, OptionalPath, Run
from decision_seq.errors import UserError
from decision_seq.shipped import config_names, run_at


def inspect(
    run: Run,
    checkpoint: Literal["last", "validation"] = "last",
    episode: int = 0,
    step: OptionalInt = None,
    context_length: OptionalInt = None,
    out: OptionalPath = None,
    assignments: Assignments = (),
    device: Device = "auto",
) -> None:
    """Write what an agent looks back at: influence of the past by lag, token maps, memory.

    Args:
        run: run folder, or a config (a file, or the name of a shipped one) to inspect the agent as
            it is before training.
        checkpoint: the last one, or the one with the lowest validation loss.
        episode: which of the dataset's episodes the token maps show.
        step: last step of the window shown; by default that of the first full window.
        context_length: steps a window, which may be more than in training; by default the same.
        out: folder for inspect.json and the figures; by default the run folder.
    """
    from decision_seq.eval.inspect.numbers import print_tables
    from decision_seq.eval.inspect.run import (
        inspect_agent,
        load_trained,
        load_untrained,
        to_json,
        write_inspection,
    )
    from decision_seq.hardware import torch_device

    if run.is_file() or (str(run) in config_names() and not run.is_dir()):
        if out is None:
            raise UserError(f"{run}: is a config; name a folder for the figures with --out")
        subject = load_untrained(run, assignments, torch_device(device))
    else:
        run = run_at(run, to_write=out is None)
        subject = load_trained(run, checkpoint, assignments, torch_device(device))
    inspection = inspect_agent(subject, episode, step, context_length)
    files = write_inspection(inspection, out or run)
    print_tables(to_json(inspection))
    print(f"written: {', '.join(map(str, files))}")

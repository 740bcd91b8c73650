"""A peer that cannot be imported here: d3rlpy pins another gymnasium."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Options, Timer

D3RLPY = "DECISION_SEQ_D3RLPY_PYTHON"


@contextmanager
def d3rlpy(name: str, work: str, options: Options) -> Iterator[dict[str, Timer]]:
    """{name: d3rlpy's `work`}, in a process that waits while others have their turns; {} where
    there is no environment with d3rlpy."""
    python = os.environ.get(D3RLPY)
    if not python:
        print(f"d3rlpy is skipped: set {D3RLPY} to the Python of an environment that has it.")
        yield {}
        return
    script = Path(__file__).with_name("d3rlpy_step.py")
    command = [python, str(script), work, options.device, str(options.threads)]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True) as process,
    ):
        ask, answer = process.stdin, process.stdout
        assert ask is not None and answer is not None

        def last_words() -> str:
            log.seek(0)
            return (log.read().splitlines() or ["?"])[-1]

        def turn() -> float:
            print(file=ask, flush=True)
            line = answer.readline()
            if not line:
                raise RuntimeError(f"d3rlpy's process ended: {last_words()}")
            time.sleep(0.05)  # its threads spin for a while, on the cores of whoever is next
            return float(line)

        if answer.readline():  # it is ready
            yield {name: turn}
        else:
            print(f"d3rlpy is skipped: {python} failed ({last_words()}).")
            yield {}

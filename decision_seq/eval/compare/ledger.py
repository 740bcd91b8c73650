"""The ledger of a comparison: what was started and how it ended, one line an event.

OUT/ledger.jsonl is only appended to, and each line is on disk before the work that it announces
begins. It is the history and holds the commands. Whether a cell is finished is asked of its rows,
which are written all at once, so that no moment of a crash can make the two disagree.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from decision_seq.agents.base import Context
from decision_seq.envs.registry import env_id
from decision_seq.eval.rows import Row, asked, read_rows, target_name
from decision_seq.files import read_jsonl, write_text, writing
from decision_seq.run_config import RunConfig

Event = Literal["started", "finished", "failed", "stopped"]
FILE = "ledger.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """One `evaluate` of a trained run."""

    context: Context | None = None  # by default the run's
    checkpoint: Literal["last", "validation", "best"] = "last"

    def command(self, run: Path) -> tuple[str, ...]:
        """Arguments of decision-seq."""
        context = ("--context", self.context) if self.context else ()
        checkpoint = ("--checkpoint", self.checkpoint) if self.checkpoint != "last" else ()
        return ("evaluate", str(run), *context, *checkpoint)


class Ledger:
    """Appends events to `out`/ledger.jsonl. A last line that a crash cut off is dropped."""

    def __init__(self, out: Path) -> None:
        self.path = out / FILE
        self.events = read_ledger(out)
        write_text(self.path, "".join(json.dumps(event) + "\n" for event in self.events))

    def add(self, cell: str, event: Event, **more: Any) -> None:
        """Append an event of `cell`, with the time and what else is to be said of it."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        row = {"cell": cell, "event": event, "time": now, **more}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(row)

    def last(self, cell: str) -> Event | None:
        """The cell's last event, or None if it has none."""
        return next((e["event"] for e in reversed(self.events) if e["cell"] == cell), None)

    def count(self, cell: str, event: Event) -> int:
        """How often that happened to the cell."""
        return sum(e["cell"] == cell and e["event"] == event for e in self.events)


def read_ledger(out: Path) -> list[dict[str, Any]]:
    """All events in order; none where there is no ledger. Raises UserError if it is damaged."""
    return read_jsonl(out / FILE, "cell")


def finished(
    run: Path, config: RunConfig, evaluations: Sequence[Evaluation] = (Evaluation(),)
) -> bool:
    """Whether the run folder holds every row that the `evaluations` of `config` give."""
    rows = [r for r in read_rows(run) if r["env"] == env_id(config.env)]
    return all(_evaluated(rows, config, evaluation) for evaluation in evaluations)


def _evaluated(rows: list[Row], config: RunConfig, evaluation: Evaluation) -> bool:
    context = evaluation.context or config.eval.context
    rows = [r for r in rows if (r["context"], r["checkpoint"]) == (context, evaluation.checkpoint)]
    if evaluation.checkpoint == "last":  # the others may be any step
        rows = [r for r in rows if r["step"] == config.train.steps]
    if not config.agent.follows_target:
        wanted = [target_name(None)]
    elif config.eval.targets == "auto":
        wanted = [target_name(None, config.eval.target_quantile)]
    else:
        wanted = [target_name(target) for target in config.eval.targets]
    seeds = range(config.eval.seed, config.eval.seed + config.eval.episodes)
    done = {(asked(r), r["env_seed"]) for r in rows}
    return all((target, seed) in done for target in wanted for seed in seeds)

"""The ledger of a comparison: what was started and how it ended, one line an event.

OUT/ledger.jsonl is only appended to, and each line is on disk before the work that it announces
begins. It is the history and holds the commands; whether a job is finished is for its rows to say
(see evaluations.py).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

from decision_seq.files import read_jsonl, write_text, writing

Event = Literal["started", "finished", "failed", "stopped"]
FILE = "ledger.jsonl"


class Ledger:
    """Appends events to `out`/ledger.jsonl. A last line that a crash cut off is dropped."""

    def __init__(self, out: Path) -> None:
        self.path = out / FILE
        self.events = read_ledger(out)
        write_text(self.path, "".join(json.dumps(event) + "\n" for event in self.events))

    def add(self, job: str, event: Event, **more: Any) -> None:
        """Append an event of `job`, with the time and what else is to be said of it."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        row = {"cell": job, "event": event, "time": now, **more}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(row)

    def last(self, job: str) -> Event | None:
        """The job's last event, or None if it has none."""
        return next((e["event"] for e in reversed(self.events) if e["cell"] == job), None)

    def count(self, job: str, event: Event) -> int:
        """How often that happened to the job."""
        return sum(e["cell"] == job and e["event"] == event for e in self.events)


def read_ledger(out: Path) -> list[dict[str, Any]]:
    """All events in order; none where there is no ledger. Raises UserError if it is damaged."""
    return read_jsonl(out / FILE, "cell")

"""Findings: what may be wrong with a dataset, each with a place and a fix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from decision_seq.errors import printable

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # the gravest first


@dataclass(frozen=True)
class Finding:
    """`error` spoils training or fails, `warning` may mislead, `note` is good to know."""

    severity: Severity
    rule: str
    count: int
    message: str  # what and where
    fix: str
    drop: tuple[int, ...] = ()  # episodes that --drop-bad leaves out

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}; {self.fix}"

    def of_source(self, source: str) -> Finding:
        """The same, said of one source among several."""
        return dataclasses.replace(self, message=f"{source}: {self.message}")

    def plain(self) -> dict[str, Any]:
        """For JSON, without `drop`: episodes are counted differently elsewhere."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name != "drop"}


def from_plain(fields: Mapping[str, Any]) -> Finding:
    """What `plain` gave. Raises KeyError, TypeError or ValueError for anything else."""
    if fields["severity"] not in SEVERITIES or type(fields["count"]) is not int:
        raise ValueError
    # a stranger's file may hold anything
    rule, message, fix = (printable(str(fields[key])) for key in ("rule", "message", "fix"))
    return Finding(fields["severity"], rule, fields["count"], message, fix)

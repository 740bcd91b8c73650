"""Episode rows: the data that every reported score is made from, kept in the run folder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from decision_seq.errors import UserError
from decision_seq.files import exclusive, read_jsonl, write_text

Row = dict[str, Any]
PATIENCE = 10  # times the longest episode of the data: where one is cut off that nothing else ends
FIELDS = frozenset(
    {
        "env",
        "checkpoint",
        "step",
        "context",
        "context_length",
        "target",
        "env_seed",
        "episode_return",
        "normalized_score",
        "length",
        "milliseconds_per_step",
        "train_seed",
        "versions",
        "run",
    }
)

# what `checkpoint` in a row says -> how it was chosen
CHECKPOINT_RULES = {
    "last": "last",
    "validation": "lowest validation loss",
    "best": "highest mean return in rollouts from environment seeds {first} to {last}",
    "interval": "on the way",
    "selection": "every one kept, to choose the best",
    "candidate": "every one kept",
}

# fields that rows of older versions lack, and what is said instead
OLDER: Row = {
    "target_rule": "given",
    "target_quantile": None,
    "score_reference": None,
    "normalized_scores": {},
    "candidates": None,
    "success": None,
    "agent_hash": None,
    "episodes": None,
    "lanes": None,
    "trained_steps": None,
    "max_steps": None,
    "reference_returns": None,
    "parameters": None,
    "peak_memory_mib": None,
    "hardware": None,
    "simulator": "auto",
}


@dataclass(frozen=True)
class Episode:
    """One evaluated episode: what a rollout measured of it. Its fields are columns of the row."""

    target: float | None  # return asked for, None for an agent that takes none
    target_rule: Literal["given", "auto"] | None  # who chose it: a person, or the return prior
    target_quantile: float | None  # of the return given the first observation, if auto
    env_seed: int
    episode_return: float
    length: int
    success: bool | None  # the goal was reached at some step; None where none is told
    max_steps: int | None  # where episodes were cut off, if not by the environment alone
    normalized_score: float | None
    score_reference: str | None  # whose references: run, data, or a published form, e.g. human
    reference_returns: tuple[float, float] | None  # of a random policy and an expert
    normalized_scores: dict[str, float]  # by every form there is
    milliseconds_per_step: float  # wall time of one step of all lanes that go on
    # how far the states it acted in lie from the data, in standard deviations of the data's own
    # (see ReturnPrior.novelty): every step, mean and largest; None without a prior
    ood: list[float] | None
    ood_mean: float | None
    ood_max: float | None


def add_rows(run: Path, episodes: list[Episode], /, **protocol: Any) -> list[Row]:
    """Add one row an episode to `episodes.jsonl`, at its end. `protocol` says how the rows came
    about; a row of the same environment, checkpoint, step, context, target, seed and place where
    episodes are cut off is replaced."""
    new = [{"run": run.name} | asdict(e) | protocol for e in episodes]
    with exclusive(run / ".rows.lock", wait=True):
        replaced = {_key(row) for row in new}
        kept = [row for row in read_rows(run) if _key(row) not in replaced]
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in [*kept, *new]]
        write_text(run / "episodes.jsonl", "".join(lines))
    return new


def target_label(row: Row) -> str:
    """What was asked of a row's episode, in words: a return, `none`, or the quantile at which the
    return prior proposes one; and after how many steps it was to be cut off, if somebody said so.
    Rows that agree in it are reported together."""
    return target_name(row["target"], row["target_quantile"], cut_off(row))


def target_name(target: float | None, quantile: float | None = None, cut: int | None = None) -> str:
    """In words: a target return, none, or the quantile at which targets are proposed; and after how
    many steps episodes are cut off."""
    name = "none" if target is None else f"{target:.10g}"
    if quantile is not None:
        name = f"auto (quantile {quantile:g})"
    return name if cut is None else f"{name}, at most {cut} steps"


def cut_off(row: Row) -> int | None:
    """After how many steps the episode was to be cut off, if that was asked for."""
    longest, most = row.get("trained_steps"), row.get("max_steps")
    return None if longest is not None and most == PATIENCE * longest else most


def read_rows(run: Path) -> list[Row]:
    """All episode rows of a run. Raises UserError if one is not such a row."""
    path = run / "episodes.jsonl"
    rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if missing := FIELDS - row.keys():
            raise UserError(f"{path}: row {number} lacks `{min(missing)}`; evaluate the run again")
        for name in ("episode_return", "normalized_score"):
            value = row[name]
            if value is None and name == "normalized_score":  # there are no references
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(
                    f"{path}: `{name}` of row {number} is {value!r}; it must be a finite number: "
                    "remove that line and evaluate the run again"
                )
    return [completed(row) for row in rows]


def completed(row: Row) -> Row:
    """A row of any version as one of this."""
    if "checkpoint_rule" not in row:  # from when `best` was the lowest validation loss
        checkpoint = "validation" if row["checkpoint"] == "best" else row["checkpoint"]
        rule = CHECKPOINT_RULES.get(checkpoint, checkpoint)
        row = row | {"checkpoint": checkpoint, "checkpoint_rule": rule}
    return OLDER | row


def _key(row: Row) -> tuple[Any, ...]:
    keys = ("env", "checkpoint", "step", "context", "env_seed")
    return (target_label(row), *(row.get(key) for key in keys))

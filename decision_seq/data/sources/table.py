"""Logs as tables, CSV or Parquet: one row a step, columns found by their names.

    episode, step, observation_0, observation_1, ..., action_0, ..., reward, terminated, truncated

`obs_*` and `act_*` do as well, and what follows the underscore may be any word; columns keep the
file's order. A single column `action` of whole numbers holds discrete actions. `step` and
`truncated` may be missing: an episode that ends without being terminated was truncated. Columns of
other names are ignored. A log with its own names has a YAML file beside it that says what is what
(log.columns.yaml for log.csv, or columns.yaml for a whole folder; .yml does as well), with the
fields of `Columns`.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.config import build, load_yaml
from decision_seq.data.columns import rounded, to_float32
from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.sources.compressed import DAMAGED, opened, unpacked
from decision_seq.data.sources.episode_list import HAND_OVER
from decision_seq.data.sources.keys import NO_REWARDS, WITHOUT
from decision_seq.errors import UserError

FLAGS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
EXACT = 2.0**53  # whole numbers below it are what they are in float64
SEEN = ("observation_", "obs_", "observation.", "observation")  # how columns of these begin
NAMED = "observation_0, observation_1, ... (or obs_...)", "action_0, ... (or act_..., or action)"


@dataclass(frozen=True)
class Columns:
    """Which column holds what, and which environment the log is of."""

    episode: str = "episode"  # number of the episode; its rows stand together
    step: str = "step"  # number within the episode, rising by one; may be missing
    observations: tuple[str, ...] = ()  # by default observation_* or obs_*
    actions: tuple[str, ...] = ()  # by default action_*, act_* or action
    reward: str | None = "reward"  # null where there is none
    terminated: str = "terminated"
    truncated: str = "truncated"  # may be missing
    discrete: bool | None = None  # by default: a single column `action` of whole numbers
    env: str | None = None  # environment id


def columns_file(path: Path) -> list[Path]:
    """The YAML file that belongs to a log, if there is one."""
    stem = unpacked(path).stem
    names = (f"{stem}.columns.yaml", f"{stem}.columns.yml", "columns.yaml", "columns.yml")
    return [file for file in map(path.with_name, names) if file.is_file()][:1]


def read_csv(path: Path) -> Episodes:
    """Read a CSV file. Raises UserError with column and line number where something is wrong."""
    try:
        with opened(path, newline="", encoding="utf-8-sig") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
    except (*DAMAGED, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from None
    columns = _find(path, header)
    wanted = _wanted(columns, header)
    where = [header.index(name) for name in wanted]
    flags = [header.index(n) for n in (columns.terminated, columns.truncated) if n in header]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about no rows, which we report
            values = np.loadtxt(
                path,
                delimiter=",",
                comments=None,
                skiprows=1,
                usecols=where,
                converters=dict.fromkeys(flags, _flag),
                quotechar='"',
                encoding="utf-8-sig",
                ndmin=2,
            )
    except (ValueError, KeyError, *DAMAGED) as error:
        raise UserError(_first_bad_cell(path, wanted, where, flags, error)) from None
    table = {name: values[:, i] for i, name in enumerate(wanted)}
    large = [name for name, column in table.items() if (np.abs(column) >= EXACT).any()]
    for name in large:  # float64 rounds whole numbers of this size
        table[name] = _whole(path, header.index(name), table[name])
    return _episodes(path, columns, table, lambda row: f"line {_line(path, row)}")


def read_parquet(path: Path) -> Episodes:
    """Read a Parquet file. Raises UserError as `read_csv` does, or if pyarrow is not installed."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow; pip install 'decision-seq[parquet]'"
        ) from None
    try:
        header = list(parquet.read_schema(path).names)
        columns = _find(path, header)
        arrow = parquet.read_table(path, columns=_wanted(columns, header))
        arrow, columns = _spread(path, arrow, columns)
        table = {name: arrow[name].to_numpy() for name in arrow.column_names}
        table = {n: c.astype(np.int8) if c.dtype == bool else c for n, c in table.items()}
    except (ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as Parquet ({' '.join(str(error).split())}); the file "
            "may be cut off"
        ) from None
    for name, column in table.items():
        if column.dtype.kind not in "fiub":
            raise UserError(
                f"{path}: column `{name}` holds {arrow[name].type}; expected numbers: write lists "
                f"as one column a number ({name}_0, {name}_1, ...), or {HAND_OVER}"
            )
    return _episodes(path, columns, table, lambda row: f"row {row}")


def _spread(path: Path, arrow: Any, columns: Columns) -> tuple[Any, Columns]:
    """Columns of lists as one column a number, `observation_0` and so on."""
    import pyarrow as pa
    import pyarrow.compute as pc

    own: dict[str, tuple[str, ...]] = {}
    for name in [field.name for field in arrow.schema if pa.types.is_nested(field.type)]:
        column = arrow[name]
        if not hasattr(column.type, "value_type") or pa.types.is_map(column.type):
            continue  # refused as what it is
        widths = pc.list_value_length(column)
        width = pc.max(widths).as_py() or 0
        if pc.min(widths).as_py() != width or column.null_count or width == 0:
            raise UserError(f"{path}: column `{name}` has lists of different lengths")
        values = pc.list_flatten(column).combine_chunks()
        if pa.types.is_nested(values.type):
            raise UserError(f"{path}: column `{name}` has lists of lists; lay them out flat")
        own[name] = tuple(f"{name}_{i}" for i in range(width))
        at = pa.array(np.arange(len(column)) * width)
        for i, new in enumerate(own[name]):
            arrow = arrow.append_column(new, values.take(pc.add(at, i)))
        arrow = arrow.drop_columns([name])

    def flat(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one for name in names for one in own.get(name, (name,)))

    seen, done = flat(columns.observations), flat(columns.actions)
    discrete = False if done != columns.actions else columns.discrete
    return arrow, dataclasses.replace(columns, observations=seen, actions=done, discrete=discrete)


def _find(path: Path, header: list[str]) -> Columns:
    """The columns of a log, those of the file beside it first. Raises UserError for missing or
    repeated ones."""
    beside = columns_file(path)
    columns = build(Columns, load_yaml(beside[0]), str(beside[0])) if beside else Columns()
    observations = columns.observations or _starting(header, *SEEN)
    actions = columns.actions or _starting(header, "action_", "act_")
    single = not actions and "action" in header
    found = Columns(
        **{
            **vars(columns),
            "observations": observations,
            "actions": ("action",) if single else actions,
            "discrete": columns.discrete if columns.discrete is not None else single or None,
        }
    )
    for kind, names, form in zip(
        ("observation", "action"), (found.observations, found.actions), NAMED, strict=True
    ):
        if not names:
            raise UserError(
                f"{path}: no {kind} columns (found {', '.join(header)[:200]}); name them {form}, "
                f"or list them in {path.stem}.columns.yaml"
            )
    reward = [] if found.reward is None else [found.reward]
    needed = (found.episode, *found.observations, *found.actions, *reward, found.terminated)
    for name in needed:
        if name not in header:
            raise UserError(
                f"{path}: column `{name}` is missing (found {', '.join(header)[:200]}); name it "
                f"so, or say which it is in {path.stem}.columns.yaml"
            )
    inputs = (*found.observations, *found.actions)
    for name in inputs:
        if inputs.count(name) > 1:
            raise UserError(
                f"{beside[0] if beside else path}: column `{name}` is listed twice under "
                "observations and actions; list it once"
            )
    for name in _wanted(found, header):
        if header.count(name) > 1:
            raise UserError(f"{path}: column `{name}` is there twice; rename or remove one")
    return found


def _starting(header: list[str], *prefixes: str) -> tuple[str, ...]:
    for prefix in prefixes:
        if names := tuple(name for name in header if name.startswith(prefix)):
            return names
    return ()


def _wanted(columns: Columns, header: list[str]) -> list[str]:
    optional = [n for n in (columns.step, columns.truncated) if n in header]
    needed = [columns.episode, *columns.observations, *columns.actions]
    needed += [] if columns.reward is None else [columns.reward]
    return [*needed, columns.terminated, *optional]


def _episodes(
    path: Path, columns: Columns, table: dict[str, np.ndarray], place: Callable[[int], str]
) -> Episodes:
    """Cut the table where the episode's number changes. `place` says where a row stands."""
    episode = table[columns.episode]
    if len(episode) == 0:
        raise UserError(f"{path}: has no rows; an empty dataset trains nothing")
    if (unknown := ~np.isfinite(episode)).any():
        row = int(unknown.argmax())
        raise UserError(
            f"{path}: {place(row)}: `{columns.episode}` is {episode[row]}; every row needs the "
            "number of its episode"
        )
    if (inexact := _is_rounded(episode)).any():
        row = int(inexact.argmax())
        raise UserError(
            f"{path}: {place(row)}: `{columns.episode}` is {episode[row]}, too large for a number "
            f"with a decimal point ({episode.dtype}) to be exact: episodes could become one; write "
            "whole numbers of 64 bits at most"
        )
    same = episode[1:] == episode[:-1]  # [N - 1] this row's episode goes on in the next
    _check_together(path, episode, np.flatnonzero(~same) + 1, place)
    if columns.step in table:
        step = table[columns.step]
        rises = (step[1:] > step[:-1]) & (step[1:] - step[:-1] == 1)  # exact for integers
        if (wrong := same & ~rises).any():
            row = int(wrong.argmax()) + 1
            raise UserError(
                f"{path}: {place(row)}: `{columns.step}` is {_text(step[row])} after "
                f"{_text(step[row - 1])}; the steps of an episode must rise by one"
            )
    terminated = _ends(path, columns.terminated, table, same, place)
    truncated = _ends(path, columns.truncated, table, same, place)
    last = np.append(~same, True)
    incomplete = np.flatnonzero(~(terminated | truncated)[last] & (columns.truncated in table))
    truncated |= ~terminated & last
    flat = from_flat(
        str(path),
        _stacked(table, columns.observations),
        _actions(path, columns, table),
        np.zeros(len(episode), np.float32)
        if columns.reward is None
        else to_float32(table[columns.reward]),
        terminated,
        truncated,
        _info(columns) | (WITHOUT if columns.reward is None else {}),
    )
    numbers = (*columns.observations, *columns.actions, *filter(None, [columns.reward]))
    lost = rounded({f"column `{name}`": table[name] for name in numbers})
    return dataclasses.replace(
        flat,
        incomplete=tuple(int(m) for m in incomplete),
        findings=(
            *flat.findings,
            *filter(None, [lost, NO_REWARDS if columns.reward is None else None]),
        ),
    )


def _stacked(table: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    """[N, len(names)] float32. Each column is rounded once: together they might not fit into one
    type that holds them all."""
    return np.stack([to_float32(table[name]) for name in names], axis=1)


def _is_rounded(numbers: np.ndarray) -> np.ndarray:
    """[N] bool: floats so large that they may stand for several whole numbers."""
    if numbers.dtype.kind != "f":
        return np.zeros(len(numbers), bool)
    return np.abs(numbers) >= 2.0 ** (np.finfo(numbers.dtype).nmant + 1)


def _text(number: np.generic) -> str:
    """`3`, also of 3.0, for messages."""
    return f"{number:g}" if isinstance(number, np.floating) else str(number)


def _info(columns: Columns) -> dict[str, str]:
    from decision_seq.envs.identity import Identity
    from decision_seq.envs.registry import env_id

    if columns.env is None:
        return {}
    # `module:Id` as it is: a file that came with the data must not choose what is imported
    foreign = Identity.parse(columns.env).module is not None
    return {"env_id": columns.env if foreign else env_id(columns.env)}


def _check_together(
    path: Path, episode: np.ndarray, firsts: np.ndarray, place: Callable[[int], str]
) -> None:
    """The rows of an episode stand together: no number comes back later."""
    firsts = np.concatenate([[0], firsts])
    _, first_seen = np.unique(episode[firsts], return_index=True)
    if len(first_seen) < len(firsts):
        row = int(firsts[np.setdiff1d(np.arange(len(firsts)), first_seen)[0]])
        raise UserError(
            f"{path}: {place(row)}: episode {_text(episode[row])} comes back after another one; "
            "sort the rows by episode and step"
        )


def _ends(
    path: Path,
    name: str,
    table: dict[str, np.ndarray],
    same: np.ndarray,
    place: Callable[[int], str],
) -> np.ndarray:
    flags = table.get(name, np.zeros(len(same) + 1, bool))
    if (odd := ~np.isin(flags, (0, 1))).any():
        raise UserError(f"{path}: {place(int(odd.argmax()))}: `{name}` is neither 0 nor 1")
    flags = flags.astype(bool)
    if (early := same & flags[:-1]).any():
        raise UserError(
            f"{path}: {place(int(early.argmax()))}: `{name}` is set, but the episode goes on; give "
            "what follows another episode number"
        )
    return flags


def _actions(path: Path, columns: Columns, table: dict[str, np.ndarray]) -> np.ndarray:
    if columns.discrete and len(columns.actions) > 1:
        raise UserError(f"{path}: discrete actions have one column, not {len(columns.actions)}")
    first = table[columns.actions[0]]
    if columns.discrete and (first == np.floor(first)).all():
        with np.errstate(invalid="ignore"):  # floats that do not fit are refused as integers
            return first if first.dtype.kind in "iu" else first.astype(np.int64)
    return _stacked(table, columns.actions)


def _whole(path: Path, index: int, column: np.ndarray) -> np.ndarray:
    """A column of whole numbers once more, exactly; `column` where they are not, or need more than
    64 bits."""
    try:
        numbers = [int(cells[index]) for _, cells in _lines(path)]
    except ValueError:
        return column
    for kind in (np.int64, np.uint64):
        with contextlib.suppress(OverflowError):
            return np.array(numbers, kind)
    return column


def _line(path: Path, row: int) -> int:
    """Line of the file where data row `row` stands."""
    return next(itertools.islice(_lines(path), row, None))[0]


def _flag(text: str) -> float:
    return FLAGS[text.strip().lower()]


def _first_bad_cell(
    path: Path, names: list[str], where: list[int], flags: list[int], reason: Exception
) -> str:
    """What the fast reader stumbled over, in words."""
    for line, cells in _lines(path):
        for name, index in zip(names, where, strict=True):
            if index >= len(cells):
                return (
                    f"{path}: line {line} has {len(cells)} cells, too few for column `{name}`; the "
                    "file may be cut off"
                )
            try:
                _flag(cells[index]) if index in flags else float(cells[index])
            except (ValueError, KeyError):
                kind = "true, false, 1 or 0" if index in flags else "a number"
                return f"{path}: line {line}: `{name}` is {cells[index]!r}, not {kind}"
    return f"{path}: cannot be read as CSV ({' '.join(str(reason).split())[:200]})"


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the data rows. Cells in quotes may hold line breaks."""
    with (
        contextlib.suppress(EOFError, zlib.error),  # of a file that is cut off
        opened(path, newline="", encoding="utf-8-sig", errors="replace") as file,
    ):
        reader = csv.reader(file)
        with contextlib.suppress(csv.Error):
            next(reader)
            yield from ((reader.line_num, cells) for cells in reader if cells)

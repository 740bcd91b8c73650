"""Imported datasets: kept under a name in our own layout, which opens without reading anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, check_finite, concatenate
from decision_seq.data.finals import FINALS
from decision_seq.data.frames import chunks
from decision_seq.data.origin import recorded
from decision_seq.data.sources import (
    absolute,
    format_of,
    minari_dataset,
    named,
    resolve,
    stored,
)
from decision_seq.data.sources.episode_list import gather
from decision_seq.data.store import (
    ARRAYS,
    EpisodeStore,
    add_finals,
    checksum,
    open_folder,
    write_store,
)
from decision_seq.envs.registry import typed
from decision_seq.errors import UserError
from decision_seq.files import exclusive, remove_leftovers


def import_dataset(sources: Sequence[str], name: str, env: str | None = None) -> EpisodeStore:
    """Keep the dataset made of `sources` under `name`.

    Of processes that import the same at once, one writes and the others open what it wrote; to
    import the same again changes nothing.

    Args:
        sources: files, folders, imported names or Minari ids.
        name: letters, digits and . _ + -; then a source like any other.
        env: environment it is from, where the sources do not say.

    Raises:
        UserError: bad name, another dataset has it, or a source is missing or malformed.
    """
    check_name(name)
    if not sources:
        raise UserError("import: name at least one file, folder or Minari id")
    parts = [resolve(source).read() for source in sources]
    for source, part in zip(sources, parts, strict=True):
        check_finite(source, part)
    episodes = concatenate(parts, list(sources)) if len(parts) > 1 else parts[0]
    return _keep(name, episodes, env, [absolute(source) for source in sources])


def from_episodes(
    episodes: Iterable[Mapping[str, Any]], name: str, env: str | None = None
) -> EpisodeStore:
    """Keep episodes that Python code delivers one by one under `name`.

    Args:
        episodes: each a mapping with observations [T, S] (or [T + 1, S]), actions [T, A] or [T],
            rewards [T], `terminated` and `truncated` (a bool, or [T] flags).
        name: as for `import_dataset`.
        env: environment they are from.

    Raises:
        UserError: bad name, another dataset has it, or an episode is malformed.
    """
    check_name(name)
    gathered = gather(name, episodes, {})
    check_finite(name, gathered)
    return _keep(name, gathered, env, ["Python"])


def listing() -> list[str]:
    """A line for each imported dataset, and for each in Minari's local storage: collected ones."""
    rows: list[tuple[str, int, int, str, str]] = []
    for name in stored.names():
        store = open_folder(stored.library() / name, name)
        env = ", ".join(map(typed, recorded(store.info))) or "-"
        rows.append((name, store.episodes, store.steps, env, store.hash))
    for name, about in minari_dataset.local().items():
        env = typed(json.loads(about.get("env_spec") or "{}").get("id", "-"))
        rows.append((name, about["total_episodes"], about["total_steps"], env, "Minari"))
    if not rows:
        none = "`decision-seq collect` and `data import` make some"
        return [f"no datasets in {stored.library()}, nor in Minari's storage; {none}"]
    first, fourth = (max(len(str(row[m])) for row in rows) for m in (0, 3))
    return [
        f"{name:{first}} {episodes:>8} episodes {steps:>10} steps  {env:{fourth}}  {kept}"
        for name, episodes, steps, env, kept in rows
    ]


def verify(store: EpisodeStore) -> None:
    """Raise UserError if the arrays are not those that were written: a damaged disk or copy."""
    stored_with: list[tuple[str, tuple[str, ...]]] = [(store.hash, ARRAYS)]
    if store.finals_hash:
        stored_with.append((store.finals_hash, (FINALS,)))
    for expected, names in stored_with:
        if checksum(vars(store), names) != expected:
            raise UserError(
                f"{store.name}: its arrays do not have the checksum {expected} they were stored "
                "with; delete its folder and import or collect it again"
            )


def check_name(name: str) -> None:
    """Raise UserError unless a dataset can be called `name` without being taken for another."""
    if stored.NAME.fullmatch(name) is None or len(name) > 100:
        raise UserError(
            f"dataset name {name!r}: use up to 100 letters, digits and . _ + -, first a letter or "
            "digit"
        )
    if format_of(Path(name)):
        raise UserError(f"dataset name {name!r}: ends like a file; leave {Path(name).suffix} out")
    if any(source.folder != stored.library() / name for _, source in named(name)):
        raise UserError(
            f"dataset name {name!r}: is a folder of data here or a local Minari dataset already, "
            "and one would hide the other; choose another"
        )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    pieces = zip(chunks(a), chunks(b), strict=True)
    return all(one.tobytes() == other.tobytes() for one, other in pieces)


def _keep(name: str, episodes: Episodes, env: str | None, sources: list[str]) -> EpisodeStore:
    """Write the dataset unless it is there; of processes that do so at once, one writes."""
    from decision_seq.envs.registry import recorded_id
    from decision_seq.envs.variants import difference

    if env is not None:
        env = recorded_id(env)
        for own in recorded(episodes.info):  # another version or arguments may be meant
            found = difference(own, env)
            if found and found.kind in ("environment", "name"):
                raise UserError(f"{name}: the data say that they are from {own}, not {env}")
        others = {k: v for k, v in episodes.info.items() if k not in ("env_ids", "eval_env_id")}
        episodes.info = {**others, "env_id": env}
    folder = stored.library() / name
    with exclusive(folder.with_name(f".{name}.lock"), wait=True):
        if not folder.exists():
            write_store(folder, episodes, {"sources": sources})
            return open_folder(folder, name)
        remove_leftovers(folder.parent, name)  # of a process killed while it tidied up
        kept = stored.read(folder)
        arrays = [(getattr(kept, k), getattr(episodes, k)) for k in (*stored.COLUMNS, FINALS)]
        # either may be without final observations, which were not always kept
        if not all(_same(a, b) for a, b in arrays if a is not None and b is not None):
            raise UserError(
                f"{name}: another dataset has this name; choose another with --as, or delete "
                f"{folder}"
            )
        if kept.final_observations is None and episodes.final_observations is not None:
            add_finals(folder, episodes)
    return open_folder(folder, name)

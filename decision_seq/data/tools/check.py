"""Checking a dataset by all rules, in the environment it is from, and leaving out what is bad."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, concatenate
from decision_seq.data.finals import FINALS
from decision_seq.data.findings import SEVERITIES, Finding, Severity
from decision_seq.data.origin import recorded
from decision_seq.data.sources import npz, resolve
from decision_seq.data.store import open_folder
from decision_seq.data.tools.library import verify
from decision_seq.data.tools.rules import RULES, Env
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.envs.registry import make, named_by_data
from decision_seq.envs.variants import difference, stand_in
from decision_seq.errors import UserError
from decision_seq.files import atomic_file, write_text


def check(episodes: Episodes, env: Env | None = None) -> list[Finding]:
    """Findings of reading and of all rules, the gravest first.

    Args:
        episodes: as read, or a store, which has the same arrays.
        env: the environment they are from; without one fewer rules apply.
    """
    found = [finding for rule in RULES if (finding := rule(episodes, env))]
    found += episodes.findings
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


@dataclass(frozen=True)
class Examined:
    """One dataset and what was found in it."""

    sources: Sequence[str]
    episodes: Episodes
    findings: list[Finding]


@quiet_mujoco()
def examine(sources: Sequence[str], env: str | None = None) -> Examined:
    """Read and check one dataset made of `sources`. `env` is for those that do not name theirs."""
    episodes = read(sources)
    environment = environment_of(episodes, env)
    if env is not None:
        episodes.findings += tuple(_differing(episodes, env))
    try:
        return Examined(sources, episodes, check(episodes, environment))
    finally:
        if environment is not None:
            environment.close()


def read(sources: Sequence[str]) -> Episodes:
    """The episodes of all sources as they are, NaN included.

    Raises UserError where an imported dataset is not what was written any more."""
    readers = [resolve(source) for source in sources]
    for reader in readers:
        if reader.folder is not None:
            verify(open_folder(reader.folder, reader.name))
    return concatenate([reader.read() for reader in readers], list(sources))


def environment_of(episodes: Episodes, name: str | None) -> Env | None:
    """The environment called `name`, else the one the data name if it exists here, else None: for
    one that is gone a version that fits."""
    if name is not None:
        return make(name)
    own = named_by_data(next(iter(recorded(episodes.info)), None))
    if own is None or own.startswith("ALE/"):
        return None
    plain = episodes.observations.ndim == 2 and "observation_space" not in episodes.info
    try:
        return make(stand_in(own, episodes.observations.shape[1] if plain else None))
    except UserError:
        return None


def _differing(episodes: Episodes, env: str) -> Iterator[Finding]:
    """What `env` has other than the environments that the data say they are from."""
    for own in recorded(episodes.info):
        if found := difference(own, env):
            severity: Severity = "error" if found.certain else "warning"
            fix = "leave --env out, or give the one that they are from"
            yield Finding(severity, "environment", len(episodes.lengths), str(found), fix)


def drop_bad(examined: Examined, out: Path) -> list[dict[str, Any]]:
    """Write the episodes that no finding drops to `out` (.npz), and what was dropped and why to
    OUT.npz.dropped.json. The sources are only read.

    Returns:
        What was dropped: `{"episode", "steps", "rules"}` each, episodes counted over all sources.

    Raises:
        UserError: `out` exists or is no .npz, nothing is left, or the disk is full.
    """
    if out.suffix != ".npz":
        raise UserError(f"{out}: the cleaned copy is written as .npz; choose such a name")
    if out.exists():
        raise UserError(f"{out}: exists already; choose another name for the cleaned copy")
    sources, episodes = examined.sources, examined.episodes
    reasons: dict[int, list[str]] = {}
    for finding in examined.findings:
        for m in finding.drop:
            reasons.setdefault(m, []).append(finding.rule)
    kept = np.setdiff1d(np.arange(len(episodes.lengths)), list(reasons))
    if not len(kept):
        raise UserError(f"{', '.join(sources)}: every episode is bad; nothing would be left")
    write_npz(out, episodes, kept)
    dropped = [
        {"episode": m, "steps": int(episodes.lengths[m]), "rules": reasons[m]}
        for m in sorted(reasons)
    ]
    report = {"sources": list(sources), "kept_episodes": len(kept), "dropped": dropped}
    write_text(out.with_name(out.name + ".dropped.json"), json.dumps(report, indent=2) + "\n")
    return dropped


def write_npz(path: Path, episodes: Episodes, which: np.ndarray) -> None:
    """Write episodes `which` [m] in the .npz layout, atomically."""
    rows = np.concatenate([np.arange(episodes.offsets[m], episodes.offsets[m + 1]) for m in which])
    info = episodes.info
    meta = {theirs: info[ours] for theirs, ours in npz.META.items() if ours in info}
    meta |= {key: info[key] for key in npz.TABLES if key in info}
    first = info.get("action_start", 0)  # files hold what the environment took
    if episodes.findings:
        meta["findings"] = [finding.plain() for finding in episodes.findings]
    recorded: dict[str, Any] = {
        "incomplete_episodes": np.flatnonzero(np.isin(which, episodes.incomplete)),
        "episode_seeds": np.array(episodes.seeds, np.uint64)[which if episodes.seeds else []],
    }
    if episodes.final_observations is not None:
        recorded[FINALS] = episodes.final_observations[which]
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            observations=episodes.observations[rows],
            actions=episodes.actions[rows] + first if first else episodes.actions[rows],
            rewards=episodes.rewards[rows],
            terminations=episodes.terminated[rows],
            truncations=episodes.truncated[rows],
            meta=np.array(json.dumps(meta)),
            **{name: array for name, array in recorded.items() if len(array)},
        )

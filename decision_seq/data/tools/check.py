"""What may be wrong with a dataset that can be read: findings, each with a place and a fix.

Every rule looks at all episodes and returns at most one finding. What makes a file unreadable (a
missing key, columns of unequal length) is an error on reading already, one sentence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_seq.data.episodes import Episodes, concatenate
from decision_seq.data.sources import npz, resolve
from decision_seq.data.store import open_folder
from decision_seq.data.tools.library import verify
from decision_seq.data.tools.replay import replay_from_seeds, replay_single_steps
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.envs.registry import make, named_by_data
from decision_seq.errors import UserError
from decision_seq.files import atomic_file, write_text

ACTION_TOLERANCE = 1e-4  # float32 of a clipped action may lie this far outside
LONG_EPISODE = 100  # without an environment, episodes this long may have met a time limit
CLEAN = "write a cleaned copy with --drop-bad OUT.npz"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: `error` spoils training or fails, `warning` may mislead."""

    severity: Literal["error", "warning"]
    rule: str
    count: int
    message: str  # what and where
    fix: str
    drop: tuple[int, ...] = ()  # episodes that --drop-bad leaves out

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}; {self.fix}"


Env = gym.Env[Any, Any]
Rule = Callable[[Episodes, Env | None], Finding | None]


def check(episodes: Episodes, env: Env | None = None) -> list[Finding]:
    """Findings of all rules, errors first.

    Args:
        episodes: as read, or a store, which has the same arrays.
        env: the environment they are from; without one fewer rules apply.
    """
    found = [finding for rule in RULES if (finding := rule(episodes, env))]
    return sorted(found, key=lambda finding: finding.severity)


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
    """The environment called `name`, else the one the data name if it exists here, else None."""
    if name is not None:
        return make(name)
    own = named_by_data(episodes.info.get("env_id"))
    if own is None or own.startswith("ALE/"):
        return None
    # D4RL's v2 and v3 need mujoco-py; v4 is the same model and task
    for candidate in (own, own[:-1] + "4" if own.endswith(("-v2", "-v3")) else own):
        try:
            return make(candidate)
        except UserError:
            continue
    return None


def drop_bad(examined: Examined, out: Path) -> list[dict[str, Any]]:
    """Write the episodes that no finding drops to `out` (.npz), and what was dropped and why to
    OUT.dropped.json. The sources are only read.

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
    recorded: dict[str, Any] = {
        "incomplete_episodes": np.flatnonzero(np.isin(which, episodes.incomplete)),
        "episode_seeds": np.array(episodes.seeds, np.int64)[which if episodes.seeds else []],
    }
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            observations=episodes.observations[rows],
            actions=episodes.actions[rows],
            rewards=episodes.rewards[rows],
            terminations=episodes.terminated[rows],
            truncations=episodes.truncated[rows],
            meta=np.array(json.dumps(meta)),
            **{name: array for name, array in recorded.items() if len(array)},
        )


# ---- rules --------------------------------------------------------------------------------------


def not_finite(episodes: Episodes, _env: Env | None) -> Finding | None:
    """NaN and infinity in observations, actions or rewards."""
    places, bad, count = [], [], 0
    for name in ("observations", "actions", "rewards"):
        array = getattr(episodes, name)
        if array.dtype.kind != "f":
            continue
        flat = array.reshape(len(array), -1)
        rows, columns = np.nonzero(~np.isfinite(flat))
        count += len(rows)
        bad.append(rows)
        for row, column in list(zip(rows, columns, strict=True))[:3]:
            places.append(f"{name} column {column} at {place(episodes, row)}")
    if not count:
        return None
    drop = episodes_of(episodes, np.concatenate(bad))
    return Finding(
        "error",
        "not-finite",
        count,
        f"{count} numbers are NaN or infinite, in {len(drop)} episodes ({'; '.join(places[:3])})",
        CLEAN,
        drop,
    )


def misfit(episodes: Episodes, env: Env | None) -> Finding | None:
    """Widths and kinds of observations and actions that are not the environment's."""
    if env is None:
        return None
    name = env.spec.id if env.spec else "the environment"
    fix = "name the environment that the data came from with --env"
    shape = env.observation_space.shape
    if shape != episodes.observations.shape[1:]:
        found = f"observations have shape {episodes.observations.shape[1:]}, {name} gives {shape}"
    elif isinstance(env.action_space, spaces.Discrete) != (episodes.actions.ndim == 1):
        kind = "numbers" if episodes.actions.ndim == 1 else "vectors"
        found = f"actions are {kind}, {name} takes {env.action_space}"
    elif episodes.actions.ndim == 2 and episodes.actions.shape[1:] != env.action_space.shape:
        width = episodes.actions.shape[1]
        found = f"actions have width {width}, {name} takes {env.action_space.shape}"
    else:
        return None
    return Finding("error", "misfit", len(episodes.lengths), found, fix)


def actions_outside(episodes: Episodes, env: Env | None) -> Finding | None:
    """Actions beyond the environment's space; without one, beyond [-1, 1]."""
    actions = episodes.actions
    space = env.action_space if env is not None else None
    if actions.ndim == 1:
        if not isinstance(space, spaces.Discrete):
            return None
        low, high = int(space.start), int(space.start + space.n - 1)
        beyond: np.ndarray = (actions < low) | (actions > high)
        kind: Literal["error", "warning"] = "error"
        limits, fix = f"{low} to {high}", CLEAN
    else:
        fits = isinstance(space, spaces.Box) and space.shape == actions.shape[1:]
        lower = space.low if fits else np.full(actions.shape[1], -1.0)  # type: ignore[union-attr]
        upper = space.high if fits else np.full(actions.shape[1], 1.0)  # type: ignore[union-attr]
        excess = np.maximum(lower - actions, actions - upper).max(axis=1)
        beyond = (excess > ACTION_TOLERANCE) & np.isfinite(excess)  # NaN is another rule's
        kind = "warning"
        limits = f"[{lower.min():g}, {upper.max():g}]"
        fix = "they are scaled into the range for training; record what the environment was given"
    if not beyond.any():
        return None
    first = int(beyond.argmax())
    count = int(beyond.sum())
    return Finding(
        kind,
        "actions-outside",
        count,
        f"{count} actions lie outside {limits}, first at {place(episodes, first)}",
        fix,
        episodes_of(episodes, np.flatnonzero(beyond)) if kind == "error" else (),
    )


def both_ends(episodes: Episodes, _env: Env | None) -> Finding | None:
    """Last steps that are both terminated and truncated."""
    both = np.flatnonzero(episodes.terminated & episodes.truncated)
    if not len(both):
        return None
    return Finding(
        "warning",
        "both-ends",
        len(both),
        f"{len(both)} episodes are both terminated and truncated, first at "
        f"{place(episodes, both[0])}",
        "they count as terminated; set one of the flags",
    )


def without_end(episodes: Episodes, _env: Env | None) -> Finding | None:
    """Episodes whose recording stops with neither flag."""
    incomplete = getattr(episodes, "incomplete", ())
    if not incomplete:
        return None
    return Finding(
        "warning",
        "without-end",
        len(incomplete),
        f"{len(incomplete)} episodes are incomplete: they end with neither terminated nor "
        f"truncated, first episode {incomplete[0]} after {episodes.lengths[incomplete[0]]} steps",
        "they count as truncated; leave them out if the recording was cut off",
    )


def time_limit(episodes: Episodes, env: Env | None) -> Finding | None:
    """Time limits recorded as terminations: the trap of D4RL's first files."""
    lengths, ends = episodes.lengths, episodes.offsets[1:] - 1
    limit = env.spec.max_episode_steps if env is not None and env.spec else None
    longest = int(lengths.max())
    suspect = limit or (longest if longest >= LONG_EPISODE else 0)
    at_limit = np.flatnonzero(lengths == suspect)
    marked = at_limit[episodes.terminated[ends[at_limit]] & ~episodes.truncated[ends[at_limit]]]
    # one in half of them may be chance; an environment that ends there by itself names no limit
    if len(marked) < 2 or 2 * len(marked) < len(at_limit):
        return None
    known = "the environment's time limit" if limit else "the greatest length"
    return Finding(
        "warning",
        "time-limit",
        len(marked),
        f"{len(marked)} of {len(at_limit)} episodes of {suspect} steps, {known}, end as "
        f"terminated, first episode {marked[0]}",
        "if that was the time limit, record them as truncated",
    )


def too_long(episodes: Episodes, env: Env | None) -> Finding | None:
    """Episodes longer than the environment allows: ends that were not recorded."""
    limit = env.spec.max_episode_steps if env is not None and env.spec else None
    if limit is None or not (episodes.lengths > limit).any():
        return None
    beyond = np.flatnonzero(episodes.lengths > limit)
    return Finding(
        "error",
        "too-long",
        len(beyond),
        f"{len(beyond)} episodes are longer than the environment's {limit} steps, first episode "
        f"{beyond[0]} with {episodes.lengths[beyond[0]]}",
        "their ends were not recorded: mark the last step of each as truncated",
        tuple(int(m) for m in beyond),
    )


def repeats(episodes: Episodes, _env: Env | None) -> Finding | None:
    """Episodes that are copies of earlier ones, step by step."""
    first: dict[bytes, int] = {}
    copies = []
    for m, (start, stop) in enumerate(
        zip(episodes.offsets[:-1], episodes.offsets[1:], strict=True)
    ):
        digest = hashlib.blake2b()
        for array in (episodes.observations, episodes.actions, episodes.rewards):
            digest.update(np.ascontiguousarray(array[start:stop]).data)
        original = first.setdefault(digest.digest(), m)
        if original != m:
            copies.append((m, original))
    if not copies:
        return None
    return Finding(
        "warning",
        "repeat",
        len(copies),
        f"{len(copies)} episodes repeat an earlier one step by step, first episode {copies[0][0]} "
        f"repeats episode {copies[0][1]}",
        CLEAN + ", or training and validation share them",
        tuple(m for m, _ in copies),
    )


def replayed(episodes: Episodes, env: Env | None) -> Finding | None:
    """Recorded transitions against the simulator's own."""
    if env is None or misfit(episodes, env):
        return None
    found = replay_from_seeds(episodes, env) or replay_single_steps(episodes, env)
    if found is None:
        return None
    severity, count, message = found
    return Finding(
        severity,
        "replay",
        count,
        message,
        "name the right environment with --env; if it is right, look for observations or rewards "
        "that were normalised, actions that are off by one step, or another simulator version",
    )


RULES: tuple[Rule, ...] = (
    not_finite,
    misfit,
    actions_outside,
    both_ends,
    without_end,
    time_limit,
    too_long,
    repeats,
    replayed,
)


def place(episodes: Episodes, row: int | np.integer[Any]) -> str:
    """`episode 3, step 17` of a row."""
    episode = int(np.searchsorted(episodes.offsets, row, side="right")) - 1
    return f"episode {episode}, step {int(row) - int(episodes.offsets[episode])}"


def episodes_of(episodes: Episodes, rows: np.ndarray) -> tuple[int, ...]:
    """Sorted indices of the episodes that `rows` belong to."""
    found = np.searchsorted(episodes.offsets, rows, side="right") - 1
    return tuple(int(m) for m in np.unique(found))

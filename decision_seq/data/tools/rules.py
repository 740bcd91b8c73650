"""What may be wrong with a dataset that can be read: rules, each with at most one finding.

Every rule looks at all episodes. What makes a file unreadable (a missing key, columns of unequal
length) is an error on reading already, one sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_seq.data.columns import constant
from decision_seq.data.episodes import Episodes, describe, numbers_of
from decision_seq.data.findings import Finding, Severity
from decision_seq.data.origin import recorded
from decision_seq.data.tools.replay import replay_from_seeds, replay_single_steps
from decision_seq.envs.registry import identity_of, named_by_data
from decision_seq.envs.variants import fitting
from decision_seq.spaces.steps import StepForm, alike
from decision_seq.spaces.table import Table, from_json

ACTION_TOLERANCE = 1e-4  # float32 of a clipped action may lie this far outside
LONG_EPISODE = 100  # without an environment, episodes this long may have met a time limit
BRIEF = 2  # steps of an episode that is hardly one
CLEAN = "write a cleaned copy with --drop-bad OUT.npz"

Env = gym.Env[Any, Any]
Rule = Callable[[Episodes, Env | None], Finding | None]


def not_finite(episodes: Episodes, _env: Env | None) -> Finding | None:
    """NaN, infinity and what float32 cannot hold in observations, actions or rewards."""
    places, bad, count = [], [], 0
    for name, array in numbers_of(episodes):
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
        f"{count} numbers are NaN or infinite in float32, in {len(drop)} episodes "
        f"({'; '.join(places[:3])})",
        CLEAN,
        drop,
    )


def misfit(episodes: Episodes, env: Env | None) -> Finding | None:
    """Widths and kinds of observations and actions that are not the environment's."""
    if env is None:
        return None
    name = str(identity_of(env.spec)) if env.spec else "the environment"
    fix = "name the environment that the data came from with --env"
    form, seen = StepForm(env), episodes.observations
    own_actions = table_in(episodes.info, "action_space")
    if not form.holds(seen) or not fits(table_in(episodes.info, "observation_space"), form):
        found = f"observations are {describe(seen)}, {name} gives {form.observations}"
        own = named_by_data(next(iter(recorded(episodes.info)), None))
        width = seen.shape[1] if seen.ndim == 2 else 0
        if width and (variant := fitting(own, name, width)):
            fix = f"{variant} gives that shape: use it with --env and in the config"
    elif form.discrete != (episodes.actions.ndim == 1):
        kind = "numbers" if episodes.actions.ndim == 1 else "vectors"
        found = f"actions are {kind}, {name} takes {env.action_space}"
    elif own_actions and not alike(own_actions, form.actions):
        found = f"actions are {own_actions}, {name} takes {form.actions}"
    elif not form.discrete and episodes.actions.shape[1] != form.actions.width:
        found = f"actions have width {episodes.actions.shape[1]}, {name} takes {env.action_space}"
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
        actions = actions + episodes.info.get("action_start", 0)
        beyond: np.ndarray = (actions < low) | (actions > high)
        kind: Severity = "error"
        limits, fix = f"{low} to {high}", CLEAN
    else:
        table = table_in(episodes.info, "action_space")
        lower, upper = np.full((2, actions.shape[1]), [[-1.0], [1.0]])
        if space is not None and StepForm(env).actions.width == actions.shape[1]:
            lower, upper = StepForm(env).limits()
        elif table is not None and not all(leaf.scaled for leaf in table.numbers):
            return None  # choices were compared with their counts when they were read
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


def both_ends(episodes: Episodes, env: Env | None) -> Finding | None:
    """Last steps that are both terminated and truncated, other than at the time limit, where the
    environment may have ended the episode by itself."""
    limit = _limit(env) or int(episodes.lengths.max())
    early = episodes.offsets[1:][episodes.lengths < limit] - 1
    both = early[episodes.terminated[early] & episodes.truncated[early]]
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
    limit = _limit(env)
    longest = int(lengths.max())
    suspect = limit or (longest if longest >= LONG_EPISODE else 0)
    at_limit = np.flatnonzero(lengths == suspect)
    marked = at_limit[episodes.terminated[ends[at_limit]] & ~episodes.truncated[ends[at_limit]]]
    # one in half of them may be chance; an environment that ends there by itself names no limit
    if len(marked) < 2 or 2 * len(marked) < len(at_limit):
        return None
    if limit is None and clusters(episodes, env):  # the longest go up to the first of a cluster
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
    limit = _limit(env)
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


def clusters(episodes: Episodes, _env: Env | None) -> Finding | None:
    """Terminals at step after step, as in D4RL's antmaze near the goal: each ends an episode."""
    lengths, ends = episodes.lengths, episodes.offsets[1:] - 1
    brief = lengths <= max(BRIEF, int(lengths.max()) // 100)
    others = lengths[~brief]
    after = brief[1:] & episodes.terminated[ends[:-1]]  # begins where the one before terminated
    if after.sum() < 2 or 3 * brief.sum() < len(lengths):
        return None
    if not len(others) or np.median(others) < 10 * BRIEF:  # episodes are short in this environment
        return None
    longest = int(lengths[brief].max())
    steps = "one step" if longest == 1 else f"{longest} steps or fewer"
    return Finding(
        "warning",
        "clusters",
        int(brief.sum()),
        f"{int(brief.sum())} of {len(lengths)} episodes have {steps}, first episode "
        f"{int(brief.argmax())}: terminals are set again and again, as at every step near the goal "
        "in D4RL's antmaze, and each counts as an episode's end",
        "keep the terminal at a trajectory's last step alone (in antmaze files: set `terminals` to "
        "0 and let `timeouts` end the episodes)",
    )


def arguments(episodes: Episodes, _env: Env | None) -> Finding | None:
    """Environments that are made with arguments, which a config has to name as well."""
    for own in recorded(episodes.info):
        if "?" in own:
            message = f"the data are of {own}, an environment made with arguments"
            return Finding("note", "arguments", 1, message, f"train and evaluate with env: {own}")
    return None


def constants(episodes: Episodes, _env: Env | None) -> Finding | None:
    """Observation columns that never change."""
    return constant(episodes)


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
        # what two seeds gave was recorded twice, and is no copy
        if original != m and (not episodes.seeds or episodes.seeds[m] == episodes.seeds[original]):
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
    clusters,
    time_limit,
    too_long,
    repeats,
    replayed,
    constants,
    arguments,
)


def _limit(env: Env | None) -> int | None:
    """Steps after which the environment ends an episode, where that is known."""
    return env.spec.max_episode_steps if env is not None and env.spec else None


def table_in(info: Mapping[str, Any], key: str) -> Table | None:
    """The table of observations or actions that `info` names."""
    return from_json(info[key], key) if key in info else None


def fits(table: Table | None, form: StepForm) -> bool:
    """Whether observations of `table` are the environment's; unknown ones are by their shape."""
    return table is None or form.stacked or alike(table, form.observations)


def place(episodes: Episodes, row: int | np.integer[Any]) -> str:
    """`episode 3, step 17` of a row."""
    episode = int(np.searchsorted(episodes.offsets, row, side="right")) - 1
    return f"episode {episode}, step {int(row) - int(episodes.offsets[episode])}"


def episodes_of(episodes: Episodes, rows: np.ndarray) -> tuple[int, ...]:
    """Sorted indices of the episodes that `rows` belong to."""
    found = np.searchsorted(episodes.offsets, rows, side="right") - 1
    return tuple(int(m) for m in np.unique(found))

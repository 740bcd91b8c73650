"""Flat arrays under the names that others give them, one row a step, as episodes.

Ends go by `terminations`, `terminals` or `terminated` and `truncations`, `timeouts` or `truncated`;
`dones` do not say which of both. Where there is none of the latter, an episode also ends where
`next_observations` are not the next row. Rewards may be missing: such data can be imitated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.findings import Finding
from decision_seq.errors import UserError

NAMES = {  # ours: theirs
    "observations": ("observations", "obs", "states"),
    "actions": ("actions", "acts"),
    "rewards": ("rewards",),
    "terminations": ("terminations", "terminals", "terminated"),
    "truncations": ("truncations", "timeouts", "truncated"),
    "dones": ("dones", "done"),
    "next_observations": ("next_observations", "next_obs"),
}
NO_REWARDS = Finding(
    "note", "no-rewards", 1, "it has no rewards",
    "agents that imitate (agent.preset: bc, or kind behaviour_cloning) can be trained on it",
)  # fmt: skip
WITHOUT = {"rewards": "none"}  # of a dataset's info


def names_in(keys: Mapping[str, Any] | set[str]) -> dict[str, str]:
    """Which of `keys` holds what, by our names."""
    found = {ours: [n for n in theirs if n in keys] for ours, theirs in NAMES.items()}
    return {ours: names[0] for ours, names in found.items() if names}


def check_keys(source: str, keys: Any) -> None:
    """Raise UserError where `keys` lack what every dataset has, or hold no end of episodes."""
    found, there = names_in(set(keys)), ", ".join(map(str, keys))[:200]
    for needed in ("observations", "actions"):
        if needed not in found:
            raise UserError(
                f"{source}: key `{needed}` is missing (found {there}); a dataset needs "
                "observations, actions, rewards, terminations, truncations"
            )
    if not {"terminations", "truncations", "dones", "next_observations"} & found.keys():
        raise UserError(
            f"{source}: nothing says where episodes end (found {there}); give `terminations`, 1 "
            "where the environment ended one, and `truncations`, 1 where a time limit did"
        )


def from_keys(
    source: str,
    arrays: Mapping[str, np.ndarray],
    info: dict[str, Any],
    finals: np.ndarray | None = None,
) -> Episodes:
    """Episodes of `arrays` by their names (see above), with `finals` [M, ...] or those of their
    `next_observations` that follow episodes. Raises UserError where they do not fit."""
    check_keys(source, arrays)
    names = names_in(set(arrays))
    one = {ours: arrays[theirs] for ours, theirs in names.items()}
    steps = one["observations"].shape[0] if one["observations"].ndim else 0
    findings: list[Finding] = []
    rewards = one.get("rewards")
    if rewards is None:
        rewards, info = np.zeros(steps, np.float32), info | WITHOUT
        findings.append(NO_REWARDS)
    terminated, truncated, guesses = _ends(one, names, steps, "rewards" in one)
    after = one.get("next_observations") if finals is None else finals
    flat = from_flat(
        source, one["observations"], one["actions"], rewards, terminated, truncated, info, after
    )
    return replace(flat, findings=(*flat.findings, *findings, *guesses))


def _ends(
    one: Mapping[str, np.ndarray], names: Mapping[str, str], steps: int, rewarded: bool
) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    """Terminated [N], truncated [N], and what had to be guessed."""
    none = np.zeros(steps, bool)
    terminated, truncated = one.get("terminations"), one.get("truncations")
    if truncated is not None:
        return none if terminated is None else terminated, truncated, []
    findings = []
    if terminated is None and "dones" in one:
        terminated = one["dones"]
        findings.append(_guess(
            f"`{names['dones']}` do not say whether the environment ended an episode or a time "
            "limit did; all count as terminated", "write `terminations` and `truncations`"
        ))  # fmt: skip
    elif terminated is not None and not rewarded:  # as in OGBench, where nothing ends an episode
        return none, terminated, []
    if terminated is None:
        terminated = none
    breaks = _breaks(one, terminated) if "next_observations" in one else none
    if breaks.any():
        findings.append(_guess(
            f"{int(breaks.sum())} episodes end where `next_observations` are not the next row",
            "write `truncations` where a time limit ended them",
        ))  # fmt: skip
    elif not findings:
        findings.append(_guess(
            f"episodes end at `{names.get('terminations', 'the last row')}` alone",
            "if there was a time limit, episodes run into one another: write `timeouts`",
        ))  # fmt: skip
    return terminated, breaks, findings


def _breaks(one: Mapping[str, np.ndarray], terminated: np.ndarray) -> np.ndarray:
    """[N] bool: rows whose `next_observations` are not the next row's observations, where the
    environment did not end the episode."""
    seen, after = one["observations"], one["next_observations"]
    breaks = np.zeros(len(seen), bool)
    if after.shape == seen.shape:
        same = (after[:-1] == seen[1:]).reshape(len(seen) - 1, -1).all(axis=1)
        breaks[:-1] = ~same
    return breaks & (np.asarray(terminated).reshape(-1) == 0)


def _guess(message: str, fix: str) -> Finding:
    return Finding("warning", "assumed-ends", 1, message, fix)

"""Looking at a dataset: its summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.columns import constant
from decision_seq.data.origin import recorded
from decision_seq.data.store import EpisodeStore
from decision_seq.envs.reference_scores import scaled, scoring
from decision_seq.envs.registry import typed
from decision_seq.errors import UserError
from decision_seq.files import write_text


def summarize(store: EpisodeStore, env: str | None = None) -> dict[str, Any]:
    """Name, hash, the environments that the data say they are from, sizes, returns and lengths.
    Normalized scores where references exist: the data's own, or those of `env`, which the data are
    used for."""
    own = recorded(store.info)
    returns = store.episode_returns.astype(np.float64)
    mean = float(returns.mean())
    scores = scoring(env or next(iter(own), ""), own_references(store.info))
    return {
        "name": store.name,
        "hash": store.hash,
        "env_id": ", ".join(map(typed, own)) or None,
        "episodes": store.episodes,
        "steps": store.steps,
        "observation_shape": list(store.observations.shape[1:]),
        **({"observations": str(store.observation_table)} if store.observation_table else {}),
        "actions": str(store.action_table)
        if store.action_table
        else f"{store.action_dim} {'discrete' if store.discrete else 'continuous'}",
        "return_mean": mean,
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "length_mean": float(store.lengths.mean()),
        "terminated": int(store.terminated.sum()),
        "truncated": int(store.truncated.sum()),
        "normalized_score_mean": scaled(mean, next(iter(scores.values()), None)),
    }


def remarks(store: EpisodeStore) -> list[str]:
    """Sentences on what whoever trains on the data should know: constant columns, and what had to
    be guessed or could not be kept on reading."""
    found = [*store.findings, *filter(None, [constant(store)])]
    return [f"{store.name}: {finding}" for finding in found]


def own_references(info: Mapping[str, Any]) -> tuple[float, float] | None:
    """(random, expert) return that a dataset names in its `info`."""
    low, high = (info.get(key) for key in ("ref_min_score", "ref_max_score"))
    return None if low is None or high is None else (float(low), float(high))


def write_summary(path: Path, store: EpisodeStore, env: str | None) -> None:
    """The summary and every episode's return as JSON, for evaluation in `env`, if there is one, and
    for reports."""
    returns = [round(float(r), 3) for r in store.episode_returns]
    kept = {k: store.info[k] for k in ("ref_min_score", "ref_max_score") if k in store.info}
    write_text(path, json.dumps(summarize(store, env) | kept | {"returns": returns}))


def read_summary(path: Path) -> dict[str, Any]:
    """What `write_summary` wrote. Raises UserError if it is missing or damaged."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        str(summary["name"]), str(summary["hash"])
        float(summary["return_mean"]), [float(r) for r in summary["returns"]]
        return summary
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is missing or damaged; train the run again") from None

"""Datasets written for others to read: one .npz file, or a Minari dataset."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.data.episodes import Episodes
from decision_seq.data.finals import FINALS
from decision_seq.data.sources import minari_dataset
from decision_seq.data.store import EpisodeStore
from decision_seq.data.tools.check import write_npz
from decision_seq.data.tools.collect import HEADER, check_id, temporary_storage
from decision_seq.envs import registry
from decision_seq.errors import UserError, say_once
from decision_seq.files import check_space


def to_npz(store: EpisodeStore, out: str) -> None:
    """Write one .npz file, as sources/npz.py reads it. Raises UserError if it exists."""
    path = Path(out)
    if path.suffix != ".npz":
        raise UserError(f"{out}: give a name that ends in .npz")
    if path.exists():
        raise UserError(f"{out}: exists already; choose another --out")
    columns = ("observations", "actions", "rewards", "terminated", "truncated", "offsets")
    recorded = ("info", "incomplete", "seeds", "findings", FINALS)
    episodes = Episodes(**{key: getattr(store, key) for key in (*columns, *recorded)})
    write_npz(path, episodes, np.arange(store.episodes))


def to_minari(store: EpisodeStore, out: str) -> None:
    """Write a dataset into Minari's local storage. Raises UserError if the id is bad or taken.

    Minari keeps one observation more than there are actions; where a store does not have what
    followed an episode's last action, its last observation stands there twice. An episode that came
    with no end has none there either.
    """
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    check_id(out)
    first = store.info.get("action_start", 0)  # what the environment calls the first action
    truncated = np.array(store.truncated)
    truncated[store.offsets[1:][list(store.incomplete)] - 1] = False
    after = store.final_observations
    buffers = (  # made as they are written: frames need not fit into memory
        EpisodeBuffer(
            id=number,
            seed=store.seeds[number] if store.seeds else None,
            observations=np.concatenate(
                [
                    store.observations[a:b],
                    store.observations[b - 1 : b] if after is None else after[number : number + 1],
                ]
            ),
            actions=store.actions[a:b] + first if first else np.array(store.actions[a:b]),
            rewards=store.rewards[a:b].tolist(),
            terminations=store.terminated[a:b].tolist(),
            truncations=truncated[a:b].tolist(),
        )
        for number, (a, b) in enumerate(pairwise(store.offsets))
    )
    target = minari_dataset.folder(out)
    said = "".join(f" {finding}" for finding in store.findings)
    arrays = (store.observations, store.actions, store.rewards)
    check_space(target, sum(a.nbytes for a in arrays) + 6 * HEADER * store.episodes + 1_000_000)
    scores = {k: store.info[k] for k in ("ref_min_score", "ref_max_score") if k in store.info}
    with temporary_storage(target) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about e-mail and permalink of an author
        minari.create_dataset_from_buffers(
            out,
            buffers,
            description=f"Exported by decision-seq from {store.name}.{said}",
            author="decision-seq",
            jpeg_encoding=False,
            **_environment(store),
            **scores,
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(temporary / out, target)


def _environment(store: EpisodeStore) -> dict[str, Any]:
    """The environment where it exists here and fits, and the spaces, from the data if need be. Says
    so where data name one that is left out: a module that data name is not imported."""
    from gymnasium import spaces

    found: dict[str, Any] = {}
    recorded = store.info.get("env_id")  # none, if sources differ
    name = registry.named_by_data(recorded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if name is None:
                raise KeyError
            env = registry.make(name)
            env.close()
            if env.observation_space.shape == store.observations.shape[1:] and env.spec:
                found = {"env": registry.writable(env.spec)}
        except (UserError, KeyError):
            pass
    if recorded is not None and not found:
        say_once(
            f"{store.name}: its environment {recorded} is not written: it cannot be made here or "
            "has other observations; name it when you train on the data (--set env=...)"
        )
    dtype = store.observations.dtype.type
    low, high = (0, 255) if dtype is np.uint8 else (-np.inf, np.inf)
    found["observation_space"] = spaces.Box(low, high, store.observations.shape[1:], dtype)
    if store.discrete:
        start = store.info.get("action_start", 0)
        found["action_space"] = spaces.Discrete(store.action_dim, start=start)
    else:
        bound = 1.0 if np.abs(store.actions).max() <= 1 else np.inf
        found["action_space"] = spaces.Box(-bound, bound, store.actions.shape[1:], np.float32)
    return found


EXPORTERS: dict[str, Callable[[EpisodeStore, str], None]] = {"npz": to_npz, "minari": to_minari}

"""Minari datasets, local or fetched by Minari from its remote storage, by id.

`hf://OWNER/ID` and `gcp://BUCKET/ID` name the remote storage as well: Hugging Face or Google Cloud.
A dataset that is in the local storage is never fetched again.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.findings import Finding
from decision_seq.data.frames import array_on_disk, release, single_frames
from decision_seq.data.sources.episode_list import HAND_OVER, check_alike, end_to_end
from decision_seq.envs.registry import identity_of
from decision_seq.errors import UserError

ID = re.compile(r"([\w-]+/)*[\w-]+-v\d+")
REMOTE = re.compile(r"(?:hf|gcp)://[^/]+/(.+)")
ONLY_WATCH = ("RecordEpisodeStatistics", "RecordVideo", "HumanRendering", "RenderCollection")


def is_id(name: str) -> bool:
    """Whether `name` has the form namespace/dataset-v0."""
    return ID.fullmatch(name) is not None


def id_of(source: str) -> str | None:
    """The dataset's id in `namespace/dataset-v0` or `hf://owner/namespace/dataset-v0`, or None."""
    remote = REMOTE.fullmatch(source)
    name = remote[1] if remote else source
    return name if is_id(name) else None


def local_ids() -> list[str]:
    """Ids of the datasets in Minari's local storage."""
    import minari

    try:
        folder("")
        return sorted(minari.list_local_datasets())
    except (OSError, ValueError, UserError):
        return []


def local_summary() -> str:
    """`local: a-v0, b-v0`, for messages."""
    return "local: " + (", ".join(local_ids()[:8]) or "none")


def folder(dataset_id: str) -> Path:
    """Where Minari keeps, or would keep, a dataset. The empty id gives the storage's root.

    Raises UserError where Minari, which makes its root when asked for it, cannot.
    """
    from minari.storage.local import get_dataset_path

    fix = "set MINARI_DATASETS_PATH to a folder that can be written"
    if "MINARI_DATASETS_PATH" not in os.environ and os.path.expanduser("~") == "~":
        raise UserError(f"this user has no home folder for Minari's datasets; {fix}")
    try:
        return Path(get_dataset_path(dataset_id))
    except OSError as error:
        raise UserError(
            f"Minari's datasets: {error.filename} cannot be made ({error.strerror}); {fix}"
        ) from None


def files(dataset_id: str, source: str | None = None) -> list[Path]:
    """The dataset's files, downloaded first if it is not local. `source` is what to ask Minari
    for, if that is more than the id.

    Raises UserError if the id is known neither here nor, as far as one can ask, remotely.
    """
    if not is_local(dataset_id):
        _download(dataset_id, source or dataset_id)
    data = folder(dataset_id) / "data"
    return sorted(path for path in data.rglob("*") if path.is_file())


def is_local(dataset_id: str) -> bool:
    """Whether the dataset is in Minari's local storage; not if there can be none."""
    try:
        return (folder(dataset_id) / "data").is_dir()
    except UserError:
        return False


def read(dataset_id: str) -> Episodes:
    """Read a local dataset. Raises UserError if it is damaged or its spaces are not plain."""
    import minari

    try:
        dataset = minari.load_dataset(dataset_id)
        episodes, frames = _episodes(dataset_id, dataset)
        metadata = dataset.storage.metadata
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{dataset_id}: Minari cannot read it ({' '.join(str(error).split())}); delete it with "
            f"`minari delete {dataset_id}` and fetch or collect it again"
        ) from None
    if not episodes:
        raise UserError(f"{dataset_id}: has no episodes; an empty dataset trains nothing")
    for episode in episodes:
        if not isinstance(episode.observations, np.ndarray) or not isinstance(
            episode.actions, np.ndarray
        ):
            raise UserError(
                f"{dataset_id}: observations or actions are not plain arrays; only Box and "
                "Discrete spaces are supported: lay the parts of a step end to end, and "
                f"{HAND_OVER}"
            )
        if len(episode.rewards) == 0:
            raise UserError(f"{dataset_id}: episode {episode.id} has no steps; remove it")
        _check_episode(f"{dataset_id}: episode {episode.id}", episode, episodes[0])
    keys = ("ref_min_score", "ref_max_score")
    scores = {key: float(metadata[key]) for key in keys if metadata.get(key) is not None}
    info: dict[str, Any] = scores | _environments(dataset)
    if isinstance(dataset.action_space, spaces.Discrete):
        info["action_count"] = int(dataset.action_space.n)
        info["action_start"] = int(dataset.action_space.start)
    ends = np.cumsum([len(e.rewards) for e in episodes]) - 1
    terminated, truncated = np.zeros((2, ends[-1] + 1), bool)
    terminated[ends] = [e.terminations[-1] for e in episodes]
    # an episode that Minari cut off without either flag was stopped by whoever recorded it
    truncated[ends] = [e.truncations[-1] or not e.terminations[-1] for e in episodes]
    flat = from_flat(
        dataset_id,
        end_to_end([e.observations[: len(e.rewards)] for e in episodes])
        if frames is None
        else frames,
        end_to_end([e.actions for e in episodes]),
        end_to_end([e.rewards for e in episodes]),
        terminated,
        truncated,
        info,
    )
    incomplete = [
        m for m, e in enumerate(episodes) if not (e.truncations[-1] or e.terminations[-1])
    ]
    seeds = [e.get("seed") for e in dataset.storage.get_episode_metadata(dataset.episode_indices)]
    return dataclasses.replace(
        flat,
        incomplete=tuple(incomplete),
        seeds=whole_numbers(seeds),
        findings=(*flat.findings, *_ends_within(episodes), *_wrapped(dataset.env_spec)),
    )


def _environments(dataset: Any) -> dict[str, str]:
    """The environment that the data are from, and the one to evaluate in where it is another."""
    specs = {"env_id": dataset.env_spec, "eval_env_id": getattr(dataset, "_eval_env_spec", None)}
    found = {key: str(identity_of(spec)) for key, spec in specs.items() if spec is not None}
    if found.get("eval_env_id") == found.get("env_id"):
        found.pop("eval_env_id", None)
    return found


def _wrapped(spec: EnvSpec | None) -> Iterator[Finding]:
    """What to say where the environment had wrappers around it that change what an agent meets."""
    names = [wrapper.name for wrapper in spec.additional_wrappers] if spec else []
    if names := [name for name in names if name not in ONLY_WATCH]:
        yield Finding(
            "warning",
            "wrappers",
            len(names),
            f"the environment was recorded through wrappers ({', '.join(names)}), which one made "
            "by its id does not have",
            "register an environment with them in a module of yours and name it, `module:Id-v0`",
        )


def _episodes(dataset_id: str, dataset: Any) -> tuple[list[Any], np.ndarray | None]:
    """All episodes. If they hold frames, these are on disk, one a step end to end, [N, H, W]."""
    episodes, frames, row = [], None, 0
    for episode in dataset.iterate_episodes():
        seen, steps = episode.observations, len(episode.rewards)
        if isinstance(seen, np.ndarray) and seen.dtype == np.uint8 and seen.ndim > 2:
            seen = single_frames(dataset_id, seen[:steps])
            if frames is None:
                frames = array_on_disk((int(dataset.total_steps), *seen.shape[1:]))
            check_alike(f"{dataset_id}: episode {episode.id}", "observations", seen, frames)
            frames[row : row + steps] = seen
            release(frames)
            episode = dataclasses.replace(episode, observations=frames[row : row + steps])
        episodes.append(episode)
        row += steps
    return episodes, frames


def _check_episode(place: str, episode: Any, first: Any) -> None:
    """Raise UserError where an episode's arrays differ in length, or in kind from the first's."""
    steps = len(episode.rewards)
    for key in ("actions", "terminations", "truncations"):
        if len(getattr(episode, key)) != steps:
            raise UserError(
                f"{place}: `{key}` has {len(getattr(episode, key))} rows but `rewards` has {steps}"
            )
    if len(episode.observations) < steps:
        raise UserError(
            f"{place}: `observations` has {len(episode.observations)} rows but `rewards` has "
            f"{steps}"
        )
    for key in ("observations", "actions"):
        check_alike(place, key, getattr(episode, key), getattr(first, key))


def _ends_within(episodes: list[Any]) -> list[Finding]:
    """Flags before an episode's last step, which end nothing."""
    flagged = [
        m for m, e in enumerate(episodes) if e.terminations[:-1].any() or e.truncations[:-1].any()
    ]
    if not flagged:
        return []
    return [
        Finding(
            "warning",
            "ends-within",
            len(flagged),
            f"{len(flagged)} episodes have terminations or truncations set before their last step, "
            f"first episode {flagged[0]}",
            "they go on to their last step here; if they ended where the flag is, cut them there",
        )
    ]


def whole_numbers(seeds: list[Any]) -> tuple[int, ...]:
    """The seeds if every episode has one; Minari writes the text `None` for those without."""
    kept = [int(s) for s in seeds if isinstance(s, int | np.integer)]
    return tuple(kept) if len(kept) == len(seeds) else ()


def _download(dataset_id: str, source: str) -> None:
    import minari

    if made := re.fullmatch(r"decision-seq/(.+)/(.+)-v0", source):  # what `collect` calls its own
        raise UserError(
            f"{source}: has not been collected yet ({local_summary()}); run "
            f"`decision-seq collect {made[1]} {made[2]}`"
        )
    try:
        minari.download_dataset(source)
    # Minari's remotes raise errors of several network libraries, which share no base class
    except Exception as error:
        missing = f": {error}" if isinstance(error, ImportError) else ""
        raise UserError(
            f"{source}: is not in Minari's local storage ({local_summary()}) and could not be "
            f"downloaded ({type(error).__name__}{missing}); on a machine with a network run "
            f"`minari download {source}`, then copy its folder to {folder(dataset_id)}"
        ) from None

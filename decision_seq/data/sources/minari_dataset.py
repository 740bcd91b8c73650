"""Minari datasets, local or fetched by Minari from its remote storage, by id.

`hf://OWNER/ID` and `gcp://BUCKET/ID` name the remote storage as well: Hugging Face or Google Cloud.
A dataset that is in the local storage is never fetched again.
"""

from __future__ import annotations

import dataclasses
import json
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
from decision_seq.data.frames import array_on_disk, is_vector, release, single_frames
from decision_seq.data.sources.episode_list import check_alike, end_to_end
from decision_seq.envs.registry import identity_of
from decision_seq.errors import UserError
from decision_seq.spaces.table import table_of, to_json

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


def local() -> dict[str, dict[str, Any]]:
    """The datasets in Minari's local storage, by id what Minari says of each.

    Minari's own listing fails on a folder whose name is no id, such as a dataset put aside.
    """
    try:
        root = folder("")
        return {name: json.loads(_metadata(root, name).read_text()) for name in sorted(_ids(root))}
    except (OSError, ValueError, UserError):
        return {}


def _ids(root: Path, name: str = "") -> Iterator[str]:
    if is_id(name) and _metadata(root, name).is_file():
        yield name
    elif not (root / name / "data").is_dir():
        for path in (root / name).iterdir():
            if path.is_dir() and not path.name.startswith("."):
                yield from _ids(root, f"{name}/{path.name}".lstrip("/"))


def _metadata(root: Path, name: str) -> Path:
    return root / name / "data" / "metadata.json"


def local_summary() -> str:
    """`local: a-v0, b-v0`, for messages."""
    return "local: " + (", ".join([*local()][:8]) or "none")


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


def check_collected(source: str) -> None:
    """Raise UserError if it is an id of those that `collect` makes, and is not local."""
    made = re.fullmatch(r"decision-seq/(.+)/(.+)-v0", source)
    if made and not is_local(source):
        raise UserError(
            f"{source}: has not been collected yet ({local_summary()}); run "
            f"`decision-seq collect {made[1]} {made[2]}` (`list tiers` says what there is)"
        )


def is_local(dataset_id: str) -> bool:
    """Whether the dataset is in Minari's local storage; not if there can be none."""
    try:
        return (folder(dataset_id) / "data").is_dir()
    except UserError:
        return False


def read(dataset_id: str) -> Episodes:
    """Read a local dataset. Raises UserError if it is damaged or has spaces that are not read."""
    import minari

    try:
        dataset = minari.load_dataset(dataset_id)
        read = Reader(dataset_id, dataset)
        episodes = [read(episode) for episode in dataset.iterate_episodes()]
        metadata = dataset.storage.metadata
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{dataset_id}: Minari cannot read it ({' '.join(str(error).split())}); delete it with "
            f"`minari delete {dataset_id}` and fetch or collect it again"
        ) from None
    if not episodes:
        raise UserError(f"{dataset_id}: has no episodes; an empty dataset trains nothing")
    for episode in episodes:
        if len(episode.rewards) == 0:
            raise UserError(f"{dataset_id}: episode {episode.id} has no steps; remove it")
        _check_episode(f"{dataset_id}: episode {episode.id}", episode, episodes[0])
    keys = ("ref_min_score", "ref_max_score")
    scores = {key: float(metadata[key]) for key in keys if metadata.get(key) is not None}
    info: dict[str, Any] = scores | _environments(dataset) | read.tables()
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
        if read.images is None
        else read.images,
        end_to_end([e.actions for e in episodes]),
        end_to_end([e.rewards for e in episodes]),
        terminated,
        truncated,
        info,
        end_to_end(read.after),
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


class Reader:
    """Episodes of a dataset with their steps as they are kept; images, and records that hold some,
    are on disk, one a step end to end."""

    def __init__(self, dataset_id: str, dataset: Any) -> None:
        self.name, self.steps, self.row = dataset_id, int(dataset.total_steps), 0
        self.images: np.ndarray | None = None
        self.after: list[np.ndarray] = []  # [1, ...] of each episode, what followed its last step
        tables = []
        for what in ("observation", "action"):
            try:
                tables.append(table_of(getattr(dataset, f"{what}_space"), acts=what == "action"))
            except UserError as error:
                raise UserError(f"{dataset_id}: its {what}s: {error}") from None
        seen, acts = tables
        self.seen = None if seen.plain_observation or seen.is_gray else seen
        self.acts = None if acts.plain_action else acts
        jpeg = getattr(dataset.storage, "jpeg_encoding", False)
        self.lossy = {"images": "jpeg"} if seen.images and jpeg else {}

    def tables(self) -> dict[str, Any]:
        """What a dataset's `info` says of them."""
        tables = {"observation_space": self.seen, "action_space": self.acts}
        found: dict[str, Any] = {k: to_json(table) for k, table in tables.items() if table}
        left_out = {"left_out": self.seen.texts} if self.seen and self.seen.texts else {}
        return found | left_out | self.lossy

    def __call__(self, episode: Any) -> Any:
        place, steps = f"{self.name}: episode {episode.id}", len(episode.rewards)
        seen, acts = episode.observations, episode.actions
        try:
            if self.seen is not None:
                seen = (self.seen.observe if self.seen.images else self.seen.vector)(seen)
            if self.acts is not None:
                acts = self.acts.pack(acts)
                acts = acts if acts.dtype.kind == "f" else acts.astype(np.float32)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{place}: does not fit the dataset's spaces ({error})") from None
        episode = dataclasses.replace(episode, observations=seen, actions=acts)
        if not isinstance(seen, np.ndarray):
            return episode
        if self.seen is None and seen.dtype == np.uint8 and seen.ndim > 2:
            seen = single_frames(self.name, seen)
        self.after.append(seen[steps : steps + 1].copy())  # no view: images go to disk
        if is_vector(seen):
            return episode
        return dataclasses.replace(episode, observations=self._on_disk(place, seen[:steps]))

    def _on_disk(self, place: str, seen: np.ndarray) -> np.ndarray:
        if self.images is None:
            self.images = array_on_disk((self.steps, *seen.shape[1:]), seen.dtype)
        check_alike(place, "observations", seen, self.images)
        first, self.row = self.row, self.row + len(seen)
        self.images[first : self.row] = seen
        release(self.images)
        return self.images[first : self.row]


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

    try:
        minari.download_dataset(source)
    # Minari's remotes raise errors of several network libraries, which share no base class
    except Exception as error:
        failed = f"could not be downloaded ({type(error).__name__}); on a machine with a network"
        if isinstance(error, ImportError):
            said = str(error).rstrip(".")
            failed = f"a package is missing that downloads it: {said}; or where it is installed"
        raise UserError(
            f"{source}: is not in Minari's local storage ({local_summary()}) and {failed} run "
            f"`minari download {source}`, then copy its folder to {folder(dataset_id)}"
        ) from None

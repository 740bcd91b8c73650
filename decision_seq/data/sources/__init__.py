"""Where episodes come from: one file per format, a registry, and how a name finds its format."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from decision_seq.data.episodes import Episodes, concatenate
from decision_seq.data.sources import (
    compressed,
    dqn_replay,
    dt_pickle,
    hdf5,
    json_lines,
    lerobot,
    minari_dataset,
    npz,
    ogbench,
    stored,
    table,
)
from decision_seq.data.sources.episode_list import HAND_OVER
from decision_seq.errors import UserError
from decision_seq.files import hash_files


@dataclass(frozen=True)
class Format:
    """A file format."""

    read: Callable[[Path], Episodes]
    beside: Callable[[Path], list[Path]] = lambda path: []  # other files that say how to read it
    packed: bool = False  # whether it is also read from a file that gzip packed
    # whether the file's name says which environment it is of
    name_counts: Callable[[Path], bool] = lambda path: False


FORMATS: dict[str, Format] = {
    ".npz": Format(npz.read, name_counts=lambda path: bool(ogbench.environment(path))),
    ".hdf5": Format(hdf5.read, name_counts=lambda path: True),
    ".h5": Format(hdf5.read, name_counts=lambda path: True),
    ".jsonl": Format(json_lines.read, packed=True),
    ".pkl": Format(dt_pickle.read, packed=True, name_counts=lambda path: True),
    ".csv": Format(table.read_csv, table.columns_file, packed=True),
    ".parquet": Format(table.read_parquet, table.columns_file),
}


@dataclass(frozen=True)
class Source:
    """A dataset that was found: `read()` it, or ask only for the `fingerprint()` of its bytes."""

    name: str
    read: Callable[[], Episodes]
    fingerprint: Callable[[], str]
    folder: Path | None = None  # where it lies in our own layout already


def format_of(path: Path) -> Format | None:
    """The format of a file by its name, of one that gzip packed by what stands before `.gz`."""
    plain = compressed.unpacked(path)
    form = FORMATS.get(plain.suffix.lower())
    return form if form is None or plain == path or form.packed else None


def resolve(source: str) -> Source:
    """Find a dataset: a file, the name of an imported one, a folder of files or of DQN-replay
    buffers, or a Minari id.

    Raises UserError if none of these exists, or several do.
    """
    path, asked = Path(source), ""
    if ".npz?" in source:
        path, asked = Path(source.partition("?")[0]), source.partition("?")[2]
    if format_of(path) and not os.path.isdir(path):
        if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            raise UserError(f"{source}: no such file; give a path to an existing {path.suffix}")
        return _file(path) if not asked else _of_ogbench(path, asked)
    found = named(source)
    if len(found) > 1:
        fixes = ", or ".join(call for call, _ in found)
        raise UserError(f"{source}: is the name of {len(found)} datasets; write {fixes}")
    if found:
        return found[0][1]
    if dataset_id := minari_dataset.id_of(source):
        return _minari(dataset_id, source)
    if os.path.isdir(path):
        return _folder(path)
    if os.path.isfile(path):
        raise UserError(
            f"{source}: {path.suffix or 'such'} files are not read; write its episodes as one of "
            f"{', '.join(FORMATS)}, or {HAND_OVER}"
        )
    raise UserError(
        f"{source}: is not a dataset; give a {', '.join(FORMATS)} file, a folder of them or of "
        "DQN-replay buffers (`$store$_observation_ckpt.0.gz` and so on), the name "
        f"of an imported dataset ({', '.join(stored.names()[:8]) or 'none yet'}), or a Minari id "
        f"such as mujoco/hopper/medium-v0 ({minari_dataset.local_summary()})"
    )


def named(source: str) -> list[tuple[str, Source]]:
    """All that is here under a name, each with what to call it where it is not the only one."""
    found = []
    path, here = Path(source), f"./{source} for the folder"
    if folder := stored.find(source):
        found.append((f"{folder} for the imported one", _stored(source, folder)))
    if replay := dqn_replay.find(source):
        found.append((here, Source(replay.name, replay.read, replay.fingerprint)))
    elif os.path.isdir(path) and stored.is_stored(path):
        found.append((here, _stored(path.name, path)))
    elif robot := lerobot.find(source):
        found.append((here, Source(robot.name, robot.read, robot.fingerprint)))
    elif os.path.isdir(path) and _files(path):
        found.append((here, _folder(path)))
    dataset_id = minari_dataset.id_of(source)
    if dataset_id and minari_dataset.is_local(dataset_id):
        found.append(("remove the other for Minari's", _minari(dataset_id, source)))
    return found


def absolute(source: str) -> str:
    """The source as it can be found from any folder: paths absolute, names and ids as they are."""
    plain, mark, asked = source.partition("?")
    if found := dqn_replay.find(source) or lerobot.find(source):
        return f"{found.folder.resolve()}{mark}{asked}"
    if ".npz?" in source:
        return f"{Path(plain).resolve()}{mark}{asked}"
    path = Path(source)
    if format_of(path) or (os.path.isdir(path) and stored.find(source) is None):
        return str(path.resolve())
    return source


def _file(path: Path) -> Source:
    form = format_of(path)
    assert form is not None

    def fingerprint() -> str:
        label = [path.name] if form.name_counts(path) else []
        return hash_files([path, *form.beside(path)], label)

    return Source(compressed.unpacked(path).stem, lambda: form.read(path), fingerprint)


def _of_ogbench(path: Path, text: str) -> Source:
    """A file of OGBench's with goals, or with the rewards of a task."""
    asked = ogbench.choice(f"{path}?{text}", text)

    def read() -> Episodes:
        return ogbench.chosen(path, npz.read(path), asked)

    return Source(f"{path.stem}?{text}", read, lambda: hash_files([path], [path.name, text]))


def _stored(name: str, folder: Path) -> Source:
    def fingerprint() -> str:
        meta = stored.read_meta(folder)
        return f"{meta['hash']}{meta.get('finals_hash', '')}"

    return Source(name, lambda: stored.read(folder), fingerprint, folder)


def _minari(dataset_id: str, source: str) -> Source:
    minari_dataset.check_collected(source)
    fetched = partial(minari_dataset.files, dataset_id, source)

    def read() -> Episodes:
        fetched()
        return minari_dataset.read(dataset_id)

    return Source(dataset_id, read, lambda: hash_files(fetched()))


def _files(folder: Path) -> list[Path]:
    """Those of a folder that hold episodes, in the order of their names."""
    return [
        file
        for file in sorted(folder.iterdir())
        if format_of(file) and file.is_file() and not file.name.startswith(".")
    ]


def _folder(path: Path) -> Source:
    """All files of a folder as one dataset."""
    files = _files(path)
    if not files:
        if (path / "data" / "metadata.json").is_file():
            raise UserError(
                f"{path}: is a folder of Minari's; give the dataset's id, and set "
                "MINARI_DATASETS_PATH to the folder that ids begin in"
            )
        raise UserError(f"{path}: has no {', '.join(FORMATS)} files; give the folder they are in")
    parts = [_file(file) for file in files]

    def fingerprint() -> str:
        return hashlib.sha256("\n".join(p.fingerprint() for p in parts).encode()).hexdigest()

    return Source(
        path.resolve().name,
        lambda: concatenate([part.read() for part in parts], [str(file) for file in files]),
        fingerprint,
    )

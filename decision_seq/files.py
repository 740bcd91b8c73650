"""Writing so that nothing is ever half-written: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from decision_seq.errors import UserError

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None  # whether a process can tell that another one is at work


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; on success it is synced and takes `path`'s place.

    Raises UserError where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    with writing(path), workspace(path) as folder:
        temporary = folder / path.name
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder; on success it is synced and renamed to `path`.

    If `path` exists by then (another process was faster), the existing one is kept.
    """
    path = Path(path)
    with writing(path), workspace(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for file in (temporary, *temporary.rglob("*")):
            _sync(file)
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():  # else another process was faster, and its copy is kept
                raise
        _sync(path.parent)


@contextlib.contextmanager
def workspace(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, hidden and locked while in use; it is removed at the
    end. Those that killed processes left behind for the same `path` are removed first: a lock goes
    with its process, so what nobody holds is left over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, glob.escape(path.name))
    folder, lock = _new_workspace(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left in `folder` while they wrote `name`, a glob pattern. Where
    there are no locks nothing is, since they cannot be told from those at work."""
    if not HAS_LOCKS:
        return
    for old in folder.glob(f".{name}.*.tmp"):
        with _locked(old) as free:
            if free:
                shutil.rmtree(old, ignore_errors=True)


def _new_workspace(path: Path) -> tuple[Path, int | None]:
    """A new folder and the descriptor that locks it, where there are locks."""
    while True:
        folder = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        folder.mkdir()
        if not HAS_LOCKS:
            return folder, None
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # taken for a leftover before it was locked
            continue
        with contextlib.suppress(OSError):  # where folders cannot be locked, none is removed either
            fcntl.flock(lock, fcntl.LOCK_SH)
        if folder.exists():
            return folder, lock
        os.close(lock)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the lock of `folder` could be had; it is held inside."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield try_lock(lock)
    finally:
        os.close(lock)


def try_lock(descriptor: int) -> bool:
    """Whether the lock of an open file or folder was had, which ends with the last process that has
    it open. Where there are no locks it is had always."""
    if HAS_LOCKS:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def check_space(path: Path, needed: int, held: int = 0) -> None:
    """Raise UserError where fewer than `needed` bytes are free for `path`, or a file of `held` may
    not grow by them: for libraries that do not survive a write that fails."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource else -1
    if 0 <= limit < held + needed:  # else there is none
        raise UserError(
            f"{path}: cannot be written ({os.strerror(errno.EFBIG)}): it needs about "
            f"{(held + needed) / 1e6:.1f} MB, and files of {limit / 1e6:.1f} MB are allowed; raise "
            "the limit (`ulimit -f`)"
        )
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{path}: needs about {needed / 1e6:.1f} MB, {(needed - free) / 1e6:.2g} MB more than "
            "are free there; free space or choose another folder"
        )


def hash_files(files: Sequence[Path], labels: Sequence[str] = ()) -> str:
    """Of labels and of what the files hold. Raises UserError for one that cannot be read."""
    digest = hashlib.sha256("\n".join(labels).encode())
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def safetensors_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and the tensors behind it. Raises ValueError if damaged."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def same_bytes(safetensors: bytes) -> bytes:
    """A safetensors file with its metadata sorted: the library writes them in an order that differs
    from one call to the next, and equal weights are to be equal files."""
    header, tensors = safetensors_parts(safetensors)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + tensors


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_jsonl(path: Path, key: str = "step", appended: bool = True) -> list[dict[str, Any]]:
    """Rows of a .jsonl file, each with a `key`; none if it does not exist. A last line that was
    cut off is left out of a file that was `appended` to. Raises UserError if the file is damaged
    otherwise."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: is damaged; remove it and evaluate or train again") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if appended and number == len(lines):  # cut off by a crash
                break
            row = None
        if not isinstance(row, dict) or key not in row:
            raise UserError(f"{path}: line {number} is damaged; remove that line")
        rows.append(row)
    return rows


@contextlib.contextmanager
def exclusive(path: Path, wait: bool) -> Iterator[None]:
    """Hold the lock file `path`. Raises UserError if another process does and `wait` is False.
    Where there are no locks nobody is kept out."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    with file:
        if wait and HAS_LOCKS:
            fcntl.flock(file, fcntl.LOCK_EX)
        elif not try_lock(file.fileno()):
            raise UserError(
                f"{path.parent}: another process is writing there; wait for it, or choose another "
                "folder"
            )
        yield


def cache_dir() -> Path:
    """Where datasets and kernels are kept: DECISION_SEQ_CACHE, else the user's cache folder.

    Raises UserError where the user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    place = os.environ.get("DECISION_SEQ_CACHE") or os.path.join(base, "decision-seq")
    return in_home(place, "DECISION_SEQ_CACHE")


def in_home(place: str, variable: str) -> Path:
    """The folder `place`, where ~ is the user's home. Raises UserError, naming the variable that
    says where else it may be, if the user has none."""
    try:
        return Path(place).expanduser()
    except RuntimeError:  # a container that does not know its user, say
        raise UserError(
            f"this user has no home folder to keep datasets in; set {variable} to a folder that "
            "can be written"
        ) from None


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders, and syncs none
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says against writing `path` into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: cannot be written ({reason}); {_elsewhere(path)}") from error


def _elsewhere(path: Path) -> str:
    """What to do where `path` cannot be written: the cache and the imported datasets are in a
    folder that nobody named."""
    library = os.environ.get("DECISION_SEQ_DATA")
    if library and Path(path).is_relative_to(os.path.expanduser(library)):
        return "set DECISION_SEQ_DATA to a folder that can be written, or free space"
    with contextlib.suppress(UserError):  # no home, so it is not the cache
        if Path(path).is_relative_to(cache_dir()):
            return "set DECISION_SEQ_CACHE to a folder that can be written, or free space"
    return "choose another folder or free space"

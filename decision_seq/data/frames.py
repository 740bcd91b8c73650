"""Image observations: gray frames, one a step, and arrays of them that do not fit into memory.

A dataset of frames holds uint8 [N, H, W]. What an agent sees at a step is the stack of the last
four frames of its episode, oldest first and zero before the episode began: [4, H, W].
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.envs.atari import FRAME_STACK
from decision_seq.errors import UserError
from decision_seq.files import cache_dir, check_space, writing

CHUNK_BYTES = 1 << 25  # of an array that is read or written piece by piece
SAMPLE = 100  # rows whose stacks are compared with their neighbours'


def single_frames(source: str, array: np.ndarray) -> np.ndarray:
    """The newest frame of every step, uint8 [N, H, W].

    Args:
        source: what messages call the data.
        array: uint8 frames [N, H, W] or [N, H, W, 1], or stacks [N, 4, H, W], oldest first.

    Raises:
        UserError: anything else, such as RGB.
    """
    if array.ndim == 3 or (array.ndim == 4 and array.shape[-1] == 1):
        return newest_frames(array)
    if array.ndim != 4 or array.shape[1] != FRAME_STACK:
        shape = " x ".join(map(str, array.shape[1:]))
        raise UserError(
            f"{source}: `observations` are images of {shape}; expected gray frames [steps, 84, 84] "
            f"or stacks [steps, {FRAME_STACK}, 84, 84], as gymnasium's AtariPreprocessing makes "
            "them (RGB frames lack its maximum over two emulator frames: record the data with it)"
        )
    some = array[:SAMPLE]
    follows = (some[1:, :-1] == some[:-1, 1:]).all(axis=(1, 2, 3))  # all but at an episode's start
    if len(follows) and follows.mean() < 0.5:
        raise UserError(
            f"{source}: `observations` are no stacks of successive frames, oldest first; store one "
            "frame a step, [steps, 84, 84]"
        )
    return newest_frames(array)


def newest_frames(array: np.ndarray) -> np.ndarray:
    """[N, H, W] of what `single_frames` takes, unchecked: rows need not follow one another."""
    if array.ndim == 3:
        return array
    return array[..., 0] if array.shape[-1] == 1 else array[:, -1]


def array_on_disk(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    """An array in the cache folder, not in memory; it vanishes with its last user.

    Raises UserError where the disk has no room for it.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    folder = cache_dir()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # now, not when a page of the mapping finds no room, which would kill the process
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            else:  # macOS, Windows: asked for, though not taken
                check_space(folder / "frames", size)
            return np.memmap(file, dtype, "r+", shape=shape)


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays end to end; frames on disk, one array as it is."""
    if len(parts) == 1:
        return parts[0]
    if is_vector(parts[0]):
        return np.concatenate(parts)
    whole = array_on_disk((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    row = 0
    for part in parts:
        for chunk in chunks(part):
            whole[row : row + len(chunk)] = chunk
            row += len(chunk)
        release(whole)
    return whole


def is_vector(array: np.ndarray) -> bool:
    """Whether rows are vectors or single numbers: neither images nor records with images."""
    return array.ndim < 3 and not array.dtype.names


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Records [N] as the bytes they are made of, [N, bytes]; other arrays as they are."""
    if not array.dtype.names:
        return array
    return array.view(np.uint8).reshape(len(array), array.dtype.itemsize)


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """`array` in contiguous pieces of whole rows; what was mapped for one is released after it."""
    rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])
        release(array)


class NpyRows:
    """A .npy file that is read forwards from a stream, some rows at a time. Raises ValueError where
    it is none."""

    def __init__(self, stream: Any) -> None:  # that has read(size)
        self._stream, self._row = stream, 0
        self.version = np.lib.format.read_magic(stream)
        form = np.lib.format
        first = self.version == (1, 0)
        read = form.read_array_header_1_0 if first else form.read_array_header_2_0
        shape, self.by_columns, self.dtype = read(stream)
        self.shape = shape or (1,)  # a single number is one row
        self.row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Rows `start` to `stop`, in pieces; `start` must not lie behind what was read. Raises
        EOFError where the file ends early."""
        most = max(1, CHUNK_BYTES // max(1, self.row_bytes))
        while self._row < start:
            self._take(min(most, start - self._row))
        while self._row < stop:
            yield self._take(min(most, stop - self._row))

    def _take(self, rows: int) -> np.ndarray:
        data = self._stream.read(rows * self.row_bytes)
        if len(data) < rows * self.row_bytes:
            raise EOFError(f"it ends at row {self._row} of {self.shape[0]} or soon after")
        self._row += rows
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


def save(path: Path, array: np.ndarray) -> None:
    """Write a .npy file without holding the array in memory."""
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(array.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks(array):
            chunk.tofile(file)


def release(array: np.ndarray) -> None:
    """Give the pages of a memory-mapped array back: they stay in the system's cache, not in this
    process. Nothing may have been written to a copy-on-write array."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base  # type: ignore[assignment]
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):  # Windows has none
        base.madvise(mmap.MADV_DONTNEED)

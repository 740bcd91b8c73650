"""The DQN-replay datasets (Agarwal et al., arXiv:1907.04543): a DQN agent's buffers as Dopamine
writes them, gzip-compressed .npy files of up to a million steps each.

    GAME/RUN/replay_logs/$store$_observation_ckpt.N.gz   uint8 [steps, 84, 84]
                         $store$_action_ckpt.N.gz        whole numbers [steps]
                         $store$_reward_ckpt.N.gz        [steps], clipped to [-1, 1]
                         $store$_terminal_ckpt.N.gz      [steps], 1 at the last of an episode
                         add_count_ckpt.N.gz             optional: where a circular buffer was cut

A source is the folder with what to take of it: `replay_logs?steps=500000&buffers=50&
episodes_per_buffer=10` is the protocol of Decision Transformer (arXiv:2106.01345). Only whole
episodes are taken: what a buffer's start, end or cursor cuts is left out. Frames are read as a
stream and written to disk, so memory holds a few thousand of them.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decision_seq.config import build
from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.frames import NpyRows, array_on_disk, release
from decision_seq.data.sources.d4rl import LARGEST_RATIO
from decision_seq.envs.atari import GAMES, game_id
from decision_seq.envs.registry import make
from decision_seq.errors import UserError

COLUMNS = ("observation", "action", "reward", "terminal")
OBSERVATIONS = re.compile(r"\$store\$_observation_ckpt\.(\d+)\.gz")
SEED = 0  # of the order in which buffers are drawn from


@dataclass(frozen=True)
class Choice:
    """What to take; by default every whole episode."""

    steps: int | None = None  # at most so many; whole episodes
    buffers: int | None = None  # the last so many
    episodes_per_buffer: int | None = None  # in a row, before it is another buffer's turn

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class Replay:
    """A folder of buffers and what to take of them."""

    folder: Path
    choice: Choice

    @property
    def name(self) -> str:
        """`breakout-dqn-replay`, or the folder's name where it says no game."""
        game = self.game()
        return f"{game}-dqn-replay" if game else self.folder.resolve().name

    def game(self) -> str | None:
        """The game that the folder, or one it lies in, is called after."""
        known = {game.replace("_", ""): game for game in GAMES}
        parts = (re.sub("[^a-z]", "", part.lower()) for part in self.folder.resolve().parts[::-1])
        return next((known[part] for part in parts if part in known), None)

    def numbers(self) -> list[int]:
        """The buffers to read, ascending. Raises UserError if fewer are there than were asked for,
        or one lacks a file."""
        found = sorted(
            int(match[1])
            for path in self.folder.iterdir()
            if (match := OBSERVATIONS.fullmatch(path.name))
        )
        wanted = self.choice.buffers
        if wanted is not None and wanted > len(found):
            raise UserError(
                f"{self.folder}: has {len(found)} buffers, but the source asks for the last "
                f"{wanted}; download the others, or ask for buffers={len(found)}"
            )
        numbers = found[-wanted:] if wanted else found
        for number in numbers:
            for path in (self.path(column, number) for column in COLUMNS):
                if not path.is_file():
                    raise UserError(
                        f"{path}: is missing; a buffer has {', '.join(COLUMNS)} files: download "
                        "it, or leave the buffer out"
                    )
        return numbers

    def path(self, column: str, number: int) -> Path:
        """A buffer's file."""
        return self.folder / f"$store$_{column}_ckpt.{number}.gz"

    def fingerprint(self) -> str:
        """Of names, sizes and the checksums that end gzip files: tens of gigabytes are not read."""
        digest = hashlib.sha256(repr((self.game(), self.choice)).encode())
        for number in self.numbers():
            for path in (self.path(column, number) for column in COLUMNS):
                with reading(path), path.open("rb") as file:
                    size = path.stat().st_size
                    file.seek(max(0, size - 8))
                    digest.update(f"{path.name} {size} ".encode() + file.read())
        return digest.hexdigest()

    def read(self) -> Episodes:
        """The episodes chosen, frames on disk. Raises UserError for a damaged file."""
        whole = {number: self._whole_episodes(number) for number in self.numbers()}
        chosen = choose(whole, self.choice)
        steps = sum(int((spans[:, 1] - spans[:, 0]).sum()) for spans in chosen.values())
        if steps == 0:
            total = sum(map(len, whole.values()))
            asked = f", the first longer than steps={self.choice.steps}" if total else ""
            raise UserError(f"{self.folder}: its buffers hold {total} whole episodes{asked}")
        columns: dict[str, list[np.ndarray]] = {"action": [], "reward": [], "terminal": []}
        for number, spans in chosen.items():
            for column, parts in columns.items():
                values = read_column(self.path(column, number))
                parts += [values[start:stop] for start, stop in spans]
        actions, rewards, terminal = (np.concatenate(parts) for parts in columns.values())
        info = self._info() | ({"rewards": "clipped"} if np.abs(rewards).max() <= 1 else {})
        ended, never = terminal != 0, np.zeros(steps, bool)
        frames = self._frames(chosen, steps)
        return from_flat(str(self.folder), frames, actions, rewards, ended, never, info)

    def _frames(self, chosen: dict[int, np.ndarray], steps: int) -> np.ndarray:
        """[steps, H, W] of the episodes chosen, on disk."""
        frames: np.ndarray = np.empty(0)
        row = 0
        for number, spans in chosen.items():
            with Column(self.path("observation", number)) as file:
                shape = (steps, *file.shape[1:])
                if row == 0:
                    frames = array_on_disk(shape)
                if file.dtype != np.uint8 or len(shape) != 3 or frames.shape != shape:
                    raise UserError(
                        f"{file.path}: holds {file.dtype} of shape {file.shape}; expected uint8 "
                        "[steps, 84, 84]"
                    )
                for start, stop in spans:
                    for chunk in file.rows(start, stop):
                        frames[row : row + len(chunk)] = chunk
                        row += len(chunk)
                        release(frames)
        return frames

    def _info(self) -> dict[str, Any]:
        """The game with sticky actions, which Dopamine records, and how many actions it takes."""
        game = self.game()
        if game is None:
            return {}
        info: dict[str, Any] = {"env_id": game_id(game, sticky=True)}
        with contextlib.suppress(UserError):  # without ale-py one goes by the actions seen
            env = make(info["env_id"])
            info["action_count"] = int(env.action_space.n)  # type: ignore[attr-defined]
            env.close()
        return info

    def _whole_episodes(self, number: int) -> np.ndarray:
        """[M, 2] first row and row after the last of the episodes that a buffer holds whole."""
        terminal = read_column(self.path("terminal", number))
        for column in COLUMNS:
            with Column(self.path(column, number)) as file:
                if file.shape[:1] != terminal.shape:
                    raise UserError(
                        f"{file.path}: has {file.shape[0]} rows, but the terminal flags beside it "
                        f"have {len(terminal)}; the files must be of one buffer"
                    )
        cursor = self._cursor(number, len(terminal))
        stops = np.flatnonzero(terminal) + 1
        starts = np.concatenate([[0], stops])[: len(stops)]
        begun = (starts <= cursor) & (cursor < stops)  # the oldest row is not an episode's first
        begun[:1] = number > 0 or cursor > 0  # nor is the first row; but for the very first of all
        return np.stack([starts, stops], axis=1)[~begun]

    def _cursor(self, number: int, rows: int) -> int:
        """Row before which the newest step stands, the oldest after it; 0 in a buffer that was
        written when it was full, as those of DQN-replay."""
        path = self.folder / f"add_count_ckpt.{number}.gz"
        return int(read_column(path)[0]) % rows if rows and path.is_file() else 0


def find(source: str) -> Replay | None:
    """The buffers that `folder` or `folder?steps=...` names, or None if it names none."""
    path, _, query = source.partition("?")
    for folder in (Path(path), Path(path) / "replay_logs"):
        if os.path.isdir(folder) and any(map(OBSERVATIONS.fullmatch, os.listdir(folder))):
            return Replay(folder, _choice(source, query))
    return None


def choose(episodes: dict[int, np.ndarray], choice: Choice) -> dict[int, np.ndarray]:
    """The first few episodes of each buffer: buffers take turns, in an order drawn anew each round,
    until `steps` are full (without `steps`: one round).

    Args:
        episodes: [M, 2] spans of rows, a buffer each.
        choice: what to take.
    """
    generator = np.random.default_rng(SEED)
    room = float("inf") if choice.steps is None else choice.steps
    taken = dict.fromkeys(episodes, 0)
    going = True
    while going:
        before = sum(taken.values())
        for number in generator.permutation(list(episodes)).tolist():
            turn = slice(taken[number], None)
            for start, stop in episodes[number][turn][: choice.episodes_per_buffer]:
                if stop - start > room:
                    return {n: episodes[n][:count] for n, count in taken.items() if count}
                room -= stop - start
                taken[number] += 1
        going = choice.steps is not None and sum(taken.values()) > before
    return {n: episodes[n][:count] for n, count in taken.items() if count}


class Column:
    """A gzip-compressed .npy file, read forwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self._file = gzip.open(path)  # noqa: SIM115  # closed by __exit__
            self._npy = npy = NpyRows(self._file)
            self.shape, self.dtype = npy.shape, npy.dtype
            if npy.version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {npy.version} of .npy")
            if (npy.by_columns and len(npy.shape) > 1) or self.dtype.kind not in "fiub":
                raise ValueError(f"{self.dtype} of shape {self.shape}")
            if self.shape[0] * npy.row_bytes > LARGEST_RATIO * path.stat().st_size:
                raise ValueError("it claims to be larger than the file can hold")

    def rows(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Rows `start` to `stop`, in pieces; `start` must not lie behind what was read."""
        with reading(self.path):
            yield from self._npy.rows(start, stop)

    def __enter__(self) -> Column:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_column(path: Path) -> np.ndarray:
    """One number a row, all rows."""
    with Column(path) as file:
        if len(file.shape) != 1:
            raise UserError(f"{path}: has shape {file.shape}; expected one number a step")
        return np.concatenate([np.empty(0, file.dtype), *file.rows(0, file.shape[0])])


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what gzip and numpy say about a damaged file into a UserError."""
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as a gzip-compressed .npy file ({reason}); it may be cut off: "
            "download it again"
        ) from None


def _choice(source: str, query: str) -> Choice:
    """`steps=500000&buffers=50` as a Choice. Raises UserError for another key or no number."""
    pairs = [part.partition("=") for part in query.split("&") if part]
    for key, _, value in pairs:
        if not value.isdecimal():
            raise UserError(f"{source}: `{key}` is {value!r}; it must be a whole number")
    return build(Choice, {key: int(value) for key, _, value in pairs}, source)

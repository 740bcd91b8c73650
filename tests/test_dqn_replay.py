"""DQN-replay files: whole episodes of the chosen buffers; what is malformed is one sentence."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from conftest import SIDES, frame_episodes

from decision_seq.data import frames
from decision_seq.data.episodes import Episodes
from decision_seq.data.sources import absolute, dqn_replay, resolve
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.errors import UserError


def write_buffer(
    folder: Path, number: int, episodes: Episodes, cursor: int | None = None, **change: np.ndarray
) -> Path:
    """A buffer as Dopamine's circular replay buffer checkpoints it."""
    arrays = {
        "$store$_observation": episodes.observations,
        "$store$_action": episodes.actions.astype(np.int32),
        "$store$_reward": np.clip(episodes.rewards, -1, 1),
        "$store$_terminal": episodes.terminated.astype(np.uint8),
    } | {f"$store$_{name}": array for name, array in change.items()}
    if cursor is not None:
        arrays["add_count"] = np.array(5 * len(episodes.rewards) + cursor)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        with gzip.open(folder / f"{name}_ckpt.{number}.gz", "wb") as file:
            np.save(file, array, allow_pickle=False)
    return folder


def part(episodes: Episodes, which: list[int]) -> dict[str, np.ndarray]:
    """The columns of some episodes."""
    spans = [slice(*episodes.offsets[m : m + 2]) for m in which]
    names = ("observations", "actions", "rewards")
    return {n: np.concatenate([getattr(episodes, n)[span] for span in spans]) for n in names}


def same_steps(found: Episodes | EpisodeStore, expected: dict[str, np.ndarray]) -> None:
    assert np.array_equal(found.observations, expected["observations"])
    assert np.array_equal(found.actions, expected["actions"])
    assert np.array_equal(found.rewards, np.clip(expected["rewards"], -1, 1))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Buffers 0 to 2 of a run on Pong, five episodes each."""
    folder = tmp_path / "Pong" / "1" / "replay_logs"
    for number in range(3):
        write_buffer(folder, number, frame_episodes([4, 6, 3, 5, 2], seed=number))
    return folder


def test_dqn_replay_round_trip(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "CHUNK_BYTES", 4 * SIDES[0] * SIDES[1])
    written = [frame_episodes([4, 6, 3, 5, 2], seed=number) for number in range(3)]
    # a later buffer's first episode may have begun in the one before
    kept = [part(written[0], [0, 1, 2, 3, 4]), *(part(w, [1, 2, 3, 4]) for w in written[1:])]
    expected = {name: np.concatenate([k[name] for k in kept]) for name in kept[0]}
    store = open_store([str(logs)])
    same_steps(store, expected)
    assert store.lengths.tolist() == [4, 6, 3, 5, 2] + 2 * [6, 3, 5, 2]
    assert store.terminated.sum() == store.episodes and not store.truncated.any()
    assert store.name == "pong-dqn-replay" and store.info["env_id"] == "Atari/Pong-sticky-v0"
    assert store.info["rewards"] == "clipped"
    assert open_store([str(logs.parent)]).hash == store.hash  # the folder above does as well
    assert resolve(absolute(str(logs))).fingerprint() == resolve(str(logs)).fingerprint()


def test_a_choice_takes_whole_episodes_in_turns(logs: Path) -> None:
    last = resolve(f"{logs}?buffers=1").read()
    same_steps(last, part(frame_episodes([4, 6, 3, 5, 2], seed=2), [1, 2, 3, 4]))
    once = resolve(f"{logs}?episodes_per_buffer=2").read()
    assert once.lengths.tolist() == [4, 6, 6, 3, 6, 3]
    limited = resolve(f"{logs}?steps=40&episodes_per_buffer=1").read()
    assert len(limited.rewards) <= 40 and len(limited.lengths) > 6  # a second round was begun
    again = resolve(f"{logs}?steps=40&episodes_per_buffer=1").read()
    assert np.array_equal(limited.observations, again.observations)
    assert "?steps=40" in absolute(f"{logs}?steps=40")


def test_what_a_cursor_cuts_is_left_out(tmp_path: Path) -> None:
    episodes = frame_episodes([4, 6, 3, 5])
    cut = resolve(str(write_buffer(tmp_path / "cut", 0, episodes, cursor=7))).read()
    same_steps(cut, part(episodes, [2, 3]))  # 0 goes on from the end, 1 is cut by the cursor
    between = resolve(str(write_buffer(tmp_path / "between", 0, episodes, cursor=10))).read()
    same_steps(between, part(episodes, [1, 3]))  # the oldest row is some episode's middle
    full = resolve(str(write_buffer(tmp_path / "full", 0, episodes, cursor=0))).read()
    same_steps(full, part(episodes, [0, 1, 2, 3]))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("column", dqn_replay.COLUMNS)
def test_a_truncated_file_is_one_sentence(logs: Path, column: str) -> None:
    cut_off(logs / f"$store$_{column}_ckpt.1.gz")
    with pytest.raises(UserError, match=rf"{column}_ckpt.1.gz: cannot be read as.*download it"):
        resolve(str(logs)).read()


def test_missing_files_are_one_sentence(logs: Path) -> None:
    with pytest.raises(UserError, match=r"has 3 buffers, but the source asks for the last 50"):
        resolve(f"{logs}?buffers=50").read()
    (logs / "$store$_reward_ckpt.2.gz").unlink()
    with pytest.raises(UserError, match=r"reward_ckpt.2.gz: is missing; a buffer has observation"):
        resolve(str(logs)).fingerprint()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("step=3", "`step` is not a known key; the nearest is `steps`"),
        ("steps=many", "`steps` is 'many'; it must be a whole number"),
        ("buffers=0", "buffers is 0; it must be at least 1"),
        ("steps=3&buffers=1", "hold 4 whole episodes, the first longer than steps=3"),
    ],
)
def test_a_wrong_choice_is_one_sentence(logs: Path, query: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(f"{logs}?{query}").read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.zeros(9)}, "has 9 rows, but the terminal flags"),
        (
            {"action": np.full(20, 9)},
            "holds 9, but .* has only the actions 0 to 5",
        ),
        ({"terminal": np.zeros(20)}, "hold 0 whole episodes"),
        ({"observation": np.zeros((20, 5), np.uint8)}, "expected uint8 .steps, 84, 84."),
        ({"observation": np.zeros((20, 2, 2), np.float32)}, "expected uint8 .steps, 84, 84."),
    ],
)
def test_wrong_columns_are_one_sentence(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    pytest.importorskip("ale_py")
    folder = write_buffer(tmp_path / "Pong", 0, frame_episodes([4, 6, 3, 5, 2]), **change)
    with pytest.raises(UserError, match=message):
        resolve(str(folder)).read()

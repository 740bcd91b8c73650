"""Trajectories in pickles: of every protocol, and never run; what is malformed is one sentence."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_episodes
from source_files import LENGTHS, assert_same, by_npz, each, trajectories

from decision_seq.data.store import open_store
from decision_seq.errors import UserError
from decision_seq.pickles import RefusedClass, load_plain


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", [b"numpy._core", b"numpy.core"])
def test_pickles_of_every_protocol_and_numpy(protocol: int, module: bytes, tmp_path: Path) -> None:
    episodes = random_episodes(LENGTHS)
    content = pickle.dumps(trajectories(episodes), protocol)
    assert b"numpy._core" in content
    path = tmp_path / "t.pkl"
    if protocol < 4:  # names end in a line break; from 4 on their length stands before them
        content = content.replace(b"numpy._core", module)
    else:
        long, short = b"numpy._core.", module + b"."
        for name in (b"multiarray", b"numeric"):
            before, after = (
                bytes([0x8C, len(head) + len(name)]) + head + name for head in (long, short)
            )
            content = content.replace(before, after)
        content = _without_frames(content)
    path.write_bytes(content)
    assert_same(open_store([by_npz(tmp_path, episodes)]), open_store([str(path)]))


def _without_frames(content: bytes) -> bytes:
    """Protocol 4 says how long its parts are; without that its names can be changed."""
    assert content[2:3] == pickle.FRAME
    return content[:2] + content[11:]


def test_lists_and_scalars_in_pickles(tmp_path: Path) -> None:
    """Other people's scripts keep rewards as lists of numpy scalars, and call the end `dones`."""
    episodes = random_episodes(LENGTHS)
    own = [
        {
            "observations": list(e["observations"]),
            "actions": e["actions"].tolist(),
            "rewards": list(e["rewards"]),
            "dones": [False] * (len(e["rewards"]) - 1) + [e["terminated"]],
        }
        for e in each(episodes)
    ]
    path = tmp_path / "t.pkl"
    path.write_bytes(pickle.dumps(own))
    assert_same(open_store([by_npz(tmp_path, episodes)]), open_store([str(path)]))


class Malicious:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((os.mkdir, "pwned"), "posix.mkdir"),
        ((subprocess.check_call, ["touch", "pwned"]), "subprocess.check_call"),
        ((eval, "open('pwned', 'w')"), "eval"),
        ((getattr, np.ndarray, "tofile"), "getattr"),
        ((np.load, "pwned"), "numpy.load"),
        ((np.save, "pwned", 1), "numpy.save"),
    ],
)
def test_a_malicious_pickle_is_refused_and_not_run(
    call: tuple[Any, ...],
    named: str,
    protocol: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps([{"observations": Malicious(*call)}], protocol))
    with pytest.raises(UserError, match=r"evil\.pkl: asks for .*" + named.split(".")[-1]) as error:
        open_store([str(path)])
    assert "refused" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


def test_forged_arrays_are_refused() -> None:
    """What would make numpy's own unpickling read memory that is not the pickle's."""
    reconstruct = np.zeros(1).__reduce__()[0]

    class Forged:
        def __init__(self, state: tuple[Any, ...]) -> None:
            self.state = state

        def __reduce__(self) -> tuple[Any, ...]:
            return reconstruct, (np.ndarray, (0,), b"b"), self.state

    floats, objects = np.dtype("f8"), np.dtype("O")
    assert load_plain(pickle.dumps(Forged((1, (1,), floats, False, bytes(8))))) == 0
    for state in (
        (1, (1000,), floats, False, bytes(8)),
        (1, (-1,), floats, False, bytes(8)),
        (1, (1,), objects, False, bytes(8)),
        (1, (1,), objects, False, [{}]),
        (1, (2**62,), floats, False, b""),
        (1, (1,), floats, False, "text"),
        (1, (1,), "f8", False, bytes(8)),
    ):
        with pytest.raises(pickle.UnpicklingError):
            load_plain(pickle.dumps(Forged(state)))


def test_a_pickle_cannot_change_the_functions_it_may_call() -> None:
    dtype = b"cnumpy\ndtype\n"
    with pytest.raises(pickle.UnpicklingError):
        load_plain(dtype + b"}b.")
    with pytest.raises(pickle.UnpicklingError):
        load_plain(b"cnumpy\nndarray\n(I1000000000000\ntR.")
    with pytest.raises(RefusedClass, match=r"os\.system"):
        load_plain(b"cos\nsystem\n(S'echo'\ntR.")
    assert load_plain(pickle.dumps({"a": [1, (2.5, None, True)]}, 0)) == {
        "a": [1, (2.5, None, True)]
    }


def test_a_pickle_that_repeats_itself_is_refused(tmp_path: Path) -> None:
    """A small file can name one array a million times."""
    one = trajectories(random_episodes([50]))[0]
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps([one] * 1000))
    with pytest.raises(UserError, match="repeats its arrays"):
        open_store([str(tmp_path / "bomb.pkl")])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": 1}, ["holds dict", "list of trajectories"]),
        ([], ["no episodes"]),
        ([3], ["episode 0", "expected a dict"]),
        ([{"observations": np.zeros((2, 3))}], ["episode 0", "`terminals` is missing"]),
        (
            [{"observations": np.zeros((2, 3)), "actions": np.zeros((2, 1)), "terminals": [0, 1]}],
            ["episode 0", "`rewards` is missing"],
        ),
    ],
)
def test_bad_trajectories_are_one_sentence(content: Any, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as error:
        open_store([str(tmp_path / "bad.pkl")])
    for word in ("bad.pkl", *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)

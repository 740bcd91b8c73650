"""Machines as people have them: no home, a home that cannot be written, narrow or no output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import random_episodes, write_npz

from decision_seq.data.sources import stored
from decision_seq.data.store import open_store
from decision_seq.data.tools.library import import_dataset
from decision_seq.errors import UserError
from decision_seq.files import cache_dir, writing

STRANGER = ["unshare", "-U", "--map-user=12345", "--map-group=12345"]  # whom passwd does not know
PLACES = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "MINARI_DATASETS_PATH")
PLACES += ("DECISION_SEQ_CACHE", "DECISION_SEQ_DATA")


def run(folder: Path, *command: str, by: list[str] | None = None, **variables: str) -> list[str]:
    """Exit code, output and errors of `decision-seq COMMAND` in `folder`, where only `variables`
    say where anything is kept."""
    kept = {name: value for name, value in os.environ.items() if name not in PLACES}
    done = subprocess.run(
        [*(by or []), sys.executable, "-m", "decision_seq", *command],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(Path(__file__).parents[1])} | variables,
        capture_output=True,
        timeout=300,
        check=False,
    )
    return [str(done.returncode), done.stdout.decode("latin-1"), done.stderr.decode("latin-1")]


def is_stranger_possible() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*STRANGER, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not is_stranger_possible(), reason="no user namespaces")
def test_a_user_without_a_home_is_told_what_to_set(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", random_episodes([3, 4]), meta=None)
    for command, variable in {
        "data info a.npz": "DECISION_SEQ_CACHE",
        "data list": "DECISION_SEQ_CACHE",
        "collect hopper medium --steps 10": "MINARI_DATASETS_PATH",
    }.items():
        code, _, err = run(tmp_path, *command.split(), by=STRANGER)
        assert code == "2" and err.startswith("decision-seq: this user has no home folder"), err
        assert f"set {variable}" in err and err.count("\n") == 1
    code, out, _ = run(tmp_path, "data", "info", "a.npz", by=STRANGER, DECISION_SEQ_CACHE="cache")
    assert code == "0" and "episodes               2" in out
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "cache"}  # and no folder `~`


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(tmp_path / "a.npz", random_episodes([3, 4]), meta=None)
    (tmp_path / "home").write_text("no folder")
    code, _, err = run(tmp_path, "data", "info", "a.npz", HOME=str(tmp_path / "home"))
    assert code == "2" and "cannot be written (Not a directory); set DECISION_SEQ_CACHE" in err
    code, _, err = run(tmp_path, "data", "info", "my/log-v0", HOME=str(tmp_path / "home"))
    assert code == "2" and "set MINARI_DATASETS_PATH" in err
    monkeypatch.setenv("DECISION_SEQ_DATA", str(tmp_path / "home" / "library"))
    with pytest.raises(UserError, match="set DECISION_SEQ_DATA to a folder that can be written"):
        import_dataset([str(tmp_path / "a.npz")], "mine")
    with pytest.raises(UserError, match="choose another folder"), writing(tmp_path / "run"):
        (tmp_path / "home" / "x").mkdir()
    assert open_store([str(tmp_path / "a.npz")]).episodes == 2


def test_home_may_be_named_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an env_file, which no shell expands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DECISION_SEQ_DATA", "~/library")
    monkeypatch.setenv("DECISION_SEQ_CACHE", "~/cache")
    assert cache_dir() == tmp_path / "cache" and stored.library() == tmp_path / "library"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_printed_as_the_nearest_it_has(
    encoding: str, tmp_path: Path
) -> None:
    write_npz(tmp_path / "daten-ü.npz", random_episodes([3, 4]), meta=None)
    places = {"PYTHONIOENCODING": encoding, "DECISION_SEQ_CACHE": str(tmp_path / "cache")}
    places |= {"HOME": str(tmp_path)}
    code, out, err = run(tmp_path, "data", "info", "daten-ü.npz", **places)
    assert (code, err) == ("0", "") and "####" in out
    assert ("daten-?" in out) == (encoding == "ascii")
    code, out, err = run(tmp_path, "--help", **places)
    assert (code, err) == ("0", "") and "usage: decision-seq" in out


def test_closed_streams_are_no_error(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", random_episodes([3, 4]), meta=None)
    shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"]
    for command, code in (("data check a.npz", "0"), ("data check b.npz", "2")):
        assert run(tmp_path, *command.split(), by=shell, HOME=str(tmp_path)) == [code, "", ""]

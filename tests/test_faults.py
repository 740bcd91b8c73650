"""Killed and crowded: what was there before still loads, and the work goes on from it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from children import (
    CPU,
    finish,
    fork_server,  # noqa: F401 - a fixture
    leftovers,
    run_collect,
    run_import,
    run_open,
    run_train,
    start_child,  # noqa: F401 - a fixture
)
from conftest import random_episodes, write_npz
from test_train import config_for, weights, without_rates

from decision_seq.data.sources import minari_dataset
from decision_seq.data.store import open_folder, open_store
from decision_seq.files import atomic_file, atomic_folder, workspace
from decision_seq.run_folder import has_checkpoint
from decision_seq.training.checkpoint import load_state
from decision_seq.training.loop import train


def killed_at(total: int, count: int | None, seed: int) -> list[int]:
    """Which operations to die at: all, or `count` of them, the last one included."""
    total -= 4  # names and times differ a little from run to run
    if count is None:
        return list(range(1, total + 1))
    return sorted({*random.Random(seed).sample(range(1, total), count - 1), total})


def operations(home: Path) -> int:
    return int((home / "operations").read_text())


few_or_all = pytest.mark.parametrize(
    "kills", [3, pytest.param(None, marks=pytest.mark.slow)], ids=["few", "all"]
)


# ---- killed --------------------------------------------------------------------------------------


@few_or_all
def test_training_killed_at_any_file_operation_resumes_bit_for_bit(
    kills: int | None, start: Any, toy_file: Path, tmp_path: Path
) -> None:
    config = config_for(toy_file, steps=6, checkpoint_interval=2, log_interval=1, ema=0.9)
    assert finish(start(run_open, toy_file)) == 0
    assert finish(start(run_train, config, tmp_path / "whole")) == 0
    whole = weights(tmp_path / "whole")
    rows = without_rates(tmp_path / "whole")
    for moment in killed_at(operations(tmp_path / "home"), kills, seed=0):
        run = tmp_path / f"killed-{moment}"
        assert finish(start(run_train, config, run, kill_at=moment)) == -signal.SIGKILL
        if has_checkpoint(run):
            assert load_state(run)["step"] in (2, 4, 6)
            assert weights(run)
        # killed again while it resumes, then left alone
        finish(start(run_train, config, run, kill_at=max(1, moment // 2)))
        train(config, run, CPU, resume=True)
        for name, tensor in weights(run).items():
            assert torch.equal(tensor, whole[name]), (moment, name)
        assert without_rates(run) == rows, moment
        assert leftovers(run) == [], moment
        shutil.rmtree(run)


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_training_killed_at_random_times(
    kills: int, start: Any, toy_file: Path, tmp_path: Path
) -> None:
    config = config_for(toy_file, steps=60, checkpoint_interval=3, log_interval=1)
    times = random.Random(1)
    for _ in range(kills):
        process = start(run_train, config, tmp_path / "run")
        time.sleep(times.uniform(0.0, 0.8))
        process.kill()
        finish(process)
        if has_checkpoint(tmp_path / "run"):
            assert weights(tmp_path / "run") and load_state(tmp_path / "run")["step"] % 3 == 0
    train(config, tmp_path / "run", CPU, resume=True)
    train(config, tmp_path / "whole", CPU)
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, weights(tmp_path / "whole")[name]), name
    assert without_rates(tmp_path / "run") == without_rates(tmp_path / "whole")
    assert leftovers(tmp_path / "run") == []


@few_or_all
def test_building_a_store_killed_at_any_file_operation(
    kills: int | None, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    source = write_npz(tmp_path / "a.npz", random_episodes([5, 9, 7]))
    assert finish(start(run_open, source)) == 0
    monkeypatch.setattr("decision_seq.data.store.cache_dir", lambda: home / "cache")
    whole = open_store([str(source)]).hash
    for moment in killed_at(operations(home), kills, seed=2):
        shutil.rmtree(home / "cache")
        assert finish(start(run_open, source, kill_at=moment)) == -signal.SIGKILL
        assert open_store([str(source)]).hash == whole, moment
        assert leftovers(home) == [], moment


@few_or_all
def test_importing_killed_at_any_file_operation(
    kills: int | None, start: Any, tmp_path: Path
) -> None:
    library = tmp_path / "home" / "library"
    source = write_npz(tmp_path / "a.npz", random_episodes([5, 9, 7]))
    assert finish(start(run_import, source)) == 0
    whole = open_folder(library / "mine", "mine").hash
    for moment in killed_at(operations(tmp_path / "home"), kills, seed=4):
        shutil.rmtree(library)
        assert finish(start(run_import, source, kill_at=moment)) == -signal.SIGKILL
        if (library / "mine").exists():  # killed while tidying up: it is whole
            assert open_folder(library / "mine", "mine").hash == whole, moment
        assert finish(start(run_import, source)) == 0
        assert open_folder(library / "mine", "mine").hash == whole, moment
        assert leftovers(library) == [], moment


@few_or_all
def test_collecting_killed_at_any_file_operation(
    kills: int | None, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for name in ("own/a-v0", "own/aa-v0"):  # the first one makes folders
        assert finish(start(run_collect, name)) == 0
    total = operations(home)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(home / "minari"))
    whole = minari_dataset.read("own/a-v0")
    for moment in killed_at(total, kills, seed=3):
        name = f"own/b{moment}-v0"
        assert finish(start(run_collect, name, kill_at=moment)) == -signal.SIGKILL
        if not minari_dataset.folder(name).exists():  # else it was killed while tidying up
            assert finish(start(run_collect, name)) == 0
        again = minari_dataset.read(name)
        assert (again.observations == whole.observations).all(), moment
        shutil.rmtree(minari_dataset.folder(name))
    assert finish(start(run_collect, "own/c-v0")) == 0
    assert leftovers(home) == []
    assert (minari_dataset.read("own/a-v0").actions == whole.actions).all()


def test_reading_back_what_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on the disk before the name, and the name before the function returns."""
    order: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(_name(fd)), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), replace(a, b))[1])
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert order == ["a.txt", "rename", tmp_path.name]


def _name(descriptor: int) -> str:
    return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))


# ---- crowded -------------------------------------------------------------------------------------


def test_processes_build_and_import_the_same_dataset(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_npz(tmp_path / "a.npz", random_episodes([50] * 40))
    crowd = [start(work, source) for work in (run_open, run_import) * 2]
    assert [finish(process) for process in crowd] == [0, 0, 0, 0]
    assert open_folder(tmp_path / "home" / "library" / "mine", "mine").episodes == 40
    assert leftovers(tmp_path) == []
    monkeypatch.setattr("decision_seq.data.store.cache_dir", lambda: tmp_path / "home" / "cache")
    assert open_store([str(source)]).episodes == 40
    assert len(list((tmp_path / "home" / "cache" / "datasets").iterdir())) == 1


def test_two_processes_collect_the_same_dataset(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [start(run_collect, "own/a-v0") for _ in range(2)]
    codes = sorted(finish(process) for process in both)
    assert codes in ([0, 2], [0, 0])  # [0, 0] only if one was done before the other began
    assert codes == [0, 2] and "exists already" in (tmp_path / "home" / "said").read_text()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "home" / "minari"))
    assert len(minari_dataset.read("own/a-v0").lengths) >= 5
    assert leftovers(tmp_path) == []


def test_a_workspace_in_use_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    with workspace(tmp_path / "a") as first:
        left = tmp_path / ".a.12345678.tmp"
        left.mkdir()
        (left / "half").write_text("x")
        with workspace(tmp_path / "a") as second:
            assert first.exists() and second.exists() and not left.exists()
    with atomic_folder(tmp_path / "b") as slow:
        (slow / "who").write_text("slow")
        with atomic_folder(tmp_path / "b") as fast:
            (fast / "who").write_text("fast")
    assert (tmp_path / "b" / "who").read_text() == "fast"
    assert leftovers(tmp_path) == []

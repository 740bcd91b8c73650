"""Killed, crowded and full: what was there before still loads, and the work goes on from it.

Children come from a fork server that has imported everything, so a run costs no start-up. A child
dies by its own SIGKILL at its n-th file operation (opening, renaming, removing, making a folder;
Python's audit events), which covers the moments that matter exactly, or by ours at a random time.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_episodes, write_npz
from test_train import config_for, weights, without_rates

from decision_seq.data import store
from decision_seq.data.library import import_dataset
from decision_seq.data.sources import minari_dataset
from decision_seq.data.store import open_folder, open_store
from decision_seq.errors import UserError
from decision_seq.files import atomic_file, atomic_folder, workspace
from decision_seq.run_config import RunConfig
from decision_seq.train.checkpoint import has_checkpoint, load_state
from decision_seq.train.loop import train

CPU = torch.device("cpu")
PRELOAD = [
    "decision_seq.train.loop",
    "decision_seq.data.collect",
    "decision_seq.envs.tiers",
    "minari.data_collector.episode_buffer",
    "mujoco",
    "pytest",
    "safetensors.torch",
    "torch.utils.tensorboard",
]
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


# ---- what children do ----------------------------------------------------------------------------


def child(work: Callable[..., Any], args: tuple, home: str, kill_at: int, full_at: int) -> None:
    """Run `work` in a process of its own; the exit code says how it ended, a file what it said.

    Args:
        work: what to do.
        args: with what.
        home: folder for caches; `work` writes below its parent.
        kill_at: die before this operation on a file below that; 0: never.
        full_at: largest file in bytes, as on a full disk; 0: no limit.
    """
    torch.set_num_threads(1)
    os.environ["MINARI_DATASETS_PATH"] = f"{home}/minari"
    os.environ["DECISION_SEQ_DATA"] = f"{home}/library"
    store.cache_dir = lambda: Path(home, "cache")  # kernels are shared: compiled once
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if full_at:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (full_at, resource.RLIM_INFINITY))
    count, below = 0, str(Path(home).parent)

    def count_operations(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in OPERATIONS and str(arguments[0]).startswith(below):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_operations)
    try:
        work(*args)
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        Path(home, "said").write_text(str(error))
        os._exit(2)
    Path(home, "operations").write_text(str(count))
    os._exit(0)


def run_train(config: RunConfig, run: Path) -> None:
    train(config, run, CPU, resume=True)


def run_collect(dataset_id: str) -> None:
    from decision_seq.data.collect import collect
    from decision_seq.envs.tiers import behaviour_for

    behaviour, provenance = behaviour_for("point-run", "mixed", None)
    collect("point-run", behaviour, 100, dataset_id, 0, provenance)


def run_open(source: Path) -> None:
    open_store([str(source)])


def run_import(source: Path) -> None:
    import_dataset([str(source)], "mine")


@pytest.fixture
def start(server: ForkServerContext, tmp_path: Path) -> Iterator[Any]:
    """Start a child; `start(work, *args, kill_at=, full_at=)`."""
    running: list[ForkServerProcess] = []
    (tmp_path / "home").mkdir()

    def begin(work: Callable[..., Any], *args: Any, **how: int) -> ForkServerProcess:
        limits = (how.get("kill_at", 0), how.get("full_at", 0))
        process = server.Process(target=child, args=(work, args, str(tmp_path / "home"), *limits))
        process.start()
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.join()


def finish(process: ForkServerProcess) -> int:
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def killed_at(total: int, count: int | None, seed: int) -> list[int]:
    """Which operations to die at: all, or `count` of them, the last one included."""
    total -= 4  # names and times differ a little from run to run
    if count is None:
        return list(range(1, total + 1))
    return sorted({*random.Random(seed).sample(range(1, total), count - 1), total})


def operations(home: Path) -> int:
    return int((home / "operations").read_text())


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*.tmp")]


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


# ---- full ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [3000, 40_000])
def test_a_full_disk_is_one_sentence_and_no_damage(
    limit: int, start: Any, toy_file: Path, tmp_path: Path
) -> None:
    """Whichever file does not fit (log, statistics, agent, optimiser), the run goes on later."""
    config = config_for(toy_file, steps=6, checkpoint_interval=2, log_interval=1)
    assert finish(start(run_open, toy_file)) == 0
    first = config_for(toy_file, steps=2, checkpoint_interval=2, log_interval=1)
    train(first, tmp_path / "run", CPU)
    assert finish(start(run_train, config, tmp_path / "run", full_at=limit)) == 2
    said = (tmp_path / "home" / "said").read_text()
    assert os.strerror(errno.EFBIG) in said and "free space" in said and "\n" not in said
    assert load_state(tmp_path / "run")["step"] in (2, 4)
    assert leftovers(tmp_path / "run") == []
    train(config, tmp_path / "run", CPU, resume=True)
    train(config, tmp_path / "whole", CPU)
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, weights(tmp_path / "whole")[name]), name


def test_a_full_disk_while_building_or_collecting(start: Any, tmp_path: Path) -> None:
    source = write_npz(tmp_path / "a.npz", random_episodes([50] * 4))
    for work in (run_open, run_collect):
        argument = source if work is run_open else "own/a-v0"
        assert finish(start(work, argument, full_at=100)) == 2, work
        assert os.strerror(errno.EFBIG) in (tmp_path / "home" / "said").read_text(), work
        assert leftovers(tmp_path) == []
        assert finish(start(work, argument)) == 0, work


def test_collect_asks_for_space_before_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 may crash the process where the disk fills while it writes."""
    full = shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    with pytest.raises(UserError, match=r"needs about .* MB.*free"):
        run_collect("own/a-v0")
    assert not minari_dataset.folder("own/a-v0").exists()


FILL = """
import json, sys
from pathlib import Path
import torch
from decision_seq.data import store
from decision_seq.errors import UserError
from decision_seq.run_config import load_run_config
from decision_seq.train.checkpoint import load_state
from decision_seq.train.loop import train

torch.set_num_threads(1)
store.cache_dir = lambda: Path(sys.argv[3])
config, out = load_run_config(Path(sys.argv[1])), Path(sys.argv[2]) / "run"
small = load_run_config(Path(sys.argv[1]), ["train.steps=2"])
train(small, out, torch.device("cpu"))
ballast = out.parent / "ballast"
try:
    with ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
except OSError:
    pass
said = ""
try:
    train(config, out, torch.device("cpu"), resume=True)
except UserError as error:
    said = str(error)
step = load_state(out)["step"]
ballast.unlink()
train(config, out, torch.device("cpu"), resume=True)
left = [str(path) for path in out.rglob(".*.tmp")]
print(json.dumps({"said": said, "step": step, "end": load_state(out)["step"], "left": left}))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_a_full_tmpfs_is_one_sentence_and_no_damage(toy_file: Path, tmp_path: Path) -> None:
    from decision_seq.run_config import write_run_config

    config = config_for(toy_file, steps=6, checkpoint_interval=2, log_interval=1)
    write_run_config(config, tmp_path / "run.yaml")
    (tmp_path / "disk").mkdir()
    (tmp_path / "fill.py").write_text(FILL)
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}/disk || exit 77; "
    command = (
        f"{sys.executable} {tmp_path}/fill.py {tmp_path}/run.yaml {tmp_path}/disk {tmp_path}/cache"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount + command],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip("mounting is not allowed here")
    result = json.loads(done.stdout.splitlines()[-1])
    assert os.strerror(errno.ENOSPC) in result["said"] and "\n" not in result["said"]
    assert result["step"] == 2 and result["end"] == 6 and result["left"] == []


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

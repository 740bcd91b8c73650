"""Children that work, and die or run out of space where they are told to.

They come from a fork server that has imported everything, so a run costs no start-up. A child
dies by its own SIGKILL at its n-th file operation (opening, renaming, removing, making a folder;
Python's audit events), which covers the moments that matter exactly, or by ours at a random time.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from decision_seq.data import store
from decision_seq.data.store import open_store
from decision_seq.data.tools.library import import_dataset
from decision_seq.errors import UserError
from decision_seq.run_config import RunConfig
from decision_seq.training.loop import train

CPU = torch.device("cpu")
PRELOAD = [
    "decision_seq.training.loop",
    "decision_seq.data.tools.collect",
    "decision_seq.behaviours.tiers",
    "minari.data_collector.episode_buffer",
    "mujoco",
    "pytest",
    "safetensors.torch",
    "torch.utils.tensorboard",
]
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@pytest.fixture(scope="module", name="server")
def fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


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


def run_collect(dataset_id: str, steps: int = 100) -> None:
    from decision_seq.behaviours.tiers import behaviour_for
    from decision_seq.data.tools.collect import collect

    behaviour, provenance = behaviour_for("point-run", "mixed", None)
    collect("point-run", behaviour, steps, dataset_id, 0, provenance)


def run_export(dataset_id: str, out: str) -> None:
    from decision_seq.data.tools.export import to_minari

    to_minari(open_store([dataset_id]), out)


def run_open(source: Path) -> None:
    open_store([str(source)])


def run_import(source: Path) -> None:
    import_dataset([str(source)], "mine")


@pytest.fixture(name="start")
def start_child(server: ForkServerContext, tmp_path: Path) -> Iterator[Any]:
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


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*.tmp")]

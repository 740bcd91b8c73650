"""Two processes under torchrun train as one does, write once, and end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from children import fork_server  # noqa: F401
from conftest import toy_episodes, write_npz

from decision_seq.data import store
from decision_seq.errors import UserError
from decision_seq.files import read_jsonl
from decision_seq.run_config import RunConfig, run_config, write_run_config
from decision_seq.run_folder import read_index
from decision_seq.training.checkpoint import load_state
from decision_seq.training.distributed import World
from decision_seq.training.loop import train
from decision_seq.training.random import RandomStream

CPU = torch.device("cpu")


def config_for(toy_file: Path, **fields: Any) -> RunConfig:
    """A small run without dropout, whose batch does not divide by two."""
    train_fields = {
        "steps": 20,
        "batch_size": 15,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "log_interval": 1,
        "checkpoint_interval": 10,
    }
    base = {
        "env": "point-run",
        "data": {"sources": [str(toy_file)], "validation_fraction": 0.1},
        "agent": {
            "kind": "return_conditioned",
            "context_length": 6,
            "returns": {"scale": 20},
            "backbone": {"kind": "mixer", "mixing": "asymmetric", "width": 16, "layers": 1}
            | {"dropout": 0.0, "symmetry_penalty": 1e-2},
        },
        "train": train_fields,
        "eval": {"targets": [5], "episodes": 1},
    }
    return run_config(base, fields, "test")


def torchrun(config: RunConfig, out: Path, *options: str) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 -m decision_seq train ...`, started."""
    path = out.with_suffix(".yaml")
    write_run_config(config, path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "decision_seq", "train", str(path)]
    return subprocess.Popen(
        [*command, "--out", str(out), "--device", "cpu", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def one_of_two(rank: int, port: int, config: RunConfig, out: Path, cache: Path) -> None:
    """What torchrun starts twice, without the wait for imports."""
    torch.set_num_threads(1)
    store.cache_dir = lambda: cache
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in given.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    assert train(config, out, CPU)


def train_by_two(server: ForkServerContext, config: RunConfig, out: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, config, out, out.parent / "cache")
    two = [server.Process(target=one_of_two, args=(rank, *given)) for rank in range(2)]
    for process in two:
        process.start()
    for process in two:
        process.join(120)
        assert process.exitcode == 0


def losses(run: Path, name: str = "loss") -> list[float]:
    return [row[name] for row in read_jsonl(run / "metrics.jsonl") if name in row]


@pytest.fixture
def spoilt_file(tmp_path: Path) -> Path:
    """Toy episodes, one with a return whose square is infinite: a window of it spoils the share of
    one process only."""
    episodes = toy_episodes()
    episodes.rewards[int(episodes.lengths[0]) - 1] = 1e37
    return write_npz(tmp_path / "spoilt.npz", episodes)


def test_two_processes_equal_one_which_goes_on_from_there(
    server: ForkServerContext, spoilt_file: Path, tmp_path: Path
) -> None:
    """The curve, with the batches that both must skip, and the weights after ten more steps."""
    config = config_for(spoilt_file, train={"skip_nonfinite": 20})
    train_by_two(server, config, tmp_path / "two")
    train(config, tmp_path / "one", CPU)
    skipped = losses(tmp_path / "two", "skipped_batches")
    assert skipped[-1] >= 1 and skipped == losses(tmp_path / "one", "skipped_batches")
    assert len(losses(tmp_path / "two")) == 20 - skipped[-1]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    for name in ("gradient_norm", "validation_loss"):
        one, two = losses(tmp_path / "one", name), losses(tmp_path / "two", name)
        assert two == pytest.approx(one, rel=1e-4)
    longer = replace(config, train=replace(config.train, steps=30))
    for run in ("one", "two"):
        train(longer, tmp_path / run, CPU, resume=True)
    one, two = (load_state(tmp_path / run)["agent"] for run in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-4)


def test_two_go_on_for_one_and_sigterm_saves(toy_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = config_for(toy_file, train={"checkpoint_interval": 100_000})
    train(config, run, CPU)
    before = losses(run)
    config = replace(config, train=replace(config.train, steps=100_000))
    process = torchrun(config, run, "--resume")
    deadline = time.monotonic() + 300
    while len(losses(run)) < 25:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0 and output.count("stopped and saved") == 1
    assert losses(run)[:20] == before
    assert read_index(run)["last"]["step"] == len(losses(run)) >= 25
    train(replace(config, train=replace(config.train, steps=30)), tmp_path / "one", CPU)
    assert losses(run)[:25] == pytest.approx(losses(tmp_path / "one")[:25], abs=1e-5)


@pytest.mark.slow
def test_a_bad_batch_ends_both_and_is_said_once(spoilt_file: Path, tmp_path: Path) -> None:
    process = torchrun(config_for(spoilt_file), tmp_path / "run")
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert output.count("decision-seq: ") == 1, output
    assert "1 of 15 windows give it by themselves" in output, output
    assert len(list((tmp_path / "run" / "nonfinite").iterdir())) == 1


@pytest.mark.slow
def test_a_killed_process_ends_the_other(toy_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun(config_for(toy_file, train={"steps": 100_000}), run)
    deadline = time.monotonic() + 300
    while len(losses(run)) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in map(int, children):
        if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            os.kill(child, signal.SIGKILL)
    process.communicate(timeout=200)
    assert process.returncode != 0


def test_each_row_is_in_one_share() -> None:
    for size in (1, 2, 3):
        rows = [list(range(10))[World(rank, size).rows] for rank in range(size)]
        assert sorted(i for share in rows for i in share) == list(range(10))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_fewer_windows_than_processes_are_refused() -> None:
    World(1, 2).check(2)
    with pytest.raises(UserError, match="batch_size is 1, fewer windows than the 2 processes"):
        World(1, 2).check(1)


def test_processes_draw_differently() -> None:
    draws = []
    for rank, step in [(1, 0), (1, 5), (2, 0), (1, 0)]:
        random = RandomStream(3)
        World(rank, 3).separate(random, 3, step)
        with random:
            draws.append(float(torch.rand(())))
    assert draws[0] == draws[3] and len(set(draws)) == 3

"""A full disk is one sentence: what was there still loads, and the work goes on from it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
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
    run_export,
    run_open,
    run_train,
    start_child,  # noqa: F401 - a fixture
)
from conftest import random_episodes, write_npz
from test_train import config_for, weights

from decision_seq.data.sources import minari_dataset
from decision_seq.errors import UserError
from decision_seq.training.checkpoint import load_state
from decision_seq.training.loop import train


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


def test_a_limit_of_files_is_met_before_hdf5_meets_it(start: Any, tmp_path: Path) -> None:
    """2,000 steps take 1.4 MB; where a write fails within HDF5 the process crashes."""
    small = 1_200_000
    assert finish(start(run_collect, "own/a-v0", 2000, full_at=small)) == 2
    assert "ulimit -f" in (tmp_path / "home" / "said").read_text()
    assert finish(start(run_collect, "own/a-v0", 2000)) == 0
    assert finish(start(run_export, "own/a-v0", "own/b-v0", full_at=small)) == 2
    assert leftovers(tmp_path) == []
    assert finish(start(run_export, "own/a-v0", "own/b-v0")) == 0


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
from decision_seq.training.checkpoint import load_state
from decision_seq.training.loop import train

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

"""Without what only Linux, or only Unix, has: data, training and rollouts go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import importlib, os, pkgutil, sys
from pathlib import Path

for module in ("fcntl", "resource"):
    sys.modules[module] = None  # importing it fails, as on Windows
del os.posix_fallocate, os.sched_getaffinity
read_text = Path.read_text
def no_proc(self, *args, **options):
    if self.parts[:2] == ("/", "proc"):
        raise FileNotFoundError(self)
    return read_text(self, *args, **options)
Path.read_text = no_proc

import torch
import decision_seq
for module in pkgutil.walk_packages(decision_seq.__path__, "decision_seq."):
    if not module.name.endswith(("__main__", "triton_kernels", "mamba_ssm_scan")):
        importlib.import_module(module.name)

from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.data import store
from decision_seq.data.frames import array_on_disk, chunks
from decision_seq.data.tools.collect import collect
from decision_seq.errors import UserError
from decision_seq.eval.compare.matrix import run_matrix
from decision_seq.eval.rollout.protocol import evaluate_agent
from decision_seq.agents import load_agent
from decision_seq.run_config import run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

store.cache_dir = lambda: Path("cache").resolve()
behaviour, about = behaviour_for("point-run", "mixed", None)
collect("point-run", behaviour, 100, "mine/runs-v0", 0, about)
frames = array_on_disk((2, 3, 4))
assert sum(len(chunk) for chunk in chunks(frames)) == 2
agent = {"preset": "decision-mamba", "context_length": 5, "backbone": {"width": 16, "layers": 1}}
settings = {"steps": 2, "batch_size": 4, "checkpoint_interval": 2, "log_interval": 1}
data = {"sources": ["mine/runs-v0"]}
protocol = {"targets": [5], "episodes": 2}
plain = {"env": "point-run", "data": data, "agent": agent, "train": settings, "eval": protocol}
config, run = run_config(plain, {}, "test"), Path("run")
train(config, run, torch.device("cpu"))
rows = evaluate_agent(load_agent(agent_path(run, "last")), config, run, 2, "last")
assert len(rows) == 2 and rows[0]["peak_memory_mib"] is None
try:
    run_matrix([], print)
except UserError as error:
    assert "not supported on this platform" in str(error)
else:
    raise AssertionError("compare holds locks that are not there")
left = [str(path) for path in Path.cwd().rglob(".*.tmp")]
assert not left, left
"""


def test_training_needs_nothing_that_only_unix_has(tmp_path: Path) -> None:
    variables = {
        "MINARI_DATASETS_PATH": str(tmp_path / "minari"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]

"""A library call leaves the process as it was: what a command wants, the command sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import importlib, os, pkgutil, signal, sys, warnings
from pathlib import Path

# what other packages do as they are imported is theirs
import gymnasium, h5py, minari, mujoco, numpy, torch, torch.utils.tensorboard, torch._dynamo

def handler(message): raise AssertionError(message)
mujoco.set_mju_user_warning(handler)
called = []
sys.addaudithook(
    lambda event, about: called.append(about[1]) if event == "ctypes.dlsym" else None
)

def state():
    return {
        "folder": os.getcwd(),
        **os.environ,
        "files": sorted(os.listdir()),
        "MuJoCo's handler": mujoco.get_mju_user_warning(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "warnings": len(warnings.filters),
        "errors of numpy": numpy.geterr(),
        "path": list(sys.path),
    }

def check(what):
    now = state()
    changed = {key: (before.get(key), now.get(key)) for key in {**before, **now}
               if before.get(key) != now.get(key)}
    assert not changed, f"{what}: {changed}"
    assert not {"mallopt", "prctl"} & set(called), f"{what}: {called}"

before = state()
import decision_seq
for module in pkgutil.walk_packages(decision_seq.__path__, "decision_seq."):
    if not module.name.endswith(("__main__", "triton_kernels", "mamba_ssm_scan")):
        importlib.import_module(module.name)
check("importing")

from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.data import store
from decision_seq.data.tools.check import examine
from decision_seq.data.tools.collect import collect
from decision_seq.agents import load_agent
from decision_seq.eval.rollout import rollout
from decision_seq.run_config import run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train

there = Path(os.environ["MINARI_DATASETS_PATH"]).parent
store.cache_dir = lambda: there / "cache"  # kernels are shared: they are compiled once
behaviour, about = behaviour_for("halfcheetah", "medium", None)
collect("halfcheetah", behaviour, 10, "mine/cheetah-v0", 0, about)
check("collecting")
examine(["mine/cheetah-v0"])
check("examining")
agent = {"preset": "decision-mamba", "context_length": 5, "backbone": {"width": 16, "layers": 1}}
settings = {"steps": 2, "batch_size": 4, "checkpoint_interval": 2}
data = {"sources": ["mine/cheetah-v0"]}
plain = {"env": "halfcheetah", "data": data, "agent": agent, "train": settings}
train(run_config(plain, {}, "test"), there / "run", torch.device("cpu"))
check("training")
for lanes in (1, 4):
    rollout(load_agent(agent_path(there / "run", "last")), "halfcheetah", [1.0], lanes, 0, "stream")
check("rolling out")
"""


def test_library_calls_leave_the_process_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    variables = {
        "MINARI_DATASETS_PATH": str(tmp_path / "minari"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]

"""`quickstart`: data, two agents, rollouts and a report, in minutes on a laptop's CPU.

It only strings the other commands together; everything it does can be typed by hand.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import yaml

from decision_seq.errors import UserError

DATASET = "decision-seq/hopper/medium-v0"
STEPS = 20_000

# small enough for two CPU cores and five minutes in all; configs/ has the papers' sizes
RUN = {
    "env": "Hopper-v5",
    "data": {"sources": [DATASET]},
    "agent": {
        "preset": "decision-mamba",
        "context_length": 10,
        "returns": {"scale": 1000},
        "backbone": {"width": 64, "layers": 2, "dropout": 0.0},
    },
    "train": {
        "steps": 1000,
        "learning_rate": 2e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
        "log_interval": 50,
        "checkpoint_interval": 250,
    },
    "eval": {"targets": [2500, 1500], "episodes": 10, "context": "stream"},
}
AGENTS = ("decision-mamba", "decision-transformer")


def quickstart(out: Path = Path("quickstart"), seed: int = 0) -> None:
    """Collect Hopper data, train a Decision Mamba and a Decision Transformer, write a report.

    Args:
        out: folder for everything it makes.
        seed: of data, training and evaluation.
    """
    from decision_seq.eval.report.data import Data
    from decision_seq.eval.report.page import write_report
    from decision_seq.eval.report.runs import load_runs
    from decision_seq.variables import variables

    start = time.monotonic()
    with variables(MINARI_DATASETS_PATH=str((out / "datasets").resolve())):
        folders = _collect_and_compare(out, seed)
    write_report(folders, out / "report.html")
    data = Data(load_runs(folders), {})
    print()
    for sentence in data.summary:
        print(sentence)
    data_mean = json.loads((folders[0] / "dataset.json").read_text())["return_mean"]
    for one in data.runs:
        mean = sum(row["episode_return"] for row in one.rows) / len(one.rows)
        print(f"{one.agent}: mean return {mean:.0f} over both targets; its data {data_mean:.0f}")
    print(f"report: {out / 'report.html'}   ({time.monotonic() - start:.0f} s in all)")


def _collect_and_compare(out: Path, seed: int) -> list[Path]:
    """The run folders of both agents, evaluated."""
    from decision_seq.data.sources import minari_dataset
    from decision_seq.eval.compare.matrix import load_matrix, run_matrix
    from decision_seq.files import write_text

    if not minari_dataset.folder(DATASET).exists():
        command = ["collect", "hopper", "medium", "--steps", str(STEPS), "--seed", str(seed)]
        print(f"$ decision-seq {shlex.join(command)}")
        if subprocess.run([sys.executable, "-m", "decision_seq", *command]).returncode:
            raise UserError(f"{out}: collecting the data failed; its message is above")
    write_text(out / "run.yaml", yaml.safe_dump(RUN, sort_keys=False))
    matrix = {
        "base": "run.yaml",
        "agents": {name: {"preset": name} for name in AGENTS},
        "datasets": {"hopper-medium": [DATASET]},
        "seeds": [seed],
    }
    write_text(out / "compare.yaml", yaml.safe_dump(matrix, sort_keys=False))
    jobs = load_matrix(out / "compare.yaml", out)
    folders, failed = run_matrix(jobs, print)
    if failed:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in failed.items())
        raise UserError(f"{out}: these runs failed: {reasons}")
    return folders

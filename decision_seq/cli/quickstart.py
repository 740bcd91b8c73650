"""`quickstart`: data, two agents, rollouts and a report, in minutes on a laptop's CPU.

It only strings the other commands together; everything it does can be typed by hand.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import yaml

from decision_seq.errors import UserError

# both tiers together, so that a target can ask for either
DATASETS = {tier: f"decision-seq/hopper/{tier}-v0" for tier in ("medium", "expert")}
STEPS = 50_000  # of each

# small enough for two CPU cores and three minutes in all; configs/ has the papers' sizes
RUN = {
    "env": "Hopper-v5",
    # four of five windows are the expert's, whose gait forgives less
    "data": {"sources": list(DATASETS.values()), "weights": [1, 4]},
    "agent": {
        "preset": "decision-mamba",
        "context_length": 5,
        "returns": {"scale": 1000},
        "loss": "l1",  # seeds differ less with it (docs/results.md)
        "backbone": {"width": 64, "layers": 2, "dropout": 0.0},
    },
    "train": {
        "batch_size": 128,
        "learning_rate": 2e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
        "log_interval": 50,
        "checkpoint_interval": 500,
    },
    # what the expert returns, and about what the medium tier does; hardly anything lies in between
    "eval": {"targets": [3600, 1500], "episodes": 10, "context": "window"},
}
# gradient steps: as many as fit into the time, and a Transformer's take less of it
AGENTS = {"decision-mamba": 1500, "decision-transformer": 2500}


def quickstart(out: Path = Path("quickstart"), seed: int = 0) -> None:
    """Collect Hopper data, train a Decision Mamba and a Decision Transformer, write a report.

    Args:
        out: folder for everything it makes.
        seed: of data, training and evaluation.
    """
    from decision_seq.eval.report.archive import load_runs
    from decision_seq.eval.report.data import Data
    from decision_seq.eval.report.page import write_report
    from decision_seq.variables import variables

    start = time.monotonic()
    with variables(MINARI_DATASETS_PATH=str((out / "datasets").resolve())):
        folders = _collect_and_compare(out, seed)
    write_report(folders, out / "report.html")
    data = Data(load_runs(folders), {})
    print()
    for sentence in data.summary:
        print(sentence)
    for score in data.scores:
        print(f"{score.agent}, asked for {score.target}: mean return {score.mean_return:.0f}")
    print(f"report: {out / 'report.html'}   ({time.monotonic() - start:.0f} s in all)")


def _collect_and_compare(out: Path, seed: int) -> list[Path]:
    """The run folders of both agents, evaluated."""
    from decision_seq.data.sources import minari_dataset
    from decision_seq.eval.compare.matrix import load_matrix, run_matrix
    from decision_seq.files import write_text

    for tier, dataset in DATASETS.items():
        if minari_dataset.folder(dataset).exists():
            continue
        command = ["collect", "hopper", tier, "--steps", str(STEPS), "--seed", str(seed)]
        print(f"$ decision-seq {shlex.join(command)}")
        if subprocess.run([sys.executable, "-m", "decision_seq", *command]).returncode:
            raise UserError(f"{out}: collecting the data failed; its message is above")
    write_text(out / "run.yaml", yaml.safe_dump(RUN, sort_keys=False))
    jobs = []
    for name, steps in AGENTS.items():
        matrix = {
            "base": "run.yaml",
            "agents": {name: {"preset": name}},
            "datasets": {"hopper-medium-expert": list(DATASETS.values())},
            "seeds": [seed],
            "overrides": {"train": {"steps": steps}},
        }
        write_text(out / f"{name}.yaml", yaml.safe_dump(matrix, sort_keys=False))
        jobs += load_matrix(out / f"{name}.yaml", out)
    folders, failed = run_matrix(jobs, print)
    if failed:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in failed.items())
        raise UserError(f"{out}: these runs failed: {reasons}")
    return folders

"""Soak: hours of training, checkpoints and rollouts in one process; does its memory stay flat?

    python scripts/soak.py --out soak --hours 2 --load 0.3

One process collects Hopper-v5 episodes through the embedded policies, then repeats rounds: train a
Decision Mamba some steps further (checkpoints, validation, rollouts on the way that carry state),
evaluate it with a recomputed window, and every few rounds begin a new run. Between rounds it
sleeps, so that it uses `--load` cores on average. OUT/soak.jsonl gets a row every 30 s ("clock")
and one after every round ("round", when nothing should be left open): seconds, resident memory,
its anonymous part, open file handles, threads, processor seconds, rounds. At the end, and on
Ctrl-C, OUT/summary.json compares the last quarter with the first and gives the slope an hour with
its standard error, from means over five minutes, since single samples are not independent.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SAMPLE_SECONDS = 30
BLOCK_SECONDS = 300  # samples are averaged over this before the slope's error is taken
WARM_UP = 0.1  # share of the time left out: imports, first kernels, caches that fill once
STEPS_A_ROUND = 100
ROUNDS_A_RUN = 8
DATASET = "soak/hopper/medium-v0"
DATASET_STEPS = 50_000
QUANTITIES = ("resident_mib", "anonymous_mib", "handles", "threads")


def main() -> None:
    """Read the arguments, soak, and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--load", type=float, default=0.3, help="cores to use on average, up to 1")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MINARI_DATASETS_PATH"] = str(out / "minari")
    os.environ["DECISION_SEQ_CACHE"] = str(out / "cache")
    recorder = Recorder(out / "soak.jsonl")
    try:
        soak(out, time.monotonic() + 3600 * arguments.hours, arguments.load, recorder)
    except KeyboardInterrupt:
        pass
    finally:
        recorder.stop()
    summary = summarize(out / "soak.jsonl")
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2))


def soak(out: Path, deadline: float, load: float, recorder: Recorder) -> None:
    """Rounds of work and sleep until `deadline`."""
    import torch

    from decision_seq.run_config import run_config

    torch.set_num_threads(1)
    collect_once()
    plain = {
        "env": "Hopper-v5",
        "data": {"sources": [DATASET]},
        "agent": {
            "preset": "decision-mamba",
            "context_length": 20,
            "returns": {"scale": 1000},
            "backbone": {"width": 64, "layers": 2, "dropout": 0.1},
        },
        "train": {"steps": 1, "warmup_steps": 50, "log_interval": 20, "checkpoint_interval": 50},
        "eval": {"targets": [2500], "episodes": 2, "context": "stream", "interval": STEPS_A_ROUND},
    }
    while time.monotonic() < deadline:
        start = time.monotonic(), time.process_time()
        number, part = divmod(recorder.rounds, ROUNDS_A_RUN)
        run = out / "runs" / f"run-{number}"
        if part == 0:
            shutil.rmtree(out / "runs", ignore_errors=True)
        steps = {"train": {"steps": (part + 1) * STEPS_A_ROUND}, "seed": number}
        one_round(run_config(plain, steps, "soak"), run)
        recorder.rounds += 1
        recorder.add_row("round")
        used = time.process_time() - start[1]
        pause(min(deadline, start[0] + used / load))


def one_round(config: Any, run: Path) -> None:
    """Train further with rollouts on the way (stream), then evaluate the checkpoint (window)."""
    import torch

    from decision_seq.agents import load_agent
    from decision_seq.eval.rollout.protocol import evaluate_agent, evaluation_config
    from decision_seq.run_folder import agent_path, read_index
    from decision_seq.training.loop import train

    def roll(agent: Any, step: int) -> dict[str, float]:
        rows = evaluate_agent(agent, config, run, step, "interval")
        return {"return_mean": sum(row["episode_return"] for row in rows) / len(rows)}

    device = torch.device("cpu")
    train(config, run, device, resume=True, on_interval=roll)
    window, step = evaluation_config(run, context="window"), read_index(run)["last"]["step"]
    evaluate_agent(load_agent(agent_path(run), device), window, run, step, "last")


def collect_once() -> None:
    """The dataset, unless an earlier soak in the same folder has made it."""
    from decision_seq.behaviours.tiers import behaviour_for
    from decision_seq.data.sources import minari_dataset
    from decision_seq.data.tools.collect import collect

    if not minari_dataset.folder(DATASET).exists():
        behaviour, provenance = behaviour_for("hopper", "medium", None)
        collect("hopper", behaviour, DATASET_STEPS, DATASET, 0, provenance)


def pause(until: float) -> None:
    """Sleep up to the moment `until` of the monotonic clock."""
    time.sleep(max(0.0, until - time.monotonic()))


class Recorder:
    """A thread that adds a row to a JSON-lines file every SAMPLE_SECONDS; others may add more."""

    def __init__(self, path: Path) -> None:
        self.rounds = 0
        self._path, self._start, self._stop = path, time.monotonic(), threading.Event()
        self._lock = threading.Lock()
        path.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end the thread."""
        self._stop.set()
        self._thread.join()

    def add_row(self, when: str) -> None:
        """One sample, now."""
        with self._lock, self._path.open("a") as file:
            row = {"when": when, "seconds": round(time.monotonic() - self._start, 1)}
            file.write(json.dumps(row | {"rounds": self.rounds} | sample()) + "\n")

    def _run(self) -> None:
        self.add_row("clock")
        while not self._stop.wait(SAMPLE_SECONDS):
            self.add_row("clock")
        self.add_row("clock")


def sample() -> dict[str, float]:
    """Memory, handles and threads of this process, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)

    def mib(key: str) -> float:
        return round(int(status[key].split()[0]) / 1024, 2)

    return {
        "resident_mib": mib("VmRSS"),
        "anonymous_mib": mib("RssAnon"),
        "handles": len(os.listdir("/proc/self/fd")) - 2,  # less the listing's and the row's
        "threads": int(status["Threads"]),
        "cpu_seconds": round(time.process_time(), 1),
    }


def summarize(path: Path) -> dict[str, Any]:
    """Sizes of the soak; then every quantity, by the clock and after rounds, warm-up left out."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    last = rows[-1]
    kept = [row for row in rows if row["seconds"] >= WARM_UP * last["seconds"]]
    return {
        "hours": round(last["seconds"] / 3600, 3),
        "rounds": last["rounds"],
        "training_steps": last["rounds"] * STEPS_A_ROUND,
        "rows": len(rows),
        "cores_used": round(last["cpu_seconds"] / max(last["seconds"], 1e-9), 3),
    } | {when: trends([row for row in kept if row["when"] == when]) for when in ("clock", "round")}


def trends(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """First and last quarter, highest, and slope an hour of every quantity."""
    hours = np.array([row["seconds"] for row in rows]) / 3600
    quarter = max(1, len(rows) // 4)
    found = {}
    for name in QUANTITIES if rows else ():
        values = np.array([row[name] for row in rows], np.float64)
        slope, error = slope_an_hour(hours, values)
        found[name] = {
            "first_quarter_mean": round(float(values[:quarter].mean()), 2),
            "last_quarter_mean": round(float(values[-quarter:].mean()), 2),
            "highest": float(values.max()),
            "slope_an_hour": slope,
            "slope_standard_error": error,
        }
    return found


def slope_an_hour(hours: np.ndarray, values: np.ndarray) -> tuple[float | None, float | None]:
    """Least squares through the means of blocks, and the slope's standard error; None if short."""
    blocks = ((hours - hours[0]) * 3600 // BLOCK_SECONDS).astype(int)
    names = np.unique(blocks)
    if len(names) < 4:
        return None, None
    x = np.array([hours[blocks == block].mean() for block in names])
    y = np.array([values[blocks == block].mean() for block in names])
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    residuals = y - y.mean() - slope * x
    error = float(np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x)))
    return round(slope, 4), round(error, 4)


if __name__ == "__main__":
    main()

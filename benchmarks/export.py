"""Exported policies beside the native engine: one lane, one step, streams."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from benchmarks import models
from benchmarks.measure import Listing, Options, Table, Timer, benchmark, take_turns, timer
from decision_seq.export.bundle import WRITERS
from decision_seq.export.record import Record
from decision_seq.export.step import PolicyStep
from decision_seq.ops.c.build import find_compiler
from decision_seq.policy import Policy

STEPS = 100  # a round


@benchmark("export", "a step of exported policies beside the native engine", tables=4)
def export(options: Options) -> Iterator[Table | Listing]:
    for backbone in ("mamba", "attention"):
        agent = models.agent(backbone).eval()
        space = spaces.Box(-1, 1, (models.ACTIONS,), np.float32)
        step = PolicyStep(agent, "stream", space)
        record = drawn(agent, space)
        with tempfile.TemporaryDirectory() as place:
            folders = {to: Path(place) / to for to in WRITERS}
            sizes = []
            for to, folder in folders.items():
                folder.mkdir()
                file, difference, _ = WRITERS[to](step, record, folder)
                size = (folder / file).stat().st_size / 2**20
                sizes.append([to, file, f"{size:.2f}", f"{difference:.1g}"])
            contenders = {
                "native engine, from Python": timer(native(agent, space), options),
                "c": program(folders["c"]),
                "onnx, by onnxruntime": timer(runtime(step, folders["onnx"]), options),
                "torch": timer(module(step, folders["torch"]), options),
            }
            own = {name: 1.0 if name == "c" else float(STEPS) for name in contenders}
            rows = take_turns(contenders, options, own)
        title = f"{backbone}, width 128, 3 layers, one lane, a step of a stream"
        yield Table(title, rows, "native engine, from Python")
        yield Listing(f"{backbone}: sizes", ["", "file", "MiB", "largest difference"], sizes)


def drawn(agent: Any, space: spaces.Box) -> Record:
    """Random observations and rewards, and what PyTorch predicts."""
    draw, steps = np.random.default_rng(0), 200
    observation = draw.standard_normal((steps, models.OBSERVATIONS), np.float32)
    reward = draw.random(steps, np.float32)
    policy = Policy(agent, "stream", 3600, 1, action_space=space, engine="eager")
    predicted, actions = [], []
    for seen, received in zip(observation, reward, strict=True):
        actions.append(policy.act(seen, received))
        predicted.append(policy.predicted[0])
    made = np.array(predicted)
    target = np.full(steps, 3600, np.float32)
    begins = np.arange(steps) == 0
    noise = np.zeros_like(made)
    return Record(
        begins, {"observation": observation}, reward, target, noise, made, np.array(actions)
    )


def native(agent: Any, space: spaces.Box) -> Any:
    policy = Policy(agent, "stream", 3600, 1, action_space=space, engine="native")
    observation = np.zeros(models.OBSERVATIONS, np.float32)
    return lambda: [policy.act(observation, 1.0) for _ in range(STEPS)]


def program(folder: Path) -> Timer:
    """The C program, which times itself."""
    make = ["make", "-C", str(folder), f"CC={' '.join(find_compiler())}"]
    subprocess.run(make, check=True, capture_output=True)

    def run() -> float:
        done = subprocess.run("./policy", cwd=folder, capture_output=True, text=True, check=True)
        found = re.search(r"([\d.]+) microseconds a step", done.stdout)
        assert found
        return 1e-6 * float(found[1])

    return run


def runtime(step: PolicyStep, folder: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "policy.onnx", options)
    given = {name: make(1).numpy() for name, make in step.inputs.items()}

    def run() -> None:
        for _ in range(STEPS):
            given["state"] = session.run(None, given)[2]

    return run


def module(step: PolicyStep, folder: Path) -> Any:
    own = torch.export.load(folder / "policy.pt2").module()
    given = [make(1) for make in step.inputs.values()]

    @torch.inference_mode()
    def run() -> None:
        for _ in range(STEPS):
            given[3] = own(*given)[2]

    return run

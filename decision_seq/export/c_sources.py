"""The native engine's C files with an agent's packed weights: a policy for where no Python is."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decision_seq.errors import UserError
from decision_seq.export import c_rules  # noqa: F401  # fills the register
from decision_seq.export.c_program import to_program
from decision_seq.export.record import Record
from decision_seq.export.step import PolicyStep
from decision_seq.ops.c import build
from decision_seq.policy.native import engine
from decision_seq.policy.native.pack import pack, unpackable
from decision_seq.variables import variables

HERE = Path(__file__).parent / "csrc"
SHARED = ("agent.h", "read_all.h", "main.c", "Makefile")


@dataclass(frozen=True)
class Said:
    """What ./policy check.bin printed."""

    difference: float | None
    notes: list[str]


def write_c(step: PolicyStep, record: Record, folder: Path) -> Said:
    """Fill `folder`, and build and run it where there are make and a compiler. What the native
    engine knows goes by its sources, every other agent by a program of operations.

    Raises:
        UserError: the agent does what has no rule, or what was written does not build.
    """
    if unpackable(step.agent):
        sources = [HERE / "program.c"]
        function, example = in_one_row(step)
        with variables(DECISION_SEQ_SCAN="reference"):
            program, made = to_program(function, example)
        (folder / "weights.bin").write_bytes(program.write(example, made))
    else:
        sources = [HERE / "agent.c", *engine.LIBRARY.folder.iterdir(), build.HERE / "simd.h"]
        pack(step.agent).tofile(folder / "weights.bin")
    for file in (*(HERE / name for name in SHARED), *sources):
        shutil.copyfile(file, folder / file.name)
    (folder / "config.h").write_text(_config(step, record), "utf-8")
    columns = [record.begins, _rows(record), record.reward, record.target_return]
    columns += [record.noise, record.prediction]
    data = np.concatenate([column.ravel().astype(np.float32) for column in columns])
    steps = np.array([len(record.begins)], np.int32)
    (folder / "check.bin").write_bytes(steps.tobytes() + data.tobytes())
    return _try(folder)


def in_one_row(step: PolicyStep) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """`step` of one lane, and an example of what it takes; several inputs that make an observation
    are one row of floats, one after another."""
    example = [make(1) for make in step.inputs.values()]
    parts = example[: len(step.observed.inputs)]
    if len(parts) == 1:
        return step, example

    def function(row: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        pieces = row.split([part.numel() for part in parts], dim=1)
        seen = [p.view(part.shape).to(part.dtype) for p, part in zip(pieces, parts, strict=True)]
        return step(*seen, *others)

    row = torch.cat([part.flatten(1).float() for part in parts], dim=1)
    return function, [row, *example[len(parts) :]]


def _rows(record: Record) -> np.ndarray:
    """What is seen, [T, OBSERVATION] float32."""
    parts = [v.reshape(len(v), -1).astype(np.float32) for v in record.observations.values()]
    return np.concatenate(parts, axis=1)


def _try(folder: Path) -> Said:
    """Build and run it in a copy, so that what is shipped holds sources alone."""
    if not shutil.which("make"):
        return Said(None, ["it was not run: there is no make here"])
    try:
        compiler = build.find_compiler()
    except build.KernelUnavailable as error:
        return Said(None, [f"it was not run: {error}"])
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(folder, Path(place) / "policy")
        made = build.run(["make", "-C", str(copy), f"CC={' '.join(compiler)}"])
        if made.returncode:
            raise UserError(f"the C sources do not build: {made.stderr.strip().splitlines()[-1]}")
        ran = subprocess.run(["./policy", "check.bin"], cwd=copy, capture_output=True, text=True)
    found = re.search(r"largest difference (\S+)", ran.stdout)
    if found is None:
        raise UserError(f"the C policy does not run: {ran.stderr.strip() or ran.returncode}")
    return Said(float(found[1]), ran.stdout.strip().splitlines()[1:])


def _config(step: PolicyStep, record: Record) -> str:
    spec, returns, agent = step.spec, step.config.returns, step.agent
    size = spec.action_dim

    def array(name: str, values: Tensor | None, default: str) -> str:
        listed = [default] * size if values is None else [_float(v) for v in values.tolist()]
        return f"static const float {name}[ACTION] = {{{', '.join(listed)}}};"

    numbers = {
        "OBSERVATION": _rows(record).shape[1],
        "ACTION": size,
        "NUMBERS": 1 if spec.discrete else step.width,
        "DISCRETE": int(spec.discrete),
        "WINDOW": int(step.context == "window"),
        "TARGET_RETURN": _float(float(record.target_return[0])),
        "RETURN_SCALE": _float(returns.scale),
        "RETURNS_DELAYED": int(returns.delayed),
        "REWARDS_CLIPPED": int(returns.clipped),
        "TEMPERATURE": _float(step.config.temperature),
        "FIRST_ACTION": spec.action_start,
    }
    arrays: list[str] = []
    if spec.discrete:
        numbers |= {"LOWEST_ACTION": step.numbers[0], "HIGHEST_ACTION": step.numbers[-1]}
    elif step.codec is None:  # else they are in the program
        arrays = [
            array("ACTION_SCALE", agent.action_scale, "1.0f"),
            array("LOWEST_ACTION", step.low, "-INFINITY"),
            array("HIGHEST_ACTION", step.high, "INFINITY"),
        ]
    lines = [f"#define {name} {value}" for name, value in numbers.items()]
    head = "/* Of this policy: sizes, and the units of actions and returns. */"
    return "\n".join([head, "#include <math.h>", "", *lines, *arrays, ""])


def _float(value: float) -> str:
    """A constant of C; %.9g keeps every float32."""
    if np.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"

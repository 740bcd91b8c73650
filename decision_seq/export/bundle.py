"""A policy in a folder that needs none of this package: the file itself, policy.json, which says
what goes in and comes out, and check.npz, real steps that are replayed through it at once."""

from __future__ import annotations

import itertools
import json
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from decision_seq import __version__
from decision_seq.agents import SequenceAgent
from decision_seq.agents.fit import check_fit
from decision_seq.agents.return_prior import load_prior
from decision_seq.config import to_plain
from decision_seq.data.tools.info import read_summary
from decision_seq.envs.atari import FRAME_STACK
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.errors import UserError
from decision_seq.eval.rollout.protocol import evaluation_config
from decision_seq.export.c_sources import write_c
from decision_seq.export.onnx_model import OPSET, to_onnx
from decision_seq.export.record import TOLERANCE, Record, largest_difference, play
from decision_seq.export.step import PolicyStep
from decision_seq.files import atomic_folder
from decision_seq.run_config import RunConfig, trained_agent
from decision_seq.run_folder import agent_hash, read_index
from decision_seq.settings import Context
from decision_seq.spaces import Table
from decision_seq.variables import variables

Target = Literal["onnx", "torch", "c"]
OUTPUTS = ("action", "prediction", "next_state")


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was held against the agent."""

    folder: Path
    difference: float | None  # None where it could not be run here
    notes: list[str]


@quiet_mujoco()
def export_policy(
    agent: SequenceAgent,
    config: RunConfig,
    to: Target,
    out: Path,
    context: Context | None = None,
    target_return: float | None = None,
    origin: dict[str, Any] | None = None,
    run: Path | None = None,
) -> Exported:
    """Write the policy of a trained agent to the new folder `out`.

    Args:
        agent: the trained agent.
        config: the run's, for its environment and protocol.
        to: onnx, torch or c.
        out: must not exist.
        context: "window" or "stream"; by default the protocol's.
        target_return: in the environment's units; by default the protocol's first, or what the
            run's prior proposes.
        origin: added to policy.json.
        run: folder of the return prior.

    Raises:
        UserError: `out` exists, the agent cannot be exported so, or what was written predicts
            otherwise than the agent.
    """
    if out.exists():
        raise UserError(f"{out}: exists; choose another --out, or remove it")
    if config.env is None:
        raise UserError(f"{out}: the run names no environment to play in; name one with --env")
    context = context or config.eval.context
    lanes = open_lanes(config.env, 1, agent.config.frame_stack or FRAME_STACK)
    try:
        check_fit(agent.spec, lanes.envs[0])
        target = _target(agent, config, target_return, lanes.reset([config.eval.seed])[:1], run)
        step = PolicyStep(agent, context, lanes.action_space)
        record = play(agent, lanes, context, target, config.eval.seed)
    finally:
        lanes.close()
    with atomic_folder(out) as folder:
        record.save(folder / "check.npz")
        file, difference, notes = WRITERS[to](step, record, folder)
        if difference is not None and not difference <= TOLERANCE:
            raise UserError(
                f"{out}: not written: {file} predicts otherwise than the agent, by "
                f"{difference:.2g} (at most {TOLERANCE:g} is rounding)"
            )
        described = {
            "format": "decision-seq policy 1",
            "file": file,
            "agent": config.name,
            "backbone": config.agent.backbone.kind,
            "env": config.env,
            "context": context,
            "context_length": agent.config.context_length,
            "target_return": target if agent.config.follows_target else None,
            **_interface(step),
            **(origin or {}),
            "check": {"steps": len(record.begins), "largest_difference": difference},
            "opset": OPSET if to == "onnx" else None,
            "versions": {
                "decision_seq": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
        }
        text = json.dumps(described, indent=2, allow_nan=False)
        (folder / "policy.json").write_text(text + "\n", "utf-8")
    return Exported(out, difference, notes)


def trained(
    run: Path, checkpoint: Literal["last", "validation"], env: str | None = None
) -> tuple[SequenceAgent, RunConfig, dict[str, Any]]:
    """The agent of a run folder, its config with the environment that it acts in, and for
    policy.json which data and which checkpoint it is of."""
    step = read_index(run)[checkpoint]["step"]
    data = read_summary(run / "dataset.json")
    origin = {"data": {"name": data["name"], "hash": data["hash"]}, "step": step}
    config = evaluation_config(run, env)
    agent = trained_agent(run, config, step)
    return agent, config, origin | {"agent_hash": agent_hash(run, step)}


def _target(
    agent: SequenceAgent,
    config: RunConfig,
    given: float | None,
    first: np.ndarray,
    run: Path | None,
) -> float:
    if given is not None or not agent.config.follows_target:
        return given or 0.0
    if config.eval.targets and config.eval.targets != "auto":
        return float(config.eval.targets[0])
    prior = load_prior(run) if run else None
    if prior is None:
        raise UserError("the run's config names no target return; give one with --target-return")
    return float(prior.propose(torch.from_numpy(first), config.eval.target_quantile)[0])


def _interface(step: PolicyStep) -> dict[str, Any]:
    """What goes in and comes out, for policy.json."""
    spec = step.spec
    actions = "number of the action" if spec.discrete else "in the environment's units"
    if spec.action_space:
        actions = "numbers of its parts, side by side: see actions.parts; choices count from 0"
    meanings = {
        "observation": "as the environment gives it; it is normalised inside",
        "reward": "for the action before, as the environment gives it; any number where an episode "
        "begins. The return-to-go is counted inside",
        "target_return": "return to ask for, in the environment's units; it may change at any step",
        "state": "next_state of the step before; zeros where an episode begins",
        "noise": "standard Gumbel noise, which samples the action; zeros take the likeliest",
        "action": actions,
        "prediction": "logits of choices, and vectors in units of their scale",
        "next_state": "the next step's state",
    }
    example = {name: make(1) for name, make in step.inputs.items()}
    made = dict(zip(OUTPUTS, step(*example.values()), strict=True))

    def listed(tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "shape": ["lanes", *tensor.shape[1:]],
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "meaning": meanings[name.partition(".")[0]],  # of images: observation.PATH
            }
            for name, tensor in tensors.items()
        ]

    bounds: dict[str, Any] = {"numbers": list(step.numbers)}
    if not spec.discrete:
        bounds = {"scale": step.agent.action_scale.tolist()}
        bounds |= {"low": _finite(step.low), "high": _finite(step.high)}
    if spec.action_space:
        bounds["parts"] = _parts(spec.action_space)
    return {
        "inputs": listed(example),
        "outputs": listed(made),
        "state": [{"name": f.name, "start": f.start, "shape": f.shape} for f in step.fields],
        "observations": step.observed.described(),
        "actions": bounds,
    }


def _finite(bounds: Tensor | None) -> list[float | None] | None:
    """JSON has no infinity: null is no bound."""
    if bounds is None:
        return None
    return [value if math.isfinite(value) else None for value in bounds.tolist()]


def _parts(table: Table) -> list[dict[str, Any]]:
    """Of an action that has several, and the columns of a row that each one is."""
    ends = itertools.accumulate(leaf.width for leaf in table.numbers)
    return [
        to_plain(leaf) | {"columns": [end - leaf.width, end]}
        for leaf, end in zip(table.numbers, ends, strict=True)
    ]


# ---- one writer a target: the file's name, the largest difference, and what is to be said ------

Written = tuple[str, float | None, list[str]]


def write_onnx(step: PolicyStep, record: Record, folder: Path) -> Written:
    """policy.onnx, for onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "--to onnx needs onnx and onnxruntime; install them with pip install "
            "'decision-seq[export]'"
        ) from None
    with variables(DECISION_SEQ_SCAN="reference"):
        model = to_onnx(step, step.inputs, OUTPUTS)
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(folder / "policy.onnx")

    def run(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        _, prediction, state = session.run(None, {name: given[name] for name in step.names})
        return prediction, state

    return "policy.onnx", largest_difference(record, run, step.state_size), []


def write_torch(step: PolicyStep, record: Record, folder: Path) -> Written:
    """policy.pt2, a program of torch.export."""
    lanes = torch.export.Dim("lanes", min=1, max=2**31 - 1)  # torch 2.7 wants one that is finite
    example = tuple(make(2) for make in step.inputs.values())
    with variables(DECISION_SEQ_SCAN="reference"), torch.no_grad():
        shapes = (tuple({0: lanes} for _ in example),)  # one argument, *given
        program = torch.export.export(step, example, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, folder / "policy.pt2")
    module = torch.export.load(folder / "policy.pt2").module()

    def run(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        _, prediction, state = module(*(torch.from_numpy(given[name]) for name in step.names))
        return prediction.numpy(), state.numpy()

    return "policy.pt2", largest_difference(record, run, step.state_size), []


def write_sources(step: PolicyStep, record: Record, folder: Path) -> Written:
    """weights.bin and C sources, built and run here where there is a compiler."""
    said = write_c(step, record, folder)
    return "weights.bin", said.difference, said.notes


WRITERS: dict[str, Callable[[PolicyStep, Record, Path], Written]] = {
    "onnx": write_onnx,
    "torch": write_torch,
    "c": write_sources,
}

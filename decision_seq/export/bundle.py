"""A policy in a folder that needs none of this package: the file itself, policy.json, which says
what goes in and comes out, and check.npz, real steps that are replayed through it at once."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from decision_seq import __version__
from decision_seq.agents import SequenceAgent
from decision_seq.agents.fit import check_fit
from decision_seq.agents.return_prior import load_prior
from decision_seq.data.tools.info import read_summary
from decision_seq.envs.atari import FRAME_STACK
from decision_seq.envs.fastest import open_lanes
from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.errors import UserError
from decision_seq.export.c_sources import write_c
from decision_seq.export.onnx_model import OPSET, to_onnx
from decision_seq.export.record import TOLERANCE, Record, largest_difference, play
from decision_seq.export.step import PolicyStep
from decision_seq.files import atomic_folder
from decision_seq.run_config import RunConfig
from decision_seq.run_folder import agent_hash
from decision_seq.settings import Context
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
    if agent.spec.observation_space or agent.spec.action_space:
        raise UserError(
            "export takes observations that are vectors or gray frames, and actions that are a "
            "vector or one choice; this agent's have several parts"
        )
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
        (folder / "policy.json").write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    return Exported(out, difference, notes)


def origin_of(run: Path, step: int) -> dict[str, Any]:
    """Which data and which checkpoint, for policy.json."""
    data = read_summary(run / "dataset.json")
    named = {"data": {"name": data["name"], "hash": data["hash"]}}
    return named | {"step": step, "agent_hash": agent_hash(run, step)}


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
    meanings = {
        "observation": "as the environment gives it; it is normalised inside",
        "reward": "for the action before, as the environment gives it; any number where an episode "
        "begins. The return-to-go is counted inside",
        "target_return": "return to ask for, in the environment's units; it may change at any step",
        "state": "next_state of the step before; zeros where an episode begins",
        "noise": "standard Gumbel noise, which samples the action; zeros take the likeliest",
        "action": actions,
        "prediction": "logits of the actions"
        if spec.discrete
        else "actions in units of their scale",
        "next_state": "the next step's state",
    }
    example = {name: make(1) for name, make in example_inputs(step).items()}
    made = dict(zip(OUTPUTS, step(**example), strict=True))

    def listed(tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "shape": ["lanes", *tensor.shape[1:]],
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "meaning": meanings[name],
            }
            for name, tensor in tensors.items()
        ]

    bounds = {"scale": step.agent.action_scale.tolist(), "low": step.low, "high": step.high}
    limits = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in bounds.items()}
    return {
        "inputs": listed(example),
        "outputs": listed(made),
        "state": [{"name": f.name, "start": f.start, "shape": f.shape} for f in step.fields],
        "actions": {"numbers": list(step.numbers)} if spec.discrete else limits,
    }


def example_inputs(step: PolicyStep) -> dict[str, Callable[[int], torch.Tensor]]:
    """By name, what makes zeros of so many lanes."""
    spec = step.spec
    stack = (step.config.frame_stack or FRAME_STACK,) if spec.frames else ()
    shape = (*stack, *spec.observation_shape)
    kind = torch.uint8 if spec.frames else torch.float32
    inputs: dict[str, Callable[[int], torch.Tensor]] = {
        "observation": lambda lanes: torch.zeros(lanes, *shape, dtype=kind),
        "reward": torch.zeros,
        "target_return": torch.zeros,
        "state": lambda lanes: torch.zeros(lanes, step.state_size),
    }
    if step.samples:
        inputs["noise"] = lambda lanes: torch.zeros(lanes, spec.action_dim)
    return inputs


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
        model = to_onnx(step, example_inputs(step), OUTPUTS)
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(folder / "policy.onnx")

    def run(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if not step.samples:
            del given["noise"]
        _, prediction, state = session.run(None, given)
        return prediction, state

    return "policy.onnx", largest_difference(record, run, step.state_size), []


def write_torch(step: PolicyStep, record: Record, folder: Path) -> Written:
    """policy.pt2, a program of torch.export."""
    inputs, lanes = example_inputs(step), torch.export.Dim("lanes", min=1)
    example = tuple(make(2) for make in inputs.values())
    with variables(DECISION_SEQ_SCAN="reference"), torch.no_grad():
        shapes = tuple({0: lanes} for _ in example)
        program = torch.export.export(step, example, dynamic_shapes=shapes, strict=False)
    torch.export.save(program, folder / "policy.pt2")
    module = torch.export.load(folder / "policy.pt2").module()

    def run(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        _, prediction, state = module(*(torch.from_numpy(given[name]) for name in inputs))
        return prediction.numpy(), state.numpy()

    return "policy.pt2", largest_difference(record, run, step.state_size), []


def write_sources(step: PolicyStep, record: Record, folder: Path) -> Written:
    """weights.bin and C sources, built and run here where there is a compiler."""
    said = write_c(step, example_inputs(step), record, folder)
    return "weights.bin", said.difference, said.notes


WRITERS: dict[str, Callable[[PolicyStep, Record, Path], Written]] = {
    "onnx": write_onnx,
    "torch": write_torch,
    "c": write_sources,
}

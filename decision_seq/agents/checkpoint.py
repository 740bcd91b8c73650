"""An agent as one safetensors file: weights, statistics, and in its header what they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from decision_seq.agents.base import SequenceAgent
from decision_seq.agents.spec import AgentConfig, AgentSpec
from decision_seq.config import build, to_plain
from decision_seq.errors import UserError
from decision_seq.files import atomic_file, same_bytes

FORMAT = "decision-seq agent 1"


def save_agent(agent: SequenceAgent, path: Path) -> None:
    """Write `agent` to `path` atomically."""
    header = {
        "format": FORMAT,
        "config": json.dumps(to_plain(agent.config)),
        "spec": json.dumps(to_plain(agent.spec)),
    }
    tensors = agent.state_dict()
    with atomic_file(path) as temporary:
        data = same_bytes(save({n: t.contiguous().cpu() for n, t in tensors.items()}, header))
        temporary.write_bytes(data)  # unlike safetensors' own writing, a full disk is an OSError


def load_agent(path: Path, device: torch.device | str = "cpu") -> SequenceAgent:
    """Read an agent, in eval mode. No code in the file can run.

    Raises:
        UserError: the file is missing, cut off, or not an agent.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read as an agent ({error}); it may be cut off or missing; use "
            "another checkpoint of the run, or train it again"
        ) from None
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path}: holds no decision-seq agent (its format is {header.get('format')})"
        )
    try:
        plain = [json.loads(header[key]) for key in ("config", "spec")]
        if "observation_dim" in plain[1]:  # before there were frames
            plain[1]["observation_shape"] = [plain[1].pop("observation_dim")]
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: its header is damaged; use another checkpoint") from None
    config = build(AgentConfig, plain[0], str(path))
    spec = build(AgentSpec, plain[1], str(path))
    agent = config.agent(config, spec)
    try:
        agent.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).split("\n")[1].strip()
        raise UserError(f"{path}: weights do not fit the agent they name ({first})") from None
    return agent.to(device).eval()

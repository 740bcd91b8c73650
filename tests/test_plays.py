"""An agent trained for half a minute plays: nothing else here would notice one that does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from decision_seq.agents import load_agent
from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.data.tools.collect import collect
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.run_config import run_config
from decision_seq.run_folder import agent_path
from decision_seq.training.loop import train


def test_a_decision_transformer_hops_as_far_as_it_is_asked(tmp_path: Path) -> None:
    """Medium returns about 1,400 and expert 3,600; who does nothing gets 20. In one try: 3,550 and
    1,190. Different rounding is enough to change either by some hundreds."""
    sources = [f"test/hopper-{tier}-v0" for tier in ("medium", "expert")]
    for source, tier in zip(sources, ("medium", "expert"), strict=True):
        behaviour, provenance = behaviour_for("hopper", tier, None)
        collect("hopper", behaviour, 15_000, source, 0, provenance)
    fields = {
        "env": "hopper",
        "data": {"sources": sources},
        "agent": {
            "preset": "decision-transformer",
            "context_length": 5,
            "backbone": {"width": 64, "layers": 2, "dropout": 0.0},
        },
        "train": {
            "steps": 800,
            "learning_rate": 2e-3,
            "warmup_steps": 100,
            "schedule": "cosine",
        },
    }
    train(run_config(fields, {}, "test"), tmp_path / "run", torch.device("cpu"))
    agent = load_agent(agent_path(tmp_path / "run"))
    rows = rollout(agent, "hopper", [3600.0, 1400.0], 10, 0, "stream")
    far, near = (
        np.mean([row.episode_return for row in rows if row.target == target])
        for target in (3600.0, 1400.0)
    )
    assert far > 1700 and 900 < near < 1700 and far > near + 400, (far, near)

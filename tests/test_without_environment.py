"""Logs without a simulator: trained on, inspected and reported, never rolled out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz

from decision_seq.errors import UserError
from decision_seq.eval.compare.evaluations import finished
from decision_seq.eval.inspect.run import inspect_agent, load_trained, write_inspection
from decision_seq.eval.report.page import write_report
from decision_seq.eval.rollout.protocol import evaluation_config
from decision_seq.files import read_jsonl
from decision_seq.run_config import RunConfig, run_config
from decision_seq.training.loop import train

CPU = torch.device("cpu")


def config(path: Path, **eval_: object) -> RunConfig:
    plain = {
        "data": {"sources": [str(path)], "validation_fraction": 0.3},
        "agent": {"preset": "decision-transformer", "context_length": 3},
        "train": {"steps": 2, "batch_size": 4, "checkpoint_interval": 1, "log_interval": 1},
        "eval": eval_,
    }
    plain["agent"]["backbone"] = {"width": 8, "layers": 1, "heads": 1}  # type: ignore[index]
    return run_config(plain, {}, "test")


def test_all_but_rollouts(tmp_path: Path) -> None:
    logs = write_npz(tmp_path / "log.npz", random_episodes([6] * 9), meta=None)
    run = tmp_path / "run"
    assert config(logs).env is None
    assert not finished(run, config(logs), ())
    train(config(logs), run, CPU)
    assert finished(run, config(logs), ())
    losses = [row["validation_loss"] for row in read_jsonl(run / "metrics.jsonl")
              if "validation_loss" in row]  # fmt: skip
    assert len(losses) == 2 and np.isfinite(losses).all()
    write_inspection(inspect_agent(load_trained(run, "last", (), CPU), 0, None, None), run)
    written = write_report([run], tmp_path / "report.md")
    text = written[0].read_text(encoding="utf-8")
    assert "Without an environment, and so without rollouts: decision-transformer." in text
    assert "## Learning curves" in text and "## Scores" not in text
    with pytest.raises(UserError, match="without an environment; name one with --env"):
        evaluation_config(run)
    assert evaluation_config(run, "point-run").env == "point-run"


def test_rollouts_on_the_way_ask_for_one(tmp_path: Path) -> None:
    logs = write_npz(tmp_path / "log.npz", random_episodes([6] * 3), meta=None)
    with pytest.raises(UserError, match="no env is named"):
        train(config(logs, interval=1), tmp_path / "run", CPU)

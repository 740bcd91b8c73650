"""Evaluation: rows say how they came about, repeat bit for bit, and `best` is never alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import MEASURED, evaluated

from decision_seq.agents import load_agent
from decision_seq.api.estimates import off_policy
from decision_seq.errors import UserError
from decision_seq.eval.compare.evaluations import finished
from decision_seq.eval.inspect.run import load_trained
from decision_seq.eval.rollout.protocol import evaluate_best, evaluation_config
from decision_seq.eval.rows import Row, read_rows, target_label
from decision_seq.export.share import save_pretrained
from decision_seq.run_config import run_config
from decision_seq.run_folder import agent_at, saved_steps
from decision_seq.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(toy_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps that keeps three checkpoints."""
    plain: dict[str, Any] = {
        "env": "point-run",
        "data": {"sources": [str(toy_file)]},
        "agent": {"preset": "bc", "context_length": 4, "backbone": {"width": 16}},
        "train": {
            "steps": 30,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "warmup_steps": 1,
            "log_interval": 10,
            "checkpoint_interval": 10,
            "keep_interval": 10,
        },
        "eval": {"episodes": 3, "seed": 7},
        "seed": 2,
    }
    out = tmp_path_factory.mktemp("evaluated") / "run"
    train(run_config(plain, {}, "test"), out, CPU)
    return out


def comparable(rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


@pytest.mark.parametrize("context", ["window", "stream"])
def test_evaluating_again_gives_the_same_rows_bit_for_bit(run: Path, context: str) -> None:
    first = evaluated(run, context=context)
    kept = [row for row in read_rows(run) if row["context"] == context]
    again = evaluated(run, context=context)
    assert comparable(first) == comparable(again) == comparable(kept)
    assert len({row["episode_return"] for row in first}) == 3
    other = evaluated(run, context=context, seed=8)
    assert comparable(other)[:2] == comparable(first)[1:]


def test_a_row_says_how_it_came_about(run: Path) -> None:
    row = evaluated(run, episodes=5)[0]
    assert row["dataset"] == {"name": "toy", "hash": row["dataset"]["hash"]}
    assert row["env"] == "decision-seq/PointRun-v0" and row["context"] == "window"
    assert (row["context_length"], row["train_seed"], row["env_seed"]) == (4, 2, 7)
    assert (row["checkpoint"], row["checkpoint_rule"], row["candidates"]) == ("last", "last", 1)
    assert (row["episodes"], row["lanes"], row["step"]) == (5, 5, 30)
    assert {"decision_seq", "python", "torch", "numpy", "gymnasium", "mujoco"} <= set(
        row["versions"]
    )
    hardware = row["hardware"]
    assert hardware["cpu"] and hardware["cores"] >= 1 and hardware["threads"] >= 1
    assert hardware["gpu"] is None
    weights = load_agent(agent_at(run, 30), CPU).parameters()
    assert row["parameters"] == sum(p.numel() for p in weights)
    assert 50 < row["peak_memory_mib"] < 1e5


def test_the_lowest_validation_loss_is_one_of_three(run: Path) -> None:
    row = evaluated(run, "validation")[0]
    assert (row["checkpoint_rule"], row["candidates"]) == ("lowest validation loss", 3)


def test_the_best_is_chosen_by_rollouts_of_its_own_and_stands_next_to_the_last(run: Path) -> None:
    files = {step: agent_at(run, step) for step in saved_steps(run)}
    last, best = evaluate_best(run, files, evaluation_config(run), CPU)
    rows = read_rows(run)
    means = {
        step: np.mean([r["episode_return"] for r in rows if r["checkpoint"] == "selection"
                       and r["step"] == step])
        for step in (10, 20, 30)
    }  # fmt: skip
    assert len(set(means.values())) == 3
    assert {r["step"] for r in best} == {max(means, key=lambda step: means[step])}
    assert {(r["candidates"], r["checkpoint"]) for r in best} == {(3, "best")}
    assert best[0]["checkpoint_rule"].endswith("environment seeds 10 to 12")
    assert {r["env_seed"] for r in rows if r["checkpoint"] == "selection"} == {10, 11, 12}
    assert {r["env_seed"] for r in best} == {r["env_seed"] for r in last} == {7, 8, 9}
    assert comparable(last) == comparable(evaluated(run))
    candidate = [r for r in rows if r["checkpoint"] == "candidate" and r["step"] == best[0]["step"]]
    assert [r["episode_return"] for r in candidate] == [r["episode_return"] for r in best]


def test_there_must_be_something_to_choose_from(run: Path) -> None:
    with pytest.raises(UserError, match=r"one checkpoint.*train\.keep_interval"):
        evaluate_best(run, {30: agent_at(run, 30)}, evaluation_config(run), CPU)


def test_rows_of_older_versions_are_read(run: Path, tmp_path: Path) -> None:
    row = evaluated(run)[0]
    new = ("checkpoint_rule", "candidates", "hardware", "lanes", "parameters", "peak_memory_mib",
           "episodes", "target_rule", "target_quantile", "score_reference")  # fmt: skip
    old = {k: v for k, v in row.items() if k not in new} | {"checkpoint": "best"}
    (tmp_path / "episodes.jsonl").write_text(json.dumps(old) + "\n")
    (read,) = read_rows(tmp_path)
    assert read["checkpoint"] == "validation"  # what `best` meant then
    assert read["checkpoint_rule"] == "lowest validation loss" and read["candidates"] is None
    assert read["target_rule"] == "given" and read["hardware"] is None
    (tmp_path / "episodes.jsonl").write_text(json.dumps(old | {"x": 1}).replace('"env"', '"e"'))
    with pytest.raises(UserError, match=r"row 1 lacks `env`; evaluate the run again"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("episode_return", "x"), ("episode_return", float("nan")), ("episode_return", None),
     ("normalized_score", float("inf"))],
)  # fmt: skip
def test_a_row_whose_score_is_no_number_is_refused(
    field: str, value: Any, run: Path, tmp_path: Path
) -> None:
    row = evaluated(run)[0]
    for changes in ({}, {"normalized_score": None}):  # without references there is no such score
        (tmp_path / "episodes.jsonl").write_text(json.dumps(row | changes) + "\n")
        assert len(read_rows(tmp_path)) == 1
    (tmp_path / "episodes.jsonl").write_text(json.dumps(row | {field: value}) + "\n")
    with pytest.raises(UserError, match=rf"`{field}` of row 1 is .*; it must be a finite number"):
        read_rows(tmp_path)


def test_episodes_cut_off_on_purpose_are_rows_of_their_own(run: Path) -> None:
    whole, cut = evaluated(run, seed=20), evaluated(run, seed=20, max_steps=4)
    assert {row["length"] for row in cut} == {4} and min(row["length"] for row in whole) > 4
    kept = [row for row in read_rows(run) if row["env_seed"] >= 20 and row["context"] == "window"]
    labels = [target_label(row) for row in kept]
    assert labels == ["none"] * 3 + ["none, at most 4 steps"] * 3
    assert comparable(kept) == comparable([*whole, *cut])
    assert comparable(evaluated(run, seed=20, max_steps=4)) == comparable(cut)
    assert sum(row["max_steps"] == 4 for row in read_rows(run)) == 3  # which replaced its own


def test_rows_cut_off_on_purpose_do_not_finish_a_run_that_is_not(run: Path) -> None:
    whole = evaluation_config(run, seed=40)
    evaluated(run, seed=40, max_steps=4)
    assert not finished(run, whole)
    assert finished(run, evaluation_config(run, seed=40, max_steps=4))
    evaluated(run, seed=40)
    assert finished(run, whole)


def test_a_config_edited_after_training_is_refused(run: Path, tmp_path: Path) -> None:
    """It does not change what the agent does, so the rows would tell of another one."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "config.yaml"
    edited = path.read_text().replace("width: 16", "width: 32")
    path.write_text(edited)
    before, told = read_rows(copy), r"agent\.backbone\.width is 32 there and 16 in the check"
    with pytest.raises(UserError, match=told):
        evaluated(copy)
    assert read_rows(copy) == before
    with pytest.raises(UserError, match=told):
        save_pretrained(copy, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
    with pytest.raises(UserError, match=told):
        load_trained(copy, "last", (), torch.device("cpu"))
    with pytest.raises(UserError, match=told):
        off_policy(copy)

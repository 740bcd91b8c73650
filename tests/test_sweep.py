"""sweep: what is tried depends on the file alone, killed at any moment it completes, and a report
reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_agents import MEASURED

pytest.importorskip("optuna", reason="needs the extra sweep")

import decision_seq as ds
from decision_seq.errors import UserError
from decision_seq.eval.compare.ledger import read_ledger
from decision_seq.eval.compare.sweep import load_sweep
from decision_seq.eval.rows import read_rows
from decision_seq.files import read_jsonl

pytestmark = pytest.mark.usefixtures("runner_here")
HERE: dict[str, Any] = {"runner": "here", "say": lambda _: None}
TOY = Path(__file__).parents[1] / "configs" / "point-run-decision-mamba.yaml"


def search(toy_file: Path, folder: Path, **changes: Any) -> Path:
    """A sweep of two batches of small agents."""
    agent = {"preset": "decision-transformer", "backbone": {"width": 8, "layers": 1, "heads": 2}}
    plain = {
        "base": str(TOY),
        "space": {
            "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "agent.context_length": {"low": 2, "high": 5},
            "agent.returns": [{"scale": 10}, {"scale": 20}],
        },
        "trials": 3,
        "batch": 2,
        "overrides": {
            "agent": agent,
            "data": {"sources": [str(toy_file)]},
            "train": {"steps": 10, "checkpoint_interval": 5, "log_interval": 5},
            "eval": {"episodes": 2, "targets": [5, 10]},
        },
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def repeated(run: Path) -> list[dict[str, Any]]:
    """Rows of a run, without what is measured."""
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_rows(run)]


def test_a_killed_sweep_goes_on_and_tries_the_same(toy_file: Path, tmp_path: Path) -> None:
    """Bit for bit: the first trial is killed in the middle of its training."""
    path, out = search(toy_file, tmp_path, objective="rollouts"), tmp_path / "killed"
    longer = {"train.steps": 100}
    command = ["sweep", str(path), "--out", str(out), "--jobs", "1", "--set", "train.steps=100"]
    process = subprocess.Popen([sys.executable, "-m", "decision_seq", *command])
    deadline = time.monotonic() + 300
    first = out / "runs" / "trial-000" / "metrics.jsonl"
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = ds.sweep(path, out, longer, **HERE)
    assert not done.failed and [trial.number for trial in done.trials] == [0, 1, 2]
    assert len({json.dumps(trial.parameters) for trial in done.trials}) == 3
    for trial in done.trials:  # judged by other episodes than it is reported by
        rows = read_rows(trial.run)
        judging = [row for row in rows if row["checkpoint"] == "selection"]
        assert {row["env_seed"] for row in judging} == {2, 3}
        assert {row["env_seed"] for row in rows if row["checkpoint"] == "last"} == {0, 1}
        assert trial.value == pytest.approx(
            sum(row["normalized_score"] or row["episode_return"] for row in judging) / 4
        )
    assert done.best is not None and done.best.value == max(t.value or 0 for t in done.trials)
    page = json.loads((out / "report.json").read_text())
    assert page["trials"][0]["agent"] == done.best.run.name
    assert page["trials"][0]["episodes"] == 4 and page["selections"][0]["candidates"] == 3
    assert "What the sweep tried" in (out / "report.md").read_text()
    table = done.table()
    assert table.rows[0][0] == done.best.run.name and "context_length" in table.columns[2]
    assert "<svg" in done._repr_html_()

    # of the same proposals by themselves, and whatever came of them: nothing is drawn from a clock
    again = ds.sweep(path, tmp_path / "whole", longer | {"trials": 2}, **HERE)
    more = ds.sweep(path, tmp_path / "whole", longer | {"trials": 3}, **HERE)
    assert [(t.parameters, t.value) for t in more.trials] == [
        (t.parameters, t.value) for t in done.trials
    ]
    for ours, theirs in zip(more.trials, done.trials, strict=True):
        assert repeated(ours.run) == repeated(theirs.run)
    assert more.trials[:2] == again.trials
    assert len(read_ledger(tmp_path / "whole")) == 2 * 3  # none was run twice

    with pytest.raises(UserError, match=r"sweep.yaml: the search there has .* \(seed\)"):
        ds.sweep(path, out, longer | {"seed": 1}, **HERE)


def test_ray_tries_the_same(toy_file: Path, tmp_path: Path) -> None:
    """A batch as tasks of a Ray of this machine: the same is proposed, and comes to the same."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'decision-seq[ray]'")
    path, two = search(toy_file, tmp_path), {"trials": 2}
    here = ds.sweep(path, tmp_path / "here", two, **HERE)
    there = ds.sweep(path, tmp_path / "ray", two, runner="ray", jobs=2, say=lambda _: None)
    assert [t.parameters for t in there.trials] == [t.parameters for t in here.trials]
    assert [t.value for t in there.trials] == pytest.approx([t.value for t in here.trials])
    started = [e for e in read_ledger(tmp_path / "ray") if e["event"] == "started"]
    assert [e["runner"] for e in started] == ["ray", "ray"] and not there.failed


def test_a_trial_that_fails_is_told_and_the_loss_can_judge(toy_file: Path, tmp_path: Path) -> None:
    path = search(toy_file, tmp_path, space={"agent.backbone.width": [8, 9]}, trials=4, batch=4)
    done = ds.sweep(path, tmp_path / "out", {"train.steps": 10}, **HERE)
    widths = {trial.number: trial.parameters["agent.backbone.width"] for trial in done.trials}
    assert set(widths.values()) == {8, 9}
    assert {trial.number for trial in done.trials if trial.value is None} == {
        number for number, width in widths.items() if width == 9
    }
    assert all("heads" in reason for reason in done.failed.values())
    assert done.best is not None
    losses = [r for r in read_jsonl(done.best.run / "metrics.jsonl") if "validation_loss" in r]
    assert done.best.value == pytest.approx(losses[-1]["validation_loss"])
    assert done.table().rows[-1][-1] == "failed"


def test_too_few_episodes_to_judge_by_are_said(toy_file: Path, tmp_path: Path) -> None:
    few = {"trials": 1, "train.steps": 4, "data.validation_fraction": 1e-3}
    with pytest.raises(UserError, match=r"trial-000: .* holds out none"):
        ds.sweep(search(toy_file, tmp_path), tmp_path / "out", few, **HERE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"train.learning_rat": [1]}}, "`train.learning_rat` is not a known key"),
        (
            {"space": {"train.steps": {"low": 5, "high": 2}}},
            "space.train.steps.low is 5 and high 2",
        ),
        ({"space": {"train.steps": 5}}, "`space.train.steps` must be a list, or {low"),
        ({"trials": 0}, "trials and batch must be at least 1"),
        ({"objective": "luck"}, "`objective` is 'luck'; it must be one of validation_loss"),
    ],
)
def test_bad_input_is_one_sentence(
    changes: dict[str, Any], said: str, toy_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        load_sweep(search(toy_file, tmp_path, **changes), tmp_path / "out")
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_what_was_typed_wrongly_is_said_of_what_was_typed(toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--set train\.stps=1: `train\.stps` is not a known key"):
        load_sweep(search(toy_file, tmp_path), tmp_path / "out", ["train.stps=1", "trials=2"])

"""The commands as people type them, end to end, and what they say when something is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import minari
import numpy as np
import pytest
import torch
import yaml
from conftest import random_episodes, write_npz

import decision_seq
from decision_seq.cli import listing, main
from decision_seq.eval.compare.ledger import read_ledger
from decision_seq.eval.rows import read_rows

CONFIGS = Path(__file__).parents[1] / "configs"
TOY = str(CONFIGS / "point-run-decision-mamba.yaml")
SMALL = [
    "--set",
    "train.steps=30",
    "--set",
    "eval.episodes=2",
    "--set",
    "train.checkpoint_interval=15",
]


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of `decision-seq ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["decision-seq", *arguments])
    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a command; returns (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = run(*map(str, arguments), monkeypatch=monkeypatch)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def trained(cli, toy_file: Path, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A run folder."""
    out = tmp_path / "run"
    code, _, err = cli("train", TOY, "--set", f"data.sources=[{toy_file}]", *SMALL, "--out", out)
    assert code == 0, err
    return out


def test_collect_train_evaluate_report(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = cli("collect", "point-run", "mixed", "--steps", "400", "--seed", "3")
    assert code == 0, err
    assert "20 episodes, 400 steps" in out
    listed = cli("data", "list")[1].split()
    assert listed[:5] == ["decision-seq/point-run/mixed-v0", "20", "episodes", "400", "steps"]
    code, out, _ = cli("data", "info", "decision-seq/point-run/mixed-v0")
    assert code == 0 and "episodes               20" in out and "None" not in out
    code, out, _ = cli("data", "check", "decision-seq/point-run/mixed-v0")
    assert code == 0 and "0 findings" in out

    run_folder = tmp_path / "run"
    assert cli("train", TOY, *SMALL, "--out", run_folder)[0] == 0
    code, out, err = cli(
        "evaluate", run_folder, "--targets", "5", "12", "--episodes", "3", "--context", "stream"
    )
    assert code == 0, err
    rows = read_rows(run_folder)
    assert [(r["target"], r["env_seed"]) for r in rows] == [
        (t, s) for t in (5.0, 12.0) for s in (0, 1, 2)
    ]
    for row in rows:
        assert row["context"] == "stream" and row["checkpoint"] == "last" and row["step"] == 30
        assert row["env"] == "decision-seq/PointRun-v0" and row["length"] == 20
        assert set(row["dataset"]) == {"name", "hash"} and "torch" in row["versions"]
    cli("evaluate", run_folder, "--targets", "5", "12", "--episodes", "3", "--context", "stream")
    again = read_rows(run_folder)
    assert [r["episode_return"] for r in again] == [r["episode_return"] for r in rows]

    report = tmp_path / "report.html"
    assert cli("report", run_folder, "--out", report)[0] == 0
    html = report.read_text()
    mean = sum(r["episode_return"] for r in rows[:3]) / 3
    assert f"{mean:.1f}" in html and html.count("<svg") >= 3
    table = tmp_path / "table.md"
    assert cli("report", run_folder, "--out", table)[0] == 0
    assert f"| 5 | stream | decision-mamba | {mean:.1f} (return) |" in table.read_text()
    assert "http://" not in html.replace("http://www.w3.org", "") and html.count("<script") == 1


def test_collected_data_says_where_it_came_from(cli) -> None:  # type: ignore[no-untyped-def]
    cli("collect", "hopper", "medium", "--steps", "300", "--out", "mine/hops-v0")
    dataset = minari.load_dataset("mine/hops-v0")
    metadata = dataset.storage.metadata
    assert metadata["ref_max_score"] == 3234.3 and metadata["ref_min_score"] == -20.272305
    assert metadata["collect_seed"] == 0 and metadata["collect_tier"] == "medium"
    assert "hopper" in metadata["algorithm_name"]
    assert dataset.env_spec.id == "Hopper-v5" and dataset.total_steps >= 300
    env = dataset.recover_environment()
    episode = dataset[0]
    first, _ = env.reset(seed=episode.seed if hasattr(episode, "seed") else 0)
    assert first.shape == episode.observations[0].shape
    assert abs(first - episode.observations[0]).max() < 1e-9  # the seed brings the episode back


def test_compare_resumes_and_reports(
    cli, toy_file: Path, tmp_path: Path, runner_here: None
) -> None:  # type: ignore[no-untyped-def]
    matrix = {
        "base": TOY,
        "agents": {"mamba": {"preset": "decision-mamba"}, "bc": {"preset": "bc"}},
        "datasets": {"toy": [str(toy_file)]},
        "seeds": [0],
    }
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(matrix))
    out = tmp_path / "out"
    command = ("compare", path, "--out", out, "--runner", "here", *SMALL)
    code, text, err = cli(*command)
    assert code == 0, text + err
    events = [(e["cell"], e["event"]) for e in read_ledger(out)]
    assert sorted(events) == [
        (cell, event)
        for cell in ("bc_toy_seed0", "mamba_toy_seed0")
        for event in ("finished", "started")
    ]
    html = (out / "report.html").read_text()
    assert "mamba" in html and "bc" in html
    code, text, _ = cli(*command)
    assert code == 0 and "$ decision-seq train" not in text  # nothing is run twice
    refused(cli(*command, "--set", "seed=0", "--set", "train.learning_rate=1e-5"), "other settings")


def test_list(cli) -> None:  # type: ignore[no-untyped-def]
    for what, words in {
        "backbones": ["attention", "mamba", "pointwise"],
        "encoders": ["nature", "3136", "imixer"],
        "agents": ["return_conditioned", "behaviour_cloning", "decision-mamba", "bc"],
        "envs": ["Hopper-v5", "Ant-v4", "PointRun"],
        "tiers": ["hopper", "medium", "expert", "minigrid:MiniGrid-Memory*"],
        "kernels": ["torch", "reference"],
    }.items():
        code, out, err = cli("list", what)
        assert code == 0, err
        for word in words:
            assert word in out
        if what in ("backbones", "agents"):  # columns are as wide as their longest entry
            starts = {re.match(r"\S+ +", line).end() for line in out.splitlines()}  # type: ignore[union-attr]
            assert len(starts) <= 2, out  # numbers are right-aligned


def test_the_first_words_that_people_type(cli) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = cli("--version")
    assert code == 0 and out.split()[1] == decision_seq.__version__
    code, out, _ = cli()
    assert code == 0 and "quickstart" in out
    refused(cli("tarin"), "'tarin'", "did you mean train?")
    refused(cli("data", "chekc"), "'chekc'", "did you mean check?")
    refused(cli("dance"), "--help")
    code, out, _ = cli("evaluate", "--help")
    assert code == 0 and "RUN" in out and "--episodes INT" in out and "None" not in out


# ---- one sentence, exit code 2, nothing harmed ---------------------------------------------


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("decision-seq:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    for word in words:
        assert word in lines[0]


def test_bad_input(cli, toy_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    data = f"data.sources=[{toy_file}]"
    wide = write_npz(tmp_path / "wide.npz", random_episodes([30, 30], width=2, action_dim=3))
    cases = [
        (["train", tmp_path / "no.yaml", "--out", out], ["no.yaml"]),
        (["train", TOY, "--set", "train.step=3", "--out", out], ["train.step", "train.steps"]),
        (["train", TOY, "--set", "data.sources=[x.npz]", "--out", out], ["x.npz", "no such file"]),
        (["train", TOY, "--set", data, "--out", out, "--device", "tpu9"], ["tpu9"]),
        (["train", TOY, "--set", data, "--set", "env=hoper", "--out", out], ["hoper", "hopper"]),
        (["train", TOY, "--set", f"data.sources=[{wide}]", "--out", out], ["width 3", "PointRun"]),
        (["data", "info", "no-such-dataset"], ["no-such-dataset"]),
        (["collect", "hopper", "superb"], ["hopper-superb", "medium", "list tiers"]),
        (["collect", "hoper", "medium"], ["hoper", "hopper"]),
        (["collect", "hopper", "medium", "--out", "not an id"], ["not an id", "Minari id"]),
        (["collect", "point-run", "x", "--policy", toy_file], ["toy.npz", "Stable-Baselines3"]),
        (["collect", "point-run", "mixed", "--seed", "-1"], ["seed -1"]),
        (["collect", "point-run", "mixed", "--steps", "0"], ["steps is 0"]),
        (["evaluate", tmp_path], ["no trained run"]),
        (["report", tmp_path / "nothing"], ["holds no run"]),
        (["compare", TOY, "--out", out], ["`data`", "decision-seq train"]),
        (["sweep", TOY, "--out", out], ["`data`", "decision-seq train"]),
        (["train", "compare-hopper", "--out", out], ["`agents`", "decision-seq compare"]),
    ]
    for arguments, words in cases:
        refused(cli(*arguments), *words)
    assert not out.exists()


def test_existing_things_are_not_harmed(cli, trained: Path) -> None:  # type: ignore[no-untyped-def]
    cli("collect", "point-run", "mixed", "--steps", "40")
    refused(cli("collect", "point-run", "mixed", "--steps", "40"), "exists already")
    config = trained / "config.yaml"
    before = config.read_text()
    refused(cli("train", config, "--out", trained), "--resume")
    assert config.read_text() == before
    refused(cli("evaluate", trained, "--env", "hopper"), "width 2", "Hopper-v5", "width 11")
    refused(cli("report", trained), "no evaluation", "decision-seq evaluate")
    refused(cli("evaluate", trained, "--targets", "nan"), "targets")
    refused(cli("evaluate", trained, "--episodes", "0"), "episodes")
    refused(cli("evaluate", trained, "--seed", "-1"), "seed is -1")
    refused(cli("evaluate", trained, "--device", "meta"), "meta")
    assert cli("evaluate", trained)[0] == 0
    rows = trained / "episodes.jsonl"
    content = rows.read_text()
    for damaged in ("3\n", '{"step": 3}\n', "\x00\n{}\n"):
        rows.write_text(damaged + content)
        refused(cli("report", trained), "episodes.jsonl")
    rows.write_text(content + '{"half')  # cut off by a crash: the whole rows still count
    assert cli("report", trained, "--out", trained / "report.html")[0] == 0
    (trained / "dataset.json").write_text("[]")
    refused(cli("report", trained), "dataset.json")
    refused(cli("evaluate", trained), "dataset.json")
    (agent,) = trained.glob("checkpoints/step-00000030/agent.safetensors")
    agent.write_bytes(agent.read_bytes()[:500])
    refused(cli("evaluate", trained), "agent.safetensors", "cut off")


def test_reports_keep_different_runs_apart(cli, toy_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = f"data.sources=[{toy_file}]"
    for name, width in (("narrow", 8), ("wide", 24)):
        size = ["--set", f"agent.backbone.width={width}"]
        cli("train", TOY, "--set", data, *SMALL, *size, "--out", tmp_path / name)
        assert cli("evaluate", tmp_path / name)[0] == 0
    report = tmp_path / "report.html"
    code, _, err = cli("report", tmp_path / "narrow", tmp_path / "wide", tmp_path, "--out", report)
    assert code == 0, err
    html = report.read_text()
    assert "decision-mamba (narrow)" in html and "decision-mamba (wide)" in html
    assert html.count("<td>2</td>") == 4  # episodes: two targets of two agents, none counted twice


def test_rows_of_another_environment_do_not_replace_the_first(cli, trained: Path) -> None:  # type: ignore[no-untyped-def]
    import gymnasium as gym

    gym.register("decision-seq/Other-v0", "decision_seq.envs.toy:PointRun", max_episode_steps=20)
    cli("evaluate", trained)
    cli("evaluate", trained, "--env", "decision-seq/Other-v0")
    rows = read_rows(trained)
    assert len(rows) == 8 and len({row["env"] for row in rows}) == 2


def test_a_read_only_output_folder(cli, toy_file: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    blocked = Path("/proc/decision-seq-cannot-write-here")
    if not Path("/proc/self").exists():
        pytest.skip("no /proc, the one folder that is read-only to every user")
    arguments = ["train", TOY, "--set", f"data.sources=[{toy_file}]", "--out", blocked]
    refused(cli(*arguments), str(blocked), "cannot be written")


def test_wrong_arguments_are_refused(cli) -> None:  # type: ignore[no-untyped-def]
    for arguments in (["train"], ["evaluate", "x", "--context", "widow"], ["fly"]):
        assert cli(*arguments)[0] == 2


def test_out_of_memory_is_one_sentence(cli, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The allocators' own errors; another RuntimeError stays a traceback."""

    def fails(act: Callable[[], object]) -> None:
        monkeypatch.setitem(listing.LISTINGS, "backbones", lambda: iter([act()]))

    fails(lambda: torch.empty(2**60, dtype=torch.uint8))
    refused(cli("list", "backbones"), "out of memory (1152921504606846976 bytes", "batch_size")
    fails(lambda: np.empty(2**60, np.uint8))
    refused(cli("list", "backbones"), "out of memory (1.00 EiB")
    fails(lambda: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        cli("list", "backbones")


def test_nothing_to_drop(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = write_npz(tmp_path / "a.npz", random_episodes([5, 7]), meta=None)
    code, out, err = cli("data", "check", source, "--drop-bad", tmp_path / "clean.npz")
    assert code == 0 and "nothing was dropped" in out and "0 episodes" not in out, err


@pytest.mark.parametrize("arguments", [["list", "backbones"], ["--help"]])
def test_a_reader_that_stops_reading_is_no_error(arguments: list[str]) -> None:
    """`decision-seq list backbones | head -1`: no traceback."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "decision_seq", *arguments], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert done.stderr == b"" and done.returncode == 141

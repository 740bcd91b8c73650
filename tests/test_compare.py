"""compare: killed at any moment it completes, a failing job fails alone, machines are shared."""

from __future__ import annotations

import io
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from small_agents import MEASURED, evaluated

from decision_seq.cli import main
from decision_seq.errors import UserError
from decision_seq.eval.compare.evaluations import finished
from decision_seq.eval.compare.jobs import JobProcess, Result
from decision_seq.eval.compare.ledger import Ledger, read_ledger
from decision_seq.eval.compare.live_table import LiveTable, progress
from decision_seq.eval.compare.matrix import load_matrix, run_matrix, seeds_together
from decision_seq.eval.compare.runners import Allocation, allocate, free_memory
from decision_seq.eval.rows import read_rows
from decision_seq.files import exclusive, read_jsonl
from decision_seq.run_config import write_run_config
from decision_seq.run_folder import read_index
from decision_seq.training.log import MetricsLog, log_result
from decision_seq.training.loop import train

TOY = Path(__file__).parents[1] / "configs" / "point-run-decision-mamba.yaml"


def matrix(toy_file: Path, folder: Path, **changes: Any) -> Path:
    """A comparison of a small agent on two datasets, of which the first does not exist."""
    plain = {
        "base": str(TOY),
        "agents": {"dt": {"preset": "decision-transformer"}},
        "datasets": {"missing": ["/nowhere/data.npz"], "toy": [str(toy_file)]},
        "seeds": [0],
        "overrides": {
            "agent": {"backbone": {"width": 16, "layers": 1, "dropout": 0.1}},
            "train": {"steps": 80, "checkpoint_interval": 20, "log_interval": 20},
            "eval": {"episodes": 2, "targets": [5]},
        },
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def by_hand(path: Path, out: Path) -> Path:
    """Every job of the comparison in `path` that has data, trained and evaluated in one go."""
    for job in load_matrix(path, out):
        if "missing" not in job.name:
            run = job.run
            train(job.config, run, torch.device("cpu"))
            evaluated(run)
    return out


def start(path: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`decision-seq compare`."""
    return subprocess.Popen(
        [sys.executable, "-m", "decision_seq", "compare", str(path), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def measured(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Learning curve and rows of every run, but for how long things took."""
    found = {}
    for run in sorted((out / "runs").iterdir()):
        rows = read_jsonl(run / "metrics.jsonl") + read_rows(run)
        if rows:
            timed = (*MEASURED, "peak_memory_mib", "steps_per_second")
            found[run.name] = [{k: v for k, v in r.items() if k not in timed} for r in rows]
    return found


def typed(arguments: Sequence[str]) -> None:
    """A command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["decision-seq", *arguments])
        main()


def events(out: Path, kind: str) -> list[str]:
    return [event["cell"] for event in read_ledger(out) if event["event"] == kind]


def complete(path: Path, out: Path, kills: list[float], *options: str) -> str:
    """Kill the command after so many seconds, again and again; then let it complete."""
    for seconds in kills:
        process = start(path, out, *options)
        time.sleep(seconds)
        process.kill()
        process.wait()
    output, _ = start(path, out, *options).communicate(timeout=250)
    return output


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- several seeds as one, where a GPU is --------------------------------------------------------


def test_seeds_of_one_kind_are_trained_together(toy_file: Path, tmp_path: Path) -> None:
    path = matrix(toy_file, tmp_path, seeds=[2, 10], datasets={"toy": [str(toy_file)]})
    both = seeds_together(load_matrix(path, Path("out")))
    pattern = "out/runs/dt_toy_seed{seed}"
    for job, own in zip(both, (2, 10), strict=True):
        first, then, *_ = job.commands
        assert first[-6:] == ("--out", pattern, "--resume", "--seeds", "2", "10")
        assert then[-3:] == ("--out", f"out/runs/dt_toy_seed{own}", "--resume")
        assert job.together == pattern  # so the second waits, and then finds its run trained
    options = {"a": {}, "b": {"agent": {"context_length": 9}}}
    path = matrix(toy_file, tmp_path, options=options, datasets={"toy": [str(toy_file)]})
    apart = load_matrix(path, Path("out"))
    assert seeds_together(apart) == apart


@pytest.mark.slow
def test_with_a_gpu_they_are_all_trained_before_one_is_evaluated(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU in the GPU's place."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    path = matrix(toy_file, tmp_path, seeds=[0, 1], datasets={"toy": [str(toy_file)]})
    jobs, said = load_matrix(path, tmp_path / "out"), []
    runs, failed = run_matrix(jobs, said.append)
    assert not failed and "--seeds 0 1" in "\n".join(said)
    trained = [run / "checkpoints" / "index.json" for run in runs]
    rows = [run / "episodes.jsonl" for run in runs]
    assert max(p.stat().st_mtime for p in trained) < min(p.stat().st_mtime for p in rows)
    alone = by_hand(path, tmp_path / "alone")
    for here, there in zip(
        measured(tmp_path / "out").values(), measured(alone).values(), strict=True
    ):
        losses = [[row["loss"] for row in rows if "loss" in row] for rows in (here, there)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# ---- kill -9, then the same command --------------------------------------------------------------


def test_killed_it_completes_and_names_what_fails(toy_file: Path, tmp_path: Path) -> None:
    path, out = matrix(toy_file, tmp_path), tmp_path / "out"
    first = start(path, out)
    run = out / "runs" / "dt_toy_seed0"
    until(lambda: (run / "checkpoints" / "index.json").exists())
    first.kill()
    first.wait()
    output = complete(path, out, [])
    assert "1 of 2 runs failed: dt_missing_seed0" in output, output
    assert measured(out) == measured(by_hand(path, tmp_path / "hand"))
    assert events(out, "finished") == ["dt_toy_seed0"]
    assert events(out, "started").count("dt_toy_seed0") == 2
    (failure, *_) = [e for e in read_ledger(out) if e["event"] == "failed"]
    assert failure["cell"] == "dt_missing_seed0" and "/nowhere/data.npz" in failure["reason"]
    assert "/nowhere/data.npz" in Path(failure["log"]).read_text()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("/nowhere/data.npz", r"/nowhere/data\.npz: no such file"),
        ("decision-seq/hopper/medium-v0", "run `decision-seq collect hopper medium`"),
    ],
)
def test_without_any_data_it_says_so_once_and_starts_nothing(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    path = matrix(tmp_path, tmp_path, datasets={"missing": [source]}, seeds=[0, 1, 2])
    said: list[str] = []
    with pytest.raises(UserError, match=says):
        run_matrix(load_matrix(path, tmp_path / "out"), said.append)
    assert not said and read_ledger(tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_it_completes(seed: int, toy_file: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    path = matrix(toy_file, tmp_path, seeds=[0, 1], datasets={"toy": [str(toy_file)]})
    out, kills = tmp_path / "out", [draw.uniform(1, 20) for _ in range(4)]
    output = complete(path, out, kills, "--jobs", str(1 + seed % 2))
    assert "report.html" in output, output
    assert measured(out) == measured(by_hand(path, tmp_path / "hand"))
    assert sorted(events(out, "finished")) == ["dt_toy_seed0", "dt_toy_seed1"]
    assert events(out, "failed") == []


@pytest.mark.slow
def test_ctrl_c_saves_the_running_job(toy_file: Path, tmp_path: Path) -> None:
    path = matrix(toy_file, tmp_path, datasets={"toy": [str(toy_file)]})
    out, run = tmp_path / "out", tmp_path / "out" / "runs" / "dt_toy_seed0"
    long = ["--set", "train.steps=1000000", "--set", "train.checkpoint_interval=1000000"]
    process = start(path, out, *long)
    until(lambda: len(read_jsonl(run / "metrics.jsonl")) > 2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130 and "the same command goes on" in output, output
    assert read_index(run)["last"]["step"] >= read_jsonl(run / "metrics.jsonl")[-1]["step"]
    assert events(out, "stopped") == ["dt_toy_seed0"]


def test_a_job_waits_for_what_a_killed_comparison_left(toy_file: Path, tmp_path: Path) -> None:
    """The command inherits the lock, so it holds although the process that took it is gone."""
    path = matrix(toy_file, tmp_path, datasets={"toy": [str(toy_file)]})
    (job,) = load_matrix(path, tmp_path / "out", ["train.steps=10000000"])
    write_run_config(job.config, job.config_file)
    earlier = JobProcess(job, {})
    assert earlier.poll() is None
    orphan = earlier.process
    assert orphan is not None and earlier.lock is not None
    earlier.lock.close()  # as when its process dies
    later = JobProcess(job, {})
    for _ in range(3):
        assert later.poll() is None and later.process is None
    until(lambda: (job.run / "config.yaml").exists())  # by then it has read its own
    job.config_file.write_text("nothing")
    orphan.kill()
    orphan.wait()
    until(lambda: (later.poll() or later.process) is not None)
    results: list[Result] = []
    until(lambda: bool(results.append(r) or True if (r := later.poll()) else False))
    assert results[0].reason is not None and results[0].reason.startswith("exit code 2")


def test_one_comparison_a_folder(toy_file: Path, tmp_path: Path) -> None:
    jobs = load_matrix(matrix(toy_file, tmp_path), tmp_path / "out")
    lock = exclusive(tmp_path / "out" / ".compare.lock", wait=False)
    with lock, pytest.raises(UserError, match="another process is writing there"):
        run_matrix(jobs, print)


def test_a_cut_off_line_is_dropped_from_the_ledger(tmp_path: Path) -> None:
    Ledger(tmp_path).add("a", "started", attempt=1)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"cell": "b", "ev')
    again = Ledger(tmp_path)
    again.add("a", "finished")
    assert [(e["cell"], e["event"]) for e in read_ledger(tmp_path)] == [
        ("a", "started"),
        ("a", "finished"),
    ]
    assert again.last("a") == "finished" and again.last("b") is None


# ---- Ray -----------------------------------------------------------------------------------------


def test_ray_gives_the_same_rows(toy_file: Path, tmp_path: Path) -> None:
    """Two jobs at once on a Ray of this machine; one fails, which is said."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'decision-seq[ray]'")
    path, out = matrix(toy_file, tmp_path), tmp_path / "out"
    output, _ = start(path, out, "--runner", "ray", "--jobs", "2").communicate(timeout=250)
    assert "2 of 2 jobs to run, 2 at once (ray)" in output, output
    assert "1 of 2 runs failed: dt_missing_seed0" in output, output
    assert measured(out) == measured(by_hand(path, tmp_path / "hand"))
    (failure,) = [e for e in read_ledger(out) if e["event"] == "failed"]
    assert "/nowhere/data.npz" in failure["reason"]
    assert {e["runner"] for e in read_ledger(out) if e["event"] == "started"} == {"ray"}


def test_without_ray_it_says_how_to_get_it(
    toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    jobs = load_matrix(matrix(toy_file, tmp_path), tmp_path / "out")
    with pytest.raises(UserError, match=r"pip install 'decision-seq\[ray\]'"):
        run_matrix(jobs, print, "ray")


# ---- sharing out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "jobs", "each", "machine", "wanted"),
    [
        (20, None, None, (2, 20.0, 0), Allocation(2, 1)),  # as many as cores
        (1, None, None, (8, 20.0, 0), Allocation(1, 8)),  # no more than jobs
        (20, 3, None, (8, 20.0, 0), Allocation(3, 2)),
        (20, 8, None, (8, 5.0, 0), Allocation(8, 1)),  # who says so gets it
        (20, None, None, (16, 99.0, 2), Allocation(2, 8, 1.0)),  # one a GPU
        (20, 8, None, (16, 99.0, 2), Allocation(8, 2, 0.25)),
        (20, None, 0.25, (16, 99.0, 1), Allocation(4, 4, 0.25)),
        (20, 8, 0.5, (16, 99.0, 1), Allocation(2, 8, 0.5)),  # more would not fit
    ],
)
def test_cores_and_gpus_are_divided(
    count: int,
    jobs: int | None,
    each: float | None,
    machine: tuple[int, float, float],
    wanted: Allocation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert allocate(count, jobs, each, *machine) == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert allocate(count, jobs, each, *machine).threads == 3


def test_little_memory_means_fewer_jobs_and_a_sentence() -> None:
    allocation = allocate(20, None, None, 8, 5.0, 0)
    assert allocation.jobs == 2
    assert allocation.remark.startswith("2 jobs at once instead of 8: 5.0 GiB of memory are free")
    assert allocate(20, None, None, 8, 0.3, 0).jobs == 1
    assert 0 < free_memory() < 1e6


def test_what_cannot_be_shared_out_is_refused(toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--jobs is 0"):
        allocate(2, 0, None, 2, 5.0, 0)
    with pytest.raises(UserError, match=r"--gpus-per-cell is 3\.0; there are 2 GPUs"):
        allocate(2, None, 3.0, 2, 5.0, 2)
    jobs = load_matrix(matrix(toy_file, tmp_path), tmp_path / "out")
    with pytest.raises(UserError, match="--runner slurm: does not exist; choose local or ray"):
        run_matrix(jobs, print, "slurm")


# ---- the matrix ----------------------------------------------------------------------------------


def test_options_are_an_axis(toy_file: Path, tmp_path: Path) -> None:
    options = {"short": {"agent": {"context_length": 3}}, "long": {"agent": {"context_length": 9}}}
    jobs = load_matrix(matrix(toy_file, tmp_path, options=options, seeds=[0, 1]), tmp_path)
    assert len(jobs) == 8 and len({job.name for job in jobs}) == 8
    found = {(j.config.name, j.config.agent.context_length) for j in jobs}
    assert found == {("dt short", 3), ("dt long", 9)}
    assert jobs[0].name == "dt_short_missing_seed0"


def test_an_agent_may_have_settings_of_its_own(toy_file: Path, tmp_path: Path) -> None:
    changes = {
        "agents": {"dt": {}, "wide": {"backbone": {"width": 32}}},
        "options": {"usual": {}, "slow": {"train": {"learning_rate": 1e-5}}},
        "per_agent": {"wide": {"train": {"learning_rate": 1e-2}}},
        "overrides": {"train": {"learning_rate": 1e-3}},
    }
    jobs = load_matrix(matrix(toy_file, tmp_path, **changes), tmp_path)
    rates = {job.config.name: job.config.train.learning_rate for job in jobs}
    assert rates == {"dt usual": 1e-3, "dt slow": 1e-5, "wide usual": 1e-2, "wide slow": 1e-5}


@pytest.mark.parametrize("typed", ["nonsense=1", "train.stps=2", "seeds=one"])
def test_what_was_typed_wrongly_is_said_of_what_was_typed(
    typed: str, toy_file: Path, tmp_path: Path
) -> None:
    """Not of the file that it is laid over, nor of its base."""
    with pytest.raises(UserError, match=f"^--set {typed}: `{typed.partition('=')[0]}` "):
        load_matrix(matrix(toy_file, tmp_path), tmp_path, ["train.steps=3", typed])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"per_agent": {"td": {}}}, "per_agent names td, which is none of agents: dt"),
        ({"per_agent": {"dt": {"name": "x"}}}, "per_agent.dt sets name"),
        ({"options": {"a/b": {}}}, "label 'a/b'"),
        ({"options": {"a": {"seed": 3}}}, "options.a sets seed"),
        ({"overrides": {"seed": 3}}, "overrides sets seed"),
        ({"overrides": {"data": {"sources": ["x"]}}}, "overrides sets data.sources; name them"),
        ({"options": {"a": {"agent": {"widht": 3}}}}, "widht"),
        ({"agents": {"a": {}, "a_b": {}}, "options": {"c": {}, "b_c": {}}}, "would be called"),
    ],
)
def test_bad_options_are_refused(
    changes: dict[str, Any], words: str, toy_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        load_matrix(matrix(toy_file, tmp_path, **changes), tmp_path)


def test_sources_that_the_matrix_would_drop_are_refused(toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set sets data\.sources; name them under datasets"):
        load_matrix(matrix(toy_file, tmp_path), tmp_path, ["data.sources=[x]"])


def test_set_reaches_the_matrix_and_its_jobs(toy_file: Path, tmp_path: Path) -> None:
    path = matrix(toy_file, tmp_path)
    sets = ["datasets={toy: [b.npz]}", "seeds=[7]", "train.steps=5", "datasets.missing=[a.npz]"]
    (job,) = load_matrix(path, tmp_path, sets)[:1]
    assert [Path(s).name for s in job.config.data.sources] == ["a.npz"]
    assert job.config.seed == 7 and job.config.train.steps == 5


SHORT = "decision-seq/PointRun-v0?max_episode_steps=5"


def test_every_evaluation_has_its_command_and_its_rows(toy_file: Path, tmp_path: Path) -> None:
    best = {"context": "window", "checkpoint": "best"}
    wanted = [{}, {"context": "stream"}, best, {"env": SHORT}]
    path = matrix(toy_file, tmp_path, evaluations=wanted, datasets={"toy": [str(toy_file)]})
    sets = ["train.steps=4", "train.checkpoint_interval=2", "train.keep_interval=2"]
    (job,) = load_matrix(path, tmp_path, sets)
    run = tmp_path / "run"
    commands = [evaluation.command(run) for evaluation in job.evaluations]
    assert [" ".join(command[2:]) for command in commands] == [
        "",
        "--context stream",
        "--context window --checkpoint best",
        f"--env {SHORT}",
    ]
    train(job.config, run, torch.device("cpu"))
    for number, command in enumerate(commands, 1):
        assert not finished(run, job.config, job.evaluations)
        typed(command)
        assert finished(run, job.config, job.evaluations[:number])
    longer = replace(job.config, train=replace(job.config.train, steps=6))
    train(longer, run, torch.device("cpu"), resume=True)
    for number, command in enumerate(commands):  # rows of the shorter run do not count
        assert not finished(run, longer, job.evaluations[number : number + 1])
        typed(command)
        assert finished(run, longer, job.evaluations[number : number + 1])
    with pytest.raises(UserError, match="evaluations must each name"):
        load_matrix(path, tmp_path, ["evaluations=[]"])


# ---- what is seen --------------------------------------------------------------------------------


def test_the_table_shows_progress(toy_file: Path, tmp_path: Path) -> None:
    jobs = load_matrix(matrix(toy_file, tmp_path), tmp_path, ["train.steps=1000"])
    run = jobs[1].run
    table = LiveTable([job.name for job in jobs])
    table.states |= {jobs[0].name: "failed", jobs[1].name: "running"}

    def shown() -> str:
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(table.table({jobs[1].name: jobs[1]}))
        return console.export_text()

    assert "starting" in shown() and "0/1000" in shown()
    run.mkdir(parents=True)
    with MetricsLog(run, jobs[1].config, 0) as log:
        log.write(200, loss=0.51234, steps_per_second=10.0)
        log.write(200, validation_loss=0.6)
    text = shown()
    for words in ("training", "200/1000", "10.0", "0.5123", "0.6000", "0:01:20",
                  "1 failed, 1 running"):  # fmt: skip
        assert words in text
    with MetricsLog(run, jobs[1].config, 200) as log:  # of two sources, whose mean hides the second
        of = {"validation_loss/a": 0.75, "validation_loss/b": 0.25}
        log.write(300, validation_loss=0.5, **of)
    assert "0.5000 (0.7500, 0.2500)" in shown()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1000, "loss": 0.4, "steps_per_second": 9.0}\n{"step": 10')
    assert progress(run)["step"] == 1000 and "evaluating" in shown()


def test_tensorboard_has_hyperparameters_beside_scores(toy_file: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    (_, job) = load_matrix(matrix(toy_file, tmp_path), tmp_path)
    log_result(tmp_path, job.config, 60, {"score/5": 71.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("score/5")] == [(60, 71.5)]
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    fields = HParamsPluginData.FromString(content).session_start_info.hparams
    assert fields["agent.backbone.width"].number_value == 16
    assert fields["agent.backbone.kind"].string_value == "attention"

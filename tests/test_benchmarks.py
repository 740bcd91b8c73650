"""The command that runs the benchmarks: a run must end in time, and end with what it has."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
Run = Callable[..., tuple[str, int]]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs the command with arguments; returns its results and the exit status."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import __main__, measure

    monkeypatch.setattr(measure, "_floor", lambda *of: measure.Floor(1e9, 1e9, 1e9))

    def run(*arguments: str) -> tuple[str, int]:
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path), *arguments])
        with pytest.raises(SystemExit) as end:
            __main__.main()
        return (tmp_path / "benchmarks.md").read_text(), int(end.value.code or 0)

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_what_does_not_fit_into_the_minutes_is_named(benchmarks: Run) -> None:
    text, status = benchmarks("--minutes", "0", "--only", "conv", "lanes")
    assert "conv is skipped: the 0 minutes are over." in text
    assert "lanes is skipped" in text
    assert status == 0


def test_a_benchmark_that_fails_leaves_the_others(benchmarks: Run) -> None:
    text, status = benchmarks("--quick", "--only", "curves", "conv", "--data", "missing.npz")
    assert "curves failed: UserError, missing.npz: no such file" in text
    assert "| conv1d |" in text
    assert status == 1


def test_there_is_a_script_for_a_gpu() -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.slow
def test_every_section_of_the_script_runs_to_its_end(tmp_path: Path) -> None:
    """On the CPU: on a GPU its minutes are few."""
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", "--rehearse", tmp_path],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    ended = (tmp_path / "sections.txt").read_text().splitlines()
    assert len(ended) == 10 and all("ended well" in line for line in ended), ended
    tables = (tmp_path / "benchmarks.md").read_text()
    assert "| mamba TF32 |" in tables and "| 2 at once |" in tables
    with tarfile.open(tmp_path / "results.tar.gz") as results:
        names = results.getnames()
    runs = "./hopper-medium-expert/decision-mamba"
    for file in ("metrics.jsonl", "episodes.jsonl", "config.yaml"):
        assert f"{runs}/seed0/{file}" in names and f"{runs}/seed1/{file}" in names
    assert "./report.html" in names and "./seeds/benchmarks.json" in names
    assert not any(name.endswith("state.pt") for name in names)

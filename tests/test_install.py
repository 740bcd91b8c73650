"""A user without the repository: what is built holds everything, and shipped configs go by name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml

import decision_seq
from decision_seq.cli import main
from decision_seq.errors import UserError
from decision_seq.policy import load_policy
from decision_seq.run_config import load_run_config
from decision_seq.shipped import config_file, config_names, run_at, shipped

ROOT = Path(__file__).parents[1]
BUILT = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("decision_seq", "configs", "zoo", "tests", "docs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def build(kind: str, source: Path, out: Path) -> Path:
    """What setuptools makes of `source`, as pip asks it to."""
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that this one lacks nothing either."""
    pytest.importorskip("setuptools", minversion="77")
    base = tmp_path_factory.mktemp("build")
    source = base / "source"
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "tensorboard")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    for name in BUILT:
        shutil.copy(ROOT / name, source)
    with tarfile.open(build("sdist", source, base)) as archive:
        archive.extractall(base / "unpacked", filter="data")
    (unpacked,) = (base / "unpacked").iterdir()
    return build("wheel", unpacked, base)


def command(wheel: Path, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`decision-seq ARGUMENTS` of the installed wheel in an otherwise empty folder."""
    site, work = tmp_path / "site", tmp_path / "work"
    if not site.exists():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        work.mkdir()
    code = (
        "import sys; from decision_seq.cli import main, __file__ as file\n"
        f"assert file.startswith({str(site)!r}), file\n"
        f"sys.argv = ['decision-seq', *{list(arguments)!r}]\nmain()"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True
    )


def test_the_wheel_needs_no_repository(wheel: Path, tmp_path: Path) -> None:
    listed = command(wheel, tmp_path, "list", "configs")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == config_names()
    zoo = command(wheel, tmp_path, "list", "zoo").stdout
    assert len(zoo.splitlines()) == len(list((ROOT / "zoo").glob("*/policy.json"))) > 0
    written = command(wheel, tmp_path, "config", "compare-hopper").stdout
    assert written == (ROOT / "configs" / "compare-hopper.yaml").read_text()
    site, name = tmp_path / "site" / "decision_seq", "zoo/hopper-decision-mamba"
    rows = (site / name / "episodes.jsonl").read_text()
    short = ("--episodes", "1", "--max-steps", "9", "--targets", "3600")
    evaluated = command(wheel, tmp_path, "evaluate", name, *short)
    assert evaluated.returncode == 0, evaluated.stderr
    own = (tmp_path / "work" / name / "episodes.jsonl").read_text().splitlines()
    assert sum('"max_steps": 9' in row for row in own) == 1 < len(own)
    assert (site / name / "episodes.jsonl").read_text() == rows  # what is installed stays as it was


def test_agents_of_the_zoo_go_by_name_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "zoo/hopper-decision-mamba"
    assert load_policy(name, "stream", 3600).act(np.zeros(11), None).shape == (3,)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=f"the zoo has no such agent; the nearest is {name[4:]}"):
        load_policy("zoo/hoper-decision-mamba")
    (tmp_path / name).mkdir(parents=True)  # a folder is itself
    assert run_at(name) == Path(name)


@pytest.mark.slow
def test_training_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    collected = command(
        wheel, tmp_path, "collect", "point-run", "mixed", "--steps", "600",
    )  # fmt: skip
    assert collected.returncode == 0, collected.stderr
    sizes = ("train.steps=4", "train.checkpoint_interval=4", "eval.episodes=2")
    trained = command(
        wheel, tmp_path, "train", "point-run-decision-mamba", "--out", "run",
        *(part for size in sizes for part in ("--set", size)),
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    evaluated = command(wheel, tmp_path, "evaluate", "run")
    assert evaluated.returncode == 0, evaluated.stderr
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["run"]


@pytest.mark.slow
def test_quickstart_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    done = command(wheel, tmp_path, "quickstart")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "quickstart" / "report.html").stat().st_size > 10_000


def test_configs_go_by_name_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hopper").mkdir()  # a run folder, say, is no config
    assert config_file("hopper") == shipped("configs") / "hopper.yaml"
    assert load_run_config("hopper") == load_run_config(ROOT / "configs" / "hopper.yaml")
    Path("walker2d").write_text(
        "env: Ant-v5\ndata: {sources: [a.npz]}\nagent: {preset: bc}\n"
    )  # a file is itself
    assert load_run_config("walker2d").env == "Ant-v5"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (
            "hoper",
            "hoper: is no file, and no config of that name is shipped; the nearest is hopper",
        ),
        ("zzz", "shipped; `decision-seq list configs` shows those"),
        ("configs/hopper.yaml", "is no file; the config that is shipped is called hopper"),
        ("mine/run.yaml", "mine/run.yaml: cannot be read"),
    ],
)
def test_a_config_that_is_not_there(
    named: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(said)):
        load_run_config(named)


def test_a_comparison_written_out_goes_on_from_the_shipped_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from decision_seq.eval.compare.matrix import load_matrix

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["decision-seq", "config", "compare-hopper"])
    main()
    Path("mine.yaml").write_text(capsys.readouterr().out)
    ours, theirs = (load_matrix(c, tmp_path) for c in ("mine.yaml", "compare-hopper"))
    assert [job.config for job in ours] == [job.config for job in theirs] != []


def test_the_version_is_said_once_and_the_same_everywhere() -> None:
    version = decision_seq.__version__
    assert "version" in PROJECT["dynamic"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == version and cited["license"] == PROJECT["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == version


def test_every_extra_that_documents_name_exists() -> None:
    extras = PROJECT["optional-dependencies"]
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    named = {
        extra
        for path in [*documents, *(ROOT / "decision_seq").rglob("*.py")]
        for group in re.findall(r"(?:decision-seq|'\.)\[([\w,-]+)\]", path.read_text("utf-8"))
        for extra in group.split(",")
    }
    assert named and named <= extras.keys(), named - extras.keys()
    assert {"atari", "robotics", "gpu", "export", "hub", "all"} <= extras.keys()


def test_metadata_is_what_pip_shows(wheel: Path, tmp_path: Path) -> None:
    command(wheel, tmp_path, "--help")
    (told,) = metadata.distributions(name="decision-seq", path=[str(tmp_path / "site")])
    assert told.version == decision_seq.__version__
    assert told.metadata["License-Expression"] == "MIT" and told.metadata["Author-email"]
    assert {e.name for e in told.entry_points} == {"decision-seq"}


def test_the_workflow_runs_the_gate_on_every_python_that_is_allowed() -> None:
    (workflow,) = (ROOT / ".github" / "workflows").glob("*.yml")
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    versions = jobs["gate"]["strategy"]["matrix"]["python"]
    assert versions[0] == lowest == jobs["oldest"]["steps"][1]["with"]["python-version"]
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert scripts == [".ci/run", ".ci/oldest"]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


@pytest.mark.parametrize("name", ["ISSUE_TEMPLATE/bug.yml", "ISSUE_TEMPLATE/idea.yml"])
def test_forms_of_issues_are_well_formed(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / name).read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    for part in form["body"]:
        assert part["type"] in ("textarea", "checkboxes") and part["attributes"]["label"]

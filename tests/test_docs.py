"""What the documents point at exists."""

from __future__ import annotations

import doctest
import functools
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from decision_seq.cli import data
from decision_seq.cli.main import COMMANDS, main
from decision_seq.data.store import open_store
from decision_seq.eval.compare.matrix import load_matrix
from decision_seq.eval.report.archive import load_runs
from decision_seq.eval.report.protocol import commands as commands_of
from decision_seq.eval.rows import OLDER, read_rows
from decision_seq.run_config import load_run_config
from decision_seq.shipped import config_names

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *NOTEBOOKS]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
        if not target.startswith(
            ("http://", "https://", "decision_seq.")
        ):  # these are names of code
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_anchors_are_headings() -> None:
    """As the site numbers them; mkdocs checks the same, where it is installed."""
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([\w./-]+\.md)#([\w-]+)\)", path.read_text()):
            text = (path.parent / target).read_text()
            bare = [re.sub(r"[^\w\s-]", "", line) for line in re.findall("^#+ (.*)", text, re.M)]
            anchors = [re.sub(r"[-\s]+", "-", line.strip().lower()) for line in bare]
            assert anchor in anchors, f"{path.name} links to {target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_named_configs_exist(path: Path) -> None:
    for name in re.findall(r"configs/[\w.-]+\.yaml", path.read_text()):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", [*DOCUMENTS, *CONFIGS], ids=lambda p: p.name)
def test_configs_that_commands_name_are_shipped(path: Path) -> None:
    pattern = r"decision-seq (?:train|compare|inspect|config) ([\w-]+)(?=[\s`])"
    for name in re.findall(pattern, path.read_text()):
        assert name in [*config_names(), "NAME"], f"{path.name} names {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_named_files_exist(path: Path) -> None:
    rooms = (ROOT, ROOT / "decision_seq")
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|c|h))`", path.read_text()):
        assert any((room / name).exists() for room in rooms), f"{path.name} names {name}"


def test_every_page_is_in_the_navigation() -> None:
    """A page that no one finds is none; and notebooks are stored without what they gave."""
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    pages += [path.relative_to(ROOT / "docs").with_suffix(".md") for path in NOTEBOOKS]
    assert {str(page) for page in pages} == {p for p in listed if not p.startswith("project/")}
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def commands(text: str) -> list[list[str]]:
    """The words of every `decision-seq ...` that stands on a line of its own as code."""
    fenced = "".join(re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    code = fenced + "".join(re.findall(r"^    .*\n", text, re.MULTILINE))
    lines = re.findall(r"^ *(decision-seq .*)$", code.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line.split(" && ")[0], comments=True) for line in lines]


def test_commands_take_what_the_pages_give_them() -> None:
    """Every command of every page is parsed, and its settings are laid over its config."""
    seen = 0
    for path in DOCUMENTS:
        for _, name, *words in commands(path.read_text()):
            table = COMMANDS
            if name == "data":
                table, (name, *words) = data.COMMANDS, words

            def given(*args: Any, **named: Any) -> dict[str, Any]:
                return named

            call = functools.wraps(table[name])(given)
            told = tyro.cli(call, args=words)
            seen += 1
            if name == "train" and str(told["config"]) in config_names():
                load_run_config(told["config"], told["assignments"])
            if name == "compare" and str(told["config"]) in config_names():
                load_matrix(told["config"], Path("runs"), told["assignments"])
    assert seen > 150


def test_rows_to_download_make_their_reports() -> None:
    """Whatever version wrote them: docs/results.md says `decision-seq report` reads them."""
    files = sorted((ROOT / "docs" / "results").glob("*.jsonl"))
    for path in files:
        assert f"results/{path.name}" in (ROOT / "docs" / "results.md").read_text()
        runs = load_runs([path])
        assert commands_of(runs) and all(OLDER.keys() <= row.keys() for r in runs for row in r.rows)
    assert len(files) > 5


def test_examples_of_associative_memories_print_what_they_show() -> None:
    ran = doctest.testfile(str(ROOT / "docs" / "hopfield.md"), module_relative=False)
    assert ran.attempted > 10 and not ran.failed


def test_own_data_from_log_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/own-data.md as typed by a new user, with fewer steps: its files, then its commands."""
    text = (ROOT / "docs" / "own-data.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # what its PYTHONPATH does for a new process
    for name, content in re.findall(r"```\w+ (\S+)\n(.*?)```", text, re.DOTALL):
        content = content.replace("steps: 1500", "steps: 20").replace("episodes: 20", "episodes: 2")
        Path(name).write_text(content.replace("range(300)", "range(30)"))
    done = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for command in map(shlex.split, block.splitlines()):
            if command[0] == "python":
                runpy.run_path(command[1])
            elif command[0] == "decision-seq":
                monkeypatch.setattr(sys, "argv", command)
                main()
                done.append(command[1])
    assert done == ["data"] * 3 + ["train", "evaluate", "report"] + ["data"] * 3
    rows = read_rows(Path("run"))
    assert [row["target"] for row in rows] == [40, 40, 20, 20]
    assert rows[0]["env"] == "Room-v0" and rows[0]["dataset"]["name"] == "room"
    assert "<svg" in Path("report.html").read_text() and Path("room.png").stat().st_size > 0
    assert open_store(["mine/room-v0"]).hash == open_store(["room.npz"]).hash

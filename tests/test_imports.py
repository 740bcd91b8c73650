"""The house has one direction: lower rooms never import from upper ones, no file one that imports
it, and what only draws or prints does without torch."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import decision_seq

PACKAGE = Path(decision_seq.__file__).parent
ORDER = [
    {"errors"},
    {"digits", "files", "hardware", "pickles", "progress", "signals", "spans", "variables"},
    {"config", "run_folder", "settings", "shipped"},
    {"spaces"},
    {"envs"},
    {"behaviours"},
    {"data", "ops", "hopfield"},
    {"backbones"},
    {"model"},
    {"agents"},
    {"policy", "values"},
    {"run_config"},
    {"training", "eval"},
    {"export"},
    {"api"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def modules() -> dict[str, Path]:
    """Every file by its name below decision_seq; a room's __init__ is the room."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


FILES = modules()


def imported(path: Path) -> set[str]:
    """Files that the file imports, wherever in it: inside functions and for type checkers too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports by a relative name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    own = [name.removeprefix("decision_seq.") for name in names if name.startswith("decision_seq.")]
    return {name if name in FILES else name.rpartition(".")[0] for name in own} - {""}


@functools.cache
def imports() -> dict[str, set[str]]:
    """What each file imports; not read where tests are only collected."""
    return {name: imported(path) for name, path in FILES.items()}


def reached(name: str) -> set[str]:
    """Files that importing `name` needs, one way or another."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        new = imports()[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def circles() -> Iterator[set[str]]:
    """Sets of files each of which needs all others of its set."""
    needs = {name: reached(name) for name in imports()}
    done: set[str] = set()
    for name in imports():
        if name in needs[name] and name not in done:
            circle = {other for other in needs[name] if name in needs[other]}
            done |= circle
            yield circle


def test_imports_run_one_way() -> None:
    wrong = [
        f"{name} must not import {other}"
        for name, others in imports().items()
        for other in others
        if name != "__init__"
        and (room := name.partition(".")[0]) != (there := other.partition(".")[0])
        and LEVEL[there] >= LEVEL[room]
    ]
    assert len(imports()) > 200 and wrong == []


def test_the_documents_show_every_room_in_its_place() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| room \|.*?\n\n", text, re.DOTALL)
    lines = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = [room for line in lines for room in re.findall(r"`(\w+)/?`", line)]
    assert sorted(named) == sorted({n.partition(".")[0] for n in FILES} - {"__init__", "__main__"})
    levels = [LEVEL[room] for room in named]
    assert levels == sorted(levels)


def test_every_room_says_what_it_is_for() -> None:
    for name, path in FILES.items():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, f"{name} says nothing"


def test_no_two_files_import_each_other() -> None:
    assert [sorted(circle) for circle in circles()] == []


def report_files() -> list[str]:
    """What draws and prints from rows and numbers."""
    return [
        *(name for name in FILES if name.startswith("eval.report")),
        "eval.rows", "eval.drawing", "eval.inspect.figures", "eval.inspect.numbers",
        "eval.compare.ledger", "eval.compare.live_table",
    ]  # fmt: skip


def test_reports_and_figures_need_no_torch() -> None:
    lines = [f"import decision_seq.{name}" for name in report_files()]
    code = "\n".join([*lines, "import sys", "assert 'torch' not in sys.modules"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ["agents", "envs", "eval"])
def test_top_level_shows_the_house(room: str) -> None:
    link = PACKAGE.parent / room
    assert link.exists()
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links; nothing imports through them")
    assert not link.readlink().is_absolute() and link.resolve() == PACKAGE / room


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; sys.argv = ['decision-seq', '--help']\n"
        "from decision_seq.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'gymnasium', 'minari', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


def test_commands_do_not_wait_for_torchs_compiler(toy_file: Path, tmp_path: Path) -> None:
    """Importing it takes as long as all of torch."""
    run = str(tmp_path / "run")
    config = str(PACKAGE.parent / "configs" / "point-run-decision-mamba.yaml")
    small = ["--set", f"data.sources=[{toy_file}]", "--set", "train.steps=2"]
    code = (
        "import sys\n"
        "from decision_seq.cli import main\n"
        f"for words in {[['train', config, '--out', run, *small], ['evaluate', run]]}:\n"
        "    sys.argv = ['decision-seq', *words]\n"
        "    main()\n"
        "    assert 'torch._dynamo' not in sys.modules, words"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_every_file_of_the_package() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["decision_seq"]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    others = {path for path in PACKAGE.rglob("*.*") if path.is_file()}
    left = {p for p in others - shipped if p.suffix != ".py" and "__pycache__" not in p.parts}
    assert not left

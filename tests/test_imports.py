"""The house has one direction: lower rooms never import from upper ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import decision_seq

PACKAGE = Path(decision_seq.__file__).parent
ORDER = [
    {"errors"},
    {"files", "hardware", "pickles", "progress"},
    {"config"},
    {"envs"},
    {"behaviours"},
    {"data", "ops", "hopfield"},
    {"backbones"},
    {"model"},
    {"agents"},
    {"run_config"},
    {"train", "eval"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    """First component below decision_seq of every import, wherever it stands in the file."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "decision_seq":
                names = [f"decision_seq.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {n.split(".")[1] for n in names if n.startswith("decision_seq.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for imported in imported_rooms(path):
        lower = LEVEL[imported] < LEVEL[room] or imported == room
        assert lower, f"{room} must not import {imported}"


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


def test_commands_do_not_wait_for_torchs_compiler() -> None:
    """Importing it takes as long as all of torch."""
    code = (
        "import sys, decision_seq.train.loop, decision_seq.eval.rollout.protocol\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

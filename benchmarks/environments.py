"""Environments end to end: the table of docs/environments.md, made from real runs.

    python benchmarks/environments.py [WORD ...] [--write docs/environments.md]

For each environment that the installed packages register: random players are collected as a Minari
dataset, `data info` and `data check` read it, an agent is trained for a few steps, rolled out and
reported. Whatever ends a journey is the row's last word.
With `--write` rows take the place of those of the same environment in that file.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# environment: package, settings
JOURNEYS: dict[str, tuple[str, dict[str, Any]]] = {
    "CartPole-v1": ("gymnasium", {}),
    "Pendulum-v1": ("gymnasium", {}),
    "FrozenLake-v1": ("gymnasium", {}),
    "Taxi-v4": ("gymnasium", {}),
    "Blackjack-v1": ("gymnasium", {}),
    "CarRacing-v3": ("gymnasium", {}),
    "Hopper-v5": ("mujoco", {}),
    "Humanoid-v5": ("mujoco", {}),
    "Ant-v4?use_contact_forces=true": ("mujoco", {}),
    "pong": ("ale-py", {}),
    "gymnasium_robotics:PointMaze_UMaze-v3": ("gymnasium-robotics", {"goal": True}),
    "gymnasium_robotics:AntMaze_UMaze-v5": ("gymnasium-robotics", {"goal": True}),
    "gymnasium_robotics:FetchReach-v4": ("gymnasium-robotics", {"goal": True}),
    "gymnasium_robotics:FrankaKitchen-v1": ("gymnasium-robotics", {}),
    "gymnasium_robotics:AdroitHandDoor-v1": ("gymnasium-robotics", {}),
    "minigrid:MiniGrid-FourRooms-v0": ("minigrid", {"leave_out": ["mission"]}),
    "ogbench:pointmaze-medium-v0": ("ogbench", {}),
}
STEPS = 120  # of data
COLUMNS = ("environment", "observations", "actions", "package", "info", "check", "train",
           "evaluate", "report")  # fmt: skip


def main() -> None:
    """Print the rows, and write them where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="environments whose names hold one of these")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    rows = {}
    for name, (package, settings) in JOURNEYS.items():
        if asked.words and not any(word in name for word in asked.words):
            continue
        try:
            used = f"{package} {version(package)}"
        except PackageNotFoundError:
            print(f"{name}: {package} is not installed", flush=True)
            continue
        if package == "gymnasium-robotics":
            used += f", mujoco {version('mujoco')}"
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = f"| {' | '.join(journey(name, settings, Path(folder), used))} |"
        print(rows[name], flush=True)
    if asked.write:
        write(asked.write, rows)


def journey(name: str, settings: dict[str, Any], folder: Path, used: str) -> list[str]:
    """The cells of a row."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    cells = [f"`{name}`", "", "", used]
    source, run, config = "tried/it-v0", folder / "run", folder / "run.yaml"
    config.write_text(_config(name, settings, source), encoding="utf-8")
    steps = {
        "": ["collect", name, "random", "--steps", str(STEPS), "--out", source],
        "info": ["data", "info", source],
        "check": ["data", "check", source, "--env", name],
        "train": ["train", str(config), "--out", str(run)],
        "evaluate": ["evaluate", str(run)],
        "report": ["report", str(run), "--out", str(run / "report.html")],
    }
    for step, words in steps.items():
        code, said = command(words)
        if step == "info":
            cells[1:3] = [_said(said, "observations", "observation_shape"), _said(said, "actions")]
        if step and code == 0:
            cells.append(_findings(said) if step == "check" else "yes")
        elif code:
            return [*cells, " ".join(said.split())[-160:].replace("|", "/")]
    return cells


def command(words: list[str]) -> tuple[int, str]:
    """Exit code and what a command of decision-seq printed."""
    cli = importlib.import_module("decision_seq.cli.main")
    printed = io.StringIO()
    to = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
    with _arguments(words), to[0], to[1]:
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), printed.getvalue()
    return 0, printed.getvalue()


def write(path: Path, rows: dict[str, str]) -> None:
    """Put `rows` into the table of a page; others stay."""
    text = path.read_text(encoding="utf-8")
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    begin = text.index("| environment |")
    end = begin + len(re.match(r"(\|[^\n]*\n)+", text[begin:])[0])  # type: ignore[index]
    kept = {line.split("`")[1]: line for line in text[begin:end].splitlines()[2:]}
    kept |= rows
    order = [kept[name] for name in JOURNEYS if name in kept]
    path.write_text(text[:begin] + head + "\n".join(order) + "\n" + text[end:], encoding="utf-8")


def _config(name: str, settings: dict[str, Any], source: str) -> str:
    preset = "goal-decision-mamba" if settings.get("goal") else "decision-mamba"
    return f"""
env: "{name}"
data: {{sources: [{source}], leave_out: {settings.get("leave_out", [])}}}
agent: {{preset: {preset}, context_length: 4, backbone: {{width: 16, layers: 1}}}}
train: {{steps: 2, batch_size: 4, checkpoint_interval: 2, log_interval: 1}}
eval: {{targets: [1], episodes: 1, max_steps: 20}}
"""


def _said(text: str, *keys: str) -> str:
    """What `data info` says of the first key that it names."""
    for key in keys:
        if found := re.search(rf"^{key} +(.+)$", text, re.MULTILINE):
            return found[1]
    return ""


def _findings(text: str) -> str:
    found = re.search(r"(\d+) findings", text)
    return "yes" if found is None or found[1] == "0" else f"{found[1]} findings"


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, ["decision-seq", *words]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()

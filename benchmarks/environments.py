"""Journeys end to end: the table of docs/environments.md, made from real runs.

    python benchmarks/environments.py [WORD ...] [--write docs/environments.md]

Of each environment that the installed packages register, and of one with each kind of space, random
players' data are collected as a Minari dataset; of each format a file is written (journey_data.py).
`data info` and `data check` read them, an agent is trained for a few steps, rolled out, filmed and
reported. Whatever ends a journey is the row's last word.
With `--write` rows take the place of those of the same name in that file.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `benchmarks.journey_data:Tuple-v0` is imported by its name

from benchmarks.journey_data import FORMATS, SPACES  # noqa: E402

STEPS = 120  # of data
COLUMNS = ("journey", "observations", "actions", "package", "info", "check", "train",
           "evaluate", "video", "report")  # fmt: skip


@dataclass(frozen=True)
class Journey:
    """What is tried: an environment whose data are collected, or a file that `write` makes."""

    package: str
    env: str | None
    settings: dict[str, Any] = field(default_factory=dict)  # preset, leave_out
    write: Callable[[Path], Path] | None = None


GOAL, MISSION = {"preset": "goal-decision-mamba"}, {"leave_out": ["mission"]}
_ENVIRONMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(
        ("CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1", "CarRacing-v3"),
        ("gymnasium", {}),
    ),
    **dict.fromkeys(
        ("Hopper-v5", "Humanoid-v5", "Ant-v4?use_contact_forces=true", "d4rl-ant"), ("mujoco", {})
    ),
    **dict.fromkeys(("pong",), ("ale-py", {})),
    **{
        f"gymnasium_robotics:{name}": ("gymnasium-robotics", settings)
        for name, settings in {
            "PointMaze_UMaze-v3": GOAL,
            "PointMaze_Large_Diverse_GR-v3": GOAL,
            "AntMaze_UMaze-v5": GOAL,
            "AntMaze_Medium_Diverse_GR-v5": GOAL,
            "FetchReach-v4": GOAL,
            "FetchPickAndPlace-v4": GOAL,
            "FetchSlideDense-v4": GOAL,
            "HandReach-v3": GOAL,
            "HandManipulateBlock_ContinuousTouchSensors-v1": GOAL,
            "FrankaKitchen-v1": {},
            'FrankaKitchen-v1?tasks_to_complete=["microwave"]': {},
            "AdroitHandDoor-v1": {},
            "AdroitHandRelocate-v1": {},
        }.items()
    },
    **{
        f"minigrid:{name}": ("minigrid", MISSION)
        for name in (
            "MiniGrid-FourRooms-v0", "MiniGrid-DoorKey-5x5-v0", "MiniGrid-MemoryS7-v0",
            "MiniGrid-Dynamic-Obstacles-5x5-v0", "BabyAI-GoToLocal-v0",
        )
    },
    "minigrid-pixels": ("minigrid", {}),
    "minigrid-pixels?task=MiniGrid-DoorKey-5x5-v0&view=all": ("minigrid", {}),
    **{
        f"ogbench:{name}": ("ogbench", {})
        for name in (
            "pointmaze-medium-v0", "pointmaze-medium-singletask-v0", "antmaze-medium-v0",
            "cube-single-v0", "scene-singletask-task2-v0", "puzzle-3x3-v0",
            "visual-cube-single-v0", "powderworld-easy-v0",
        )
    },
    **{
        f"ogbench-goals?task={name}": ("ogbench", {**GOAL, "achieved": "observation"})
        for name in ("antmaze-medium-v0", "cube-single-v0")
    },
}  # fmt: skip
JOURNEYS: dict[str, Journey] = {
    **{f"`{name}`": Journey(p, name, s) for name, (p, s) in _ENVIRONMENTS.items()},
    **{
        f"spaces: {name}": Journey(
            "gymnasium",
            f"benchmarks.journey_data:{name}-v0",
            MISSION if name == "Mission" else {},
        )
        for name in SPACES
    },
    **{
        f"file: {name}": Journey("pyarrow" if "Parq" in name or "LeR" in name else "h5py", e, s, w)
        for name, (w, e, s) in FORMATS.items()
    },
}


def main() -> None:
    """Print the rows, and write them where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="those whose names hold one of these")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    rows = {}
    for name, one in JOURNEYS.items():
        if asked.words and not any(word in name for word in asked.words):
            continue
        try:
            used = f"{one.package} {version(one.package)}"
        except PackageNotFoundError:
            print(f"{name}: {one.package} is not installed", flush=True)
            continue
        if one.package == "gymnasium-robotics":
            used += f", mujoco {version('mujoco')}"
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = f"| {' | '.join(journey(name, one, Path(folder), used))} |"
        print(rows[name], flush=True)
    if asked.write:
        write(asked.write, rows)


def journey(name: str, one: Journey, folder: Path, used: str) -> list[str]:
    """The cells of a row."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    cells = [name, "", "", used]
    source, run, config = "tried/it-v0", folder / "run", folder / "run.yaml"
    if one.write:
        (folder / "data").mkdir()
        source = str(one.write(folder / "data"))
    config.write_text(_config(one, source), encoding="utf-8")
    known = ["--env", one.env] if one.env else []
    collect = [] if one.write else ["collect", str(one.env), "random", "--steps", str(STEPS)]
    steps = {
        "": collect and [*collect, "--out", source],
        "info": ["data", "info", source],
        "check": ["data", "check", source, *known],
        "train": ["train", str(config), "--out", str(run)],
        "evaluate": ["evaluate", str(run)] if one.env else [],
        "video": ["evaluate", str(run), "--video", "best"] if one.env else [],
        "report": ["report", str(run), "--out", str(run / "report.html")],
    }
    for step, words in steps.items():
        if not words:
            cells += ["-"] if step else []
            continue
        code, said = command(words)
        if step == "info":
            cells[1:3] = [_said(said, "observations", "observation_shape"), _said(said, "actions")]
        if step and code == 0:
            cells.append(_findings(said) if step == "check" else "yes")
        elif code:
            said = said[said.rfind("decision-seq: ") :] if "decision-seq: " in said else said[-240:]
            return [*cells, " ".join(said.split()).replace("|", "/")]
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
        except Exception as error:  # a traceback is what a journey is to find
            return 1, f"{printed.getvalue()} TRACEBACK {type(error).__name__}: {error}"
    return 0, printed.getvalue()


def write(path: Path, rows: dict[str, str]) -> None:
    """Put `rows` into the table of a page; others stay."""
    text = path.read_text(encoding="utf-8")
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    begin = text.index("| journey |")
    end = begin + len(re.match(r"(\|[^\n]*\n)+", text[begin:])[0])  # type: ignore[index]
    kept = {line.split(" | ")[0][2:]: line for line in text[begin:end].splitlines()[2:]}
    kept |= rows
    order = [kept[name] for name in JOURNEYS if name in kept]
    path.write_text(text[:begin] + head + "\n".join(order) + "\n" + text[end:], encoding="utf-8")


def _config(one: Journey, source: str) -> str:
    preset = one.settings.get("preset", "decision-mamba")
    context = "" if preset == "bc" else "context_length: 4, "
    kind = "" if preset == "bc" else ", layers: 1"
    context += "achieved: observation, " if "achieved" in one.settings else ""
    return f"""
env: {f"'{one.env}'" if one.env else "null"}
data: {{sources: ['{source}'], leave_out: {one.settings.get("leave_out", [])}}}
agent: {{preset: {preset}, {context}backbone: {{width: 16{kind}}}}}
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
    found = re.search(r"(\d+) findings?", text)
    return "yes" if found is None or found[1] == "0" else found[0]


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, ["decision-seq", *words]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    main()

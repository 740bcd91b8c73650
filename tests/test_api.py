"""The commands as functions of Python: docs/python.md as typed, and what notebooks show."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rich

import decision_seq as ds
from decision_seq.api.runs import assignments
from decision_seq.cli.main import COMMANDS
from decision_seq.eval.rows import read_rows

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
SMALL = {
    "steps=100_000": "steps=500",
    '"train.steps": 10_000': '"train.steps": 4, "train.checkpoint_interval": 2,'
    ' "agent.backbone.width": 16, "train.log_interval": 1',
    "episodes=20": "episodes=2, max_steps=15",
}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page's names are after its 15 lines, with fewer steps."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 18
    for large, small in SMALL.items():
        assert large in code
        code = code.replace(large, small)
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("MINARI_DATASETS_PATH", str(home / "minari"))
        patch.setenv("DECISION_SEQ_CACHE", str(home / "cache"))
        patch.chdir(tmp_path_factory.mktemp("work"))
        exec(code, names)
        names["shown"] = {name: names[name]._repr_html_() for name in ("data", "run", "done")}
        names["report"] = ds.report(names["run"])
        names["shown"]["report"] = names["report"]._repr_html_()
        rows = read_rows(Path("runs/dm"))
        assert [row["target"] for row in rows] == [3600, 3600, 1800, 1800]
        assert names["done"].rows[0]["episode_return"] == rows[0]["episode_return"]
        assert all(file.is_file() for file in names["report"].files)
        names["policy_action"] = names["policy"].act([0.0] * 11, None)
    return names


def test_the_page_runs_as_it_stands(example: dict[str, Any]) -> None:
    assert example["run"].finished and str(example["run"].folder) == "runs/dm"
    assert str(example["data"]).startswith("decision-seq/hopper/medium-v0: ")
    assert example["policy_action"].shape == (3,)


@pytest.mark.parametrize("name", ["data", "run", "done", "report"])
def test_results_show_themselves_in_a_notebook(name: str, example: dict[str, Any]) -> None:
    html = example["shown"][name]
    assert html.count("<table>") == html.count("</table>") == 1 and html.count("<tr>") >= 2
    assert "<svg" in html and "<script" not in html


def test_results_print_themselves(
    example: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rich.print(example["done"])
    said = capsys.readouterr().out
    assert "3600" in said and "context stream" in said
    assert "2 episodes" not in repr(example["run"]) and "4 episodes" in repr(example["done"])


def test_functions_have_the_arguments_and_defaults_of_their_commands() -> None:
    for name in ("collect", "train", "evaluate", "compare", "report"):
        ours = inspect.signature(getattr(ds, name)).parameters
        theirs = inspect.signature(COMMANDS[name]).parameters
        theirs = {k: p for k, p in theirs.items() if k != "off_policy"}  # a function of its own
        renamed = ["set" if key == "assignments" else key for key in theirs]
        assert [key for key in ours if key != "say"] == renamed, name
        for key, other in zip(renamed, theirs, strict=True):
            a, b = ours[key].default, theirs[other].default
            assert a == b or str(a) == str(b), f"{name} {key}"


def test_every_public_name_is_there_and_documented() -> None:
    page = PAGE.read_text()
    for name in ds.__all__:
        assert inspect.getdoc(getattr(ds, name)) and f"ds.{name}" in page and name in dir(ds)
    for name in ds.datasets.__all__:
        assert inspect.getdoc(getattr(ds.datasets, name)) and name.strip("_") in page
    with pytest.raises(AttributeError, match="no attribute 'colect'"):
        ds.colect  # noqa: B018


def test_importing_waits_for_nothing() -> None:
    code = (
        "import sys, decision_seq as ds\n"
        "slow = {'torch', 'numpy', 'gymnasium', 'matplotlib', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not slow, slow\n"
        "ds.train, ds.evaluate, ds.report, ds.datasets.info\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_are_the_command_lines() -> None:
    given = {"train.steps": 300, "data.sources": ["a.npz"], "train.ema": None, "x": 1e-4}
    said = ["train.steps=300", 'data.sources=["a.npz"]', "train.ema=null", "x=0.0001"]
    assert assignments(given) == said and assignments(said) == said


def test_bad_input_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ds.UserError, match="the nearest is hopper"):
        ds.train("hoper", tmp_path / "run")
    with pytest.raises(ds.UserError, match="holds no trained run"):
        ds.evaluate(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ds.UserError, match="file: is a file; give the folder of a run"):
        ds.evaluate(tmp_path / "file")

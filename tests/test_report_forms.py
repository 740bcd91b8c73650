"""The report: every form has every number, and says what it is of."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from report_rows import (
    CLOSE,
    FAR,
    STEPS,
    form,
    runs_of,
    section,
    with_other_checkpoints,
)
from small_agents import evaluated

from decision_seq.errors import UserError
from decision_seq.eval.inspect.run import inspect_agent, load_trained, write_inspection
from decision_seq.eval.report import page as report
from decision_seq.eval.report.archive import load_runs, read_archive, to_archive
from decision_seq.eval.report.data import Data, to_csv, to_json
from decision_seq.eval.report.parts import Table
from decision_seq.eval.report.protocol import commands
from decision_seq.eval.report.runs import Run, named_runs
from decision_seq.eval.report.sections import sections
from decision_seq.run_config import RunConfig, run_config
from decision_seq.spans import spans
from decision_seq.training.loop import train


def short(value: Any) -> Any:
    """As JSON has it, with 6 digits a number."""
    return json.loads(json.dumps(value), parse_float=lambda x: float(f"{float(x):.6g}"))


def test_a_file_of_runs_makes_the_same_report(tmp_path: Path) -> None:
    """Every number of it, though the folders are gone; and of a file made from the file."""
    runs = with_other_checkpoints(runs_of(tmp_path, FAR))
    for i, run in enumerate(runs):
        lines = [
            {"step": 10, "loss": 1 / 3, "steps_per_second": 5.0, "gradient_norm": 7.0},
            {"step": 30, "validation_loss": 1.0 + i, "validation_loss/expert": 2.0},
        ]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        run.rows[0]["ood"], run.rows[0]["ood_mean"] = [0.5, 1.5], 1.0
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(to_archive(runs))
        again = load_runs([tmp_path / name])
        before, after = (to_json(Data(r, {})) for r in (runs, again))
        assert before.pop("commands") and after.pop("commands")  # they name the folders
        assert short(after) == short(before)
        runs = again
    assert "gradient_norm" not in (tmp_path / "a.jsonl").read_text()
    assert [r.rows[0]["ood_mean"] for r in again] == [1.0] * len(runs)
    (tmp_path / "c.jsonl").write_text('{"step": 3}\n{}\n')
    with pytest.raises(UserError, match="line 1 is damaged"):
        read_archive(tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl").write_text('{"run": "a"}\n')
    with pytest.raises(UserError, match="holds something else than runs"):
        read_archive(tmp_path / "c.jsonl")
    line = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    next(iter(line["evaluations"][0]["episodes"].values())).append(0)  # a column longer than others
    (tmp_path / "c.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="holds something else than runs"):
        read_archive(tmp_path / "c.jsonl")
    (tmp_path / "c.jsonl").write_text((tmp_path / "a.jsonl").read_text()[:-100])
    with pytest.raises(UserError, match=f"line {len(runs)} is damaged"):  # a run, not to be lost
        read_archive(tmp_path / "c.jsonl")
    with pytest.raises(UserError, match="holds no run, or does not exist"):
        read_archive(tmp_path / "d.jsonl")


def test_commands_come_from_the_ledger_where_there_is_one(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, {"mamba": [50.0]})
    run.rows += [r | {"context": "stream"} for r in run.rows]
    config = run.folder / "config.yaml"
    assert commands([run]) == [
        f"decision-seq train {config} --out NEW/mamba-0",
        "decision-seq evaluate NEW/mamba-0",
        "decision-seq evaluate NEW/mamba-0 --context stream",
    ]
    typed = ["decision-seq train cells/a.yaml --out x/mamba-0", "decision-seq evaluate x/mamba-0"]
    event = {"cell": "mamba-0", "event": "started", "commands": typed}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(event) + "\n")
    assert commands([run]) == [*typed, "decision-seq evaluate x/mamba-0 --context stream"]
    typed[1] += " --context window"  # which is the config's: not said twice
    (tmp_path / "ledger.jsonl").write_text(json.dumps(event) + "\n")
    assert commands([run]) == [*typed, "decision-seq evaluate x/mamba-0 --context stream"]


class Page(HTMLParser):
    """Tags left open, ids, and every drawing's alternative text."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [str(given["id"])] if "id" in given else []
        if tag == "svg":
            self.labels.append(given.get("aria-label"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone(tmp_path: Path) -> None:
    runs = with_other_checkpoints(runs_of(tmp_path, FAR)) + runs_of(tmp_path / "w", CLOSE, "walker")
    data = Data(runs, {"lost_seed0": "exit code 2"})
    html = form(".html", data)
    page = Page(html)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert len(page.labels) >= 8 and all(label and len(label) > 20 for label in page.labels)
    for target in re.findall(r'(?:href="|url\()#([^")]+)', html):
        assert target in page.ids
    assert (
        "lost_seed0: exit code 2" in html and html.count("<script>") == html.count("<script") == 1
    )
    assert "http" not in re.sub(r"http://www\.w3\.org[\w/.]*", "", html)
    titles = re.findall("<h2>(.*?)</h2>", html)
    assert titles == [
        "At a glance", "Tasks side by side", "Scores", "Which is better, task by task",
        "All seeds of all tasks together",
        "Does it follow the target?", "Learning curves", "Last or best checkpoint",
        "What choosing by rollouts is worth", "What it costs", "Protocol", "Reproduce",
    ]  # fmt: skip


def test_names_cannot_break_the_page_or_the_table(tmp_path: Path) -> None:
    name = 'a | <b onclick="x">`$\\frac'
    data = Data(runs_of(tmp_path, {name: [1.0], "bc": [2.0]}), {})
    html, markdown = form(".html", data), form(".md", data)
    assert "<b onclick" not in html and Page(html).open == []
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert len(tables) >= 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_what_all_rows_share_is_said_once() -> None:
    rows = [["hopper", "window", "a", "3"], ["hopper", "window", "b", "3"]]
    columns = ("dataset", "context", "agent", "score")
    words, table = Table(columns, rows, 3, frozenset({1})).folded()
    assert words == "dataset: hopper; context: window"
    assert table == Table(("agent", "score"), [["a", "3"], ["b", "3"]], 1, frozenset({1}))
    alone = Table(columns, rows[:1], 3)
    assert alone.folded() == ("", alone)


def test_every_form_has_the_same_numbers(tmp_path: Path) -> None:
    data = Data(with_other_checkpoints(runs_of(tmp_path, FAR)), {})
    plain = json.loads(json.dumps(to_json(data), allow_nan=False))
    lines = list(csv.DictReader(io.StringIO(to_csv(data))))
    markdown = form(".md", data)
    by_seed = {
        (x["agent"], x["train_seed"]): float(x["value"])
        for x in lines
        if x["table"] == "scores" and x["statistic"] == "mean over episodes"
    }
    assert by_seed == {(a, str(i)): v for a, means in FAR.items() for i, v in enumerate(means)}
    for score in plain["scores"]:
        (line,) = [
            x for x in lines
            if x["statistic"] == "mean over seeds" and x["agent"] == score["agent"]
        ]  # fmt: skip
        assert float(line["value"]) == score["mean"]
        assert float(line["low"]) == score["interval"]["low"]
        assert f"{score['mean']:.1f}" in markdown
    assert {x["table"] for x in lines} == {
        "scores", "aggregates", "comparisons", "checkpoints", "costs", "choosing"
    }  # fmt: skip
    assert plain["comparisons"][0]["improvement"]["value"] == 1
    assert len(plain["profile"]["thresholds"]) == len(plain["profile"]["shares"]["bc"])


def test_files_are_written_by_their_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(tmp_path, CLOSE)
    monkeypatch.setattr(report, "load_runs", lambda folders: runs)
    written = report.write_report([], tmp_path / "a" / "r.html")
    assert [file.name for file in written] == ["r.html", "r.md", "r.csv", "r.json"]
    there = [p.name for p in (tmp_path / "a").iterdir()]
    assert sorted(there) == sorted([*(f.name for f in written), "r-figures"])
    markdown = written[1].read_text()
    shown = re.findall(r"!\[[^\]]{20,}\]\((r-figures/[a-z-]+\d\.svg)\)", markdown)
    drawn = (tmp_path / "a" / "r-figures").iterdir()
    assert sorted(shown) == sorted(f"r-figures/{p.name}" for p in drawn) and len(shown) >= 3
    assert markdown.count("![") == len(shown)
    for name in shown:
        assert (tmp_path / "a" / name).read_text().lstrip().startswith(("<?xml", "<svg"))
    assert report.write_report([], tmp_path / "b" / "r.csv") == [tmp_path / "b" / "r.csv"]
    with pytest.raises(UserError, match=r"r\.pdf: a report is written as \.html, \.md"):
        report.write_report([], tmp_path / "r.pdf")


# ---- what numbers are of -------------------------------------------------------------------------


def test_every_table_and_figure_says_of_which_checkpoint_it_is(tmp_path: Path) -> None:
    runs = with_other_checkpoints(runs_of(tmp_path, FAR))
    for run in runs:
        run.rows += [r | {"context": "stream", "lanes": 8} for r in run.rows]
        by = [{"lag": 0, "steps": 0, "mean": 1.0}]
        influence = {"by_lag": by, "by_step": by, "half_life": None}
        run.inspection = {"checkpoint": "last", "step": STEPS, "context_length": 20,
                          "influence": influence}  # fmt: skip
    data = Data(runs, {})
    for part in sections(data):
        if part.table:
            words, table = part.table.folded()
            own = [[words, part.text, *row] for row in table.rows]
            assert all("last, step 30" in str(row) or "10, 20, 30" in str(row) for row in own), part
        for figure in part.figures:
            if part.title != "Learning curves":  # against the step
                for text in (figure.svg, figure.alt):
                    assert "last, step 30" in text or "10, 20, 30" in text, (part.title, text[:300])
    (first, *_) = section(data, "Last or best checkpoint").table.rows
    assert {"last, step 30", "best, step 20"} <= set(first)
    for line in csv.DictReader(io.StringIO(to_csv(data))):
        assert "step" in line["checkpoint"], line
    plain = to_json(data)
    for name in ("scores", "comparisons", "contexts", "costs", "compared_on"):
        assert {line["checkpoint"] for line in plain[name]} == {"last, step 30"}


def test_runs_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    """Two comparisons that have runs of the same names, from files and folders."""
    for name, mean in (("small", 40.0), ("large", 80.0)):
        runs = runs_of(tmp_path / name, {"mamba": [mean, mean + 1], "bc": [20.0] * (mean > 50)})
        (tmp_path / f"{name}.jsonl").write_text(to_archive(runs))

    def means(runs: list[Run]) -> dict[str, float]:
        return {s.agent: s.mean for s in Data(runs, {}).scores}

    both = load_runs([tmp_path / "small.jsonl", tmp_path / "large.jsonl"])
    assert means(both) == {"mamba (small)": 40.5, "mamba (large)": 80.5, "bc": 20.0}
    folders = [r for n in ("small", "large") for r in runs_of(tmp_path / n, {"mamba": [4.0, 6.0]})]
    assert means(named_runs(folders)) == {"mamba (small)": 5.0, "mamba (large)": 5.0}
    (tmp_path / "again").mkdir()
    (tmp_path / "small.jsonl").rename(tmp_path / "again" / "large.jsonl")
    found = means(load_runs([tmp_path / "large.jsonl", tmp_path / "again" / "large.jsonl"]))
    assert sorted(found.values()) == [20.0, 40.0, 41.0, 80.0, 81.0]  # named by their paths
    alone = runs_of(tmp_path / "one", {"mamba": [1.0]}) + runs_of(
        tmp_path / "one", {"mamba": [2.0]}
    )
    alone[1].folder = alone[0].folder.with_name("wider")
    assert set(means(named_runs(alone))) == {"mamba (mamba-0)", "mamba (wider)"}


def test_seeds_are_named_as_they_were(tmp_path: Path) -> None:
    assert spans([3, 1, 2, 2, 7]) == "1 to 3, 7" and spans([]) == ""
    runs = runs_of(tmp_path, {"mamba": [50.0, 51.0], "bc": [40.0, 41.0]})
    for run in runs:
        (one, _) = run.rows
        run.rows = [one | {"env_seed": seed} for seed in [*range(5), *range(100, 103)]]
    protocol = dict(Data(runs, {}).protocol)
    same = "0 to 4, 100 to 102, the same for every agent and target"
    assert protocol["environment seeds"] == same
    assert protocol["training seeds"] == "0 to 1"
    commands = [c for c in Data(runs, {}).commands if "evaluate NEW/bc-0" in c]
    assert commands == [
        "decision-seq evaluate NEW/bc-0 --episodes 5",
        "decision-seq evaluate NEW/bc-0 --episodes 3 --seed 100",
    ]
    for run in runs[2:]:
        run.rows = run.rows[:5]
    assert dict(Data(runs, {}).protocol)["environment seeds"] == (
        "bc: 0 to 4; mamba: 0 to 4, 100 to 102; compared are those that two agents have in common"
    )


def test_an_earlier_choice_is_no_part_of_the_mean(tmp_path: Path) -> None:
    """A run that goes on is chosen from again: the rows of the first choice stay in the file."""
    runs = with_other_checkpoints(runs_of(tmp_path, {"mamba": [82.0]}))
    (run,) = runs
    best = [r for r in run.others if r["checkpoint"] == "best"]
    score = best[0]["normalized_score"]
    run.others += [r | {"step": 25, "normalized_score": score + 8} for r in best]
    (line,) = Data(runs, {}).choices
    assert (line.other, line.other_checkpoint) == (score + 8, "best, step 25")


@pytest.fixture
def evaluated_run(toy_file: Path, tmp_path: Path) -> Path:
    """Trained for 10 steps and evaluated."""
    train(toy_config(toy_file, 10), tmp_path / "run", torch.device("cpu"))
    evaluated(tmp_path / "run")
    return tmp_path / "run"


def toy_config(toy_file: Path, steps: int, seed: int = 0) -> RunConfig:
    plain: dict[str, Any] = {
        "env": "point-run", "data": {"sources": [str(toy_file)]}, "seed": seed,
        "agent": {"preset": "bc", "context_length": 2, "backbone": {"width": 8, "layers": 1}},
        "train": {"steps": steps, "batch_size": 4}, "eval": {"episodes": 2},
    }  # fmt: skip
    return run_config(plain, {}, "test")


def test_rows_older_than_the_checkpoint_beside_them_are_named(
    toy_file: Path, evaluated_run: Path
) -> None:
    data = Data(load_runs([evaluated_run]), {})
    assert "(older" not in form(".html", data)
    train(toy_config(toy_file, 20), evaluated_run, torch.device("cpu"), resume=True)
    data = Data(load_runs([evaluated_run]), {})
    words = "last, step 10 (older: the run's checkpoint is of step 20 now)"
    assert [score.checkpoint for score in data.scores] == [words]
    sentence = "they are of step 10, and the run's checkpoint is of step 20 now. Evaluate"
    assert sentence in data.summary[-1]
    assert data.commands[0].endswith("--set train.steps=10")
    evaluated(evaluated_run, context="stream")
    data = Data(load_runs([evaluated_run]), {})
    assert [(s.checkpoint, s.context) for s in data.scores] == [("last, step 20", "stream")]
    assert dict(data.protocol)["rows of earlier checkpoints, left out"] == words


def test_rows_of_another_training_in_the_same_folder_are_named(
    toy_file: Path, evaluated_run: Path
) -> None:
    subject = load_trained(evaluated_run, "last", (), torch.device("cpu"))
    write_inspection(inspect_agent(subject, 0, None, None), evaluated_run)
    (line,) = Data(load_runs([evaluated_run]), {}).looks_back
    assert line.checkpoint == "last, step 10"
    shutil.rmtree(evaluated_run / "checkpoints")
    train(toy_config(toy_file, 10, seed=1), evaluated_run, torch.device("cpu"))
    data = Data(load_runs([evaluated_run]), {})
    again = "last, step 10 (older: the run was trained again since)"
    assert data.scores[0].checkpoint == again == data.looks_back[0].checkpoint
    evaluated(evaluated_run)
    (score,) = Data(load_runs([evaluated_run]), {}).scores
    assert score.checkpoint == "last, step 10"

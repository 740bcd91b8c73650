"""The report: what it says of runs whose rows are known, and that every form has every number."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_agents import evaluated

from decision_seq.errors import UserError
from decision_seq.eval.inspect.run import inspect_agent, load_trained, write_inspection
from decision_seq.eval.report import page as report
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.archive import load_runs, read_archive, to_archive
from decision_seq.eval.report.data import Data, to_csv, to_json
from decision_seq.eval.report.parts import Table
from decision_seq.eval.report.protocol import commands
from decision_seq.eval.report.runs import Run, Settings, named_runs
from decision_seq.eval.report.sections import sections
from decision_seq.eval.rows import OLDER, Row
from decision_seq.run_config import RunConfig, run_config
from decision_seq.settings import EvalConfig, TrainConfig
from decision_seq.spans import spans
from decision_seq.training.loop import train

STEPS = 30


def row(agent: str, seed: int, episode: int, score: float, **changes: Any) -> Row:
    """An episode row as `evaluate` writes it."""
    return OLDER | {
        "run": f"{agent}-{seed}", "agent": agent, "train_seed": seed, "env": "Hopper-v5",
        "dataset": {"name": "hopper", "hash": "abc"}, "checkpoint": "last",
        "checkpoint_rule": "last", "candidates": 1, "step": STEPS, "context": "window",
        "context_length": 20, "target": None if agent == "bc" else 3600.0, "env_seed": episode,
        "episode_return": 32.5 * score, "normalized_score": score, "length": 100, "lanes": 2,
        "milliseconds_per_step": 2.0, "versions": {"decision_seq": "1", "torch": "2"},
        "hardware": {"cpu": "Abacus", "cores": 2, "gpu": None, "threads": 1}, "parameters": 7000,
        "score_reference": "d4rl", "peak_memory_mib": 300.0,
    } | changes  # fmt: skip


def make_run(folder: Path, agent: str, seed: int, rows: list[Row], dataset: str = "hopper") -> Run:
    summary = {"name": dataset, "hash": f"{dataset}-hash", "return_mean": 900.0,
               "returns": [500.0, 900.0, 1300.0]}  # fmt: skip
    last = [r for r in rows if r["checkpoint"] == "last" and r["step"] == STEPS]
    others = [r for r in rows if r not in last]
    (folder / "runs" / f"{agent}-{seed}").mkdir(parents=True, exist_ok=True)
    plan = EvalConfig(targets=(3600.0,), episodes=2)
    config = Settings("hopper", agent, seed, TrainConfig(steps=STEPS), plan)
    return Run(folder / "runs" / f"{agent}-{seed}", config, summary, last, agent, None, others)


def runs_of(folder: Path, means: dict[str, list[float]], dataset: str = "hopper") -> list[Run]:
    """For each agent a run for each training seed, of two episodes around the seed's mean."""
    return [
        make_run(
            folder, agent, seed,
            [row(agent, seed, i, mean + shift) for i, shift in enumerate((-1.0, 1.0))], dataset,
        )
        for agent, by_seed in means.items()
        for seed, mean in enumerate(by_seed)
    ]  # fmt: skip


CLOSE = {"mamba": [50.0, 61, 42, 55, 47], "attention": [48.0, 60, 43, 52, 46]}
FAR = {"mamba": [80.0, 81, 82, 83, 84], "attention": [48.0, 60, 43, 52, 46], "bc": [20.0] * 5}


def section(data: Data, title: str) -> Any:
    return next(s for s in sections(data) if s.title == title)


def test_a_clear_winner_is_named_and_the_rest_in_order(tmp_path: Path) -> None:
    data = Data(runs_of(tmp_path, FAR), {})
    assert data.summary[0].startswith("On hopper, the highest mean is mamba's: return 2665 when")
    assert "asked for 3600 (normalized: 82.0, 95 % interval [" in data.summary[0]
    assert "It is better than all others on the same seeds" in data.summary[0]
    assert data.summary[0].endswith("over attention.")
    assert len(data.summary) == 1
    first, second = data.comparisons
    assert (first.worse, second.worse) == ("attention", "bc")
    assert first.sure and first.difference and first.difference.value == pytest.approx(32.2)
    assert first.improvement.value == 1
    assert first.improvement.interval and first.improvement.interval.low < 0.9


def test_a_small_lead_can_be_chance_and_pairing_finds_it(tmp_path: Path) -> None:
    """Mean difference 1.2 over a spread of 6: nothing without pairs. With them it is found only if
    it is the same on every seed."""
    data = Data(runs_of(tmp_path, CLOSE), {})
    (line,) = data.comparisons
    assert line.difference and line.difference.value == pytest.approx(1.2)
    assert not line.sure and "can be chance" in data.summary[0]
    steady = {"mamba": CLOSE["attention"], "bc": [v - 1.2 for v in CLOSE["attention"]]}
    data = Data(runs_of(tmp_path / "b", steady), {})
    assert data.comparisons[0].sure and "It is better than bc" in data.summary[0]


def test_the_first_table_says_who_is_better_and_at_what_cost(tmp_path: Path) -> None:
    """The leader first, then the others with the difference, its interval and a verdict; ties are
    called ties."""
    data = Data(runs_of(tmp_path, FAR), {})
    assert [(s.agent, s.verdict) for s in data.standings] == [
        ("mamba", "best"), ("attention", "worse"), ("bc", "worse")
    ]  # fmt: skip
    first, second, _ = data.standings
    assert first.behind is None and first.score.value == 82
    assert second.behind == data.comparisons[0].difference and second.parameters == 7000
    assert second.milliseconds_per_step == 2.0 and second.training_seconds is None
    (line, *_) = section(data, "At a glance").table.rows
    assert line[1:3] == ["mamba", "best"] and line[3].startswith("82.0 [")
    close = Data(runs_of(tmp_path / "b", CLOSE), {})
    assert {s.verdict for s in close.standings} == {"tie"}
    both = runs_of(tmp_path / "c", FAR) + runs_of(tmp_path / "d", CLOSE, "walker")
    pooled = Data(both, {}).standings
    assert {(s.task, s.statistic) for s in pooled} == {("all", "interquartile mean")}
    assert [s.agent for s in pooled] == ["mamba", "attention"]  # bc is not on both


def test_a_filmed_median_is_a_strip_of_six_frames(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"mamba": [80.0, 81]})
    assert Data(runs, {}).films == []
    place = runs[1].folder / "videos" / f"Hopper-v5_last-{STEPS}_window_3600_median.gif"
    place.parent.mkdir()
    frames = [Image.new("RGB", (48, 30), (40 * i, 0, 0)) for i in range(6)]
    frames[0].save(place, save_all=True, append_images=frames[1:])
    shutil.copy(place, place.with_name(f"Hopper-v5_last-{STEPS - 1}_window_3600_median.gif"))
    data = Data(runs, {})
    (figure,) = section(data, "What it looks like").figures
    assert "mamba: Hopper-v5 last-30 window 3600" in figure.svg
    (encoded,) = re.findall(r"base64,([^\"]+)", figure.svg)
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert strip.shape == (150, 6 * 240, 3)
    reds = strip[75, 120::240, 0].astype(int)
    assert np.abs(reds - 40 * np.arange(6)).max() < 12
    assert "base64," in form(".html", data)


def test_too_few_seeds_are_said_and_no_interval_is_drawn(tmp_path: Path) -> None:
    few = {agent: means[: stats.FEWEST - 1] for agent, means in FAR.items()}
    data = Data(runs_of(tmp_path, few), {})
    assert "cannot be said: too few seeds (4 in common)" in data.summary[0]
    assert data.summary[-1].startswith("With 4 training seeds these numbers can be chance")
    assert all(s.interval is None for s in data.scores)
    texts = [text for r in section(data, "Scores").table.rows for text in r]
    assert not any("[" in text for text in texts)
    assert {s.verdict for s in data.standings} == {"too few seeds"}


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, CLOSE)
    runs[0].rows[0] |= {"env_seed": 99, "normalized_score": 1000.0}  # in no other run
    data = Data(runs[:-1], {})  # attention lacks seed 4
    (line,) = data.comparisons
    assert line.seeds == 4
    # seed 0 has episode 1 in common: 51 and 49
    assert line.difference and line.difference.value == pytest.approx((2 + 1 - 1 + 3) / 4)


def test_agents_are_compared_at_the_highest_target_that_most_were_asked_for(
    tmp_path: Path,
) -> None:
    runs = runs_of(tmp_path, FAR)
    for run in runs:
        if run.agent != "bc":  # a lower target at which all are better
            low = [r | {"target": 1800.0, "normalized_score": 95.0} for r in run.rows]
            run.rows += low + [r | {"context": "stream"} for r in low if run.agent == "mamba"]
    runs[0].rows.append(row("mamba", 0, 0, 99.0, target=9000.0))  # asked of one agent only
    data = Data(runs, {})
    (task,) = data.tasks
    assert (task.target, task.context, task.unit) == ("3600", "window", "normalized")
    assert task.of("mamba") == [80, 81, 82, 83, 84] and task.of("bc") == [20] * 5


def test_tasks_are_pooled_only_on_a_common_scale(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, FAR) + runs_of(tmp_path / "w", CLOSE, "walker")
    data = Data(runs, {})
    assert set(data.aggregates) == {"mamba", "attention"}  # bc lacks walker
    scores = np.array([*FAR["mamba"], *CLOSE["mamba"]])
    iqm = float(stats.interquartile_mean(scores))
    assert data.aggregates["mamba"]["interquartile mean"].value == pytest.approx(iqm)
    assert [c.task for c in data.comparisons].count("all") == 1
    assert "Over all 2 tasks" in data.summary[0]
    for run in runs:
        for r in run.rows:
            r["normalized_score"] = None
    data = Data(runs, {})
    assert data.aggregates == {} and len(data.comparisons) == 3
    assert all(s.unit == "return" for s in data.scores)


def with_other_checkpoints(runs: list[Run]) -> list[Run]:
    """Steps 10 and 20 kept; 20 is best by 5, and every policy's luck in selection is the same."""
    for run in runs:
        for step, shift in ((10, -8.0), (20, 5.0), (STEPS, 0.0)):
            for r in run.rows:
                score = r["normalized_score"] + shift
                other = r | {"step": step, "normalized_score": score, "candidates": 3}
                run.others.append(other | {"checkpoint": "candidate"})
                chooses = {"checkpoint": "selection", "env_seed": r["env_seed"] + 2}
                run.others.append(other | chooses)
                if step == 20:
                    rule = "highest mean return in rollouts from environment seeds 2 to 3"
                    best = {"checkpoint": "best", "checkpoint_rule": rule}
                    run.others.append(other | best)
    return runs


def test_best_stands_next_to_last_and_says_what_it_cost(tmp_path: Path) -> None:
    data = Data(with_other_checkpoints(runs_of(tmp_path, FAR)), {})
    assert data.scores == Data(runs_of(tmp_path, FAR), {}).scores  # made from the last alone
    assert len(data.choices) == 3
    for line in data.choices:
        assert (line.second, line.candidates) == ("best", "3")
        assert line.difference.value == pytest.approx(5) == line.other - line.base
    protocol = dict(data.protocol)
    assert "seeds 2 to 3, out of 3 candidates" in protocol["chosen checkpoints, beside the last"]
    chosen = next(s for s in data.selections if (s.agent, s.episodes) == ("mamba", 2))
    assert chosen.scores == pytest.approx([81, (87 * 2 + 82) / 3, 87])
    assert data.score_by_step["hopper, Hopper-v5"]["bc"] == [(10, 12), (20, 25), (30, 20)]
    text = "\n".join(data.commands)
    assert f"evaluate NEW/{data.runs[0].folder.name} --checkpoint best" in text


def test_who_is_lucky_in_the_rollouts_that_choose_is_chosen(tmp_path: Path) -> None:
    runs = with_other_checkpoints(runs_of(tmp_path, {"mamba": [82.0]}))
    for r in runs[0].others:
        if (r["step"], r["checkpoint"]) == (10, "selection"):
            r["normalized_score"] += 20
    (line,) = [s for s in Data(runs, {}).selections if s.episodes == 2]
    assert line.scores == pytest.approx([81, (74 + 74 + 87) / 3, 74])  # by the other rollouts


def test_window_and_stream_are_compared_on_the_same_episodes(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, CLOSE)
    for run in runs:
        run.rows += [
            r | {"context": "stream", "normalized_score": r["normalized_score"] - 3,
                 "milliseconds_per_step": 0.5} for r in run.rows
        ]  # fmt: skip
    data = Data(runs, {})
    for line in data.contexts:
        assert line.difference.value == pytest.approx(-3) and line.milliseconds == (2.0, 0.5)
        assert line.difference.interval and line.difference.interval.high < 0
    assert section(data, "Window or stream").table.rows[0][8].startswith("-3.0 [-3.0, -3.0]")


def test_the_protocol_box_says_all_and_tolerates_older_rows(tmp_path: Path) -> None:
    protocol = dict(Data(runs_of(tmp_path, FAR), {}).protocol)
    assert protocol["hardware of the rollouts"] == "2 x Abacus, torch threads: 1, no GPU"
    assert protocol["references of normalized scores"] == "d4rl"
    assert protocol["datasets (hash of the episodes)"] == "hopper (hopper-hash)"
    assert protocol["targets"] == "named by hand; none asked for"
    assert protocol["checkpoint"] == "last, step 30"
    assert protocol["episodes a target and seed"] == "2"
    assert "recomputed at every step" in protocol["context"]
    runs = runs_of(tmp_path, FAR)
    for run in runs:
        run.rows = [r | OLDER for r in run.rows]
    data = Data(runs, {})
    assert "older version" in dict(data.protocol)["hardware of the rollouts"]
    assert "not in the rows" in form(".html", data)


def test_costs_come_from_rows_and_metrics(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, {"mamba": [50.0]})
    lines = [
        {"step": 10, "loss": 1.0, "steps_per_second": 5.0, "peak_memory_mib": 200.0},
        {"step": 10, "validation_loss": 1.5},
        {"step": 30, "loss": 0.5, "steps_per_second": 10.0, "peak_memory_mib": 210.0},
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (cost,) = Data([run], {}).costs
    assert cost.training_seconds == pytest.approx(10 / 5 + 20 / 10)
    assert (cost.training_memory_mib, cost.rollout_memory_mib) == (210, 300)
    assert (cost.parameters, cost.lanes, cost.context_length) == (7000, 2, 20)


def test_validation_losses_are_shown_by_source(tmp_path: Path) -> None:
    for run, loss in zip(
        runs := runs_of(tmp_path, {"mamba": [50.0, 51.0]}), (1.0, 3.0), strict=True
    ):
        lines = [
            {"step": 10, "validation_loss": 9.0, "validation_loss/expert": 8.0},
            {"step": 30, "validation_loss": loss, "validation_loss/expert": 2 * loss},
            {"step": 90, "validation_loss": 7.0},  # of a checkpoint that is not reported
        ]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    table = section(Data(runs, {}), "Learning curves").table
    assert table.rows == [
        ["hopper", "all held-out episodes", "mamba", "2", "2 ± 1"],
        ["hopper", "expert", "mamba", "2", "4 ± 2"],
    ]
    assert section(Data(runs_of(tmp_path / "b", FAR), {}), "Learning curves").table is None


def test_scores_on_the_way_are_drawn_in_the_context_that_they_are_of(tmp_path: Path) -> None:
    runs = with_other_checkpoints(runs_of(tmp_path, FAR))
    (name,) = Data(runs, {}).score_by_step
    assert name == "hopper, Hopper-v5"
    for run in runs:
        run.others = [r | {"context": "stream"} for r in run.others]
        stream = [r | {"context": "stream", "env_seed": 9} for r in run.rows]
        run.rows = [*run.rows, *run.rows, *stream]  # most are in windows: on these they compare
    (again,) = Data(runs, {}).score_by_step
    assert again == "hopper, Hopper-v5 (stream)"


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


def form(suffix: str, data: Data) -> str:
    """The report in one of its forms."""
    return report.FORMS[suffix](data, sections(data), Path("report.html"))


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
        "At a glance", "Scores", "Which is better, task by task", "All seeds of all tasks together",
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

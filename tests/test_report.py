"""The report: what it says of runs whose rows are known."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_rows import (
    CLOSE,
    FAR,
    STEPS,
    form,
    row,
    runs_of,
    section,
    with_other_checkpoints,
)

from decision_seq.errors import UserError
from decision_seq.eval.report import figures
from decision_seq.eval.report import statistics as stats
from decision_seq.eval.report.data import Data
from decision_seq.eval.report.sections import sections
from decision_seq.eval.rows import OLDER, target_label


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


def test_returns_of_0_or_1_are_told_apart(tmp_path: Path) -> None:
    """By three digits of the largest return, in every table, the summary and a figure's words."""
    runs = runs_of(tmp_path, {"mamba": [0.850, 0.914], "bc": [0.848, 0.908]})
    for run in runs:
        run.dataset.update(return_mean=0.456, returns=[0.0, 0.97])
        for i, r in enumerate(run.rows):
            mean = r["normalized_score"] + 1 - 2 * i  # runs_of lays its episodes around it
            r.update(normalized_score=None, episode_return=mean, env="MiniGrid-v0")
            r["target"] = None if r["target"] is None else 0.95
    data = Data(runs, {})
    assert "return 0.882 when asked for 0.950; the data's mean return is 0.456." in data.summary[0]
    for name in ("At a glance", "Scores"):
        cells = " ".join(cell for line in section(data, name).table.rows for cell in line)
        assert "0.882" in cells and "0.878" in cells and " 0.9 " not in cells
    assert "bc 0.878; mamba 0.882" in section(data, "Scores").figures[0].alt
    assert "0.004" in section(data, "At a glance").table.rows[1][4]


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


def test_of_equals_the_one_with_more_seeds_leads(tmp_path: Path) -> None:
    """So that it can be told from the others; each of these then has its own sentence."""
    means = {"bc": [90.0] * 4, "mamba": [90.0] * 5, "mixer": [89.0, 91, 88, 90, 91], **{
        "attention": [40.0, 41, 42, 43, 44]}}  # fmt: skip
    data = Data(runs_of(tmp_path, means), {})
    verdicts = {s.agent: s.verdict for s in data.standings}
    assert verdicts == {"mamba": "too few seeds", "bc": "too few seeds", "mixer": "tie",
                        "attention": "worse"}  # fmt: skip
    said = data.summary[0]
    assert "the highest mean is mamba's" in said
    assert "It is better than attention with 95 % confidence" in said
    assert "Its lead over mixer can be chance: 0.2 [" in said
    assert "Whether it is better than bc cannot be said: too few seeds (4 in common)." in said


def test_tasks_of_which_the_same_is_to_be_said_are_named_together(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, {"mamba": [90.0] * 5, "bc": [90.0] * 5, "mixer": [90.0] * 3})
    for run in runs:
        run.rows = [r | {"env": env} for env in ("Maze30-v0", "Maze9-v0") for r in run.rows]
    said = Data(runs, {}).summary
    assert said[1].startswith("On hopper in Maze9-v0, Maze30-v0, the highest mean is bc's")
    assert "On the same seeds it scores exactly what mamba scores." in said[1]
    assert said[-1].startswith("With 3 training seeds the numbers of mixer can be chance")
    assert len(said) == 3


def test_tasks_stand_side_by_side_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    runs = [
        run
        for place, means in (("a", FAR), ("b", CLOSE), ("c", {"mamba": [-10.0, -10.4]}))
        for run in runs_of(tmp_path / place, means)
    ]
    names = {"a": "Maze90-v0", "b": "Maze9-v0", "c": "Maze600-v0"}
    for run in runs:
        env = names[run.folder.parent.parent.name]
        run.rows = [r | {"env": env} for r in run.rows]
    data = Data(runs, {})
    assert section(data, "Tasks side by side").text == "Dataset: hopper."
    table = section(data, "Tasks side by side").table
    assert table.columns == ("task", "attention", "bc", "mamba")
    assert table.rows == [
        ["Maze9-v0", "49.8 ± 5.9 *", "", "51.0 ± 6.5 *"],
        ["Maze90-v0", "49.8 ± 5.9", "20.0 ± 0.0", "82.0 ± 1.4 *"],
        ["Maze600-v0", "", "", "-10.2 ± 0.2 *"],
    ]
    titles = [s.title for s in sections(Data(runs_of(tmp_path / "d", FAR), {}))]
    assert "Tasks side by side" not in titles  # a row of its own says nothing new


def test_every_agent_is_compared_with_the_one_that_is_named(tmp_path: Path) -> None:
    """With the sign of the other agent's lead, on every task that has the agent, and on all."""
    data = Data(runs_of(tmp_path / "a", FAR), {}, "attention")
    assert [(c.better, c.verdict) for c in data.against] == [("bc", "worse"), ("mamba", "better")]
    below, above = data.against
    assert below.difference and below.difference.value == pytest.approx(-29.8)
    assert above.difference == data.comparisons[0].difference  # the leader less it
    table = section(data, "Against attention").table
    assert [line[2:4] for line in table.rows] == [["bc", "attention"], ["mamba", "attention"]]
    assert Data(data.runs, {}).against == []
    both = runs_of(tmp_path / "b", FAR) + runs_of(tmp_path / "c", CLOSE, "walker")
    lines = Data(both, {}, "attention").against
    assert [(c.task, c.better, c.verdict) for c in lines] == [
        ("hopper, Hopper-v5", "bc", "worse"), ("hopper, Hopper-v5", "mamba", "better"),
        ("walker, Hopper-v5", "mamba", "tie"), ("all", "mamba", "better"),
    ]  # fmt: skip
    assert [c.task for c in Data(both, {}, "bc").against] == ["hopper, Hopper-v5"] * 2
    with pytest.raises(UserError, match=r"no rollouts are of 'dt'; there are attention, bc, mamba"):
        Data(both, {}, "dt")


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


def test_one_busy_hour_does_not_make_an_agent_slow(tmp_path: Path) -> None:
    """Costs are medians over runs, and the summary ends with those of the first two."""
    runs = runs_of(tmp_path, CLOSE)
    for run in runs:
        rate = 0.1 if run.folder.name == "mamba-3" else 10.0
        line = {"step": STEPS, "loss": 1.0, "steps_per_second": rate}
        (run.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        slow = run.folder.name in ("mamba-3", "mamba-4")
        run.rows = [r | {"milliseconds_per_step": 60.0 if slow else 2.04} for r in run.rows]
    data = Data(runs, {})
    assert {(c.training_seconds, c.milliseconds_per_step) for c in data.costs} == {(3.0, 2.04)}
    assert data.summary[-1] == (
        "A run of mamba took 3 s to train and 2 ms a rollout step, one of attention 3 s and 2 ms."
    )


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


def test_rows_may_leave_out_the_returns_in_the_data(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, CLOSE)
    data = Data(runs, {})
    drawn = figures.target_return(runs, "hopper", data.style)
    for run in runs:
        run.dataset["returns"] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of a division by none
        assert figures.target_return(runs, "hopper", data.style) != drawn


def test_episodes_cut_off_on_purpose_are_not_averaged_with_whole_ones(tmp_path: Path) -> None:
    """Not even of an agent that is asked for nothing; compared is what most were evaluated by."""
    runs = runs_of(tmp_path, {"mamba": [80.0, 82], "bc": [20.0, 22]})
    for run in runs:
        cut = {"max_steps": 9, "trained_steps": 40, "length": 9}
        run.rows += [row(run.agent, run.config.seed, episode, 3.0, **cut) for episode in (0, 1)]
    data = Data(runs, {})
    found = {(line.agent, line.target): line.mean for line in data.scores}
    assert found == {
        ("mamba", "3600"): 81, ("mamba", "3600, at most 9 steps"): 3,
        ("bc", "none"): 21, ("bc", "none, at most 9 steps"): 3,
    }  # fmt: skip
    (task,) = data.tasks
    assert {agent: task.of(agent) for agent in task.scores} == {"mamba": [80, 82], "bc": [20, 22]}
    assert data.comparisons[0].difference and data.comparisons[0].difference.value == 60
    for run in runs:
        run.rows = [r for r in run.rows if r["max_steps"] == 9]
    (task,) = Data(runs, {}).tasks
    assert task.target == "3600, at most 9 steps" and task.of("bc") == [3, 3]
    default = {"max_steps": 400, "trained_steps": 40}  # ten times the longest of the data
    assert target_label(row("mamba", 0, 0, 3.0, **default)) == "3600"

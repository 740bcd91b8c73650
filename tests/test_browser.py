"""The report as a browser shows it: on a phone and a desktop, in light and dark, and on paper."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chromium import TOO_WIDE, command, picture, requested, shown

from decision_seq.eval.report.page import write_report

pytestmark = pytest.mark.browser
CONFIG = Path(__file__).parents[1] / "configs" / "point-run-decision-mamba.yaml"
SMALL = ["train.steps=6", "train.log_interval=1", "train.checkpoint_interval=2"]
SMALL += ["train.keep_interval=2", "eval.episodes=3"]
SEEDS = 6  # enough for intervals
PAPER = 718  # pixels between the margins of A4


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, toy_file: Path) -> Path:
    """A report of two agents, six seeds, two targets, both contexts, with inspections and the best
    of three checkpoints: every section there is. One seed of each is trained, for six steps; the
    others are copies of it with other returns."""
    folder = tmp_path_factory.mktemp("report")
    runs: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decision_seq.data.store.cache_dir", lambda: folder / "cache")
        for shift, preset in enumerate(["decision-mamba", "decision-transformer"]):
            first = folder / f"{preset}-0"
            settings = [*SMALL, f"name={preset}", f"agent.preset={preset}"]
            settings.append(f"data.sources=[{toy_file}]")
            sets = [word for setting in settings for word in ("--set", setting)]
            command("train", CONFIG, *sets, "--out", first)
            command("inspect", first)
            for context in ("window", "stream"):
                command("evaluate", first, "--targets", 5, 12, "--context", context)
            command("evaluate", first, "--checkpoint", "best")
            runs += [first, *(copied(first, seed, shift) for seed in range(1, SEEDS))]
    write_report(runs, folder / "report.html")
    return folder / "report.html"


def copied(run: Path, seed: int, shift: float) -> Path:
    """`run` as if it had been trained from another seed."""
    copy = run.with_name(f"{run.name[:-2]}-{seed}")
    shutil.copytree(run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"seed": seed}))
    rows = [json.loads(line) for line in (copy / "episodes.jsonl").read_text().splitlines()]
    luck = np.random.default_rng(seed).normal(shift, 2.0, len(rows))
    for row, change in zip(rows, luck, strict=True):
        row |= {"train_seed": seed, "episode_return": row["episode_return"] + float(change)}
        row["run"] = copy.name
    (copy / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(browser: Any, report: Path, width: int, scheme: str) -> None:
    shown(browser, report.as_uri(), width, scheme)
    inner, client, needed = browser.execute_script(
        "const e = document.documentElement; return [innerWidth, e.clientWidth, e.scrollWidth]"
    )
    assert inner == width and needed <= client
    assert browser.execute_script(TOO_WIDE, False) == []
    brightness = picture(browser).mean(axis=(0, 1))
    assert (brightness > 200).all() if scheme == "light" else (brightness < 80).all()


def test_paper_cuts_nothing_off(browser: Any, report: Path) -> None:
    shown(browser, report.as_uri(), PAPER, media="print")
    assert browser.execute_script(TOO_WIDE, True) == []  # paper cannot be scrolled
    pages = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(pages["data"]).startswith(b"%PDF")


def test_a_click_sorts_a_table(browser: Any, report: Path) -> None:
    """From a file, by a number with its interval or by a word; a second click turns it round."""
    shown(browser, report.as_uri(), 1280)

    def cells(column: int) -> list[str]:
        return browser.execute_script(
            f"""document.querySelectorAll('th button')[{column}].click();
            const rows = [...document.querySelector('tbody').rows];
            return rows.map(row => row.cells[{column}].innerText)"""
        )

    scores = [float(text.split()[0]) for text in cells(2)]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert [float(text.split()[0]) for text in cells(2)] == sorted(scores)
    assert cells(0) == ["decision-mamba", "decision-transformer"]
    assert cells(0) == ["decision-transformer", "decision-mamba"]
    assert browser.execute_script("return document.querySelector('th').ariaSort") == "descending"


def test_nothing_is_fetched_and_nothing_complains(browser: Any, report: Path) -> None:
    browser.get_log("performance"), browser.get_log("browser")  # what other tests left
    shown(browser, report.as_uri(), 1280)
    assert browser.get_log("browser") == []
    asked = requested(browser)
    assert asked[0] == report.as_uri()
    assert [url for url in asked[1:] if not url.startswith("data:")] == []


def test_every_figure_is_there_and_says_what_it_shows(browser: Any, report: Path) -> None:
    shown(browser, report.as_uri(), 1280)
    figures = browser.execute_script(
        """return [...document.querySelectorAll('figure')].map(f => {
          const drawn = f.querySelector('svg, img'), named = [f, ...f.querySelectorAll('*')];
          const box = drawn && drawn.getBoundingClientRect();
          return {
            text: f.innerText.slice(0, 40),
            size: box && [box.width, box.height],
            caption: f.querySelector('figcaption')?.innerText,
            loaded: !drawn || drawn.tagName != 'IMG' || drawn.naturalWidth > 0,
            alt: named.map(e => e.getAttribute('aria-label') || e.getAttribute('alt')).find(a => a),
          };
        })"""
    )
    assert len(figures) >= 2
    for figure in figures:
        assert figure["size"] and min(figure["size"]) > 100 and figure["loaded"], figure
        assert figure["alt"] and len(figure["alt"]) > 20, figure
        assert figure["caption"], figure
    assert browser.execute_script("return document.querySelectorAll('svg').length") >= len(figures)
    assert "NaN" not in browser.page_source.replace("met NaN", "")


def test_headings_links_and_ids_hold_together(browser: Any, report: Path) -> None:
    shown(browser, report.as_uri(), 1280)
    assert browser.title and browser.execute_script("return document.documentElement.lang") == "en"
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) <= 1
    assert browser.execute_script(
        """return [...document.querySelectorAll('section')]
             .filter(s => !s.querySelector('h1,h2,h3,h4')).map(s => s.outerHTML.slice(0, 80))"""
    ) == []  # fmt: skip
    assert browser.execute_script(
        """return [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href'))
             .filter(h => !document.getElementById(h.slice(1)))"""
    ) == []  # fmt: skip
    # figures are drawn one by one: what they refer to by the same id must be the same
    assert browser.execute_script(
        """const first = {}, clashes = [];
           const used = new Set(document.documentElement.outerHTML.match(/(?<=["(]#)[^")]+/g));
           for (const e of document.querySelectorAll('[id]')) {
             if (!used.has(e.id)) continue;
             if (e.id in first && first[e.id].outerHTML != e.outerHTML) clashes.push(e.id);
             first[e.id] ??= e;
           }
           return clashes;"""
    ) == []  # fmt: skip

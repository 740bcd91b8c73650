"""The comparison report, made from rows alone: a self-contained HTML page, Markdown, CSV, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from decision_seq.errors import UserError
from decision_seq.eval.drawing import INK
from decision_seq.eval.report.archive import load_runs, to_archive
from decision_seq.eval.report.data import Data, to_csv, to_json
from decision_seq.eval.report.parts import Figure, Section
from decision_seq.eval.report.sections import sections
from decision_seq.files import write_text

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    folders: Sequence[Path],
    out: Path,
    failed: dict[str, str] | None = None,
    baseline: str | None = None,
) -> list[Path]:
    """Write the report of the runs in `folders`, each file atomically.

    Args:
        folders: run folders, each with evaluation rows, and files of runs.
        out: file to write. An .html file gets .md, .csv and .json of the same name beside it; one
            that ends in .md, .csv or .json is written alone, as is a file of runs, .jsonl. The
            figures of an .md are files in a folder beside it.
        failed: by name, why other runs of the comparison failed; the report says so.
        baseline: agent that every other is compared with, beside the leader.

    Returns:
        What was written.

    Raises:
        UserError: `out` ends otherwise, or a run has no rows, or no run is of `baseline`.
    """
    if out.suffix not in FORMS:
        raise UserError(f"{out}: a report is written as {', '.join(FORMS)}")
    data = Data(load_runs(folders), failed or {}, baseline)
    parts = sections(data)
    suffixes = [".html", ".md", ".csv", ".json"] if out.suffix == ".html" else [out.suffix]
    files = [out.with_suffix(suffix) for suffix in reversed(suffixes)]  # the page last
    if ".md" in suffixes:
        for name, figure in named(parts):
            write_text(figures_folder(out) / name, figure.svg)
    for file in files:
        write_text(file, FORMS[file.suffix](data, parts, out))
    return files[::-1]


def figures_folder(out: Path) -> Path:
    """Where the figures of the Markdown report `out` lie."""
    return out.with_name(f"{out.stem}-figures")


def named(parts: Sequence[Section]) -> list[tuple[str, Figure]]:
    """The figures with names for their files: scores-1.svg."""
    return [
        (f"{re.sub('[^a-z]+', '-', section.title.lower())}-{i}.svg", figure)
        for section in parts
        for i, figure in enumerate(section.figures, 1)
    ]


def to_html(data: Data, parts: Sequence[Section], out: Path) -> str:
    """The page: no network, nothing beside it; a script of its own sorts tables."""
    from jinja2 import Environment
    from markupsafe import Markup

    def code(text: str) -> Markup:
        """`names` between backquotes as code; all else escaped."""
        return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", escape(text, quote=False)))

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)

    def whole(text: str) -> str:
        """Intervals, and seeds with their scores, are not broken within."""
        kept = r"\[[^]]*\]|\S+ \(seed \d+\)"
        return re.sub(kept, lambda found: found[0].replace(" ", "\u00a0"), text)

    environment.filters |= {
        "code": code,
        "whole": whole,
        "inline": lambda figure, name: Markup(inline(figure, name)),
    }
    return _render(environment, "report.html", data, parts)


def to_markdown(data: Data, parts: Sequence[Section], out: Path) -> str:
    """The tables and words, and where the figures are."""
    from jinja2 import Environment

    environment = Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True)
    files = {id(figure): f"{figures_folder(out).name}/{name}" for name, figure in named(parts)}
    environment.filters |= {
        "cell": lambda text: re.sub(r"\s+", " ", text).replace("|", r"\|"),
        "alternative": lambda text: re.sub(r"[\s\[\]]+", " ", text),
        "file": lambda figure: quote(files[id(figure)]),
    }
    return _render(environment, "report.md", data, parts)


def inline(figure: Figure, name: str) -> str:
    """The drawing as part of a page: in the page's ink, with its alternative text, and with ids
    that no other drawing there has."""
    svg = figure.svg.replace(INK, "currentColor")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.alt)}" ', 1)


def _render(environment: Any, name: str, data: Data, parts: Sequence[Section]) -> str:
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    return environment.from_string(text).render(data=data, sections=parts).rstrip() + "\n"


FORMS: dict[str, Callable[[Data, Sequence[Section], Path], str]] = {
    ".html": to_html,
    ".md": to_markdown,
    ".csv": lambda data, *_: to_csv(data),
    ".json": lambda data, *_: json.dumps(to_json(data), indent=1, allow_nan=False),
    ".jsonl": lambda data, *_: to_archive(data.runs),
}

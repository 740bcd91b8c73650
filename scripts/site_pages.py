"""What mkdocs.yml adds to the files of docs/ to make the site: hooks of MkDocs.

Files of the repository that pages link to become pages or downloads under project/. Notebooks
become pages: executed, unless DECISION_SEQ_SITE is `draft`. Pictures of docs/pictures are put into
the page, where they take its colours. A live page in build/demo, if one was made, goes with it.
"""

from __future__ import annotations

import os
import posixpath
import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
INSIDE = "project/"  # where files from outside docs/ are on the site
OUTSIDE = (
    "*.md",
    "LICENSE",
    "pyproject.toml",
    "CITATION.cff",
    "constraints.txt",
    "examples/*.*",
    "zoo/*/README.md",
)
LIVE = ROOT / "build" / "demo"  # decision-seq demo zoo/hopper-decision-mamba --out build/demo
INK = "#808890"  # what pictures are drawn in: readable on white and on near-black
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
MADE = {"zoo": "gallery.md"}  # a folder, and the page that is about it


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside docs/."""
    for path in (path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))):
        name = INSIDE + path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in LIVE.rglob("*") if LIVE.is_dir() else ():
        if path.is_file():
            name = "demo/" + path.relative_to(LIVE).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = notebook_page(
            Path(str(file.abs_src_path)), os.environ.get("DECISION_SEQ_SITE") != "draft"
        )
        files.append(File.generated(config, file.src_uri[:-6] + ".md", content=page))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **kwargs: Any) -> str:
    """Links that leave docs/ to where their files are on the site; names of code as titles."""
    here = page.file.src_uri
    repository = here.removeprefix(INSIDE) if here.startswith(INSIDE) else f"docs/{here}"

    def moved(match: re.Match[str]) -> str:
        target = match[2]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(repository), target))
        if ":" in target or not (ROOT / path).exists():
            return match[0]
        site = path.removeprefix("docs/")
        if site == path:
            site = MADE.get(path, INSIDE + path)
        if site.endswith(".ipynb") and not here.startswith("notebooks/"):
            site = site[:-6] + ".md"
        return match[1] + posixpath.relpath(site, posixpath.dirname(here) or ".") + (match[3] or "")

    markdown = LINK.sub(moved, markdown)
    if here == "gallery.md":
        cards = sorted(ROOT.glob("zoo/*/README.md"))
        lines = [f"- [{card.parent.name}]({INSIDE}{card.relative_to(ROOT)})" for card in cards]
        markdown = markdown.replace("<!-- cards -->", "\n".join(lines))
        if (LIVE / "index.html").is_file():
            markdown = markdown.replace("<!-- live page -->", "[Open the page](demo/index.html).")
    return re.sub(r"^```(\w+) ([\w.]+)$", r'```\1 title="\2"', markdown, flags=re.MULTILINE)


def on_page_content(html: str, page: Any, config: Any, **kwargs: Any) -> str:
    """Pictures of docs/pictures as part of the page."""

    def drawn(match: re.Match[str]) -> str:
        svg = (
            (Path(config.docs_dir) / "pictures" / match[2]).read_text().replace(INK, "currentColor")
        )
        return svg.replace("<svg ", f'<svg role="img" aria-label="{match[1]}" ', 1)

    return re.sub(r'<img alt="([^"]*)" src="[./]*pictures/([\w-]+\.svg)"[^>]*>', drawn, html)


def notebook_page(path: Path, execute: bool) -> str:
    """A notebook as Markdown, with a link to download it."""
    notebook = nbformat.read(path, as_version=4)
    if execute:
        run_notebook(notebook)
    first, *rest = [_cell(cell) for cell in notebook.cells]
    download = f"[This page is a notebook: download it]({path.name}){{ download }}"
    return "\n\n".join([first, download, *rest])


def run_notebook(notebook: Any) -> None:
    """Execute every cell in an empty folder, with datasets of its own. Raises where a cell does."""
    from tempfile import TemporaryDirectory

    from nbclient import NotebookClient

    with TemporaryDirectory() as folder:
        own = {"MINARI_DATASETS_PATH": f"{folder}/minari", "DECISION_SEQ_DATA": f"{folder}/library"}
        own["OMP_NUM_THREADS"] = "1"  # small tensors: threads would only wait for each other
        client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}})
        client.execute(env=os.environ | own)


def _cell(cell: Any) -> str:
    if cell.cell_type == "markdown":
        return cell.source
    shown = [_output(output) for output in cell.get("outputs", ())]
    return "\n\n".join([f"```python\n{cell.source}\n```", *filter(None, shown)])


def _output(output: Any) -> str:
    """What a cell printed or returned, as HTML; bars of progress are left out."""
    if output.output_type == "stream":
        text = output.text if output.name == "stdout" else ""
    else:
        data = output.get("data", {})
        if "text/html" in data:
            html = "\n".join(line for line in data["text/html"].splitlines() if line.strip())
            return f'<div class="result">{html}</div>'
        text = data.get("text/plain", "")
    return f'<div class="result"><pre>{escape(text)}</pre></div>' if text.strip() else ""

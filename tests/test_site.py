"""The docs site as mkdocs.yml makes it, and as a browser shows it without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from chromium import TOO_WIDE, picture, requested, shown

import decision_seq as ds
from decision_seq.agents import AgentConfig
from decision_seq.backbones import BackboneConfig

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
pytest.importorskip("nbformat", reason="the extra docs is not installed")
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PAGES = ["", "concepts/", "environments/", "results/hopper-medium-expert/", "api/backbones/"]
PAGES += ["notebooks/own-data/", "troubleshooting/"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a warning, such as a broken link, is a failure. Notebooks are not run."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = os.environ | {"DECISION_SEQ_SITE": "draft", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """Ids of a page, what it links to, and what it loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given.get("id") or "", given.get("name") or ""}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(str(given["href"]))
        if given.get("src"):
            self.loads.append(str(given["src"]))


def test_links_hold_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {file.relative_to(site).as_posix(): Page(file) for file in site.rglob("*.html")}
    del pages["404.html"]  # whose addresses begin at the server's root
    assert len(pages) > 40
    for name, page in pages.items():
        for target in [*page.links, *page.loads]:
            parts = urlsplit(urljoin(f"http://site/{name}", target))
            if parts.netloc != "site":
                assert target in page.links, f"{name} loads {target}"
                continue
            place = unquote(parts.path.lstrip("/"))
            place += "index.html" if place.endswith("/") or not place else ""
            assert (site / place).is_file(), f"{name} links to {target}"
            if parts.fragment and place in pages:
                ids = pages[place].ids
                assert unquote(parts.fragment) in ids, f"{name} links to {target}"


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}
    wanted = {f"decision_seq.{name}" for name in ds.__all__ if name != "datasets"}
    functions = set(ds.datasets.__all__) - {"collect", "Dataset"}
    wanted |= {f"decision_seq.api.datasets.{name}" for name in [*functions, "Dataset"]}
    configs = [*BackboneConfig.registry.values(), *AgentConfig.registry.values()]
    wanted |= {f"{config.__module__}.{config.__qualname__}" for config in configs}
    assert wanted - documented == set()
    text = (site / "api" / "settings" / "index.html").read_text()
    assert (
        "returns to ask for" in text.lower()
    )  # a comment beside a field: scripts/field_comments.py


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where a static server shows the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_nothing_complains(browser: Any, address: str, width: int) -> None:
    browser.get_log("browser"), requested(browser)
    for page in PAGES:
        shown(browser, address + page, width)
        inner, needed = browser.execute_script(
            "return [innerWidth, document.documentElement.scrollWidth]"
        )
        assert inner == width and needed <= width, page
        found = browser.execute_script(TOO_WIDE, False)
        assert [e for e in found if "md-" not in e] == [], page  # the theme's drawer lies outside
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    web = [url for url in requested(browser) if url.startswith("http")]  # not the browser's own
    assert len(web) > len(PAGES) and [url for url in web if not url.startswith(address)] == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_take_the_system_s_colours(browser: Any, address: str, scheme: str) -> None:
    shown(browser, address + "concepts/", 1280, scheme)
    brightness = picture(browser)[300:].mean(axis=(0, 1))
    assert (brightness > 200).all() if scheme == "light" else (brightness < 80).all()
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('svg[role=img]')].map(s => s.ariaLabel.length)"
    )
    assert len(drawn) == 5 and min(drawn) > 40


@pytest.mark.browser
def test_search_needs_no_network(browser: Any, address: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    shown(browser, address, 1280)
    field = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
    browser.execute_script("arguments[0].focus()", field)
    field.send_keys("streams")
    WebDriverWait(browser, 20).until(
        lambda b: b.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
    )
    links = browser.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
    assert any("memory-and-streams" in link.get_attribute("href") for link in links)


@pytest.mark.slow  # a minute; `mkdocs build`, which .ci/run does, runs them as well
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(path: Path) -> None:
    import nbformat

    pytest.importorskip("ipykernel", reason="the extra docs is not installed")
    sys.path.insert(0, str(ROOT / "scripts"))
    from site_pages import run_notebook

    notebook = nbformat.read(path, as_version=4)
    run_notebook(notebook)
    shown = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert sum("text/html" in output.get("data", {}) for output in shown) >= 2

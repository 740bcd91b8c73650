"""Pages in Chromium (the fixture `browser`), and commands in this process that make them."""

from __future__ import annotations

import base64
import io
import json
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decision_seq.cli import main


def command(*words: object) -> None:
    """Run `decision-seq WORDS` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["decision-seq", *map(str, words)])
        main()


def shown(browser: Any, page: str, width: int, scheme: str = "light", media: str = "") -> None:
    """Open `page` in a window of `width` pixels."""
    resized(browser, width)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get(page)


def resized(browser: Any, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )


def requested(browser: Any) -> list[str]:
    """Addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def picture(browser: Any) -> np.ndarray:
    """The whole page, [h, w, 3]."""
    shot = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))


TOO_WIDE = """
const width = document.documentElement.clientWidth, found = [];
const cut = e => e && (getComputedStyle(e).overflowX != 'visible' || cut(e.parentElement));
for (const e of document.body.querySelectorAll('*')) {
  const box = e.getBoundingClientRect();
  if (box.right > width + 1 && (arguments[0] || !cut(e.parentElement)))
    found.push(e.tagName + ' ' + (e.className.baseVal ?? e.className) + ' to ' + box.right);
}
return found;
"""

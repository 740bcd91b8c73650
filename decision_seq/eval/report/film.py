"""Film strips of what `evaluate --video` filmed: the median episode of each agent."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from decision_seq.eval.drawing import INK
from decision_seq.eval.report.runs import Run

FRAMES, HEIGHT = 6, 150  # of a strip; pixels


@dataclass(frozen=True)
class Film:
    """A filmed episode."""

    agent: str
    dataset: str
    about: str  # environment, checkpoint, context and target, as its file's name says
    path: Path  # of the .gif


def films(runs: Sequence[Run]) -> list[Film]:
    """For each agent and dataset those of the first run that has any of the reported checkpoint."""
    found: dict[tuple[str, str], list[Film]] = {}
    for run in sorted(runs, key=lambda run: run.config.seed):
        own = [
            Film(run.agent, run.dataset["name"], path.stem.removesuffix("_median"), path)
            for path in sorted(run.folder.glob(f"videos/*_last-{run.reported_step}_*_median.gif"))
        ]
        if own:
            found.setdefault((run.dataset["name"], run.agent), own)
    return [film for _, own in sorted(found.items()) for film in own]


def strip(film: Film) -> str:
    """Frames at even distances, left to right, as SVG with the pictures in it."""
    from PIL import Image

    with Image.open(film.path) as movie:
        last = getattr(movie, "n_frames", 1) - 1
        frames = []
        for i in range(FRAMES):
            movie.seek(round(i * last / (FRAMES - 1)))
            size = (round(HEIGHT * movie.width / movie.height), HEIGHT)
            frames.append(movie.convert("RGB").resize(size))
    whole = Image.new("RGB", (FRAMES * frames[0].width, HEIGHT))
    for i, frame in enumerate(frames):
        whole.paste(frame, (i * frame.width, 0))
    data = io.BytesIO()
    whole.save(data, "JPEG", quality=80)
    picture = base64.b64encode(data.getvalue()).decode()
    title = escape(f"{film.agent}: {film.about.replace('_', ' ')}")
    return (
        f'<svg class="wide" xmlns="http://www.w3.org/2000/svg" width="{whole.width}" '
        f'height="{HEIGHT + 24}" viewBox="0 0 {whole.width} {HEIGHT + 24}">'
        f'<text x="0" y="15" font-size="13" font-family="sans-serif" fill="{INK}">{title}</text>'
        f'<image y="24" width="{whole.width}" height="{HEIGHT}" '
        f'href="data:image/jpeg;base64,{picture}"/></svg>'
    )

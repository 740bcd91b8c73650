"""The README's first line, whole. Minutes long: `pytest -m slow`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from decision_seq.eval.report.runs import load_run


@pytest.mark.slow
def test_quickstart_ends_in_time_and_beats_its_data(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "decision_seq", "quickstart", "--out", str(tmp_path / "q")]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 300
    assert (tmp_path / "q" / "report.html").stat().st_size > 10_000
    run = load_run(tmp_path / "q" / "runs" / "decision-mamba_hopper-medium_seed0")
    assert np.mean([row["episode_return"] for row in run.rows]) >= run.dataset["return_mean"]

"""The README's first line, whole. Minutes long: `pytest -m slow`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from decision_seq.cli.quickstart import AGENTS
from decision_seq.eval.report.runs import load_run


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quickstart_ends_in_time_and_its_agents_do_as_they_are_asked(
    seed: int, tmp_path: Path
) -> None:
    """The expert's return, which is 111 normalized, and about the medium tier's. The lowest that
    was seen of six: 104.7, and 1625 when asked for 1500; an episode that falls takes up to 10."""
    out = tmp_path / "q"
    command = [sys.executable, "-m", "decision_seq", "quickstart", "--out", str(out)]
    start = time.monotonic()
    done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 180
    assert (out / "report.html").stat().st_size > 10_000
    for agent in AGENTS:
        run = load_run(out / "runs" / f"{agent}_hopper-medium-expert_seed{seed}")
        high, low = (
            np.mean([row[field] for row in run.rows if row["target"] == target])
            for target, field in ((3600, "normalized_score"), (1500, "episode_return"))
        )
        assert high >= 100 and abs(low / 1500 - 1) < 0.15, (agent, high, low)

"""The progress bar shows what has begun."""

from __future__ import annotations

import pytest

from decision_seq.progress import progress_bar


def test_a_task_is_shown_from_when_its_total_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """So that an error before it does not stand behind a bar of nothing."""
    with progress_bar() as bar:
        bar.add_task("waiting", total=None, note="")
        bar.add_task("counted", total=5, note="")
        begun = bar.add_task("begun", total=None, note="")
        bar.update(begun, completed=1, total=3)
    shown = capsys.readouterr().err
    assert "waiting" not in shown and "counted" in shown and "begun" in shown and "1/3" in shown

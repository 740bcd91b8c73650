"""What a file from somebody else can do: be read or be refused. Nothing in it runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from test_train import config_for

from decision_seq.behaviours.tiers import behaviour_for
from decision_seq.data.store import open_store
from decision_seq.errors import UserError
from decision_seq.eval.report.page import write_report
from decision_seq.run_folder import agent_path
from decision_seq.training.checkpoint import load_state
from decision_seq.training.loop import train

PACKAGE = Path(__file__).parents[1] / "decision_seq"


class Runs:
    """A pickle that makes a folder when it is loaded by Python's own unpickler."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_pickle_in_a_dataset_is_not_run(tmp_path: Path) -> None:
    trap = Runs(tmp_path / "ran")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([{"observations": trap}]))
    objects = np.empty(4, object)
    objects[:] = [trap] * 4
    write_npz(tmp_path / "b.npz", random_episodes([4]), rewards=objects)
    for name in ("a.pkl", "b.npz"):
        with pytest.raises(UserError) as error:
            open_store([str(tmp_path / name)])
        assert "allow_pickle" not in str(error.value)  # NumPy's advice, a bad one here
    assert not (tmp_path / "ran").exists()


def test_a_pickle_in_a_cache_or_library_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_npz(tmp_path / "a.npz", random_episodes([4])))
    monkeypatch.setattr("decision_seq.data.store.cache_dir", lambda: tmp_path / "cache")
    open_store([source])
    (file,) = (tmp_path / "cache").rglob("rewards.npy")
    objects = np.empty(4, object)
    objects[:] = [Runs(tmp_path / "ran")] * 4
    np.save(file, objects, allow_pickle=True)
    with pytest.raises(UserError):
        open_store([source])
    assert not (tmp_path / "ran").exists()


def test_a_pickle_in_a_checkpoint_is_not_run(toy_file: Path, tmp_path: Path) -> None:
    train(config_for(toy_file, steps=2), tmp_path / "run", torch.device("cpu"))
    state = agent_path(tmp_path / "run").with_name("state.pt")
    torch.save({"step": 2, "agent": Runs(tmp_path / "ran")}, state)
    with pytest.raises(UserError):
        load_state(tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def sb3_zip(path: Path, state: Any, data: dict[str, Any], **more: bytes) -> Path:
    weights = io.BytesIO()
    torch.save(state, weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", weights.getvalue())
        archive.writestr("data", json.dumps(data))
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def plain_actor() -> dict[str, torch.Tensor]:
    return {
        "log_std": torch.zeros(1),
        "mlp_extractor.policy_net.0.weight": torch.zeros(4, 2),
        "mlp_extractor.policy_net.0.bias": torch.zeros(4),
        "action_net.weight": torch.zeros(1, 4),
        "action_net.bias": torch.zeros(1),
    }


def test_a_policy_is_read_without_running_or_extracting_anything(tmp_path: Path) -> None:
    """Members that would leave the folder are not written, and pickles in `data` are text."""
    (tmp_path / "in").mkdir()
    trap = {":serialized:": pickle.dumps(Runs(tmp_path / "ran")).hex()}
    file = sb3_zip(
        tmp_path / "in" / "p.zip", plain_actor(), {"clip_range": trap}, **{"../../out.txt": b"x"}
    )
    before = sorted(tmp_path.rglob("*"))
    behaviour_for("point-run", "any", file)
    assert sorted(tmp_path.rglob("*")) == before
    sb3_zip(tmp_path / "bad.zip", {"log_std": Runs(tmp_path / "ran")}, {})
    with pytest.raises(UserError, match="not a Stable-Baselines3 model"):
        behaviour_for("point-run", "any", tmp_path / "bad.zip")
    statistics = tmp_path / "in" / "p.vecnormalize.pkl"
    statistics.write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(UserError, match="not a VecNormalize file"):
        behaviour_for("point-run", "any", file)
    assert not (tmp_path / "ran").exists()


def test_a_policy_that_needs_its_library_needs_trust(tmp_path: Path) -> None:
    file = sb3_zip(tmp_path / "q.zip", {"q_net.0.weight": torch.zeros(2, 2)}, {})
    with pytest.raises(UserError, match=r"runs code .* --trust-policy"):
        behaviour_for("point-run", "any", file)


def test_what_a_file_says_reaches_the_terminal_escaped() -> None:
    error = UserError("column \x1b]0;owned\x07 is \r missing\u202e")
    assert str(error) == r"column \x1b]0;owned\x07 is \r missing\u202e"


def test_a_report_shows_names_and_runs_none(toy_file: Path, tmp_path: Path) -> None:
    """<script> in every name that comes from data or configuration."""
    attack = "<script>alert(1)</script>$\\frac{"
    run = tmp_path / "run <b>x"
    train(config_for(toy_file, steps=2, log_interval=1), run, torch.device("cpu"))
    with (run / "config.yaml").open("a") as file:
        file.write(f"\nname: '{attack}'\n")
    text = (run / "config.yaml").read_text().replace("\nname: ''\n", "\n", 1)
    lines = [line for line in text.splitlines() if not re.match(r"name: \w", line)]
    (run / "config.yaml").write_text("\n".join(lines) + "\n")
    summary = json.loads((run / "dataset.json").read_text())
    (run / "dataset.json").write_text(json.dumps(summary | {"name": attack, "hash": attack}))
    row = {
        "env": attack, "checkpoint": "last", "step": 2, "context": "window", "context_length": 6,
        "target": 5.0, "target_rule": "given", "target_quantile": None, "env_seed": 0,
        "episode_return": 4.0, "normalized_score": None, "length": 20,
        "milliseconds_per_step": 1.0, "train_seed": 0, "versions": {attack: attack},
        "run": attack, "agent": attack, "backbone": attack, "dataset": {"name": attack},
        "device": attack,
    }  # fmt: skip
    (run / "episodes.jsonl").write_text(json.dumps(row) + "\n")
    write_report([run], tmp_path / "report.html", {attack: attack})
    html = (tmp_path / "report.html").read_text()
    assert html.count("<script") == 1 and "<b>" not in html  # the page's own, which sorts tables
    assert html.count("&lt;script&gt;alert(1)") >= 5
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#)", html)  # it fetches nothing


def test_nothing_in_the_package_loads_pickles_or_extracts_archives() -> None:
    """Every way to run what a file holds, by name, over the whole package."""
    forbidden = {
        r"pickle\.loads?\(": (), r"allow_pickle\s*=\s*True": (), r"weights_only\s*=\s*False": (),
        r"extractall\(|\.extract\(": (), r"unsafe_load|FullLoader|UnsafeLoader": (),
        r"\bjoblib\b|\bcloudpickle\b|\bmarshal\b|\bshelve\b": (),
        r"shell\s*=\s*True|os\.system\(": (),
        r"\.load\(path, device=\"cpu\", custom_objects": ("behaviours/sb3_library.py",),
    }  # fmt: skip
    for pattern, allowed in forbidden.items():
        for file in PACKAGE.rglob("*.py"):
            found = re.search(pattern, file.read_text(encoding="utf-8"))
            assert not found or str(file.relative_to(PACKAGE)) in allowed, (file, found)
    for file in PACKAGE.rglob("*.py"):
        for call in re.findall(r"torch\.load\([^)]*\)", file.read_text(encoding="utf-8")):
            assert "weights_only=True" in call, (file, call)

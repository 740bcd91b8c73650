"""Shared folders: the same policy from a folder, a hub's name and a zoo; cards made from rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_agents import evaluated, trained_toy

from decision_seq.cli.listing import zoo
from decision_seq.errors import UserError
from decision_seq.eval.rows import read_rows
from decision_seq.export.share import push, save_pretrained, write_card
from decision_seq.policy import load_policy
from decision_seq.run_config import load_run_config
from decision_seq.run_folder import saved_steps

ZOO = Path(__file__).parents[1] / "zoo"
SEEN = np.random.default_rng(0).standard_normal((6, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_file: Path) -> Path:
    run = trained_toy(tmp_path_factory.mktemp("run"), toy_file)
    evaluated(run, targets=(5.0,), episodes=3)
    return run


def acted(place: Path | str) -> np.ndarray:
    policy = load_policy(place, "stream", 12.0)
    return np.stack([policy.act(row, 1.0) for row in SEEN])


def test_a_folder_to_share_is_the_run(run: Path, tmp_path: Path) -> None:
    shared = tmp_path / "toy"
    save_pretrained(run, shared)
    assert np.array_equal(acted(shared), acted(run))
    assert len(read_rows(shared)) == 3 and saved_steps(shared) == [6]
    assert all(row["ood"] is None and row["run"] == "toy" for row in read_rows(shared))
    assert load_run_config(shared / "config.yaml").data.sources[0].endswith("toy.npz")
    assert str(run.parent) not in "".join(f.read_text() for f in shared.glob("*.[jmy]*"))
    assert not [f for f in shared.rglob("*") if f.suffix in (".pt", ".pkl", ".bin")]
    again = evaluated(shared, targets=(5.0,), episodes=3)
    returns = [row["episode_return"] for row in read_rows(run)]
    assert [row["episode_return"] for row in again] == pytest.approx(returns)
    with pytest.raises(UserError, match="exists; choose another"):
        save_pretrained(run, shared)


def test_cards_say_what_rows_say(run: Path, tmp_path: Path) -> None:
    save_pretrained(run, tmp_path / "toy")
    card = (tmp_path / "toy" / "README.md").read_text()
    mean = np.mean([row["episode_return"] for row in read_rows(run)])
    assert f"| window | 5 | 3 | {mean:.2f} |" in card  # three digits of what is below 10
    data = json.loads((run / "dataset.json").read_text())
    assert data["hash"] in card and "library_name: decision-seq" in card.split("---")[1]
    (tmp_path / "toy" / "episodes.jsonl").write_text("")
    write_card(tmp_path / "toy", "toy")
    assert "has not been evaluated" in (tmp_path / "toy" / "README.md").read_text()


def test_half_the_size_acts_alike(run: Path, tmp_path: Path) -> None:
    save_pretrained(run, tmp_path / "half", half=True)
    save_pretrained(run, tmp_path / "whole")
    sizes = [(tmp_path / n / "agent.safetensors").stat().st_size for n in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    np.testing.assert_allclose(acted(tmp_path / "half"), acted(run), atol=0.02)
    assert read_rows(tmp_path / "half") == []  # they are of other weights


def test_the_hub_up_to_the_librarys_call(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    stored = tmp_path / "hub"

    def upload(api: Any, repo_id: str, folder_path: Path) -> None:
        save_name = stored / repo_id
        save_name.parent.mkdir(parents=True)
        Path(folder_path).rename(save_name)

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        if not (stored / repo_id).exists():
            raise OSError("no network")
        assert not any("pt" in p or "bin" in p or "pkl" in p for p in allow_patterns)
        return str(stored / repo_id)

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda *args, **options: None)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert push(run, "someone/toy") == "hf://someone/toy"
    assert np.array_equal(acted("hf://someone/toy"), acted(run))

    class Unreachable(Exception):  # as the library's: no OSError
        pass

    def refused(*args: Any, **options: Any) -> None:
        raise Unreachable("name unknown")

    monkeypatch.setattr(hub.HfApi, "create_repo", refused)
    with pytest.raises(UserError, match=r"someone/toy: the hub did not take it \(name unknown\)"):
        push(run, "someone/toy")
    with pytest.raises(UserError, match=r"hf://no/one: cannot be downloaded \(no network\)"):
        load_policy("hf://no/one")


ENTRIES = [
    pytest.param(path.parent.name, marks=[] if "hopper" in path.parent.name else pytest.mark.slow)
    for path in sorted(ZOO.glob("*/policy.json"))
]


@pytest.mark.parametrize("name", ENTRIES)
def test_the_zoo_scores_what_it_says(name: str) -> None:
    """Two episodes of what its rows have of ten. What wriggles is chaotic: another processor's
    rounding gives another episode, of the same kind."""
    from decision_seq.agents import load_agent
    from decision_seq.eval.rollout.episodes import rollout

    rows = [r for r in read_rows(ZOO / name) if r["context"] == "stream"]
    target = max(row["target"] for row in rows)
    said = {r["env_seed"]: r["episode_return"] for r in rows if r["target"] == target}
    agent = load_agent(ZOO / name / "agent.safetensors")
    played = rollout(agent, rows[0]["env"], [target], 2, min(said), "stream")
    low, high = min(said.values()), max(said.values())
    for episode in played:
        assert low - 0.05 * abs(low) < episode.episode_return < high + 0.05 * abs(high)
    assert sum(f.stat().st_size for f in ZOO.rglob("*") if f.is_file()) < 15 * 2**20


def test_the_zoo_is_listed() -> None:
    lines = list(zoo())
    assert len(lines) == len(list(ZOO.glob("*/policy.json")))
    assert all("stream" in line for line in lines)

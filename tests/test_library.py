"""Datasets imported by a name, and exports: nothing is lost, overwritten or damaged unseen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import random_episodes, write_npz
from source_files import LENGTHS, assert_same, by_csv, by_minari, by_npz

from decision_seq.data import import_dataset
from decision_seq.data.sources import absolute, minari_dataset, resolve, stored
from decision_seq.data.store import open_store
from decision_seq.data.tools import check
from decision_seq.data.tools.check import examine
from decision_seq.data.tools.export import EXPORTERS
from decision_seq.data.tools.info import summarize
from decision_seq.data.tools.library import listing, verify
from decision_seq.envs.variants import difference
from decision_seq.errors import UserError

SEEDS = (3, 4, 5, 2**63 + 9)


def test_import_list_and_open_again(tmp_path: Path) -> None:
    path = by_npz(tmp_path, random_episodes(LENGTHS))
    first = import_dataset([path], "mine")
    assert isinstance(first.observations, np.memmap)
    assert import_dataset([path], "mine").hash == first.hash  # the same again is no error
    assert stored.names() == ["mine"] and first.hash in listing()[0]
    os.remove(path)
    again = open_store(["mine"])
    assert_same(first, again)
    assert again.name == "mine" and absolute("mine") == "mine"
    with pytest.raises(UserError, match=r"mine: another dataset has this name"):
        import_dataset([by_npz(tmp_path, random_episodes([4]))], "mine")
    mixed = open_store(["mine", by_npz(tmp_path, random_episodes([4]))])
    assert mixed.episodes_per_source == (4, 1) and mixed.steps == 27
    np.testing.assert_array_equal(mixed.actions[:23], first.actions)


def test_a_dataset_put_aside_in_minaris_storage_hides_no_other(tmp_path: Path) -> None:
    """A folder that is renamed to keep it has a name that is no id; Minari's own listing fails."""
    kept = by_minari(tmp_path, random_episodes(LENGTHS))
    root = minari_dataset.folder("")
    shutil.copytree(minari_dataset.folder(kept), root / "old-same")
    assert len(listing()) == 1 and listing()[0].startswith(kept)
    assert minari_dataset.local_summary() == f"local: {kept}"
    import_dataset([by_npz(tmp_path, random_episodes([4]))], "longer-" * 5 + "than-most")
    assert len({line.index(" episodes") for line in listing()}) == 1  # columns stay columns


def test_an_environment_of_a_known_package_is_shown_as_commands_take_it(tmp_path: Path) -> None:
    """Behind the module that registers it, which is not imported to look at data."""
    before, recorded = set(sys.modules), "MiniGrid-MemoryS9-v0"
    meta = np.array(json.dumps({"env_id": recorded}))
    store = import_dataset(
        [str(write_npz(tmp_path / "m.npz", random_episodes([4]), meta=meta))], "m"
    )
    assert summarize(store)["env_id"] == f"minigrid:{recorded}"
    assert f"minigrid:{recorded}" in listing()[0]
    assert difference(recorded, f"minigrid:{recorded}") is None
    assert not [name for name in set(sys.modules) - before if name.startswith("minigrid")]


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "log.csv", "x" * 101, "a b"])
def test_names_that_would_be_taken_for_something_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset name"):
        import_dataset([by_npz(tmp_path, random_episodes([4]))], name)


def test_environment_of_an_import(tmp_path: Path) -> None:
    path = by_csv(tmp_path, random_episodes([4]))
    assert import_dataset([path], "a", env="point-run").info["env_id"] == "decision-seq/PointRun-v0"
    with pytest.raises(UserError, match="does not exist"):
        import_dataset([path], "b", env="no-such-thing")
    named = by_npz(tmp_path, random_episodes([4]))  # says Hopper-v5
    with pytest.raises(UserError, match="from Hopper-v5, not Walker2d-v5"):
        import_dataset([named], "c", env="walker2d")
    assert import_dataset([named], "d", env="Hopper-v4").info["env_id"] == "Hopper-v4"


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = import_dataset([by_npz(tmp_path, random_episodes(LENGTHS))], "mine")
    verify(store)
    rewards = stored.library() / "mine" / "rewards.npy"
    content = bytearray(rewards.read_bytes())
    content[-1] ^= 1
    rewards.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        verify(open_store(["mine"]))
    with pytest.raises(UserError, match="checksum"):
        examine(["mine"])  # what `data check mine` says
    rewards.write_bytes(content[:-8])
    with pytest.raises(UserError, match="damaged"):
        open_store(["mine"])
    (stored.library() / "mine" / "meta.json").write_text("{")
    with pytest.raises(UserError, match=r"meta\.json: is damaged"):
        open_store(["mine"])


def test_seeds_and_missing_ends_are_imported_and_exported(tmp_path: Path) -> None:
    recorded = {"episode_seeds": np.array(SEEDS, np.uint64), "incomplete_episodes": np.array([1])}
    path = write_npz(tmp_path / "a.npz", random_episodes(LENGTHS), **recorded)
    store = import_dataset([str(path)], "mine")
    EXPORTERS["npz"](store, str(tmp_path / "out.npz"))
    EXPORTERS["minari"](open_store([str(path)]), "mine/recorded-v0")
    for source in (str(path), "mine", str(tmp_path / "out.npz"), "mine/recorded-v0"):
        episodes = resolve(source).read()
        assert (episodes.seeds, episodes.incomplete) == (SEEDS, (1,)), source
        assert open_store([source]).hash == store.hash
    check.write_npz(tmp_path / "part.npz", resolve("mine").read(), np.array([1, 3]))
    part = resolve(str(tmp_path / "part.npz")).read()
    assert (part.seeds, part.incomplete) == ((4, SEEDS[3]), (0,))
    with np.load(tmp_path / "out.npz") as file:  # by the name it once had
        old = {k.replace("incomplete_", "unended_"): array for k, array in file.items()}
    np.savez(tmp_path / "old.npz", **old)
    assert resolve(str(tmp_path / "old.npz")).read().incomplete == (1,)
    meta = stored.library() / "mine" / "meta.json"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps(content | {"unended": content.pop("incomplete")}))
    assert open_store(["mine"]).incomplete == (1,)
    content["incomplete"] = [1]  # as it was written before they were kept
    del content["seeds"], content["incomplete"]
    meta.write_text(json.dumps(content))
    assert resolve("mine").read().seeds == () and open_store(["mine"]).incomplete == ()
    meta.write_text(json.dumps(content | {"seeds": [1]}))
    with pytest.raises(UserError, match=r"meta\.json: is damaged"):
        open_store(["mine"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("episode_seeds", np.arange(3), "has 3 numbers for 4 episodes"),
        ("episode_seeds", np.full(4, -1), "none below 0"),
        ("incomplete_episodes", np.array([4]), "names episode 4 of 4"),
        ("incomplete_episodes", np.array(["a"]), "must be whole numbers"),
    ],
)
def test_bad_seeds_are_one_sentence(
    key: str, value: np.ndarray, words: str, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "a.npz", random_episodes(LENGTHS), **{key: value})
    with pytest.raises(UserError, match=words):
        open_store([str(path)])


def test_two_processes_import_the_same_at_once(tmp_path: Path) -> None:
    path = by_npz(tmp_path, random_episodes([500] * 20))
    code = (
        "import sys; from decision_seq.data import import_dataset\n"
        "sys.stdin.readline(); print(import_dataset([sys.argv[1]], 'both').hash)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    hashes = {process.communicate(timeout=60)[0].strip() for process in running}
    store = open_store(["both"])
    verify(store)
    assert hashes == {store.hash}
    assert sorted(p.name for p in stored.library().iterdir()) == [".both.lock", "both"]


def test_exports_are_not_overwritten(tmp_path: Path) -> None:
    store = open_store([by_npz(tmp_path, random_episodes([4]))])
    for out, word in ((tmp_path / "a.npz", "exists already"), (tmp_path / "a.zip", "ends in .npz")):
        with pytest.raises(UserError, match=word):
            EXPORTERS["npz"](store, str(out))
    by_minari(tmp_path, random_episodes([4]))
    with pytest.raises(UserError, match="exists already"):
        EXPORTERS["minari"](store, "test/same-v0")


def test_an_environment_of_a_class_is_recorded_by_its_name(tmp_path: Path) -> None:
    """gymnasium takes a class as entry point, and cannot write that down itself."""
    import gymnasium as gym
    import minari

    from decision_seq.envs.toy import PointRun

    gym.register("Classy-v0", PointRun)
    try:
        width = PointRun().observation_space.shape[0]
        path = by_csv(tmp_path, random_episodes([4, 3], width=width, action_dim=1))
        store = import_dataset([path], "classy", env="Classy-v0")
        EXPORTERS["minari"](store, "mine/classy-v0")
        assert minari.load_dataset("mine/classy-v0").env_spec.id == "Classy-v0"
        assert open_store(["mine/classy-v0"]).hash == store.hash
    finally:
        del gym.registry["Classy-v0"]


def test_returns_that_were_rounded_when_they_were_imported_are_refused(tmp_path: Path) -> None:
    """Once they were differences of sums over all episodes."""
    episodes = random_episodes([3, 4])
    for name, rewards in (("usual", episodes.rewards), ("huge", np.r_[-1e20, np.ones(6)])):
        path = write_npz(tmp_path / "a.npz", episodes, rewards=rewards, meta=None)
        store = import_dataset([str(path)], name)
        total = np.concatenate([[0.0], np.cumsum(store.rewards, dtype=np.float64)])
        old = np.repeat(total[store.offsets[1:]], store.lengths) - total[:-1]
        np.save(stored.library() / name / "returns_to_go.npy", old.astype(np.float32))
        meta = stored.library() / name / "meta.json"
        content = json.loads(meta.read_text())
        del content["layout"]
        meta.write_text(json.dumps(content))
    assert open_store(["usual"]).episodes == 2
    with pytest.raises(UserError, match=r"huge: its returns are wrong: .* import it again"):
        open_store(["huge"])


def test_names_that_hide_one_another_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An imported dataset, a folder here and a local Minari dataset of one name: which is meant
    must be said."""
    monkeypatch.chdir(tmp_path)
    for name in ("logs", "logs-v0", "run"):
        (tmp_path / name).mkdir()
    one, two = random_episodes([3]), random_episodes([4])
    path = str(write_npz(tmp_path / "a.npz", one))
    import_dataset([path], "logs")
    import_dataset([path], "logs-v0")
    import_dataset([path], "run")
    assert open_store(["run"]).steps == 3  # a folder without data is none
    write_npz(tmp_path / "logs" / "b.npz", two)
    kept = stored.library() / "logs"
    with pytest.raises(UserError, match=rf"logs: is the name of 2 datasets; write {kept} for the "):
        open_store(["logs"])
    assert open_store(["./logs"]).steps == 4 and open_store([str(kept)]).steps == 3
    EXPORTERS["minari"](open_store(["./logs"]), "logs-v0")
    with pytest.raises(UserError, match=r"2 datasets; .* remove the other for Minari's"):
        check.examine(["logs-v0"])
    write_npz(tmp_path / "logs-v0" / "b.npz", two)
    with pytest.raises(UserError, match="logs-v0: is the name of 3 datasets"):
        open_store(["logs-v0"])
    for name in ("logs", "logs-v0"):  # nor are new ones hidden
        shutil.rmtree(stored.library() / name)
        with pytest.raises(UserError, match="one would hide the other"):
            import_dataset([path], name)
    with pytest.raises(UserError, match="is a folder of Minari's; give the dataset's id"):
        open_store([str(minari_dataset.folder("logs-v0"))])
    (tmp_path / "log.ndjson").write_text("{}")
    with pytest.raises(
        UserError, match=r"log\.ndjson: \.ndjson files are not read; .*from_episodes"
    ):
        open_store(["log.ndjson"])

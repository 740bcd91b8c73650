"""Formats of other tools, as their writers lay them out: the same steps, whatever the file."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import random_episodes, write_npz
from PIL import Image

from decision_seq.data.sources import ogbench
from decision_seq.data.store import open_store
from decision_seq.errors import UserError
from decision_seq.run_config import run_config
from decision_seq.training.loop import train

EPISODES = random_episodes([5, 7, 4], width=4)
SLICES = [slice(a, b) for a, b in pairwise(EPISODES.offsets.tolist())]
ENDED = [bool(EPISODES.terminated[b - 1]) for b in EPISODES.offsets[1:]]
DONES = EPISODES.terminated | EPISODES.truncated
AFTER = np.roll(EPISODES.observations, -1, axis=0)
AFTER[EPISODES.offsets[1:] - 1] = 0  # what followed an episode's last step is not its first
FLAT = {"observations": EPISODES.observations, "actions": EPISODES.actions}


def corl(path: Path) -> str:
    ends = {"rewards": EPISODES.rewards, "terminals": EPISODES.terminated}
    np.savez(path / "corl.npz", **FLAT, **ends, next_observations=AFTER)
    return str(path / "corl.npz")


def qlearning_pickle(path: Path) -> str:
    ends = {"rewards": EPISODES.rewards, "terminals": EPISODES.terminated}
    (path / "qlearning.pkl").write_bytes(pickle.dumps({**FLAT, **ends, "next_observations": AFTER}))
    return str(path / "qlearning.pkl")


def json_steps(path: Path) -> str:
    with (path / "log.jsonl").open("w") as file:
        for number, rows in enumerate(SLICES):
            for step, i in enumerate(range(rows.start, rows.stop)):
                row = {
                    "episode": number,
                    "step": step,
                    "observation": EPISODES.observations[i].tolist(),
                    "action": EPISODES.actions[i].tolist(),
                    "reward": float(EPISODES.rewards[i]),
                    "terminated": bool(EPISODES.terminated[i]),
                    "truncated": bool(EPISODES.truncated[i]),
                }
                file.write(json.dumps(row) + "\n")
    return str(path / "log.jsonl")


def json_other_names(path: Path) -> str:
    theirs = {"observation": "obs", "action": "act", "reward": "rewards", "terminated": "done"}
    theirs |= {"episode": "episode_id", "truncated": "timeout"}
    rows = [json.loads(line) for line in Path(json_steps(path)).read_text().splitlines()]
    lines = [json.dumps({theirs.get(k, k): v for k, v in row.items()}) for row in rows]
    (path / "other.jsonl").write_text("\n".join(lines))
    return str(path / "other.jsonl")


def json_episodes_other_names(path: Path) -> str:
    theirs = {"observations": "obs", "actions": "acts", "terminated": "done"}
    rows = [json.loads(line) for line in Path(json_episodes(path)).read_text().splitlines()]
    lines = [json.dumps({theirs.get(k, k): v for k, v in row.items()}) for row in rows]
    (path / "other.jsonl").write_text("\n".join(lines))
    return str(path / "other.jsonl")


def packed(write: Callable[[Path], str]) -> Callable[[Path], str]:
    def gz(path: Path) -> str:
        plain = Path(write(path))
        file = plain.with_name(f"{plain.name}.gz")
        file.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        return str(file)

    return gz


def csv_log(path: Path) -> str:
    columns = [*(f"observation_{i}" for i in range(4)), "action_0", "action_1"]
    lines = [",".join(["episode", *columns, "reward", "terminated"])]
    for number, rows in enumerate(SLICES):
        for i in range(rows.start, rows.stop):
            cells = [*EPISODES.observations[i], *EPISODES.actions[i], EPISODES.rewards[i]]
            end = int(EPISODES.terminated[i])
            lines.append(",".join([str(number), *(repr(float(c)) for c in cells), str(end)]))
    (path / "log.csv").write_text("\n".join(lines) + "\n")
    return str(path / "log.csv")


def json_episodes(path: Path) -> str:
    lines = [
        json.dumps(
            {k: v[rows].tolist() for k, v in FLAT.items()}
            | {"rewards": EPISODES.rewards[rows].tolist(), "terminated": ended}
        )
        for rows, ended in zip(SLICES, ENDED, strict=True)
    ]
    (path / "episodes.jsonl").write_text("\n".join(lines))
    return str(path / "episodes.jsonl")


def parquet_lists(path: Path) -> str:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    number = np.repeat(np.arange(3), EPISODES.lengths)
    table = {
        "episode": number,
        "observation.state": pa.array(EPISODES.observations.tolist(), pa.list_(pa.float32(), 4)),
        "action": pa.array(EPISODES.actions.tolist(), pa.list_(pa.float32())),
        "reward": EPISODES.rewards,
        "terminated": EPISODES.terminated,
        "truncated": EPISODES.truncated,
    }
    parquet.write_table(pa.table(table), path / "lists.parquet")
    return str(path / "lists.parquet")


def d3rlpy(path: Path) -> str:
    with h5py.File(path / "buffer.h5", "w") as file:
        keys = ("observations", "actions", "rewards", "terminated")
        file["columns"], file["num_episodes"], file["version"] = list(keys), 3, "2.1"
        for i, (rows, ended) in enumerate(zip(SLICES, ENDED, strict=True)):
            values = (*(v[rows] for v in FLAT.values()), EPISODES.rewards[rows, None], ended)
            for key, value in zip(keys, values, strict=True):
                file[f"{key}_{i}"] = value
    return str(path / "buffer.h5")


def robomimic(path: Path) -> str:
    """Whose observations have two parts: together they are the vector."""
    with h5py.File(path / "low_dim.hdf5", "w") as file:
        for i, rows in enumerate(SLICES):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"], demo["rewards"] = EPISODES.actions[rows], EPISODES.rewards[rows]
            demo["dones"] = DONES[rows].astype(int)
            demo["obs/a_pos"] = EPISODES.observations[rows, :3]
            demo["obs/b_width"] = EPISODES.observations[rows, 3:]
            demo["next_obs/a_pos"] = EPISODES.observations[rows, :3]
    return str(path / "low_dim.hdf5")


def lerobot(path: Path, version: str = "v3.0", cameras: tuple[str, ...] = ()) -> str:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = path / f"lerobot-{version}"
    (root / "meta").mkdir(parents=True)
    number = np.repeat(np.arange(3), EPISODES.lengths)
    columns = {
        "observation.state": pa.array(EPISODES.observations.tolist(), pa.list_(pa.float32(), 4)),
        "action": pa.array(EPISODES.actions.tolist(), pa.list_(pa.float32(), 2)),
        "episode_index": number,
        "next.reward": EPISODES.rewards,
        "next.done": EPISODES.terminated,
    }
    whole = pa.table(columns)
    # version 2 has a file an episode; of 3 one may go on in the next
    cuts = EPISODES.offsets.tolist() if version == "v2.1" else [0, 8, 16]
    for i, (start, stop) in enumerate(pairwise(cuts)):
        file = root / f"data/chunk-000/file-{i:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(whole.slice(start, stop - start), file)
    features = {name: {"dtype": "float32"} for name in columns}
    features |= {name: {"dtype": "video"} for name in cameras}
    info = {"codebase_version": version, "total_frames": 16, "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    return str(root)


SAME: list[Callable[[Path], str]] = [
    corl, qlearning_pickle, json_steps, json_other_names, json_episodes, json_episodes_other_names,
    parquet_lists, d3rlpy, lerobot, packed(csv_log), packed(json_steps), packed(qlearning_pickle),
]  # fmt: skip


@pytest.mark.parametrize("write", SAME)
def test_every_format_gives_the_same_steps(write: Callable[[Path], str], tmp_path: Path) -> None:
    reference = open_store([str(write_npz(tmp_path / "reference.npz", EPISODES))])
    assert open_store([write(tmp_path)]).hash == reference.hash


@pytest.mark.parametrize("write", [csv_log, json_steps, qlearning_pickle])
def test_a_packed_file_that_is_cut_off_is_one_sentence(
    write: Callable[[Path], str], tmp_path: Path
) -> None:
    file = Path(packed(write)(tmp_path))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        open_store([str(file)])


def test_parts_lie_side_by_side_under_their_names(tmp_path: Path) -> None:
    store = open_store([robomimic(tmp_path)])
    np.testing.assert_array_equal(store.observations, EPISODES.observations)
    assert str(store.observation_table) == "a_pos vector (3,), b_width vector (1,)"
    assert store.truncated.sum() == 3 and not store.terminated.any()  # `dones` do not say


def test_pictures_of_robomimic_are_images(tmp_path: Path) -> None:
    path = Path(robomimic(tmp_path))
    with h5py.File(path, "a") as file:
        for i, rows in enumerate(SLICES):
            steps = rows.stop - rows.start
            file[f"data/demo_{i}/obs/hand_image"] = np.full((steps, 40, 40, 3), i, np.uint8)
    store = open_store([str(path)])
    assert store.observations.dtype.names == ("*", "hand_image")
    assert [int(r["hand_image"].max()) for r in store.observations[[0, 5, 15]]] == [0, 1, 2]


def test_both_layouts_of_lerobot(tmp_path: Path) -> None:
    assert open_store([lerobot(tmp_path, "v2.1")]).hash == open_store([lerobot(tmp_path)]).hash


def test_videos_are_named_and_left_out_only_when_asked(tmp_path: Path) -> None:
    source = lerobot(tmp_path, cameras=("observation.images.top",))
    (finding,) = open_store([source]).findings
    assert "observation.images.top" in finding.message
    with pytest.raises(UserError, match=r"data.leave_out: \[observation.images.top\]"):
        train(config(source), tmp_path / "run", torch.device("cpu"))
    train(config(source, ["observation.images.top"]), tmp_path / "run", torch.device("cpu"))


def config(source: str, leave_out: list[str] | None = None, preset: str = "bc") -> Any:
    plain = {
        "data": {"sources": [source], "leave_out": leave_out or []},
        "agent": {"preset": preset, "backbone": {"width": 8, "layers": 1}},
        "train": {"steps": 1, "batch_size": 2},
    }
    return run_config(plain, {}, "test")


CAMERA = "observation.images.top"


def film(file: Path, levels: list[int]) -> None:
    """Gray frames of 32 x 48 pixels, each as bright as its level."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(file), (48, 32), fps=10, macro_block_size=2)
    writer.send(None)
    for level in levels:
        writer.send(np.full((32, 48, 3), level, np.uint8))
    writer.close()


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_cameras_are_decoded_frame_by_frame(version: str, tmp_path: Path) -> None:
    root = Path(lerobot(tmp_path, version, (CAMERA,)))
    levels = [20 + 10 * i for i in range(16)]
    if version == "v2.1":  # a video an episode
        for i, rows in enumerate(SLICES):
            file = f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4"
            film(root / file, levels[rows])
    else:  # cut where neither rows nor episodes are
        film(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", levels[:10])
        film(root / f"videos/{CAMERA}/chunk-000/file-001.mp4", levels[10:])
    store = open_store([f"{root}?cameras=all"])
    assert str(store.observation_table) == "images.top image (32, 48, 3), state vector (4,)"
    seen = store.observations["images.top"].astype(int)
    assert np.abs(seen - np.reshape(levels, (16, 1, 1, 1))).max() <= 4  # as exact as the codec
    np.testing.assert_array_equal(store.observations["*"], EPISODES.observations)
    small = open_store([f"{root}?cameras={CAMERA}&height=8&width=12"])
    assert small.observations["images.top"].shape == (16, 8, 12, 3)
    assert small.hash != store.hash != open_store([str(root)]).hash


@pytest.mark.parametrize(
    ("frames", "query", "said"),
    [
        (15, "cameras=all", "episode 2: observation.images.top has fewer frames than rows"),
        (17, "cameras=all", "observation.images.top has more frames than rows"),
        (0, "cameras=all", "has no videos of observation.images.top"),
        (16, "cameras=left", "has no camera 'left'"),
        (16, "cameras=all&height=8", "height and width go together"),
    ],
)
def test_wrong_videos_are_one_sentence(frames: int, query: str, said: str, tmp_path: Path) -> None:
    root = Path(lerobot(tmp_path, "v3.0", (CAMERA,)))
    if frames:
        film(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", [50] * frames)
    with pytest.raises(UserError, match=said):
        open_store([f"{root}?{query}"])
    if frames == 16:
        (root / f"videos/{CAMERA}/chunk-000/file-000.mp4").write_bytes(b"no video")
        with pytest.raises(UserError, match=r"file-000.mp4: cannot be read as a video"):
            open_store([f"{root}?cameras=all"])


def test_pictures_beside_the_rows_are_decoded(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = Path(lerobot(tmp_path, "v3.0"))
    about = json.loads((root / "meta/info.json").read_text())
    about["features"][CAMERA] = {"dtype": "image"}
    (root / "meta/info.json").write_text(json.dumps(about))
    for file in sorted((root / "data").rglob("*.parquet")):
        table = parquet.read_table(file)
        cells = []
        for i in range(len(table)):
            packed = io.BytesIO()
            Image.fromarray(np.full((40, 40, 3), i, np.uint8)).save(packed, "png")
            cells.append({"bytes": packed.getvalue(), "path": None})
        parquet.write_table(table.append_column(CAMERA, pa.array(cells)), file)
    store = open_store([f"{root}?cameras=all"])
    assert [int(r["images.top"].max()) for r in store.observations] == [*range(8), *range(8)]


def test_ogbench_has_no_rewards_and_ends_by_time_alone(tmp_path: Path) -> None:
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **FLAT, terminals=DONES, qpos=EPISODES.observations)
    store = open_store([str(path)])
    assert store.info == {"env_id": "pointmaze-medium-v0", "rewards": "none"}
    assert store.truncated.sum() == 3 and not store.terminated.any()
    with pytest.raises(UserError, match="has no rewards, which return_conditioned learns from"):
        train(config(str(path), preset="decision-transformer"), tmp_path / "a", torch.device("cpu"))
    train(config(str(path)), tmp_path / "b", torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("antmaze-large-stitch-v0", "antmaze-large-v0"),
        ("visual-cube-double-play-v0-val", "visual-cube-double-v0"),
        ("scene-noisy-v0", "scene-v0"),
        ("hopper-medium-v2", None),
    ],
)
def test_names_of_ogbench(name: str, env: str | None) -> None:
    assert ogbench.environment(Path(f"{name}.npz")).get("env_id") == env


def test_what_had_to_be_guessed_is_said(tmp_path: Path) -> None:
    base = {**FLAT, "rewards": EPISODES.rewards}
    np.savez(tmp_path / "dones.npz", **base, dones=DONES)
    np.savez(tmp_path / "terminals.npz", **base, terminals=EPISODES.terminated)
    said = [open_store([str(tmp_path / f"{n}.npz")]).findings[0].message
            for n in ("dones", "terminals")]  # fmt: skip
    assert "`dones` do not say" in said[0] and "`terminals` alone" in said[1]
    np.savez(tmp_path / "none.npz", **base)
    with pytest.raises(UserError, match="nothing says where episodes end"):
        open_store([str(tmp_path / "none.npz")])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"episode": 0, "action": [1.0]}'], "line 1: `observation` is missing"),
        (['{"episode": 0, "observation"'], "line 1 is not JSON"),
        (["[1]"], "line 1 is no JSON object"),
        ([json.dumps({"episode": e, "observation": [0.0], "action": [0.0]}) for e in (0, 1, 0)],
         "episode 0 comes back"),
        ([json.dumps({"episode": 0, "step": s, "observation": [0.0], "action": [0.0]})
          for s in (0, 2)], "line 2: `step` is 2 after 0"),
        ([""], "has no episodes"),
    ],
)  # fmt: skip
def test_wrong_lines_are_one_sentence(lines: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=said):
        open_store([str(tmp_path / "bad.jsonl")])


def test_lists_of_different_lengths_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"episode": [0, 0], "observation": [[0.0], [0.0, 1.0]], "action": [[0.0], [1.0]]}
    flags = {"reward": [0.0, 0.0], "terminated": [False, True]}
    parquet.write_table(pa.table({**table, **flags}), tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="`observation` has lists of different lengths"):
        open_store([str(tmp_path / "bad.parquet")])


def test_data_without_rewards_say_so_in_every_format(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **FLAT, terminals=DONES)
    lines = [json.dumps({k: v[rows].tolist() for k, v in FLAT.items()}) for rows in SLICES]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    columns = {f"observation_{i}": EPISODES.observations[:, i] for i in range(4)}
    columns |= {f"action_{i}": EPISODES.actions[:, i] for i in range(2)}
    number = np.repeat(np.arange(3), EPISODES.lengths)
    names = ["episode", *columns, "terminated"]
    values = np.column_stack([number, *columns.values(), EPISODES.terminated])
    np.savetxt(tmp_path / "c.csv", values, "%.9g", ",", header=",".join(names), comments="")
    (tmp_path / "c.columns.yaml").write_text("reward: null\n")
    for name in ("a.npz", "b.jsonl", "c.csv"):
        store = open_store([str(tmp_path / name)])
        assert store.info["rewards"] == "none", name
        assert [f.rule for f in store.findings][-1] in ("no-rewards", "assumed-ends"), name
        np.testing.assert_allclose(store.actions, EPISODES.actions, rtol=1e-6)


def test_a_broken_dump_is_one_sentence(tmp_path: Path) -> None:
    path = d3rlpy(tmp_path)
    with h5py.File(path, "a") as file:
        del file["rewards_1"]
    with pytest.raises(UserError, match="`rewards_1` is missing"):
        open_store([path])

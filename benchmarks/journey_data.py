"""What the journeys of environments.py are made with: odd spaces, and files of every format.

Environments have the ids of `SPACES`, such as `benchmarks.journey_data:Tuple-v0`; a function of
`FORMATS` writes random data into a folder and says what to train on.
"""

from __future__ import annotations

import copy
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces as S

F4, U1 = np.float32, np.uint8
BOX = S.Box(-1, 1, (3,), F4)
CAMERA = S.Box(0, 255, (48, 48, 3), U1)

# observations and actions by what they are called
SPACES: dict[str, tuple[S.Space, S.Space]] = {
    "Dict": (S.Dict(a=BOX, b=S.Discrete(4), goal=BOX), BOX),
    "Nested": (
        S.Dict(
            inner=S.Dict(x=BOX, pair=S.Tuple((BOX, S.Discrete(3)))), flags=S.MultiBinary((2, 2))
        ),
        S.Dict(arm=BOX, grip=S.Tuple((S.Discrete(2), S.MultiBinary(3)))),
    ),
    "Tuple": (S.Tuple((BOX, S.MultiBinary(3))), BOX),
    "MultiDiscrete": (S.MultiDiscrete([3, 4]), S.MultiDiscrete([3, 4])),
    "MultiDiscreteMatrix": (
        S.MultiDiscrete(np.array([[3, 4], [2, 5]])),
        S.MultiDiscrete(np.array([[3, 4], [2, 2]])),
    ),
    "MultiBinary": (S.MultiBinary(5), S.MultiBinary(4)),
    "Colour": (S.Box(0, 255, (64, 64, 3), U1), S.Discrete(3)),
    "ColourFloat": (S.Box(0, 1, (64, 64, 3), F4), S.Discrete(3)),
    "ChannelsFirst": (S.Box(0, 255, (3, 40, 40), U1), S.Discrete(3)),
    "ChannelsFirstFloat": (S.Box(0, 1, (3, 40, 40), F4), BOX),
    "Gray": (S.Box(0, 255, (84, 84), U1), S.Discrete(3)),
    "GrayChannel": (S.Box(0, 255, (84, 84, 1), U1), S.Discrete(3)),
    "Stacked": (S.Box(0, 255, (4, 84, 84), U1), S.Discrete(3)),
    "Small": (S.Box(0, 255, (7, 7, 3), U1), S.Discrete(3)),
    "ImageAndVector": (S.Dict(camera=CAMERA, state=BOX), BOX),
    "TwoImages": (S.Dict(left=CAMERA, right=S.Box(0, 255, (3, 36, 50), U1)), S.MultiBinary(2)),
    "Mission": (S.Dict(image=S.Box(0, 255, (7, 7, 3), U1), mission=S.Text(20)), S.Discrete(3)),
    "TextOnly": (S.Text(20), S.Discrete(3)),
    "Matrix": (S.Box(-1, 1, (5, 5), F4), S.Box(-1, 1, (2, 2), F4)),
    "Scalar": (S.Box(-1, 1, (), F4), S.Box(-1, 1, (), F4)),
    "Volume": (S.Box(-1, 1, (5, 6, 7), F4), BOX),
    "Integers": (S.Box(0, 5, (2,), np.int64), S.Box(0, 5, (2,), np.int64)),
    "Booleans": (S.Box(0, 1, (4,), np.bool_), BOX),
    "OneSided": (S.Box(0, np.inf, (3,), F4), S.Box(0, np.inf, (2,), F4)),
    "NoBounds": (S.Box(-np.inf, np.inf, (3,), np.float64), S.Box(-np.inf, np.inf, (2,), F4)),
    "Wide": (BOX, S.Box(-100, 100, (2,), F4)),
    "Lopsided": (BOX, S.Box(np.array([0.0, -5], F4), np.array([1.0, 50], F4))),
    "Half": (S.Box(-1, 1, (3,), np.float16), S.Box(-1, 1, (2,), np.float16)),
    "StartAt1": (S.Discrete(4, start=1), S.Discrete(3, start=1)),
    "StartBelow0": (BOX, S.Discrete(3, start=-2)),
    "SmallIntegers": (BOX, S.Discrete(3, dtype=np.int32)),
    "Sequence": (S.Sequence(BOX), S.Discrete(3)),
    "Graph": (S.Graph(BOX, None), S.Discrete(3)),
}  # fmt: skip


class Odd(gym.Env[Any, Any]):
    """Steps of random observations; the reward is 1. Refuses what is no action."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, called: str, render_mode: str | None = None) -> None:
        # one by one: spaces that share a part draw from one generator
        self.observation_space, self.action_space = map(copy.deepcopy, SPACES[called])
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.frames = [np.zeros((84, 84), U1)] * 4
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is none of {self.action_space}")
        return self._seen(), 1.0, False, False, {}

    def _seen(self) -> Any:
        seen = self.observation_space.sample()
        if getattr(seen, "shape", ()) != (4, 84, 84):
            return seen
        self.frames = [*self.frames[1:], seen[-1]]  # of a stack only the newest is new
        return np.stack(self.frames)

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), 128, U1)


class Four(Odd):
    """[4] numbers seen, [2] done: what the files below are of."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = S.Box(-9, 9, (4,), F4), S.Box(-1, 1, (2,), F4)
        self.render_mode = render_mode


for _called in SPACES:
    gym.register(
        f"{_called}-v0",
        "benchmarks.journey_data:Odd",
        kwargs={"called": _called},
        max_episode_steps=30,
    )
gym.register("Four-v0", "benchmarks.journey_data:Four", max_episode_steps=30)

EPISODES, LENGTH, FPS = 4, 30, 10
CAMERA_KEY = "observation.images.top"


def flat() -> dict[str, np.ndarray]:
    """Observations, actions, rewards and ends of a few random episodes."""
    rng, steps = np.random.default_rng(0), EPISODES * LENGTH
    ends = np.zeros(steps, bool)
    ends[LENGTH - 1 :: LENGTH] = True
    o, a = rng.normal(size=(steps, 4)).astype(F4), rng.uniform(-1, 1, (steps, 2)).astype(F4)
    return {
        "observations": o,
        "actions": a,
        "rewards": rng.normal(size=steps).astype(F4),
        "ends": ends,
    }


def rows() -> list[dict[str, Any]]:
    """The same, a step each."""
    one = flat()
    return [
        {
            "episode": i // LENGTH, "step": i % LENGTH,
            "observation": one["observations"][i].tolist(),
            "action": one["actions"][i].tolist(), "reward": float(one["rewards"][i]),
            "terminated": False, "truncated": bool(one["ends"][i]),
        }
        for i in range(len(one["ends"]))
    ]  # fmt: skip


def _npz(**named: str | None) -> Callable[[Path], Path]:
    """A `.npz` whose arrays have these names; None: left out."""

    def write(folder: Path) -> Path:
        one = flat()
        one["next_observations"] = np.roll(one["observations"], -1, 0)
        one["next_observations"][one["ends"]] += 1  # what followed is no next row
        arrays: dict[str, Any] = {name: one[ours] for ours, name in named.items() if name}
        np.savez(folder / "data.npz", **arrays)
        return folder / "data.npz"

    return write


def _pickle(folder: Path) -> Path:
    one = flat()
    one["terminals"] = one.pop("ends")
    (folder / "qlearning.pkl").write_bytes(pickle.dumps(one))
    return folder / "qlearning.pkl"


def _trajectories(folder: Path) -> Path:
    one = flat()
    one["terminals"] = one.pop("ends")
    firsts = range(0, EPISODES * LENGTH, LENGTH)
    cut = [{k: v[i : i + LENGTH] for k, v in one.items()} for i in firsts]
    (folder / "trajectories.pkl").write_bytes(pickle.dumps(cut))
    return folder / "trajectories.pkl"


def _csv(folder: Path) -> Path:
    lines = ["episode,step,obs_0,obs_1,obs_2,obs_3,act_0,act_1,reward,terminated,truncated"]
    for row in rows():
        numbers = [*row["observation"], *row["action"], row["reward"]]
        cells = [row["episode"], row["step"], *numbers, 0, int(row["truncated"])]
        lines.append(",".join(map(str, cells)))
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    return folder / "log.csv"


def _parquet(folder: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows()), folder / "log.parquet")
    return folder / "log.parquet"


def _json_lines(folder: Path, **names: str) -> Path:
    named = [{names.get(key, key): value for key, value in row.items()} for row in rows()]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    return folder / "log.jsonl"


def _json_episodes(folder: Path) -> Path:
    one = flat()
    with (folder / "log.jsonl").open("w") as file:
        for i in range(0, EPISODES * LENGTH, LENGTH):
            part = {k: v[i : i + LENGTH].tolist() for k, v in one.items() if k != "ends"}
            file.write(json.dumps(part) + "\n")
    return folder / "log.jsonl"


def _packed(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """The same file, compressed by gzip."""

    def gz(folder: Path) -> Path:
        plain = write(folder)
        packed = plain.with_name(plain.name + ".gz")
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        return packed

    return gz


def _lerobot(version: str, camera: bool) -> Callable[[Path], Path]:
    """A folder in the layout of LeRobot 2.1 or 3.0, with or without the video of a camera."""
    old = version.startswith("v2")
    if old:
        rows_at = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        video_at = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    else:
        rows_at = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        video_at = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

    def write(folder: Path) -> Path:
        import pyarrow as pa
        from pyarrow import parquet

        root = folder / "robot"
        for part in ("meta/episodes/chunk-000", "data/chunk-000"):
            (root / part).mkdir(parents=True)
        lists = {"dtype": "float32", "names": None}
        features: dict[str, Any] = {
            "observation.state": {**lists, "shape": [4]},
            "action": {**lists, "shape": [2]},
            "next.reward": {**lists, "shape": [1]},
            "next.done": {"dtype": "bool", "shape": [1], "names": None},
        }
        for name in ("frame_index", "episode_index", "index", "task_index"):
            features[name] = {"dtype": "int64", "shape": [1], "names": None}
        if camera:
            features[CAMERA_KEY] = {"dtype": "video", "shape": [32, 48, 3], "names": None}
        about = {
            "codebase_version": version, "total_episodes": EPISODES, "chunks_size": 1000,
            "total_frames": EPISODES * LENGTH, "fps": FPS, "data_path": rows_at,
            "video_path": video_at if camera else None, "features": features,
        }  # fmt: skip
        (root / "meta/info.json").write_text(json.dumps(about))
        whole = pa.concat_tables([_robot_rows(e) for e in range(EPISODES)])
        spans: list[dict[str, Any]] = []
        for e in range(EPISODES):
            if old:
                place = root / rows_at.format(episode_chunk=0, episode_index=e)
                parquet.write_table(whole.slice(e * LENGTH, LENGTH), place)
            first = e * LENGTH / FPS
            spans.append({
                "episode_index": e, "length": LENGTH, f"videos/{CAMERA_KEY}/chunk_index": 0,
                f"videos/{CAMERA_KEY}/file_index": 0,
                f"videos/{CAMERA_KEY}/from_timestamp": first,
                f"videos/{CAMERA_KEY}/to_timestamp": first + LENGTH / FPS,
            })  # fmt: skip
        if old:
            lines = [json.dumps({"episode_index": e, "length": LENGTH}) for e in range(EPISODES)]
            (root / "meta/episodes.jsonl").write_text("\n".join(lines))
        else:
            parquet.write_table(whole, root / rows_at.format(chunk_index=0, file_index=0))
            place = root / "meta/episodes/chunk-000/file-000.parquet"
            parquet.write_table(pa.Table.from_pylist(spans), place)
        if camera:
            _film(root, video_at, old)
        return root

    return write


def _robot_rows(episode: int) -> Any:
    import pyarrow as pa

    one, at = flat(), slice(episode * LENGTH, (episode + 1) * LENGTH)
    last = np.arange(LENGTH) == LENGTH - 1
    return pa.table({
        "observation.state": pa.array(one["observations"][at].tolist(), pa.list_(pa.float32(), 4)),
        "action": pa.array(one["actions"][at].tolist(), pa.list_(pa.float32(), 2)),
        "timestamp": pa.array(np.arange(LENGTH, dtype=F4) / FPS),
        "frame_index": np.arange(LENGTH), "episode_index": np.full(LENGTH, episode),
        "index": np.arange(LENGTH) + episode * LENGTH, "task_index": np.zeros(LENGTH, int),
        "next.reward": pa.array(last.astype(F4)), "next.done": last,
    })  # fmt: skip


def _film(root: Path, place: str, old: bool) -> None:
    """Videos of a brightness that rises from frame to frame: one an episode, or one of all."""
    import imageio_ffmpeg

    for number in range(EPISODES if old else 1):
        file = root / place.format(
            episode_chunk=0, episode_index=number, chunk_index=0, file_index=0,
            video_key=CAMERA_KEY,
        )  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        writer = imageio_ffmpeg.write_frames(str(file), (48, 32), fps=FPS, macro_block_size=2)
        writer.send(None)
        for i in range(LENGTH if old else EPISODES * LENGTH):
            writer.send(np.full((32, 48, 3), 5 * (i % LENGTH) + 20, U1))
        writer.close()


def _robomimic(pictures: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import h5py

        rng = np.random.default_rng(0)
        with h5py.File(folder / "demo.hdf5", "w") as file:
            data = file.create_group("data")
            data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
            for i in range(EPISODES):
                demo = data.create_group(f"demo_{i}")
                demo.attrs["num_samples"] = LENGTH
                demo["actions"] = rng.uniform(-1, 1, (LENGTH, 7))
                demo["rewards"], demo["dones"] = np.zeros(LENGTH), np.zeros(LENGTH, int)
                widths = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "object": 10}
                for name, width in widths.items():
                    demo[f"obs/{name}"] = rng.normal(size=(LENGTH, width))
                if pictures:
                    seen = rng.integers(0, 255, (LENGTH, 40, 40, 3), dtype=U1)
                    demo["obs/agentview_image"] = seen
        return folder / "demo.hdf5"

    return write


def _d3rlpy(folder: Path) -> Path:
    import h5py

    one = flat()
    with h5py.File(folder / "d3rlpy.h5", "w") as file:
        file["num_episodes"] = EPISODES
        file["columns"] = np.array([b"observations", b"actions", b"rewards", b"terminated"])
        for e in range(EPISODES):
            at = slice(e * LENGTH, (e + 1) * LENGTH)
            file[f"observations_{e}"] = one["observations"][at]
            file[f"actions_{e}"] = one["actions"][at]
            file[f"rewards_{e}"], file[f"terminated_{e}"] = one["rewards"][at][:, None], False
    return folder / "d3rlpy.h5"


def _ogbench(folder: Path) -> Path:
    rng, steps = np.random.default_rng(0), 404
    ends = np.zeros(steps, bool)
    ends[100::101] = True
    o = rng.normal(size=(steps, 2)).astype(F4)
    name = folder / "pointmaze-medium-navigate-v0.npz"
    np.savez_compressed(name, observations=o, actions=o.clip(-1, 1), terminals=ends, qpos=o, qvel=o)
    return name


STANDARD = {n: n for n in ("observations", "actions", "rewards")}
FOUR = "benchmarks.journey_data:Four-v0"
# how it is called: who writes it, the environment to act in, and what a config says of it
FORMATS: dict[str, tuple[Callable[[Path], Path], str | None, dict[str, Any]]] = {
    "npz, `truncations`": (_npz(**STANDARD, ends="truncations"), FOUR, {}),
    "npz, `dones`": (_npz(**STANDARD, ends="dones"), FOUR, {}),
    "npz, `next_observations` alone": (
        _npz(**STANDARD, next_observations="next_observations"), FOUR, {},
    ),
    "npz, no rewards": (
        _npz(observations="obs", actions="acts", ends="timeouts"), FOUR, {"preset": "bc"},
    ),
    "pickle, flat": (_pickle, FOUR, {}),
    "pickle, trajectories": (_trajectories, FOUR, {}),
    "CSV": (_csv, FOUR, {}),
    "CSV, gzip": (_packed(_csv), FOUR, {}),
    "Parquet, lists": (_parquet, FOUR, {}),
    "JSON lines, steps": (_json_lines, FOUR, {}),
    "JSON lines, `obs`, `act`, `done`": (
        lambda folder: _json_lines(folder, observation="obs", action="act", terminated="done"),
        FOUR, {},
    ),
    "JSON lines, episodes": (_json_episodes, FOUR, {}),
    "JSON lines, gzip": (_packed(_json_lines), FOUR, {}),
    "LeRobot 2.1": (_lerobot("v2.1", False), None, {}),
    "LeRobot 3.0": (_lerobot("v3.0", False), None, {}),
    "LeRobot 2.1, video": (
        lambda folder: Path(f"{_lerobot('v2.1', True)(folder)}?cameras=all"), None, {},
    ),
    "LeRobot 3.0, video": (
        lambda folder: Path(f"{_lerobot('v3.0', True)(folder)}?cameras=all"), None, {},
    ),
    "robomimic": (_robomimic(False), None, {}),
    "robomimic, pictures": (_robomimic(True), None, {}),
    "d3rlpy": (_d3rlpy, FOUR, {}),
    "OGBench": (_ogbench, "ogbench:pointmaze-medium-v0", {"preset": "bc"}),
    "OGBench, `?goals=true`": (
        lambda folder: Path(f"{_ogbench(folder)}?goals=true"), "ogbench-goals",
        {"preset": "goal-decision-mamba", "achieved": "observation"},
    ),
    "OGBench, `?task=2`": (
        lambda folder: Path(f"{_ogbench(folder)}?task=2"),
        "ogbench:pointmaze-medium-singletask-task2-v0", {},
    ),
}  # fmt: skip

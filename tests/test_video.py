"""Videos: the recorded episodes, all of them, with what they were asked for and returned."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

import decision_seq as ds
from decision_seq.agents import AgentSpec
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.eval.rollout import video
from decision_seq.eval.rollout.episodes import rollout
from decision_seq.shipped import shipped


class Drawn(gym.Env[np.ndarray, np.ndarray]):
    """A point that draws where it is: the column of a red stripe. Episodes of 20 to 40 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode: str | None = None, honest: bool = True) -> None:
        self.render_mode, self.honest = render_mode, honest

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(20, 40))
        self.place = 0.0
        return np.array([self.left], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        self.place += 1 + float(action[0])
        luck = 0.0 if self.honest else np.random.default_rng().random()
        return np.array([self.left], np.float32), self.place + luck, self.left == 0, False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        picture = np.zeros((120, 161, 3), np.uint8)  # an odd width, as no encoder wants it
        picture[:, : int(2 * self.place)] = (255, 0, 0)
        return picture


gym.register("decision-seq-tests/Drawn-v0", Drawn)
gym.register("decision-seq-tests/Fickle-v0", Drawn, kwargs={"honest": False})
ENDS = (".mp4", ".gif")
DRAWN, FICKLE = "decision-seq-tests/Drawn-v0", "decision-seq-tests/Fickle-v0"


def evaluated(  # type: ignore[no-untyped-def]
    env: str,
    targets: list[float],
    episodes: int,
    width: int = 1,
    actions: int = 1,
    max_steps: int | None = None,
):
    """Rows and actions of an untrained agent."""
    torch.manual_seed(0)
    config = ReturnConditionedConfig(
        context_length=4, backbone=MambaConfig(width=16, layers=1, dropout=0.0)
    )
    agent = config.agent(config, AgentSpec((width,), actions, False, 1000)).eval()
    with torch.no_grad():
        agent.action_head.weight.normal_(std=1.0)
    recorded: list[np.ndarray] = []
    done = rollout(
        agent, env, targets, episodes, 0, "stream", actions=recorded, max_steps=max_steps
    )
    protocol = {"env": env, "checkpoint": "last", "step": 7, "context": "stream", "agent": "dm"}
    protocol |= {"trained_steps": agent.spec.max_timestep + 1}
    return [dataclasses.asdict(episode) | protocol for episode in done], recorded


def frames_of(path: Path) -> tuple[list[np.ndarray], float]:
    """Every frame [h, w, 3] of a film, and how many there are a second."""
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader], about["fps"]


def test_actions_are_recorded_and_change_no_row() -> None:
    rows, actions = evaluated(DRAWN, [50.0, 5.0], 3)
    again, _ = evaluated(DRAWN, [50.0, 5.0], 3)
    for row in rows + again:
        row.pop("milliseconds_per_step")
    assert rows == again
    assert len(actions) == max(row["length"] for row in rows)
    assert {step.shape for step in actions} == {(6, 1)}


def test_targets_below_zero_have_films_of_their_own(tmp_path: Path) -> None:
    rows, actions = evaluated(DRAWN, [-5.0, 5.0], 1)
    written = video.write_videos(tmp_path, rows, actions, ["best"])
    assert [path.stem.split("_")[3] for path in written[::2]] == ["-5", "5"]
    assert all(path.exists() for path in written)


def test_a_film_is_the_episode(tmp_path: Path) -> None:
    rows, actions = evaluated(DRAWN, [50.0], 5)
    shown: list[tuple[int, int]] = []
    picks: list[video.Pick] = ["best", "worst"]
    written = video.write_videos(tmp_path, rows, actions, picks, lambda *n: shown.append(n))
    name = "decision-seq-tests-Drawn-v0_last-7_stream_50_{}"
    files = [tmp_path / "videos" / f"{name.format(pick)}{end}" for pick in picks for end in ENDS]
    assert written == files and sorted(files) == sorted((tmp_path / "videos").iterdir())
    returns = [row["episode_return"] for row in rows]
    best, worst = int(np.argmax(returns)), int(np.argmin(returns))
    assert best != worst and len({row["length"] for row in rows}) > 1
    assert shown == [(n + 1, len(shown)) for n in range(len(shown))]
    for file, lane in zip(files[::2], (best, worst), strict=True):
        length = rows[lane]["length"]
        frames, speed = frames_of(file)
        assert speed == 30 and len(frames) == -(-length // 2)  # 60 steps a second: every other one
        # the last frame is the last step: the stripe's width says where the point has come to
        place = sum(1 + float(step[lane, 0]) for step in actions[:length])
        stripe = (frames[-1][100, :, 0] > 128).sum()
        assert stripe == pytest.approx(min(2 * int(2 * place), 322), abs=4)
        with Image.open(file.with_suffix(".gif")) as gif:
            assert gif.n_frames == -(-len(frames) // 3) and gif.width == video.GIF_WIDTH
        shown = shown[len(frames) :]
    assert not shown


def test_an_episode_that_the_evaluation_cut_off_is_shown(tmp_path: Path) -> None:
    rows, actions = evaluated(DRAWN, [50.0], 2, max_steps=10)
    assert {row["length"] for row in rows} == {10}
    film, _ = video.write_videos(tmp_path, rows, actions, ["best"])
    assert len(frames_of(film)[0]) == 5


class Around(gym.Env):
    """Built around an environment of MuJoCo, as mazes are; what draws it is found when it is drawn,
    as OGBench's is."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    observation_space = action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.inner = gym.make("InvertedPendulum-v5").unwrapped

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        import mujoco

        renderer = mujoco.Renderer(self.inner.model, 32, 32)
        renderer.update_scene(self.inner.data)
        return renderer.render()


def test_what_is_built_around_mujoco_is_drawn_as_mujoco_is() -> None:
    gym.register("decision-seq-tests/Around-v0", Around)
    try:
        needed = video.check_video("decision-seq-tests/Around-v0")
    except UserError as error:
        if "no way to draw" in str(error):
            pytest.skip(str(error))
        raise
    assert needed.keys() == {"MUJOCO_GL"}


def test_captions_say_target_return_and_step() -> None:
    rows, actions = evaluated(DRAWN, [50.0], 1)
    clip = video.Clip(rows[0], np.stack([step[0] for step in actions]), "best of 1")
    assert clip.numbers(3, 12.345) == "target 50   return 12.3   step 3"
    assert clip.title == f"dm, stream, {DRAWN} seed 0, best of 1"
    unasked = dataclasses.replace(clip, row=rows[0] | {"target": None})
    assert unasked.numbers(1, 0.0).startswith("no target ")
    picture = np.random.default_rng(0).integers(0, 255, (51, 161, 3), np.uint8)
    drawn = video.captioned(picture, clip, 3, 12.3)
    assert drawn.shape[0] % 2 == 0 and drawn.shape[1] == 322
    assert np.array_equal(drawn[:102], picture.repeat(2, 0).repeat(2, 1))  # nothing is drawn over
    strip, without_bar = drawn[102:], slice(102, -4)
    assert (strip == 255).all(axis=-1).sum() > 50  # white letters
    for step, total in ((4, 12.3), (3, 25.0)):
        other = video.captioned(picture, clip, step, total)
        assert not np.array_equal(drawn[without_bar], other[without_bar])
    blue = (strip[-1] == (59, 130, 246)).all(axis=-1).sum()
    assert blue == pytest.approx(322 * 12.3 / 50, abs=2)


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([3.0, 1.0, 2.0, 5.0], {"median": 2, "best": 3, "worst": 1}),
        ([7.0, 7.0, 7.0], {"median": 1, "best": 2, "worst": 0}),
        ([1.0, 2.0], {"median": 0, "best": 1}),
        ([4.0], {"median": 0}),
    ],
)
def test_which_episodes_are_shown(returns: list[float], expected: dict[str, int]) -> None:
    rows = [
        {"target": target, "target_quantile": None, "episode_return": r}
        for target in (9.0, 5.0)
        for r in returns
    ]
    n = len(returns)
    found = video.chosen(rows, video.PICKS)
    first = [(lane, pick, n) for pick, lane in expected.items()]
    assert found == first + [(lane + n, pick, n) for lane, pick, n in first]
    assert video.chosen(rows, ["worst"]) == [(i, "worst", n) for i in (np.argmin(returns),) * 1] + [
        (n + np.argmin(returns), "worst", n)
    ]


def test_what_does_not_repeat_itself_is_not_shown(tmp_path: Path) -> None:
    rows, actions = evaluated(FICKLE, [50.0], 1)
    with pytest.raises(UserError, match=r"seed 0 returned .* not determined by its seed"):
        video.write_videos(tmp_path, rows, actions)
    assert not list((tmp_path / "videos").iterdir())  # nor is half a film left behind


def test_what_is_missing_is_said_before_the_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    video.check_video(DRAWN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # gymnasium's would be a second message
        with pytest.raises(UserError, match=r"point-run has no pictures of itself.*render_modes"):
            video.check_video("point-run")
    monkeypatch.setattr(Drawn, "metadata", {"render_modes": []})  # it draws all the same
    video.check_video(DRAWN)
    monkeypatch.setenv("MUJOCO_GL", "magic-lantern")
    with pytest.raises(UserError, match="MUJOCO_GL=magic-lantern cannot draw here; unset it"):
        video.check_video("hopper")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(video, "BACKENDS", ("magic-lantern",))
    with pytest.raises(UserError, match="libosmesa6"):
        video.check_video("hopper")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        video.check_video(DRAWN)


def test_filming_leaves_environment_variables_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        needed = video.check_video("hopper")
    except UserError as error:
        pytest.skip(str(error))
    for name in needed:
        monkeypatch.delenv(name, raising=False)
    run = shutil.copytree(shipped("zoo") / "hopper-decision-mamba", tmp_path / "run")
    short = "Hopper-v5?max_episode_steps=8"
    done = ds.evaluate(run, targets=[3600], episodes=1, env=short, video=["best"])
    assert done.videos and needed and not needed.keys() & os.environ.keys()


def test_mujoco_is_drawn_without_a_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        needed = video.check_video("hopper")
    except UserError as error:
        pytest.skip(str(error))
    for name, value in needed.items():
        monkeypatch.setenv(name, value)
    rows, actions = evaluated("hopper", [3600.0], 1, 11, 3)
    for row in rows:
        row["env"] = "Hopper-v5"
    movie, _ = video.write_videos(tmp_path, rows, actions)
    frames, speed = frames_of(movie)
    assert len(frames) == -(-rows[0]["length"] // 5) and speed == 25  # of 125 steps a second
    assert frames[0].shape == (544, 480, 3)
    robot = frames[-1][150:420, 150:330].astype(int)
    assert (robot[..., 0] - robot[..., 2] > 40).sum() > 1000  # a brown leg on a grey floor
    moved = np.abs(frames[-1][:480].astype(int) - frames[0][:480]).max(axis=-1) > 60
    assert moved.sum() > 1000


@pytest.mark.parametrize("name", ["hopper", "halfcheetah"])
def test_the_camera_goes_with_the_robot(name: str) -> None:
    """Ten metres on as much of it is in the picture; gymnasium 1.4 would show a floor."""
    try:
        needed = video.check_video(name)
    except UserError as error:
        pytest.skip(str(error))
    with video.drawing(needed):
        env: Any = video.to_film(name)
        env.reset(seed=0)
        world, pictures = env.unwrapped, []
        for metres in (0.0, 10.0):
            place = world.init_qpos + metres * (np.arange(len(world.init_qpos)) == 0)
            world.set_state(place, world.init_qvel)
            pictures.append(env.render().astype(int))
        env.close()
    here, there = ((p[..., 0] - p[..., 2] > 40).mean() for p in pictures)  # what is brown
    assert here > 0.005 and there == pytest.approx(here, rel=0.3)


def test_atari_is_shown_in_colour() -> None:
    pytest.importorskip("ale_py")
    video.check_video("breakout")
    env, rng, actions, total, ended = make("breakout"), np.random.default_rng(0), [], 0.0, False
    env.reset(seed=3)
    while not ended:
        actions.append(rng.integers(4))
        _, reward, ended, _, _ = env.step(actions[-1])
        total += float(reward)
    row = {"target": 90.0, "env": "breakout", "env_seed": 3, "episode_return": total}
    row |= {"agent": "dm", "context": "window", "max_steps": None}
    clip = video.Clip(row, np.array(actions), "best of 1")
    drawn = make("breakout", render_mode="rgb_array")
    frames = list(video.replay(drawn, clip, 10))
    assert len(frames) == -(-len(actions) // 10) and frames[0].shape[1] == 320
    picture = frames[-1][:420:2, ::2]
    assert np.array_equal(picture, drawn.render())
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) >= 8  # rows of bricks in six colours

"""Videos of evaluated episodes: what was recorded is played again from its seed, with a caption.

The lanes of an evaluation draw nothing. Their actions are kept, and an environment of its own takes
them again from the same seed: a video shows the very episode that its row is about, and the rows
are the same with and without it. An environment that does not repeat itself is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from decision_seq.envs.quiet import quiet_mujoco
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.eval.rows import Row, target_label
from decision_seq.files import atomic_file
from decision_seq.spaces.steps import StepForm
from decision_seq.variables import variables

Pick = Literal["median", "best", "worst"]
PICKS: tuple[Pick, ...] = get_args(Pick)
BACKENDS = ("egl", "osmesa", "glfw")  # of MuJoCo: a GPU or Mesa's EGL, Mesa on the CPU, a desktop
# where MuJoCo looks at MUJOCO_GL, in version 4 and before
CHOOSES = ("mujoco.rendering.classic.gl_context", "mujoco.gl_context")
FASTEST = 30  # frames a second; of an environment with more steps a second some are not shown
NARROWEST = 320  # pixels; smaller pictures (Atari's are 160 wide) are enlarged
GIF_WIDTH, GIF_FASTEST, GIF_SECONDS = 240, 12.5, 8  # small enough for a web page

_DRAW_NOTHING = """
import mujoco
context = mujoco.GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
"""


@dataclass(frozen=True)
class Clip:
    """One episode to show."""

    row: Row
    actions: np.ndarray  # [steps, ...] as the environment took them
    rank: str  # which of its target's episodes it is, e.g. "best of 20"

    @property
    def title(self) -> str:
        row = self.row
        return f"{row['agent']}, {row['context']}, {row['env']} seed {row['env_seed']}, {self.rank}"

    def numbers(self, step: int, total: float) -> str:
        """What the caption says after `step` steps that returned `total`."""
        target = self.row["target"]
        goal = "no target" if target is None else f"target {target:.6g}"
        return f"{goal}   return {total:.1f}   step {step}"


@quiet_mujoco()
def check_video(env: str) -> dict[str, str]:
    """Whether videos of `env` can be made here, to be asked before a rollout.

    Returns:
        Environment variables that must be set for it: MuJoCo's MUJOCO_GL, or none.

    Raises:
        UserError: they cannot be made.
    """
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise UserError(
            "--video needs an encoder; install one with `pip install imageio-ffmpeg`"
        ) from None
    with contextlib.closing(make(env)) as plain:
        named = "rgb_array" in plain.metadata.get("render_modes", ())
        simulator = _is_mujoco(plain.unwrapped)
    needed = {"MUJOCO_GL": _drawing_backend()} if simulator else {}
    try:
        with (
            drawing(needed),
            contextlib.closing(to_film(env)) as drawn,
        ):
            drawn.reset(seed=0)
            picture: Any = drawn.render()
    except (UserError, NotImplementedError):
        if named:
            raise
        picture = None
    except Exception as error:  # a simulator may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"environment {env} cannot draw itself here ({reason})") from None
    if not isinstance(picture, np.ndarray):  # some draw without naming that mode
        raise UserError(
            f"environment {env} has no pictures of itself, so there is nothing to film; leave "
            "--video out, or let its constructor take render_mode, name rgb_array in its "
            "metadata['render_modes'] and have render() return an array [H, W, 3] of uint8"
        )
    return needed


def to_film(name: str) -> gym.Env[Any, Any]:
    """The environment, made to draw itself. Where the robot's model has a camera that goes with it,
    that one films: gymnasium 1.4 stays where the episode began, and films an empty floor."""
    with warnings.catch_warnings():  # that it does not name this mode, as some that draw do not
        warnings.simplefilter("ignore", UserWarning)
        env = make(name, render_mode="rgb_array")
    renderer: Any = getattr(env.unwrapped, "mujoco_renderer", None)
    if getattr(renderer, "camera_id", None) == -1:
        import mujoco

        camera = mujoco.mjtObj.mjOBJ_CAMERA
        renderer.camera_id = mujoco.mj_name2id(renderer.model, camera, "track")  # -1 if none
    return env


@contextlib.contextmanager
def drawing(needed: dict[str, str]) -> Iterator[None]:
    """Within, MuJoCo draws as the variables that `check_video` gave say, which it looks at when it
    is imported and gymnasium when it draws."""
    try:
        with variables(**needed):
            _choose_again(needed)
            yield
    finally:
        _choose_again(needed)


def _choose_again(needed: dict[str, str]) -> None:
    for name in CHOOSES:
        if needed and (module := sys.modules.get(name)):
            importlib.reload(module)


def _is_mujoco(env: Any) -> bool:
    """Whether MuJoCo draws the environment, or the one that it is built around."""
    import mujoco

    parts = [env, *vars(env).values()]
    return any(hasattr(p, "mujoco_renderer") or isinstance(p, mujoco.MjModel) for p in parts)


def _drawing_backend() -> str:
    """The first value of MUJOCO_GL with which another process can draw: one that fails may take its
    process with it. What the user has set is the only one tried. Raises UserError if none draws."""
    given = os.environ.get("MUJOCO_GL")
    for backend in [given] if given else BACKENDS:
        environment = os.environ | {"MUJOCO_GL": backend}
        command = [sys.executable, "-c", _DRAW_NOTHING]
        if subprocess.run(command, env=environment, capture_output=True).returncode == 0:
            return backend
    if given:
        raise UserError(f"MUJOCO_GL={given} cannot draw here; unset it, and --video looks for one")
    raise UserError(
        f"--video found no way to draw MuJoCo (tried {', '.join(BACKENDS)}); install a GPU's EGL "
        "driver or, on Debian and Ubuntu, `apt-get install libosmesa6`"
    )


def chosen(rows: Sequence[Row], picks: Sequence[Pick]) -> list[tuple[int, Pick, int]]:
    """(lane, which, of how many) to show, `rows` being the lanes of one evaluation: of each target
    the episodes with the lower median, the highest and the lowest return, as far as they are named
    in `picks`. An episode that is two of these is shown as the first."""
    found = []
    for _, group in groupby(enumerate(rows), key=lambda lane: target_label(lane[1])):
        order = sorted(group, key=lambda lane: (lane[1]["episode_return"], lane[0]))
        places = {"median": (len(order) - 1) // 2, "best": len(order) - 1, "worst": 0}
        first: dict[int, Pick] = {}
        for pick in PICKS:
            if pick in picks:
                first.setdefault(order[places[pick]][0], pick)
        found += [(lane, pick, len(order)) for lane, pick in first.items()]
    return found


@quiet_mujoco()
def write_videos(
    run: Path,
    rows: Sequence[Row],
    actions: Sequence[np.ndarray],
    picks: Sequence[Pick] = PICKS,
    on_frame: Callable[[int, int], None] = lambda done, frames: None,
) -> list[Path]:
    """Write chosen episodes of each target to `run`/videos, as .mp4 and small .gif; returns them.
    The environment variables that `check_video` names must be set.

    Args:
        run: run folder.
        rows: of one evaluation, a row a lane.
        actions: what the lanes did in it, [lanes, ...] for every step.
        picks: see `chosen`.
        on_frame: called after every frame with (frames done, frames in all).

    Raises:
        UserError: an episode cannot be repeated, or a file not be written.
    """
    clips = {}
    for lane, pick, number in chosen(rows, picks):
        row = rows[lane]
        checkpoint = f"{row['checkpoint']}-{row['step']}"
        words = [row["env"], checkpoint, row["context"], target_label(row), pick]
        name = "_".join(re.sub(r"[^\w.]+", "-", word).rstrip("-") for word in words)
        own = np.stack([step[lane] for step in actions[: row["length"]]])
        clips[run / "videos" / name] = Clip(row, own, f"{pick} of {number}")
    with contextlib.closing(to_film(rows[0]["env"])) as env:
        speed = float(env.metadata.get("render_fps") or FASTEST)  # steps a second
        every = math.ceil(speed / FASTEST)
        total = sum(math.ceil(len(clip.actions) / every) for clip in clips.values())
        done = count(1)

        def frames(clip: Clip) -> Iterator[np.ndarray]:
            for frame in replay(env, clip, every):
                on_frame(next(done), total)
                yield frame

        for path, clip in clips.items():
            _write(path, frames(clip), speed / every)
    return [path.with_name(path.name + end) for path in clips for end in (".mp4", ".gif")]


def replay(env: gym.Env[Any, Any], clip: Clip, every: int) -> Iterator[np.ndarray]:
    """Captioned frames [height, width, 3] of the episode, one for each `every` steps; the last step
    is among them. Raises UserError at the end if it was not the same episode."""
    steps, form = len(clip.actions), StepForm(env)
    env.reset(seed=clip.row["env_seed"])
    total, ended = 0.0, False
    cut_off = steps == clip.row["max_steps"]  # by the evaluation: the environment would go on
    for step, action in enumerate(clip.actions, 1):
        _, reward, terminated, truncated, _ = env.step(form.action(action))
        total += float(reward)
        ended = bool(terminated or truncated)
        if (steps - step) % every == 0:
            picture: Any = env.render()
            yield captioned(picture, clip, step, total)
        if ended and step < steps:
            break
    recorded = clip.row["episode_return"]
    if not (ended or cut_off) or not math.isclose(total, recorded, rel_tol=1e-6, abs_tol=1e-6):
        raise UserError(
            f"{clip.row['env']}: the actions of seed {clip.row['env_seed']} returned "
            f"{recorded:.6g} and, taken again, {total:.6g} in {step} steps: the environment is not "
            "determined by its seed and cannot be filmed; leave --video out"
        )


def captioned(picture: np.ndarray, clip: Clip, step: int, total: float) -> np.ndarray:
    """`picture` [h, w, 3], enlarged if it is small, above two lines of text and a bar that is full
    when the target is reached. Width and height are even, as encoders want them."""
    times = math.ceil(NARROWEST / picture.shape[1])
    picture = picture.repeat(times, axis=0).repeat(times, axis=1)
    picture = picture[:, : picture.shape[1] // 2 * 2]
    height, width = picture.shape[:2]
    size = width // 22
    strip = 3 * size + (height + 3 * size) % 2
    image = Image.new("RGB", (width, height + strip), (24, 24, 27))
    image.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(image)
    lines = ((0.25, clip.numbers(step, total), "#ffffff"), (1.55, clip.title, "#aaaab4"))
    for line, text, colour in lines:
        font = _font(size, text, width - size)
        draw.text((size / 2, height + line * size), text, colour, font)
    target = clip.row["target"]
    if target is not None and target > 0:
        reached = min(max(total / target, 0.0), 1.0) * width
        draw.rectangle((0, height + strip - 4, reached, height + strip), (59, 130, 246))
    return np.asarray(image)


def _font(size: int, text: str, width: float) -> Any:
    """Pillow's own font, so large that `text` fits into `width` pixels, `size` at most."""
    return _sized(min(size, int(size * width / _sized(size).getlength(text))))


_sized = cache(ImageFont.load_default)


def _write(path: Path, frames: Iterator[np.ndarray], speed: float) -> None:
    """Write `frames` [h, w, 3], `speed` a second, to `path` with .mp4 added, and the first seconds
    of them to `path` with .gif."""
    import imageio_ffmpeg

    first = next(frames)
    height, width = first.shape[:2]
    gif_size = (GIF_WIDTH, round(GIF_WIDTH * height / width))
    gif_every = math.ceil(speed / GIF_FASTEST)
    small: list[Image.Image] = []
    with (
        atomic_file(path.with_name(path.name + ".mp4")) as movie,
        atomic_file(path.with_name(path.name + ".gif")) as gif,
    ):
        encoder = imageio_ffmpeg.write_frames(
            str(movie), (width, height), fps=speed, macro_block_size=2, quality=7
        )
        with contextlib.closing(encoder):
            encoder.send(None)
            for number, frame in enumerate(chain([first], frames)):
                encoder.send(np.ascontiguousarray(frame))
                if number % gif_every == 0 and number < GIF_SECONDS * speed:
                    reduced = Image.fromarray(frame).resize(gif_size, Image.Resampling.BOX)
                    small.append(reduced.quantize(64, dither=Image.Dither.NONE))
        milliseconds = round(1000 * gif_every / speed)
        small[0].save(gif, save_all=True, append_images=small[1:], duration=milliseconds, loop=0)

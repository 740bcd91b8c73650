"""Shared by tests: isolated caches, random episodes, and small real ones of the toy environment."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decision_seq.data.episodes import Episodes, from_flat
from decision_seq.data.store import EpisodeStore, open_store

pytest.register_assert_rewrite("source_files")  # failed comparisons there show what differs

SIDES = (36, 40)  # H, W of frames: the smallest that the convolutions take
ACTIONS = 4  # with frames


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, for `-n auto`
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: tests that wait for what they have started leave one idle."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders without end. `mktemp` itself reads the names of all that it has made: of thousands of
    tests each took milliseconds."""
    base = tmp_path_factory.mktemp("homes")
    return (base / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def isolated(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's datasets. Kernels are shared: they are compiled once."""
    base = next(homes)
    base.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(base / "minari"))
    monkeypatch.setenv("DECISION_SEQ_DATA", str(base / "library"))
    for place in ("data.store", "values.fit"):
        monkeypatch.setattr(f"decision_seq.{place}.cache_dir", lambda: base / "cache")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small tensors: threads would only wait for each other, here and in commands we start."""
    os.environ["OMP_NUM_THREADS"] = "1"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_episodes(
    lengths: list[int], width: int = 3, action_dim: int = 2, seed: int = 0
) -> Episodes:
    """Random numbers in the form of episodes; every second one ends as terminated."""
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    ends = np.cumsum(lengths) - 1
    terminated, truncated = np.zeros((2, steps), bool)
    terminated[ends[::2]] = True
    truncated[ends[1::2]] = True
    return from_flat(
        "random",
        rng.standard_normal((steps, width)).astype(np.float32),
        rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32),
        rng.standard_normal(steps).astype(np.float32),
        terminated,
        truncated,
        {},
    )


def write_npz(path: Path, episodes: Episodes, **changes: np.ndarray | None) -> Path:
    """Write `episodes` in the npz layout; `changes` replace or (None) leave out arrays."""
    arrays: dict[str, np.ndarray | None] = {
        "observations": episodes.observations,
        "actions": episodes.actions,
        "rewards": episodes.rewards,
        "terminations": episodes.terminated,
        "truncations": episodes.truncated,
        "meta": np.array(json.dumps({"env_id": "Hopper-v5"})),
    } | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def frame_episodes(lengths: list[int], seed: int = 0, sides: tuple[int, int] = SIDES) -> Episodes:
    """Random frames, actions and rewards; every episode ends as terminated."""
    rng = np.random.default_rng(seed)
    steps = sum(lengths)
    terminated = np.zeros(steps, bool)
    terminated[np.cumsum(lengths) - 1] = True
    return from_flat(
        "frames",
        rng.integers(0, 256, (steps, *sides), dtype=np.uint8),
        rng.integers(0, ACTIONS, steps),
        rng.integers(-3, 4, steps).astype(np.float32),
        terminated,
        np.zeros(steps, bool),
        {"env_id": "PongNoFrameskip-v4"},
    )


def toy_episodes(count: int = 60, seed: int = 0) -> Episodes:
    """Real episodes of PointRun by its behaviour policy."""
    from decision_seq.behaviours.toy_players import steady_runner
    from decision_seq.envs.registry import make

    env = make("point-run")
    rows: list[tuple] = []
    for i in range(count):
        act = steady_runner(np.random.default_rng([seed, i]))
        observation, _ = env.reset(seed=seed + i)
        ended = False
        while not ended:
            action = act(observation)
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, reward, terminated, truncated))
            observation, ended = following, terminated or truncated
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return from_flat("toy", *columns, info={"env_id": "decision-seq/PointRun-v0"})


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An npz file of 60 real toy episodes."""
    return write_npz(tmp_path_factory.mktemp("toy") / "toy.npz", toy_episodes())


@pytest.fixture
def toy_store(toy_file: Path) -> EpisodeStore:
    """The store of `toy_file`."""
    return open_store([str(toy_file)])


@pytest.fixture
def runner_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--runner here`: commands of comparisons and sweeps run in this process."""
    from runner_here import Here

    from decision_seq.eval.compare.runners import RUNNERS

    monkeypatch.setitem(RUNNERS, "here", Here)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, driven by Debian's own chromedriver."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium" if chromium is None else "chromedriver"
        pytest.skip(
            f"{missing} is not installed (Debian: apt-get install chromium chromium-driver)"
        )
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "enable-unsafe-swiftshader",  # WebGL without a GPU
        "no-first-run",
        "disable-background-networking",
        "disable-dev-shm-usage",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()

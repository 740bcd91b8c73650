"""The page of a trained robot in Chromium: it earns what Python earns from the same start."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import TOO_WIDE, command, picture, requested, resized

from decision_seq.agents import AgentConfig, AgentSpec, SequenceAgent, load_agent
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.data.transforms import ReturnSpec
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.export import npm
from decision_seq.export.demo import make_demo
from decision_seq.policy import Policy
from decision_seq.run_config import RunConfig
from decision_seq.run_folder import agent_at
from decision_seq.settings import Context, DataConfig, EvalConfig

ZOO = Path(__file__).parents[1] / "zoo" / "hopper-decision-mamba"
DATA = DataConfig(("none",))  # of agents that were not trained
S, A = 17, 6  # of walker and cheetah
pytestmark = pytest.mark.browser
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install .[export])")


@pytest.fixture(scope="module")
def packages() -> None:
    """npm's files, in the user's cache: they are fetched once."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed (Debian: apt-get install npm)")
    try:
        npm.npm_files()
    except UserError as error:
        if "npm cannot fetch" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the zoo's hopper."""
    out = tmp_path_factory.mktemp("demo") / "page"
    command("demo", ZOO, "--out", out)
    return out


@pytest.fixture(scope="module")
def hopper(browser: Any, folder: Path) -> Iterator[str]:
    """The address of the zoo's hopper, which the browser shows, standing still."""
    with serving(folder) as address:
        browser.get_log("performance"), browser.get_log("browser")  # what other tests left
        opened(browser, address)
        yield address


class serving:
    """`python -m http.server` of a folder, in a thread."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        handler = functools.partial(Quiet, directory=folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


def run(browser: Any, code: str, *given: Any) -> Any:
    """What the body `code` of a function of (page, given) returns; page is window.decisionSeq."""
    browser.set_script_timeout(120)
    made = browser.execute_async_script(
        f"""const given = [...arguments], done = given.pop();
        decisionSeq.then(async page => {{ {code} }}).then(
          value => done({{value}}), error => done({{error: error.stack}}))""",
        *given,
    )
    assert "error" not in made, made["error"]
    return made["value"]


def opened(browser: Any, address: str) -> None:
    """The page, loaded and standing still."""
    browser.get(address)
    run(browser, "page.pause(); await page.episode.reset({start: 0})")


def page_episode(browser: Any, context: Context, target: float, steps: int) -> dict[str, Any]:
    return run(
        browser,
        """await page.episode.reset({start: 0, context: given[0], target: given[1]});
        return {...await page.episode.step(given[2]), qpos: [...page.robot.data.qpos]};""",
        context, target, steps,
    )  # fmt: skip


def python_episode(
    agent: SequenceAgent, env_id: str, context: Context, target: float, steps: int
) -> dict[str, Any]:
    """The same from gymnasium, with PyTorch."""
    env = make(env_id)
    policy = Policy(agent, context, target, 1, [0], env.action_space, engine="eager")
    observation, _ = env.reset(seed=0)
    reward, total, step, ended = 0.0, 0.0, 0, False
    while step < steps and not ended:
        action = policy.act(observation[None].astype(np.float32), np.array([reward]))[0]
        observation, reward, terminated, truncated, _ = env.step(action)
        total, step, ended = total + float(reward), step + 1, terminated or truncated
    return {"total": total, "steps": step, "ended": ended, "qpos": env.unwrapped.data.qpos.copy()}


@pytest.mark.parametrize(
    ("context", "target", "limit"),
    [("window", 3600, 60), ("stream", 3600, 300), ("stream", 500, 400)],
)
def test_it_earns_what_python_earns(
    browser: Any, hopper: str, context: Context, target: float, limit: int
) -> None:
    """In 300 steps, a window in 60; asked for little, the hopper falls before 400, when Python's
    does."""
    agent = load_agent(agent_at(ZOO, 4000))
    here = python_episode(agent, "Hopper-v5", context, target, limit)
    there = page_episode(browser, context, target, limit)
    assert there["ended"] == here["ended"] == (target == 500)
    assert there["steps"] == pytest.approx(here["steps"], abs=5)
    assert there["total"] == pytest.approx(here["total"], rel=0.02)


def test_the_slider_asks(browser: Any, hopper: str) -> None:
    most = page_episode(browser, "stream", 3600, 300)["total"]
    less = run(
        browser,
        """const slider = document.getElementById('target');
        slider.value = 1500; slider.dispatchEvent(new Event('input'));
        await page.episode.reset({start: 0});
        return {...await page.episode.step(300), asked: page.episode.target};""",
    )
    assert less["asked"] == 1500 and less["total"] < 0.95 * most


def test_a_push_pushes(browser: Any, hopper: str) -> None:
    speeds = run(
        browser,
        """const speeds = [];
        for (const push of [false, true]) {
          await page.episode.reset({start: 0});
          if (push) document.getElementById('push').click();
          await page.episode.step(2);  // a push is over after one step
          speeds.push(page.robot.data.qvel[0]);
        }
        return speeds;""",
    )
    assert speeds[1] < speeds[0] - 0.3


@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_drawn_and_nothing_sticks_out(browser: Any, hopper: str, width: int) -> None:
    resized(browser, width)
    run(browser, "page.episode.step(3); await new Promise(requestAnimationFrame);")
    client, needed = browser.execute_script(
        "const e = document.documentElement; return [e.clientWidth, e.scrollWidth]"
    )
    assert client == width and needed <= client
    assert browser.execute_script(TOO_WIDE, False) == []
    assert not browser.find_element("id", "status").is_displayed()
    box = browser.find_element("id", "scene").rect
    x, y, w, h = (int(box[side]) for side in ("x", "y", "width", "height"))
    shot = picture(browser)[y : y + h, x : x + w].reshape(-1, 3).astype(int)
    brown = (shot[:, 0] - shot[:, 2] > 40).mean()  # the hopper; sky and floor are blue
    assert 0.002 < brown < 0.2


def test_nothing_complains_and_nothing_is_fetched_from_elsewhere(browser: Any, hopper: str) -> None:
    run(browser, "await page.episode.step(3);")
    log = browser.get_log("browser")  # the software renderer notes on its own speed
    assert [e for e in log if e["level"] == "SEVERE" or e["source"] != "rendering"] == []
    asked = requested(browser)
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((hopper, "data:"))] == []


def test_the_folder_is_small_and_whole(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25e6
    names = {str(file.relative_to(folder)) for file in files}
    assert {"index.html", "stream/policy.onnx", "window/policy.json", "robot.xml"} <= names


# v4 pays for the step of the fall
ROLLS = [
    ("Walker2d-v4", 40),
    pytest.param("Walker2d-v5", 40, marks=pytest.mark.slow),
    ("HalfCheetah-v5", 16),
]


@pytest.mark.parametrize(("env_id", "steps"), ROLLS)
def test_every_robot(browser: Any, packages: None, tmp_path: Path, env_id: str, steps: int) -> None:
    """Untrained agents. Wriggling is chaotic: rounding grows tenfold in four steps."""
    agent = untrained(S, A)
    summary = {"name": "none", "hash": "0", "return_mean": 1.0, "returns": [0.0, 900.0]}
    (tmp_path / "dataset.json").write_text(json.dumps(summary))
    config = RunConfig(env=env_id, data=DATA, agent=agent.config, eval=EvalConfig(targets=[500.0]))
    make_demo(agent, config, tmp_path / "page", {}, tmp_path)
    with serving(tmp_path / "page") as address:
        opened(browser, address)
        there = page_episode(browser, "stream", 500.0, steps)
    here = python_episode(agent, env_id, "stream", 500.0, steps)
    assert (there["steps"], there["ended"]) == (here["steps"], here["ended"])
    assert there["total"] == pytest.approx(here["total"], abs=0.01)
    np.testing.assert_allclose(there["qpos"], here["qpos"], atol=0.01)


def untrained(observation: int, actions: int) -> SequenceAgent:
    """With the actions of large random weights."""
    torch.manual_seed(0)
    backbone = BackboneConfig.registry["mamba"](width=16, layers=1, dropout=0.0)
    settings: AgentConfig = ReturnConditionedConfig(
        context_length=4, returns=ReturnSpec(scale=1000.0), backbone=backbone
    )
    spec = AgentSpec((observation,), actions, False, max_timestep=1000)
    agent = settings.agent(settings, spec).eval()
    with torch.no_grad():
        for parameter in agent.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2)
    return agent


def test_what_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = untrained(105, 8)
    ant = RunConfig(env="Ant-v5", data=DATA, agent=agent.config)
    with pytest.raises(UserError, match="shows Hopper, Walker2d and HalfCheetah only"):
        make_demo(agent, ant, tmp_path / "page", {}, tmp_path)
    with pytest.raises(UserError, match="is missing; run `npm pack @mujoco/mujoco@"):
        npm.npm_files(tmp_path)
    (tmp_path / npm.PACKAGES[0].archive).write_bytes(b"another")
    with pytest.raises(UserError, match="is not @mujoco/mujoco"):
        npm.npm_files(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(npm, "cache_dir", lambda: tmp_path)
    with pytest.raises(UserError, match=r"npm is not installed.*--packages"):
        npm.npm_files()

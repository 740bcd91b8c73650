"""The examples, as a user would run them, on a small trained run."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from ops_inputs import needs_c
from small_agents import trained_toy

import decision_seq.envs.registry  # noqa: F401, which registers the toy environment
from decision_seq.agents import load_agent
from decision_seq.eval.rollout.protocol import evaluation_config
from decision_seq.export.bundle import export_policy
from decision_seq.policy import load_policy
from decision_seq.run_folder import agent_path

EXAMPLES = Path(__file__).parents[1] / "examples"
ENV, TARGET = "decision-seq/PointRun-v0", 12.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_file: Path) -> Path:
    return trained_toy(tmp_path_factory.mktemp("run"), toy_file)


def said(example: str, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [example, *map(str, words)])
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    return capsys.readouterr().out


def returned(text: str) -> float:
    found = re.search(r"return (-?[\d.]+)", text)
    assert found, text
    return float(found[1])


def play(run: Path, seed: int = 0) -> tuple[float, list[str], list[np.ndarray]]:
    """The return of an episode, what was observed line by line, and the actions."""
    env = gym.make(ENV)
    policy = load_policy(run, "stream", TARGET, action_space=env.action_space)
    (observation, _), reward, total, ended = env.reset(seed=seed), 0.0, 0.0, False
    lines, actions = [], []
    while not ended:
        lines.append(" ".join(f"{x:.9g}" for x in [reward, *observation]))
        actions.append(policy.act(observation, reward).copy())
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        total, ended = total + float(reward), terminated or truncated
    return total, lines, actions


def test_python_loops(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = play(run)[0]
    text = said("gymnasium_loop.py", capsys, run, ENV, TARGET)
    assert returned(text) == pytest.approx(expected, abs=0.051)
    text = said("vector_env.py", capsys, run, ENV, TARGET)
    assert text.startswith(("8 episodes", "9 episodes", "10 episodes")) and returned(text) > 0


def test_stable_baselines3(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    assert returned(said("sb3_evaluate.py", capsys, run, ENV, TARGET)) > 0


def exported(run: Path, to: str, out: Path) -> None:
    config = evaluation_config(run)
    export_policy(load_agent(agent_path(run)), config, to, out, "stream", TARGET)  # type: ignore[arg-type]


def test_onnxruntime(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    exported(run, "onnx", tmp_path / "policy")
    text = said("onnxruntime_loop.py", capsys, tmp_path / "policy", ENV)
    assert returned(text) == pytest.approx(play(run)[0], abs=0.051)
    code = (EXAMPLES / "onnxruntime_loop.py").read_text().split('"""')[2].splitlines()
    assert len(code) <= 30


@needs_c
@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_a_c_program(run: Path, tmp_path: Path) -> None:
    exported(run, "c", tmp_path / "policy")
    make = ["make", "-C", tmp_path / "policy", f"PROGRAM={EXAMPLES / 'controller.c'}", "CFLAGS=-O1"]
    subprocess.run(make, check=True, capture_output=True)
    _, lines, actions = play(run)
    text = "\n".join([*lines, "", *lines, ""])  # the same episode again
    done = subprocess.run(
        "./controller", cwd=tmp_path / "policy", input=text, capture_output=True, text=True
    )
    answers = np.array([[float(x) for x in line.split()] for line in done.stdout.splitlines()])
    np.testing.assert_allclose(answers, np.concatenate([actions, actions]), atol=1e-4)

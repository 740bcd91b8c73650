"""Exported policies: over the registry, without this package, by every compiler that there is."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from ops_inputs import needs_c
from small_agents import AGENTS, KINDS, every_backbone, trained_toy

from decision_seq.agents import AgentConfig, AgentSpec, SequenceAgent
from decision_seq.agents.behaviour_cloning import BehaviourCloningConfig
from decision_seq.agents.max_return import MaxReturnConfig
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.backbones.attention import AttentionConfig
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.cli import main
from decision_seq.data.transforms import ReturnSpec
from decision_seq.envs.lanes import Lanes
from decision_seq.errors import UserError
from decision_seq.export.bundle import WRITERS, export_policy
from decision_seq.export.c_program import RULES
from decision_seq.export.record import TOLERANCE, Record, play
from decision_seq.export.step import PolicyStep
from decision_seq.policy import Policy
from decision_seq.policy.native.pack import unpackable
from decision_seq.policy.policy import gumbel_noise
from decision_seq.run_config import RunConfig
from decision_seq.settings import Context, DataConfig
from decision_seq.spaces import table_of

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install .[export])")
K, STEPS = 4, 30
both_contexts = pytest.mark.parametrize("context", ["window", "stream"])
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
SLOW = (pytest.mark.slow,)
SPECS = {
    "vectors": AgentSpec((3,), 2, False, max_timestep=9),
    "discrete": AgentSpec((3,), 4, True, max_timestep=9),
    "frames": AgentSpec((84, 84), 4, True, max_timestep=9),
}

LANES = """
#include "agent.h"

int main(void) {
    Agent *both = agent_open("weights.bin", 2), *one = agent_open("weights.bin", 1);
    Agent *two = agent_open("weights.bin", 1);
    float seen[2][OBSERVATION], reward[2];
    Action together[2][ACTION], alone[2][ACTION];
    for (int t = 0; t < 20; t++) {
        for (int b = 0; b < 2; b++) {
            reward[b] = (float)(t % 3 - b);
            for (int i = 0; i < OBSERVATION; i++) seen[b][i] = (float)((t * (i + 1) + b) % 5) - 2;
        }
        if (t == 7) agent_begin(both, 1), agent_begin(two, 0);
        agent_act(both, seen[0], reward, 0, 0, together[0]);
        agent_act(one, seen[0], reward, 0, 0, alone[0]);
        agent_act(two, seen[1], reward + 1, 0, 0, alone[1]);
        for (int b = 0; b < 2; b++)
            for (int i = 0; i < ACTION; i++)
                if (together[b][i] != alone[b][i]) return 1;
    }
    return together[0][0] == together[1][0]; /* they have seen different things */
}
"""


class Drawn(Lanes):
    """One lane of random observations and rewards, in episodes of twelve steps."""

    def __init__(self, spec: AgentSpec) -> None:
        self.shape, self.draw, self.steps = spec.observation_shape, np.random.default_rng(0), 0
        self.frames = spec.frames
        box = spaces.Box(-0.9, 0.9, (spec.action_dim,), np.float32)  # which clips some
        self.action_space = spaces.Discrete(spec.action_dim) if spec.discrete else box

    def reset(self, seeds: Any) -> np.ndarray:
        self.steps = 0
        return self.observe()

    def step(self, actions: np.ndarray, active: np.ndarray) -> Any:
        self.steps += 1
        over = np.array([self.steps == 12])
        return self.observe(), self.draw.standard_normal(1), over, np.zeros(1, bool)

    def observe(self) -> np.ndarray:
        if self.frames:
            return self.draw.integers(0, 256, (1, 4, *self.shape), np.uint8)
        return self.draw.standard_normal((1, *self.shape), np.float32)


def agent_for(
    data: str, kind: str, config: type[AgentConfig] = ReturnConditionedConfig, **more: Any
) -> SequenceAgent:
    torch.manual_seed(0)
    backbone = BackboneConfig.registry[kind](width=16, layers=2, dropout=0.0)
    fields = {"context_length": K, "returns": ReturnSpec(scale=10.0), "backbone": backbone}
    made = config(**(fields | {"timestep_init": "published"} | more))  # type: ignore[arg-type]
    agent = made.agent(made, SPECS[data]).eval()
    with torch.no_grad():
        for parameter in agent.parameters():  # so that everything matters
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return agent


def recorded(agent: SequenceAgent, context: Context) -> tuple[PolicyStep, Record]:
    lanes = Drawn(agent.spec)
    record = play(agent, lanes, context, 7.0, steps=STEPS)
    return PolicyStep(agent, context, lanes.action_space), record


def written(to: str, agent: SequenceAgent, context: Context, folder: Path) -> Record:
    """Exported and replayed: no step is far off."""
    step, record = recorded(agent, context)
    _, difference, _ = WRITERS[to](step, record, folder)
    assert record.begins.sum() == 3
    assert np.ptp(record.prediction) > 1e-2
    assert difference is not None and difference <= TOLERANCE
    return record


@both_contexts
@every_backbone
def test_onnx_predicts_what_the_agent_does(kind: str, context: Context, tmp_path: Path) -> None:
    written("onnx", agent_for("vectors", kind), context, tmp_path)


@both_contexts
@pytest.mark.parametrize("config", AGENTS)
def test_onnx_of_agents_that_sample(
    config: type[AgentConfig], context: Context, tmp_path: Path
) -> None:
    agent = agent_for("discrete", "mamba", config, temperature=0.5)
    record = written("onnx", agent, context, tmp_path)
    greedy = record.prediction.argmax(-1)
    assert len(set(record.action.tolist())) > 2 and (record.action != greedy).any()


def test_onnx_of_frames(tmp_path: Path) -> None:
    record = written("onnx", agent_for("frames", "mamba"), "stream", tmp_path)
    assert record.observations["observation"].dtype == np.uint8


@both_contexts
def test_lanes_are_as_many_as_are_given_and_begin_when_they_like(
    context: Context, tmp_path: Path
) -> None:
    """One file for one lane and for three; a lane begins again; a target changes."""
    import onnxruntime

    sampling = agent_for("discrete", "attention", BehaviourCloningConfig, temperature=1.0)
    for agent in (sampling, agent_for("vectors", "hybrid")):
        step, record = recorded(agent, context)
        WRITERS["onnx"](step, record, tmp_path)
        session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
        draw, size = np.random.default_rng(0), agent.spec.observation_shape[0]
        space = Drawn(agent.spec).action_space
        policy = Policy(agent, context, 7.0, 3, action_space=space, engine="eager")
        state = np.zeros((3, step.state_size), np.float32)
        for t in range(10):
            if t == 6:
                policy.reset([1])
                state[1] = 0
            noise = gumbel_noise(policy.seed, policy.timestep, agent.spec.action_dim)
            seen, reward = draw.standard_normal((3, size)), draw.random(3)
            expected = policy.act(seen, reward)
            given = {"observation": seen, "reward": reward, "target_return": np.full(3, 7.0)}
            given |= {"state": state} | ({"noise": noise} if step.samples else {})
            feed = {name: value.astype(np.float32) for name, value in given.items()}
            alone = session.run(None, {name: value[:1] for name, value in feed.items()})
            action, _, state = session.run(None, feed)
            np.testing.assert_allclose(action, expected, atol=TOLERANCE)
            np.testing.assert_allclose(alone[0], expected[:1], atol=TOLERANCE)


class Nested(gym.Env[Any, Any]):
    """A picture, a vector and a choice; two choices, switches and a vector without bounds."""

    def __init__(self) -> None:
        picture = spaces.Box(0, 255, (9, 8, 3), np.uint8)
        state, unbounded = spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-np.inf, 0.5, (2,))
        self.observation_space = spaces.Dict(eye=picture, kind=spaces.Discrete(3), state=state)
        choices = spaces.MultiDiscrete([3, 4], start=[1, -1])
        self.action_space = spaces.Dict(go=unbounded, how=choices, on=spaces.MultiBinary(2))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.mark.parametrize(
    "to",
    [
        "onnx",
        pytest.param("c", marks=[needs_c, needs_make]),
        pytest.param("torch", marks=pytest.mark.slow),
    ],
)
def test_several_parts(to: Literal["onnx", "torch", "c"], tmp_path: Path) -> None:
    """Each image is an input of its own; a row of numbers is the action, sampled where it is made
    of choices."""
    gym.register("Nested-v0", Nested, max_episode_steps=90)
    env = Nested()
    seen, acts = table_of(env.observation_space), table_of(env.action_space, acts=True)
    spec = AgentSpec((), acts.features, False, 90, observation_space=seen, action_space=acts)
    backbone = BackboneConfig.registry["mamba"](width=16, layers=1, dropout=0.0)
    settings: dict[str, Any] = {"context_length": K, "temperature": 0.5, "backbone": backbone}
    config = ReturnConditionedConfig(returns=ReturnSpec(scale=10.0), frame_stack=2, **settings)
    torch.manual_seed(0)
    agent = config.agent(config, spec).eval()
    run = RunConfig(env="Nested-v0", data=DataConfig(("none",)), agent=agent.config)
    try:
        made = export_policy(agent, run, to, tmp_path / "out", "stream", 90.0)
    finally:
        del gym.registry["Nested-v0"]
    assert made.difference is not None and made.difference <= TOLERANCE
    check = np.load(tmp_path / "out" / "check.npz")
    assert check["observation"].shape == (200, 6) and check["observation.eye"].shape[1:] == (
        2,
        9,
        8,
        3,
    )
    rows = check["action"]
    assert {len(set(rows[:, i])) for i in (2, 3, 4, 5)} == {2, 3, 4} and rows.shape == (200, 6)
    policy = json.loads((tmp_path / "out" / "policy.json").read_text(), parse_constant=pytest.fail)
    assert policy["actions"]["low"] == [None, None, 0, 0, 0, 0]
    assert [part["columns"] for part in policy["actions"]["parts"]] == [[0, 2], [2, 4], [4, 6]]
    inputs = {part["path"]: part["input"] for part in policy["observations"]}
    assert inputs == {"eye": "observation.eye", "kind": "observation", "state": "observation"}
    if to == "onnx":  # what is chosen from the same draws
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "out" / "policy.onnx")
        names = [given["name"] for given in policy["inputs"]]
        state = np.zeros((1, policy["outputs"][2]["shape"][1]), np.float32)
        for t in range(90):
            given = {name: check[name][t : t + 1] for name in names if name != "state"}
            action, _, state = session.run(None, given | {"state": state})
            np.testing.assert_allclose(action[0], rows[t], atol=TOLERANCE)


KNOWN_TO_C = ("attention", "conv", "hybrid", "mamba", "pointwise")
OTHERS = [  # a window is the same operations over several tokens: one by default, all with -m slow
    pytest.param(kind, context, marks=() if context == "stream" or kind == "mamba2" else SLOW)
    for kind in sorted(set(KINDS) - set(KNOWN_TO_C))
    for context in ("stream", "window")
]


@needs_c
@needs_make
@both_contexts
def test_c_predicts_what_the_agent_does(context: Context, tmp_path: Path) -> None:
    """Of every mixer that C knows, one a layer."""
    kinds = tuple(kind for kind in KNOWN_TO_C if kind != "hybrid")
    backbone = BackboneConfig.registry["hybrid"](width=16, layers=len(kinds), mixers=kinds)  # type: ignore[call-arg]
    agent = agent_for("vectors", "hybrid", backbone=backbone)
    written("c", agent, context, tmp_path)


@needs_c
@needs_make
@pytest.mark.parametrize(("kind", "context"), OTHERS)
def test_c_carries_out_any_other_mixer(
    kind: str, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-O1")  # compiling is what takes long
    agent = agent_for("vectors", kind)
    assert unpackable(agent)
    written("c", agent, context, tmp_path)


@needs_c
@needs_make
@pytest.mark.parametrize("to", ["onnx", "c"])
def test_a_dense_mixer_before_mamba_is_exported(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-O1")
    backbone = MambaConfig(width=16, layers=2, dropout=0.0, dense=3)
    written(to, agent_for("vectors", "mamba", backbone=backbone), "stream", tmp_path)


@needs_c
@needs_make
@pytest.mark.parametrize("to", ["onnx", "c"])
def test_rotary_positions_are_exported(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-O1")
    agents = {}
    for positions in ("none", "rotary"):
        backbone = AttentionConfig(width=16, layers=2, heads=2, positions=positions)
        agents[positions] = agent_for("vectors", "attention", backbone=backbone)
    without = recorded(agents["none"], "stream")[1].prediction  # the same weights
    record = written(to, agents["rotary"], "stream", tmp_path)
    assert np.abs(record.prediction - without).max() > 100 * TOLERANCE  # so leaving it out shows


@needs_c
@needs_make
def test_c_carries_out_other_agents_and_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-O1")
    sampling = agent_for("discrete", "mamba", MaxReturnConfig, temperature=0.5)
    frames = agent_for("frames", "pointwise")
    for agent, name in ((sampling, "a"), (frames, "b")):
        assert unpackable(agent)
        (tmp_path / name).mkdir()
        written("c", agent, "window", tmp_path / name)


@needs_c
@needs_make
def test_c_lanes_leave_no_trace_in_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lanes at once, one of which begins anew, do as each alone."""
    monkeypatch.setenv("CFLAGS", "-O1")
    written("c", agent_for("vectors", "lstm"), "stream", tmp_path)
    (tmp_path / "lanes.c").write_text(LANES)
    make = ["make", "-C", str(tmp_path), "CC=cc", "CFLAGS=-O1", "PROGRAM=lanes.c"]
    built = subprocess.run(make, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert subprocess.run(["./lanes"], cwd=tmp_path).returncode == 0


def test_c_says_which_operation_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step, record = recorded(agent_for("vectors", "lstm"), "stream")
    monkeypatch.delitem(RULES, "tanh")
    with pytest.raises(UserError, match="--to c has no aten::tanh, which the agent uses"):
        WRITERS["c"](step, record, tmp_path)


@needs_c
@needs_make
@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_c_sources_for_machines_without_avx2(compiler: str, tmp_path: Path) -> None:
    """Alone in a folder, with warnings as errors, sampling discrete actions, and again once a
    weight was changed, which has to show."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    agent = agent_for("discrete", "hybrid", BehaviourCloningConfig, temperature=0.5)
    written("c", agent, "stream", tmp_path)
    flags = "-O1 -mno-avx2" if platform.machine() == "x86_64" else "-O1"
    make = ["make", "-C", str(tmp_path), f"CC={compiler}", f"CFLAGS={flags}"]
    built = subprocess.run(make, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run(["./policy"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0 and "30 steps" in ran.stdout, ran.stdout + ran.stderr
    weights = np.fromfile(tmp_path / "weights.bin", np.float32)
    weights[-64:] += 0.01  # the bias of the action head
    weights.tofile(tmp_path / "weights.bin")
    assert subprocess.run(["./policy"], cwd=tmp_path, capture_output=True).returncode == 1


def test_a_small_program_of_torch(tmp_path: Path) -> None:
    written("torch", agent_for("vectors", "pointwise"), "stream", tmp_path)


@pytest.mark.slow  # torch.export takes its time
@both_contexts
@every_backbone
def test_a_program_of_torch_predicts_what_the_agent_does(
    kind: str, context: Context, tmp_path: Path
) -> None:
    written("torch", agent_for("vectors", kind), context, tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_file: Path) -> Path:
    return trained_toy(tmp_path_factory.mktemp("run"), toy_file)


def command(*words: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["decision-seq", *map(str, words)])
        main()


REPLAY = """
import json, sys
import numpy as np
sys.modules["decision_seq"] = None  # as where it is not installed
folder, kind = sys.argv[1:]
policy = json.load(open(f"{folder}/policy.json"))
check = np.load(f"{folder}/check.npz")
names = [given["name"] for given in policy["inputs"]]
if kind == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(f"{folder}/{policy['file']}")
    run = lambda given: session.run(None, dict(zip(names, given)))
else:
    import torch
    module = torch.export.load(f"{folder}/{policy['file']}").module()
    run = lambda given: [out.numpy() for out in module(*map(torch.from_numpy, given))]
state, largest = np.zeros((1, policy["inputs"][3]["shape"][1]), np.float32), 0.0
for t in range(200):
    if check["begins"][t]:
        state = np.zeros_like(state)
    seen = [check[name][t : t + 1] for name in names if name != "state"]
    action, _, state = run([*seen, state])
    largest = max(largest, float(np.abs(action[0] - check["action"][t]).max()))
print(largest)
"""


@pytest.mark.parametrize("to", ["onnx", pytest.param("torch", marks=pytest.mark.slow)])
def test_what_is_exported_needs_none_of_this(
    to: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("export", run, "--to", to, "--out", tmp_path / to, "--context", "stream")
    assert "200 steps replayed; largest difference" in capsys.readouterr().out
    described = json.loads((tmp_path / to / "policy.json").read_text())
    assert described["env"] == "point-run" and described["target_return"] == 5
    assert described["data"]["hash"] and described["agent_hash"] and described["step"] == 6
    assert described["opset"] == (17 if to == "onnx" else None)
    words = [sys.executable, "-c", REPLAY, str(tmp_path / to), to]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= TOLERANCE


def test_onnx_is_plain_operators(tmp_path: Path) -> None:
    import onnx

    step, record = recorded(agent_for("vectors", "mamba"), "stream")
    WRITERS["onnx"](step, record, tmp_path)
    model = onnx.load(tmp_path / "policy.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert [i.name for i in model.graph.input] == list(step.inputs)


def test_what_predicts_otherwise_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "broken"
    monkeypatch.setattr("decision_seq.export.bundle.TOLERANCE", 0.0)
    with pytest.raises(SystemExit) as ended:
        command("export", run, "--to", "onnx", "--out", folder)
    assert ended.value.code == 2 and not folder.exists()


def test_misuse_is_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command("export", run, "--to", "c", "--out", tmp_path)
    assert f"{tmp_path}: exists; choose another --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("export", run, "--to", "onnx", "--out", tmp_path / "o", "--env", "hopper")
    assert "observations of width 2, but Hopper-v5" in capsys.readouterr().err

"""Environments as people write and name them: arguments, faulty interfaces, packages that lack."""

from __future__ import annotations

import sys
import types
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from decision_seq.envs import missing
from decision_seq.envs.identity import Identity
from decision_seq.envs.registry import (
    MUJOCO_IDS,
    env_id,
    identity_of,
    make,
    named_by_data,
    recorded_id,
)
from decision_seq.envs.variants import difference, fitting, stand_in
from decision_seq.errors import UserError, say_once

BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.fixture
def register():  # type: ignore[no-untyped-def]
    """Register an environment, and forget it afterwards."""
    names = []

    def add(name: str, entry_point: Any, **options: Any) -> str:
        gym.register(name, entry_point, **options)
        names.append(name)
        return name

    yield add
    for name in names:
        del gym.registry[name]


class Plain(gym.Env):
    """As gymnasium asks for it."""

    observation_space, action_space = BOX, spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, mode: str = "easy", size: int = 3, render_mode: str | None = None) -> None:
        self.mode, self.size = mode, size

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        return np.zeros(2, np.float32), 1.0, False, False, {}


# ---- identity -----------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.text(min_size=1), values, max_size=3))
def test_an_identity_is_what_its_text_says(arguments: dict[str, Any]) -> None:
    text = str(Identity("Task-v0", arguments))
    assert str(Identity.parse(text)) == text
    again = Identity.parse("package.module:" + text)
    assert again == Identity.parse(text) and again.module == "package.module"
    assert Identity.parse(text).arguments.keys() == arguments.keys()


def test_arguments_reach_the_environment() -> None:
    env = make("hopper?terminate_when_unhealthy=false&max_episode_steps=7&healthy_z_range=[0.2,9]")
    env.reset(seed=0)
    ends = [env.step(np.ones(3))[2:4] for _ in range(7)]
    assert ends == [(False, False)] * 6 + [(False, True)]
    assert env.unwrapped._healthy_z_range == [0.2, 9]  # type: ignore[attr-defined]
    assert env.spec is not None and str(identity_of(env.spec)) == (
        "Hopper-v5?healthy_z_range=[0.2,9]&max_episode_steps=7&terminate_when_unhealthy=false"
    )


def test_what_holds_anyway_is_no_argument() -> None:
    assert env_id("Hopper-v5?max_episode_steps=1000&forward_reward_weight=1.0") == "Hopper-v5"
    assert env_id("memory-8?lag=8") == "decision-seq/Memory8-v0"
    assert env_id("hopper?width=64&render_mode=rgb_array") == "Hopper-v5"
    assert env_id("hopper?healthy_reward=2.0") == env_id("Hopper-v5?healthy_reward=2")
    assert recorded_id("decision_seq.envs.toy:point-run?max_episode_steps=5") == (
        "decision_seq.envs.toy:decision-seq/PointRun-v0?max_episode_steps=5"
    )


@pytest.mark.parametrize("text", ["hopper?5", "hopper?=5", "hopper?a=1&b"])
def test_an_argument_needs_a_value(text: str) -> None:
    with pytest.raises(UserError, match="is no argument; write them like"):
        make(text)


def test_data_open_no_files_and_import_nothing() -> None:
    assert named_by_data("Hopper-v5?healthy_z_range=[0.2,9]&mode=very_hard") is not None
    for text in ("Hopper-v5?xml_file=/home/me/a.xml", "X-v0?env_id=evil:Task-v0", "evil:X-v0"):
        assert named_by_data(text) is None
    assert named_by_data("X-v0?a=[1,%22../b%22]") is None
    assert named_by_data("X-v0?oops") is None


# ---- do two belong together? --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "used", "kind"),
    [
        ("HalfCheetah-v5", "walker2d", "environment"),
        ("HalfCheetah-v2", "Walker2d-v3", "environment"),
        ("PongNoFrameskip-v4", "breakout", "environment"),
        ("Hopper-v5?healthy_reward=2", "hopper", "arguments"),
        ("Hopper-v5?healthy_reward=2", "hopper?healthy_reward=3", "arguments"),
        ("memory-8", "memory-32", "arguments"),
        ("Swimmer-v5", "Swimmer-v5?forward_reward_weight=5", "added arguments"),
        ("Hopper-v2", "hopper", "version"),
        ("Walker2d-v4", "Walker2d-v5", "version"),
        ("Hopper-v5?max_episode_steps=120", "hopper", "time limit"),
        ("Elsewhere-v0", "hopper", "name"),
        ("Hopper-v2", "Hopper-v4", None),
        ("Ant-v2", "d4rl-ant", None),
        ("ALE/Pong-v5", "pong", None),  # sticky actions are the protocol's choice
        ("Hopper-v5?max_episode_steps=1000", "hopper", None),
        ("Elsewhere-v0?a=1", "Elsewhere-v0?a=1.0", None),
    ],
)
def test_how_two_environments_differ(recorded: str, used: str, kind: str | None) -> None:
    found = difference(recorded, used)
    assert (found and found.kind) == kind
    assert found is None or found.certain == (kind in ("environment", "arguments"))


def test_one_class_by_two_names_is_one_environment(register) -> None:  # type: ignore[no-untyped-def]
    register("One-v0", Plain)
    register("Other-v0", Plain)
    register("Third-v0", Plain, kwargs={"size": 5})
    assert difference("One-v0", "Other-v0") is None
    third = difference("One-v0", "Third-v0")
    assert third and third.kind == "arguments"


def test_versions_and_switches_that_fit_a_width_are_found() -> None:
    assert stand_in("Hopper-v3") == "Hopper-v4" and stand_in("hopper") == "Hopper-v5"
    assert fitting("Ant-v2", "Ant-v4", 111) == "decision-seq/D4RLAnt-v2"
    assert fitting(None, "ant", 27) == "Ant-v5?include_cfrc_ext_in_observation=false"
    assert fitting(None, "Ant-v5", 111) == "Ant-v4?use_contact_forces=true"
    assert fitting(None, "hopper", 5) is None


def test_what_is_tried_for_a_suggestion_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """Old versions are out of date, which who asked for another need not hear."""
    assert fitting(None, "Hopper-v5", 5) is None
    assert not recwarn.list


def test_d4rls_ant_sees_no_forces_and_moves_as_version_4() -> None:
    ours, plain = make("d4rl-ant"), make("Ant-v4")
    for env in (ours, plain):
        env.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 8)):
        wide, narrow = ours.step(action), plain.step(action)
        assert np.array_equal(wide[0][:27], narrow[0]) and wide[0].shape == (111,)
        assert not wide[0][27:].any() and wide[1] == narrow[1]


# ---- environments that do not keep to the interface --------------------------------------------


class OldReset(Plain):
    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(2)


class NoOptions(Plain):
    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        return np.zeros(2), {}


class NoInfo(Plain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2)


class FourValues(Plain):
    def step(self, action: np.ndarray) -> Any:
        return np.zeros(2), 1.0, False, {}


class OtherShape(Plain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1), {}


class OtherShapeLater(Plain):
    def step(self, action: np.ndarray) -> Any:
        return np.zeros((1, 2)), 1.0, False, False, {}


class Ragged(Plain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return [np.zeros(2), 1.0], {}


class RewardArray(Plain):
    def step(self, action: np.ndarray) -> Any:
        return np.zeros(2), np.ones(1), False, False, {}


class NoReward(Plain):
    def step(self, action: np.ndarray) -> Any:
        return np.zeros(2), None, False, False, {}


class TimeAsInfo(Plain):
    def step(self, action: np.ndarray) -> Any:
        return np.zeros(2), 1.0, False, {"TimeLimit.truncated": False}, {}


class NoInfoLater(Plain):
    def step(self, action: np.ndarray) -> Any:
        return np.zeros(2), 1.0, False, False, None


class Broken(Plain):
    def step(self, action: np.ndarray) -> Any:
        raise KeyError("joint")


class Nothing(Plain):
    observation_space = None  # type: ignore[assignment]


class Old:
    """Of the old gym, or of nothing."""

    observation_space, action_space = BOX, spaces.Discrete(2)


class Asserting(Plain):
    def __init__(self) -> None:
        raise AssertionError


class Demanding(Plain):
    def __init__(self, env_name: str) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OldReset, r"reset failed .*seed.*reset\(self, \*, seed=None, options=None\)"),
        (NoOptions, r"reset failed .*options.*reset\(self, \*, seed=None, options=None\)"),
        (NoInfo, r"reset gave an array .*returns \(observation, info\)"),
        (FourValues, r"step gave 4 values .*`truncated` a time limit"),
        (OtherShape, r"reset gave an array of float64 of shape \(1,\) as observation"),
        (OtherShapeLater, r"step gave an array of float64 of shape \(1, 2\) as observation"),
        (Ragged, "reset gave list .* as observation"),
        (RewardArray, "reward is an array .*one number"),
        (NoReward, "reward is NoneType None; it must be one number"),
        (TimeAsInfo, "`truncated` is dict"),
        (NoInfoLater, "`info` is NoneType"),
        (Broken, "step failed at the first try .*joint"),
        (Nothing, "its observation space is None, which no agent reads"),
        (Old, "must inherit from the gymnasium.Env class"),
        (Asserting, r"cannot be made \(AssertionError\)"),
        (Demanding, r"env_name.*written `Faulty-v0\?name=value`; it takes env_name"),
    ],
)
def test_a_faulty_environment_is_one_sentence(register, kind: type, said: str) -> None:  # type: ignore[no-untyped-def]
    name = register("Faulty-v0", kind, max_episode_steps=9)
    for _ in range(2):  # and stays refused
        with pytest.raises(UserError, match=said) as error:
            make(name)
        assert "\n" not in str(error.value)


def test_what_is_asked_of_an_environment_once_is_not_asked_again(register) -> None:  # type: ignore[no-untyped-def]
    class Counting(Plain):
        steps = 0

        def step(self, action: np.ndarray) -> Any:
            Counting.steps += 1
            return super().step(action)

    name = register("Counting-v0", Counting)
    for _ in range(3):
        make(name).close()
    assert Counting.steps == 1


@pytest.mark.parametrize("name", [*MUJOCO_IDS, "CartPole-v1", "Pendulum-v1", "point-run"])
def test_environments_that_keep_to_it_pass(name: str) -> None:
    make(name).close()


def test_goals_that_only_info_tells_are_spoken_of(register, capsys) -> None:  # type: ignore[no-untyped-def]
    class Goal(Plain):
        moves = True

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            seen, _ = super().reset(seed=seed)
            place = self.np_random.uniform(size=2) if self.moves else np.ones(2)
            return seen, {"goal": place}

    class Fixed(Goal):
        moves = False

    say_once.cache_clear()
    make(register("Fixed-v0", Fixed))
    assert "goal" not in capsys.readouterr().err
    name = register("Goal-v0", Goal)
    make(name), make(name)
    assert capsys.readouterr().err.count("goal in `info` alone (`goal`)") == 1


# ---- environments that are not here ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "PointMaze_UMaze-v3",
            ["pip install 'decision-seq[robotics]'", "gymnasium_robotics:PointMaze_UMaze-v3"],
        ),
        ("AdroitHandDoor-v1", ["gymnasium_robotics:AdroitHandDoor-v1"]),
        (
            "MiniGrid-Empty-5x5-v0",
            ["pip install 'decision-seq[minigrid]'", "minigrid:MiniGrid-Empty-5x5-v0"],
        ),
        (
            "cube-single-v0?mode=task",
            ["pip install 'decision-seq[ogbench]'", "ogbench:cube-single-v0?mode=task"],
        ),
        ("mine_alone-v0", ["package:mine_alone-v0"]),
    ],
)
def test_packages_that_lack_are_named(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing.importlib.util, "find_spec", lambda module: None)
    monkeypatch.delitem(gym.registry, name.partition("?")[0], raising=False)  # if it is installed
    with pytest.raises(UserError, match="does not exist") as error:
        make(name)
    for word in words:
        assert word in str(error.value)
    monkeypatch.setattr(missing.importlib.util, "find_spec", lambda module: object())
    with pytest.raises(UserError) as error:
        make(name)
    assert "pip install" not in str(error.value) and words[-1] in str(error.value)


def test_a_module_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('no display')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'broken_package' cannot be imported \(no display\)"):
        make("broken_package:Task-v0")


def test_a_module_that_python_does_not_find_comes_with_what_to_do() -> None:
    own = r"'no_package' cannot be imported \(No module named 'no_package'\); .*PYTHONPATH=\$PWD"
    with pytest.raises(UserError, match=own):
        make("no_package:Task-v0")
    with pytest.raises(UserError, match=r"pip install highway-env` has it"):
        make("highway_env:highway-v0")
    with pytest.raises(UserError, match=r"^[^;]*; json was imported and registers none"):
        make("json:Task-v0")


def test_versions_of_mujoco_that_go_together_are_named(
    register, monkeypatch: pytest.MonkeyPatch  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    module = types.ModuleType("gymnasium_robotics.envs")
    module.Task = type("Task", (Asserting,), {"__module__": "gymnasium_robotics.envs"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", types.ModuleType("gymnasium_robotics"))
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs", module)
    name = register("Robot-v0", "gymnasium_robotics.envs:Task")
    monkeypatch.setattr(missing, "version", lambda package: "4.0.0")
    with pytest.raises(UserError, match=r"pip install mujoco==3\.3\.7`\), here is 4\.0\.0"):
        make(name)

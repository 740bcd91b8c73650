"""Every dataset of D4RL has an environment here, or a reason why not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from decision_seq.data.sources.d4rl import dataset_info
from decision_seq.envs.d4rl_environments import FAMILIES, environment, family, recorded
from decision_seq.envs.reference_scores import d4rl_datasets
from decision_seq.envs.registry import make
from decision_seq.envs.variants import difference

PAGE = Path(__file__).parents[1] / "docs" / "environments.md"
# observations and actions, and the time limit that D4RL gives
WIDTHS = {
    "hopper": (11, 3), "halfcheetah": (17, 6), "walker2d": (17, 6), "ant": (111, 8),
    "door": (39, 28), "hammer": (46, 26), "relocate": (39, 30), "pen": (45, 24),
}  # fmt: skip


def test_all_147_are_of_one_family() -> None:
    names = list(d4rl_datasets())
    assert len(names) == 147
    for name in names:
        assert sum(one.of(name) is not None for one in FAMILIES) == 1, name
    acted = [name for name in names if environment(name)]
    assert len(acted) == 92 and all(recorded(name) for name in acted)
    assert family("hopper-medium") is None and environment("my-own-v0") is None


@pytest.mark.parametrize("body", WIDTHS)
def test_the_environment_is_there_and_of_the_data(body: str) -> None:
    names = [name for name in d4rl_datasets() if name.startswith(f"{body}-")]
    (name,) = {environment(name) for name in names}
    assert name
    if ":" in name and importlib.util.find_spec("gymnasium_robotics") is None:
        pytest.skip("gymnasium-robotics is not installed")
    env = make(name)
    shapes = env.observation_space.shape, env.action_space.shape
    assert shapes == ((WIDTHS[body][0],), (WIDTHS[body][1],))
    assert env.spec and env.spec.max_episode_steps == d4rl_datasets()[names[0]].steps
    env.close()
    # training compares them, and finds that they belong together
    data = dataset_info(Path(d4rl_datasets()[names[0]].file))["env_id"]
    assert data == recorded(names[0])
    assert difference(data, name.rpartition(":")[2]) is None


def test_the_page_lists_them() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for one in FAMILIES:
        count = sum(one.of(name) is not None for name in d4rl_datasets())
        env = f"`{one.environment}`" if one.environment else "none"
        row = f"| {count} | {env} | {one.said} |"
        assert row.replace("{}", "...") in text, row

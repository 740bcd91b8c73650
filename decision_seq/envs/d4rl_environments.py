"""Which environment a dataset of D4RL can be acted in here: all 147 that have reference returns.

D4RL's own environments need a MuJoCo (or PyBullet, CARLA, Flow) of years ago. Some live on under
other names with the same observations, actions and rewards; the others were made again, and
Minari has data of these under its own names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Datasets whose names match `names`, one environment's each."""

    names: str  # pattern of their names, without the version
    environment: str | None  # as a config names it; `{}` is the robot or task
    recorded: str | None  # what data say they are from
    said: str  # what differs from D4RL's, or what to use instead

    def of(self, name: str) -> re.Match[str] | None:
        """The match of a dataset's name."""
        return re.fullmatch(rf"{self.names}-v\d", name)


GYM = {"hopper": "Hopper", "halfcheetah": "HalfCheetah", "walker2d": "Walker2d"}
HANDS = {"door": "Door", "hammer": "Hammer", "relocate": "Relocate", "pen": "Pen"}
BODIES = GYM | HANDS
FAMILIES = (
    Family(
        r"(hopper|halfcheetah|walker2d)-.+", "{}-v4", "{}-v2",
        "the model and rewards of v2, by a newer MuJoCo",
    ),
    Family(
        r"(ant)-.+", "d4rl-ant", "Ant-v2",
        "84 contact forces that are zero, as MuJoCo 2 left them",
    ),
    Family(
        r"(door|hammer|relocate)-.+",
        "gymnasium_robotics:AdroitHand{}-v1", "AdroitHand{}-v1", "the same task",
    ),
    Family(
        r"(pen)-.+",
        "gymnasium_robotics:AdroitHand{}-v1?max_episode_steps=100",
        "AdroitHand{}-v1?max_episode_steps=100", "the same task, with D4RL's time limit",
    ),
    Family(
        r"antmaze-.+", None, None,
        "another ant and no goal in its observations; use Minari's D4RL/antmaze/...",
    ),
    Family(
        r"maze2d-.+", None, None,
        "another point and no goal in its observations; use Minari's D4RL/pointmaze/...",
    ),
    Family(
        r"kitchen-.+", None, None,
        "60 numbers instead of 59 and goals; use Minari's D4RL/kitchen/...",
    ),
    Family(
        r"minigrid-.+", None, None,
        "made in the old gym-minigrid; use Minari's D4RL/minigrid/...",
    ),
    Family(r"bullet-.+", None, None, "PyBullet's environments are of the old gym alone"),
    Family(r"carla-.+", None, None, "needs CARLA, which gymnasium does not have"),
    Family(r"flow-.+", None, None, "needs Flow and SUMO, which gymnasium does not have"),
)  # fmt: skip


def family(name: str) -> Family | None:
    """The family of a dataset of D4RL, by its name; None of one that is none of theirs."""
    return next((one for one in FAMILIES if one.of(name)), None)


def environment(name: str) -> str | None:
    """The environment to act in, as a config names it; None where there is none."""
    return _filled(name, "environment")


def recorded(name: str) -> str | None:
    """What data of that name are recorded to be from."""
    return _filled(name, "recorded")


def _filled(name: str, which: str) -> str | None:
    one = family(name)
    form: str | None = getattr(one, which, None)
    if one is None or form is None:
        return None
    found = one.of(name)
    assert found is not None
    return form.format(BODIES.get(found[1], found[1]))

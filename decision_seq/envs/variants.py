"""Whether data and an environment belong together, and which variant of one fits the data."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym

from decision_seq.envs.identity import Identity
from decision_seq.envs.missing import arguments_of
from decision_seq.envs.reference_scores import atari_game
from decision_seq.envs.registry import D4RL_ANT, LIMIT, canonical, make
from decision_seq.errors import UserError

# ids that data record and that cannot be made any more -> the same model and task; Ant's observes
# what D4RL's Ant-v2 did
STAND_INS = {
    f"{body}-{old}": f"{body}-v4"
    for body in ("Hopper", "HalfCheetah", "Walker2d", "Ant", "Swimmer", "Humanoid", "Reacher",
                 "Pusher", "InvertedPendulum", "InvertedDoublePendulum", "HumanoidStandup")
    for old in ("v2", "v3")
} | {"Ant-v2": D4RL_ANT}  # fmt: skip
Kind = Literal["environment", "arguments", "added arguments", "version", "time limit", "name"]
SAID: dict[Kind, str] = {
    "environment": "is another environment",
    "arguments": "is made with other arguments",
    "added arguments": "is made with arguments that the data do not name",
    "version": "is another version, whose rewards, ends or dynamics differ",
    "time limit": "has another time limit",
    "name": "goes by another name, and nothing here tells whether it is the same",
}


@dataclass(frozen=True)
class Difference:
    """How two environments differ."""

    recorded: str  # what the data say they are from
    used: str  # what is compared with it
    kind: Kind

    @property
    def certain(self) -> bool:
        """Whether data of the one are no data of the other, beyond doubt."""
        return self.kind in ("environment", "arguments")

    def __str__(self) -> str:
        return f"the data are of {self.recorded}; {self.used} {SAID[self.kind]}"


def difference(recorded: str, used: str) -> Difference | None:
    """How the environment that data record differs from another, or None: if there are several
    differences, the gravest. Both may be unknown here; nothing is imported."""
    data, other = known(recorded), known(used)
    if data == other or _stand_in(data) == other:
        return None
    kind = _kind(data, other)
    return kind and Difference(str(data), str(other), kind)


def _kind(data: Identity, other: Identity) -> Kind | None:
    games = atari_game(data.id), atari_game(other.id)
    if all(games):  # sticky actions or not is the protocol's choice
        return None if games[0] == games[1] else "environment"
    ours, theirs = _without_limit(data), _without_limit(other)
    if _family(data) != _family(other):
        made = _made_by(data), _made_by(other)
        if not all(made):
            return "name"
        if made[0] == made[1]:  # one class by two names
            own, others = (gym.registry[i.id].kwargs for i in (data, other))
            return None if {**own, **ours} == {**others, **theirs} else "arguments"
        packages = [str(one).split(".")[0] for one in made]
        return "environment" if packages[0] == packages[1] else "name"
    if ours != theirs:
        return "arguments" if ours else "added arguments"
    if data.id != other.id:
        return "version"
    return "time limit"


def stand_in(recorded: str, width: int | None = None) -> str:
    """The environment to make for data that record this one: itself, unless it is gone; then the
    same in a version that is here, if there is one with observations of that width."""
    here = str(_stand_in(known(recorded)))
    if width is None or known(recorded).id not in STAND_INS:
        return here
    return fitting(recorded, re.sub(r"-v[23]\b", "-v4", recorded), width) or here


def fitting(recorded: str | None, used: str, width: int) -> str | None:
    """An environment whose observations have this width: the one recorded, or a version of `used`,
    plain or with one of its switches the other way round. None if there is none."""
    tried = [stand_in(recorded)] if recorded else []
    identity = known(used)
    family = [i for i in gym.registry if _family(Identity(i)) == _family(identity)]
    for identifier in dict.fromkeys([identity.id, *reversed(family)]):  # then the newest first
        if identifier not in gym.registry:
            continue
        if "mujoco" in str(gym.registry[identifier].entry_point):  # whose switches we know
            tried += [identifier, *map(str, _switched(identifier))]
    for name in tried:
        try:
            with warnings.catch_warnings(action="ignore"):  # of old versions, unasked
                env = make(name)
        except UserError:
            continue
        shape = env.observation_space.shape
        env.close()
        if shape == (width,):
            return name
    return None


def _switched(identifier: str) -> Iterator[Identity]:
    """The environment with one of the arguments that add or leave out observations changed."""
    for name, value in arguments_of(gym.registry[identifier].entry_point).items():
        if isinstance(value, bool) and re.search(r"observation|contact_forces", name):
            yield Identity(identifier, {name: not value})


def known(name: str) -> Identity:
    """As `registry.canonical`, or as it is written where it is not registered here."""
    try:
        typed = Identity.parse(name)
    except UserError:  # a stranger's data may say anything
        return Identity(name)
    return canonical(typed) or typed


def _stand_in(identity: Identity) -> Identity:
    return Identity(STAND_INS.get(identity.id, identity.id), identity.arguments)


def _family(identity: Identity) -> str:
    return re.sub(r"-v\d+$", "", identity.id)


def _without_limit(identity: Identity) -> dict[str, object]:
    return {key: value for key, value in identity.arguments.items() if key != LIMIT}


def _made_by(identity: Identity) -> str | None:
    """The constructor of an environment that is registered here, or of another of its versions."""
    family = _family(identity)
    versions = [i for i in gym.registry if _family(Identity(i)) == family and i not in STAND_INS]
    if not versions:
        return None
    point = gym.registry[identity.id if identity.id in versions else versions[0]].entry_point
    return str(point) if isinstance(point, str) else f"{point.__module__}:{point}"

"""Reference returns for normalized scores: 0 is a uniform random policy, 100 an expert.

MuJoCo and the other environments of D4RL: its values (arXiv:2004.07219), measured on the v0 to v2
environments; all 147 of them are in d4rl_references.json, which names its source. They are used for
v4 and v5 of the Gym environments as well, which differ in details: Walker2d-v5 has other foot
friction than v2 to v4, so scores on it are not D4RL-v2 scores.

Atari: 57 games, 100 being a professional tester of games (form `human`). For Breakout, Pong, Qbert
and Seaquest the papers on sequence models call that gamer-normalized, and publish it in two forms:
these numbers, and rounded ones, as Decision Transformer's table has them (`gamer-rounded`). All
are in atari_references.json.
"""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class D4RLDataset:
    """What D4RL publishes about one of its datasets."""

    name: str  # e.g. hopper-medium-v2
    random: float  # return of a uniform random policy
    expert: float  # return of an expert
    steps: int  # the environment's time limit
    file: str  # what the file is called

    @property
    def reference(self) -> tuple[float, float]:
        """(random, expert)"""
        return self.random, self.expert


@functools.cache
def d4rl_datasets() -> dict[str, D4RLDataset]:
    """All of D4RL's datasets that have reference returns, by name."""
    path = Path(__file__).with_name("d4rl_references.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["datasets"]
    return {name: D4RLDataset(name, **row) for name, row in rows.items()}


def find_d4rl(name: str) -> D4RLDataset | None:
    """The dataset of that name, or whose file has that name, `-` and `_` being the same."""
    return _by_plain_name().get(_plain(name))


@functools.cache
def _by_plain_name() -> dict[str, D4RLDataset]:
    files = {_plain(d.file.removesuffix(".hdf5")): d for d in d4rl_datasets().values()}
    return files | {_plain(d.name): d for d in d4rl_datasets().values()}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


@functools.cache
def atari_references() -> dict[str, dict[str, tuple[float, float]]]:
    """By form and game, as ale_py calls it: (random, human)."""
    path = Path(__file__).with_name("atari_references.json")
    forms = json.loads(path.read_text(encoding="utf-8"))
    return {
        form: {game: (row["random"], row["human"]) for game, row in forms[form].items()}
        for form in ("human", "gamer-rounded")
    }


# environment, of any version, behind its dataset in D4RL
ENVIRONMENTS = {
    "hopper-medium-v2": "Hopper",
    "halfcheetah-medium-v2": "HalfCheetah",
    "walker2d-medium-v2": "Walker2d",
    "ant-medium-v2": "Ant",
    "pen-human-v1": "AdroitHandPen",
    "hammer-human-v1": "AdroitHandHammer",
    "door-human-v1": "AdroitHandDoor",
    "relocate-human-v1": "AdroitHandRelocate",
}
# environment, of any version -> (random, expert)
REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    environment: d4rl_datasets()[dataset].reference for dataset, environment in ENVIRONMENTS.items()
}
REFERENCE_RETURNS["decision-seq/D4RLAnt"] = REFERENCE_RETURNS["Ant"]


# Atari/Pong-sticky-v0, and what others call the game: PongNoFrameskip-v4, ALE/Pong-v5
_ATARI_ID = re.compile(
    r"(?:Atari/|ALE/)?([A-Za-z]+?)(?:NoFrameskip|Deterministic)?(?:-(?:no)?sticky)?-v\d"
)


def atari_game(identifier: str) -> str | None:
    """The game, as ale_py calls it, that an environment id is of: space_invaders; None if none."""
    match = _ATARI_ID.fullmatch(identifier)
    plain = {game.replace("_", ""): game for game in atari_references()["human"]}
    return plain.get(match[1].lower()) if match else None


def references(name: str) -> dict[str, tuple[float, float]]:
    """(random, expert) returns for an environment id of any version or the name of a D4RL dataset,
    by the published form: `d4rl`; for Atari `human` and, where there is one, `gamer-rounded`. The
    first is what scores use where nothing else is said. Empty if there are none, and for an
    environment made with arguments, in which other returns are usual."""
    if "?" in name:
        return {}
    dataset = d4rl_datasets().get(name)
    known = dataset.reference if dataset else REFERENCE_RETURNS.get(name.rpartition("-v")[0])
    if known:
        return {"d4rl": known}
    game = atari_game(name)
    return {form: of[game] for form, of in atari_references().items() if game in of}


def scoring(
    name: str,
    data: tuple[float, float] | None = None,
    run: tuple[float, float] | None = None,
) -> dict[str, tuple[float, float]]:
    """All (random, expert) returns that scores in the environment `name` can refer to, the one to
    use first: the `run`'s own, else what the `data` name (which may be a published form), else the
    published ones."""
    published = references(name)
    named: dict[str, tuple[float, float]] = {} if run is None else {"run": run}
    if data is not None:
        known = [form for form, of in published.items() if _equal(of, data)]
        named[known[0] if known else "data"] = data
    return named | {form: of for form, of in published.items() if form not in named}


def _equal(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(one, other, strict=True))


def reference_returns(name: str) -> tuple[float, float] | None:
    """The first of `references`, or None if there is none."""
    return next(iter(references(name).values()), None)


def normalized_score(name: str, episode_return: float) -> float | None:
    """`scaled` by the first of `references`, or None without any."""
    return scaled(episode_return, reference_returns(name))


def scaled(episode_return: float, reference: tuple[float, float] | None) -> float | None:
    """100 * (return - random) / (expert - random), or None without a reference."""
    if reference is None:
        return None
    low, high = reference
    return 100.0 * (episode_return - low) / (high - low)

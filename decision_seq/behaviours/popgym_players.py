"""Scripted players of POPGym's tasks of memory alone (arXiv:2303.01859), who make no mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Start = Callable[[np.random.Generator], Callable[[Any], Any]]
LAGS = {"Easy": 4, "Medium": 32, "Hard": 64}  # of RepeatPrevious; 1 would be the card just seen
WATCH = 1  # Autoencode shows another card; else it asks for one


def repeats_what_was(lag: int) -> Start:
    """Of RepeatPrevious: the suit that was seen lag - 1 steps before."""

    def repeats_a_suit_from_before(_rng: np.random.Generator) -> Callable[[Any], Any]:
        seen: list[Any] = []

        def act(suit: Any) -> Any:
            seen.append(suit)
            return seen[-lag] if len(seen) >= lag else np.int64(0)

        return act

    return repeats_a_suit_from_before


def repeats_the_first_suit(_rng: np.random.Generator) -> Callable[[Any], Any]:
    """Of RepeatFirst."""
    seen: list[Any] = []

    def act(suit: Any) -> Any:
        seen.append(suit)
        return seen[0]

    return act


def recites_the_suits_backwards(_rng: np.random.Generator) -> Callable[[Any], Any]:
    """Of Autoencode. What comes with the first question is the last card of those shown."""
    seen: list[Any] = []
    asked = False

    def act(observation: tuple[Any, Any]) -> Any:
        nonlocal asked
        mode, suit = observation
        if not asked:
            seen.append(suit)
            asked = mode != WATCH
        return seen.pop() if asked else np.int64(0)

    return act


# (gymnasium id, tier) -> player, and what it does
PLAYERS: dict[tuple[str, str], tuple[Start, str]] = {
    (f"popgym-{task}{level}-v0", "expert"): (start, "always right")
    for level, lag in LAGS.items()
    for task, start in (
        ("RepeatPrevious", repeats_what_was(lag)),
        ("RepeatFirst", repeats_the_first_suit),
        ("Autoencode", recites_the_suits_backwards),
    )
}

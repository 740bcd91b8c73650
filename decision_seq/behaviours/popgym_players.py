"""Scripted players of POPGym's tasks (arXiv:2303.01859). Where only memory is asked for they make
no mistake; of Battleship and the noisy cart and pole they play well."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

Start = Callable[[np.random.Generator], Callable[[Any], Any]]
LAGS = {"Easy": 4, "Medium": 32, "Hard": 64}  # of RepeatPrevious; 1 would be the card just seen
WATCH = 1  # Autoencode shows another card; else it asks for one
BOARDS = {"Easy": 8, "Medium": 10, "Hard": 12}  # squares a side
SHIPS = (2, 3, 3, 4)  # squares long
HIT = 20.0  # a ship that would lie under a hit is worth as many that would not
NOISES = {"Easy": 0.1, "Medium": 0.2, "Hard": 0.3}  # standard deviation, metres and radians
START = 0.05  # of CartPole's state, at most
DRIFT = 3e-4  # of the state a step, for what is not linear
FORCE = 10.0  # newtons


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


def sinks_ships(board: int) -> Start:
    """Of Battleship, on a board of `board` x `board`: shoots where the most ships could lie, ships
    under earlier hits counting HIT times as much for each."""

    def shoots_where_ships_could_lie(rng: np.random.Generator) -> Callable[[Any], Any]:
        hits, open_ = np.zeros((board, board)), np.ones((board, board), dtype=bool)  # not yet shot
        last: tuple[int, int] | None = None

        def act(hit: Any) -> Any:
            nonlocal last
            if last is not None:
                hits[last] = hit
            likely = _placements(hits, water=~open_ & (hits == 0))
            likely += rng.uniform(0, 0.5, likely.shape)  # breaks ties
            row, column = np.unravel_index(np.where(open_, likely, -1).argmax(), likely.shape)
            last = int(row), int(column)
            open_[last] = False
            return np.array(last)

        return act

    return shoots_where_ships_could_lie


def _placements(hits: np.ndarray, water: np.ndarray) -> np.ndarray:
    """How many ships of SHIPS could lie on each square, [n, n]."""
    count = np.zeros(hits.shape)
    for length in SHIPS:
        for turned in (False, True):
            hit, wet, total = (x.T if turned else x for x in (hits, water, count))
            for start in range(len(hits) - length + 1):
                rows = slice(start, start + length)
                total[rows] += np.where(wet[rows].any(0), 0, HIT ** hit[rows].sum(0))
    return count


def balances(noise: float) -> Start:
    """Of the cart and pole of which positions are seen alone, with `noise` added: a Kalman filter
    and the linear-quadratic regulator of the upright pole."""

    def filters_and_balances(_rng: np.random.Generator) -> Callable[[Any], Any]:
        A, B, gain = _upright()
        state = np.zeros(4)  # cart, its speed, angle, its speed
        spread = np.eye(4) * START**2 / 3  # all four start uniform in [-START, START]
        seen = np.eye(4)[[0, 2]]

        def act(positions: Any) -> Any:
            nonlocal state, spread
            mixed = spread @ seen.T @ np.linalg.inv(seen @ spread @ seen.T + np.eye(2) * noise**2)
            state = state + mixed @ (np.asarray(positions, dtype=float) - seen @ state)
            spread = spread - mixed @ seen @ spread
            right = float(gain @ state) < 0  # the sign of -gain @ state; the size is given
            state = A @ state + B * (FORCE if right else -FORCE)
            spread = A @ spread @ A.T + np.eye(4) * DRIFT**2
            return np.int64(right)

        return act

    return filters_and_balances


@cache
def _upright() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x' = A x + B force of gymnasium's CartPole near upright, and the regulator's gain."""
    gravity, cart, pole, half, dt = 9.8, 1.0, 0.1, 0.5, 0.02
    total = cart + pole
    inertia = half * (4 / 3 - pole / total)
    tips, pushed = gravity / inertia, -1 / (total * inertia)  # angular acceleration
    rates = np.zeros((4, 4))
    rates[0, 1] = rates[2, 3] = 1
    rates[3, 2], rates[1, 2] = tips, -pole * half * tips / total
    force = np.array([0, 1 / total - pole * half * pushed / total, 0, pushed])
    A, B = np.eye(4) + dt * rates, dt * force
    costs = np.diag([0.01, 0, 10, 0])  # of the state; 1e-3 of the force
    value = costs
    for _ in range(2000):  # Riccati's equation, by iteration
        gain = B @ value @ A / (1e-3 + B @ value @ B)
        value = costs + A.T @ value @ (A - np.outer(B, gain))
    return A, B, gain


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
PLAYERS |= {
    (f"popgym-Battleship{level}-v0", "expert"): (sinks_ships(n), "by where ships could lie")
    for level, n in BOARDS.items()
}
PLAYERS |= {
    (f"popgym-NoisyPositionOnlyCartPole{level}-v0", "expert"): (balances(x), "Kalman filter, LQR")
    for level, x in NOISES.items()
}

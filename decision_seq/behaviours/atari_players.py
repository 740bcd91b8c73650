"""Scripted players of Pong and Breakout, which read from the console's memory where things are.

They press a random button now and then. How often changes from episode to episode, so that a
dataset holds games of good and of bad players.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from decision_seq.envs.atari import AtariGame

NOOP, FIRE, RIGHT, LEFT = range(4)  # of both games; in Pong right is up and left is down
UP, DOWN = RIGHT, LEFT
# tier -> shares of random buttons, one of them for each episode
NOISE = {"random": (1.0,), "medium": (0.05, 0.1, 0.2, 0.3), "expert": (0.01,)}


class Player(Protocol):
    """Plays one game."""

    def choose(self, memory: np.ndarray) -> int:
        """A button, from the console's memory [128]."""

    def took(self, action: int) -> None:
        """What was pressed in the end."""


class PongPlayer:
    """Goes where the ball will arrive and, where whole presses bring it there, hits the ball with
    an end of its paddle: such balls fly steeply, and the opponent misses many of them."""

    BALL_X, BALL_Y, PADDLE_Y = 49, 54, 51  # in memory; BALL_Y is 0 without a ball
    WALLS, FRONT, MIDDLE = (44.5, 205.5), 189, 118  # rows, column of the paddle, row to wait in
    RANGE = (38, 203)  # of PADDLE_Y
    ENDS, CENTRE = (0.0, 14.5), 7.0  # BALL_Y - PADDLE_Y where the two meet
    PRESSES = np.array([0, 21, 46, 70, 94, 118, 142, 166])  # how far 0, 1, ... of them carry
    CLOSE = 5.0  # to an end

    def __init__(self) -> None:
        self.ball: tuple[int, int] | None = None  # a step ago
        self.paddle: int | None = None
        self.pressed = 0  # -1 up, 1 down

    def choose(self, memory: np.ndarray) -> int:
        x, y, paddle = (int(memory[i]) for i in (self.BALL_X, self.BALL_Y, self.PADDLE_Y))
        speed = paddle - (paddle if self.paddle is None else self.paddle)
        # it goes on after a press: where it will come to rest
        coast = self.pressed * (16 if abs(speed) < 12 else 21.5) if self.pressed else speed / 3
        way = self._aim(x, y, paddle + coast) - (paddle + coast)
        self.ball, self.paddle = (x, y) if y else None, paddle
        if self.pressed:  # on, or not
            return (DOWN if way > 0 else UP) if way * self.pressed > 12 else NOOP
        if abs(speed) >= 8 or abs(way) < 10.5:
            return NOOP
        return DOWN if way > 0 else UP

    def took(self, action: int) -> None:  # 4 and 5 are 2 and 3 with FIRE
        self.pressed = {2: -1, 4: -1, 3: 1, 5: 1}.get(action, 0)

    def _aim(self, x: int, y: int, rest: float) -> float:
        """The row to go to."""
        if not y or self.ball is None or x == self.ball[0]:
            return self.MIDDLE
        if x < self.ball[0]:  # the ball flies away
            return y - self.CENTRE
        top, bottom = self.WALLS
        slope = (y - self.ball[1]) / (x - self.ball[0])
        flown = (y + slope * (self.FRONT - x) - top) % (2 * (bottom - top))
        arrives = top + min(flown, 2 * (bottom - top) - flown)

        def error(row: float) -> float:
            return float(np.abs(abs(row - rest) - self.PRESSES).min())

        low, high = self.RANGE
        rows = [arrives - end for end in self.ENDS if low <= arrives - end <= high]
        best = min(rows, key=error, default=None)
        return best if best is not None and error(best) <= self.CLOSE else arrives - self.CENTRE


class BreakoutPlayer:
    """Serves, and keeps its paddle under where the ball is going to come down."""

    BALL_X, BALL_Y, PADDLE_X = 99, 101, 72  # in memory; BALL_Y is 0 without a ball
    WALLS, FRONT = (56.0, 200.0), 176  # columns, row of the paddle
    CENTRE = 8.0  # BALL_X - PADDLE_X where the two meet in the middle

    def __init__(self) -> None:
        self.ball: tuple[int, int] | None = None
        self.paddle: int | None = None
        self.pressed = 0

    def choose(self, memory: np.ndarray) -> int:
        x, y, paddle = (int(memory[i]) for i in (self.BALL_X, self.BALL_Y, self.PADDLE_X))
        speed = paddle - (paddle if self.paddle is None else self.paddle)
        coast = self.pressed * (16 if abs(speed) < 14 else 21.5) if self.pressed else speed / 3
        way = self._aim(x, y) - (paddle + coast)
        self.ball, self.paddle = (x, y) if y else None, paddle
        if not y:
            return FIRE
        if abs(way) < (12 if self.pressed else 11):
            return NOOP
        return RIGHT if way > 0 else LEFT

    def took(self, action: int) -> None:
        self.pressed = {RIGHT: 1, LEFT: -1}.get(action, 0)

    def _aim(self, x: int, y: int) -> float:
        """The column to go to: under the ball while it flies up."""
        if self.ball is None or y <= self.ball[1]:
            return x - self.CENTRE
        left, right = self.WALLS
        slope = (x - self.ball[0]) / (y - self.ball[1])
        flown = (x + slope * (self.FRONT - y) - left) % (2 * (right - left))
        return left + min(flown, 2 * (right - left) - flown) - self.CENTRE


PLAYERS: dict[str, type[Player]] = {"pong": PongPlayer, "breakout": BreakoutPlayer}


def scripted(
    noise: tuple[float, ...], rng: np.random.Generator, env: gym.Env[Any, Any]
) -> Callable[[np.ndarray], int]:
    """A player of `env` for one episode. The shares of random buttons in `noise` take turns from
    seed to seed: games are long, and a small dataset shall hold all of them."""
    game = env.unwrapped
    assert isinstance(game, AtariGame)
    player, share = PLAYERS[game.game](), noise[game.seed % len(noise)]
    buttons = int(game.action_space.n)  # type: ignore[attr-defined]

    def act(_frame: np.ndarray) -> int:
        action = player.choose(game.ram())
        if rng.random() < share:
            action = int(rng.integers(buttons))
        player.took(action)
        return action

    return act

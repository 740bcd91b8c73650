"""Atari games by ale_py's AtariVectorEnv, with the papers' protocol, one console a lane.

Every step holds its action for 4 frames and shows the maximum of the last two, in grey, 84x84. An
episode is a whole game: it begins after 0 to 29 frames without action (drawn from its seed) and
ends with the last life, or is truncated 108,000 frames later. Rewards are the score's own, not
clipped, and nobody presses FIRE at the start: as in the code of Decision Transformer and in
Dopamine, a player has to begin a game of Breakout itself. Others press it for the player in the
episode's first frame, as OpenAI's baselines do: `breakout?fire_reset=true`.

Minari's datasets hold another view, ALE's own: colours [210, 160, 3] of every fourth frame, without
a maximum, and no frames before an episode. It is `breakout-sticky?colour=true`.

    ID                        short name     the chance that a frame repeats the action before
    Atari/Pong-nosticky-v0    pong           0, the papers' protocol
    Atari/Pong-sticky-v0      pong-sticky    0.25 (Machado et al., arXiv:1709.06009), that of
                                             Dopamine, which recorded the DQN-replay datasets
"""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from decision_seq.envs.reference_scores import atari_references
from decision_seq.errors import UserError

FRAME_SKIP, FRAME_STACK, SIDE = 4, 4, 84
NO_OPS = 30  # fewer than that
COLOURED = (210, 160, 3)
MAX_FRAMES = 108_000  # half an hour of play
STICKY = 0.25

GAMES = tuple(atari_references()["human"])  # 57, as ale_py calls them: space_invaders


def game_id(game: str, sticky: bool) -> str:
    """space_invaders -> Atari/SpaceInvaders-nosticky-v0"""
    protocol = "sticky" if sticky else "nosticky"
    return f"Atari/{game.title().replace('_', '')}-{protocol}-v0"


# short name -> id: space-invaders, space-invaders-sticky
IDS = {
    game.replace("_", "-") + "-sticky" * sticky: game_id(game, sticky)
    for sticky in (False, True)
    for game in GAMES
}
# what others call these: the ids that datasets record
_OLD = {"{}NoFrameskip-v4": False, "{}NoFrameskip-v0": True, "ALE/{}-v5": True}  # sticky
OLD_IDS = {
    old.format(game.title().replace("_", "")): game_id(game, sticky)
    for old, sticky in _OLD.items()
    for game in GAMES
}
for _sticky in (False, True):
    for _game in GAMES:
        gym.register(
            game_id(_game, _sticky),
            "decision_seq.envs.atari:AtariGame",
            kwargs={"game": _game, "sticky": _sticky},
        )


class AtariGame(gym.Env[np.ndarray, np.int64]):
    """One game. Observation: the newest frame [84, 84] uint8, which is what datasets hold, or in
    colour [210, 160, 3].

    Args:
        game: as ale_py calls it, e.g. space_invaders.
        sticky: whether frames repeat the action before with probability 0.25.
        fire_reset: whether FIRE is pressed in an episode's first frame, where the game knows it.
        colour: see above.

    Raises:
        UserError: ale_py is not installed.
    """

    observation_space = spaces.Box(0, 255, (SIDE, SIDE), np.uint8)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(
        self,
        game: str,
        sticky: bool,
        fire_reset: bool = False,
        colour: bool = False,
        render_mode: str | None = None,
    ) -> None:
        try:
            import ale_py
            from ale_py.vector_env import AtariVectorEnv
        except ImportError:
            raise UserError(
                f"the game {game} needs ale-py; install it with `pip install 'decision-seq[atari]'`"
            ) from None
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner
        self.game, self.sticky, self.fire_reset = game, sticky, fire_reset
        self.render_mode, self.colour = render_mode, colour
        if colour:
            self.observation_space = spaces.Box(0, 255, COLOURED, np.uint8)
        self.vector = AtariVectorEnv(
            game,
            num_envs=1,
            num_threads=1,
            max_num_frames_per_episode=MAX_FRAMES,
            repeat_action_probability=STICKY * sticky,
            img_height=COLOURED[0] if colour else SIDE,
            img_width=COLOURED[1] if colour else SIDE,
            stack_num=1 if colour else FRAME_STACK,
            grayscale=not colour,
            maxpool=not colour,
            frameskip=FRAME_SKIP,
            noop_max=0 if colour else NO_OPS,
            episodic_life=False,
            reward_clipping=False,
            use_fire_reset=fire_reset,
        )
        self.action_space = self.vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        stack, info = self.begin(int(self.np_random.integers(2**31)) if seed is None else seed)
        return stack[-1].copy(), info  # a view would keep the whole stack in memory

    def step(
        self, action: np.int64 | int
    ) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        self.send(int(action))
        stack, reward, terminated, truncated = self.receive()
        return stack[-1].copy(), reward, terminated, truncated, {}

    def begin(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode that depends on `seed` alone. Returns its first stack [4, 84, 84] of
        frames, oldest first: three black ones and the first; and how many frames were played."""
        self.seed, self._sent = seed % 2**31, list[int]()
        stacks, info = self.vector.reset(seed=np.array([self.seed]))
        self.no_ops = int(info["episode_frame_number"][0])
        self._second: Any = None
        return stacks[0], {"episode_frame_number": self.no_ops}

    def send(self, action: int) -> None:
        """Start a step, which goes on in another thread."""
        self._sent.append(action)
        self.vector.send(np.array([action], np.int64))

    def receive(self) -> tuple[np.ndarray, float, bool, bool]:
        """End it. Returns the stack [4, 84, 84], reward, terminated, truncated. AtariVectorEnv
        would begin a new episode at the step after the last, so that is not to be taken."""
        stacks, rewards, terminated, truncated, _ = self.vector.recv()
        return stacks[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0])

    def ram(self) -> np.ndarray:
        """The console's memory [128] uint8 as it is now."""
        return self._console().getRAM()

    def render(self) -> np.ndarray:
        """The picture as it is now, in colour: [210, 160, 3] uint8."""
        return self._console().getScreenRGB()

    def _console(self) -> Any:
        """AtariVectorEnv shows neither memory nor colours, so a second console repeats what was
        played, where somebody asks for them. It draws the same sticky actions."""
        if self._second is None:
            import ale_py
            from ale_py import roms

            self._second = ale_py.ALEInterface()
            self._second.setFloat("repeat_action_probability", STICKY * self.sticky)
            self._second.setInt("random_seed", self.seed)
            self._second.loadROM(roms.get_rom_path(self.game))
            fire = self.fire_reset and ale_py.Action.FIRE in self._second.getMinimalActionSet()
            for frame in range(self.no_ops):  # of which FIRE is the first
                first = ale_py.Action.FIRE if fire and not frame else ale_py.Action.NOOP
                self._second.act(first)
        choices = self._second.getMinimalActionSet()
        for action in self._sent:
            for _ in range(FRAME_SKIP):
                self._second.act(choices[action])
        self._sent.clear()
        return self._second

    def close(self) -> None:
        self.vector.close()

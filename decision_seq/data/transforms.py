"""What is done to a dataset before an agent sees it, and what the agent must know of it to act."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from decision_seq.data.columns import constant_columns
from decision_seq.data.store import EpisodeStore, returns_to_go
from decision_seq.errors import UserError

FRAME_SAMPLE = 2000


@dataclass(frozen=True)
class ReturnSpec:
    """How returns enter the model: in units of `scale`; `delayed` moves every reward to the
    episode's end, as in the delayed-return experiments of Decision Transformer (arXiv:2106.01345).
    With `clipped` rewards, targets are sums of clipped rewards, too; scores never are.
    """

    scale: float = 1000.0  # returns are divided by this
    delayed: bool = False  # the whole return arrives with the last step
    clipped: bool = False  # each reward counts as clipped to [-1, 1], in training and in acting

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise UserError(f"scale is {self.scale}; it must be above 0")


@dataclass(frozen=True)
class ObservationNorm:
    """Mean and standard deviation of the observations."""

    mean: np.ndarray  # [S] float32, or [H, W(, C)] of images
    std: np.ndarray  # [S] float32, or [] of images

    @classmethod
    def of(cls, observations: np.ndarray, scaled: np.ndarray | None = None) -> ObservationNorm:
        """Statistics of [N, S] observations, accumulated in float64; std + 1e-6 as published, but 1
        for constant columns, whose rounding would be the network's largest input otherwise.
        Categories and switches, where `scaled` [S] is False, stay what they are."""
        mean = observations.mean(axis=0, dtype=np.float64)
        std = observations.std(axis=0, dtype=np.float64) + 1e-6
        std[constant_columns(observations)] = 1
        if scaled is not None:
            mean[~scaled], std[~scaled] = 0, 1
        return cls(mean.astype(np.float32), std.astype(np.float32))

    @classmethod
    def of_frames(cls, frames: np.ndarray) -> ObservationNorm:
        """Of images [N, H, W(, C)]: the mean of every pixel, of uint8 in whole levels, and one
        deviation from it for all pixels (at least a level, of floats 1/255), as a pixel that hardly
        ever changes matters no more for it. From at most 2,000 of them: all may be gigabytes."""
        count = min(len(frames), FRAME_SAMPLE)
        some = frames[np.sort(np.random.default_rng(0).permutation(len(frames))[:count])]
        mean, least = some.mean(axis=0, dtype=np.float64), 1 / 255
        if frames.dtype == np.uint8:
            mean, least = mean.round(), 1.0
        square = np.mean([np.square(frame - mean).mean() for frame in some])
        return cls(mean.astype(np.float32), np.array(max(least, square**0.5), np.float32))


def as_conditioned(store: EpisodeStore, returns: ReturnSpec) -> EpisodeStore:
    """The same episodes with rewards as the agent is to count them."""
    if returns.clipped:
        rewards = np.clip(store.rewards, -1, 1)
        to_go = returns_to_go(rewards, store.offsets)
        store = dataclasses.replace(store, rewards=rewards, returns_to_go=to_go)
    return delay_rewards(store) if returns.delayed else store


def delay_rewards(store: EpisodeStore) -> EpisodeStore:
    """The same episodes with all reward at the last step, so return-to-go stays constant."""
    rewards = np.zeros_like(store.rewards)
    rewards[store.offsets[1:] - 1] = store.episode_returns
    return dataclasses.replace(
        store, rewards=rewards, returns_to_go=returns_to_go(rewards, store.offsets)
    )


def top_fraction(store: EpisodeStore, fraction: float) -> np.ndarray:
    """Indices of the best episodes that together hold at most `fraction` of the steps.

    At least one. This is %BC's choice in the Decision Transformer code.
    """
    best_first = np.argsort(store.episode_returns, kind="stable")[::-1]
    cumulative = np.cumsum(store.lengths[best_first])
    count = int(np.searchsorted(cumulative, fraction * store.steps, side="right"))
    return np.sort(best_first[: max(count, 1)])


def hold_out(episodes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split episode indices at random into (training, validation), whole episodes each.

    The validation part is empty where `fraction` of the episodes is less than half a one; at least
    one episode is left to learn from.
    """
    count = min(round(fraction * len(episodes)), len(episodes) - 1)
    shuffled = np.random.default_rng(seed).permutation(episodes)
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])

"""What an agent is asked for and what the data say about its problem: the config that every agent
kind extends, and the spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from decision_seq.backbones import BackboneConfig
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.config import register as register_config
from decision_seq.data.transforms import ReturnSpec
from decision_seq.errors import UserError
from decision_seq.model.actions import ActionCodec
from decision_seq.model.actions.part import ActionLoss
from decision_seq.model.encoders import ImageEncoderConfig
from decision_seq.model.tokens import TimestepInit
from decision_seq.spaces import Table


@dataclass(frozen=True)
class GuidanceConfig:
    """QCS's term in the loss (arXiv:2402.02017), see `decision_seq.values.guide`."""

    q_scale: float = 0.02  # how much Q counts, by how far an episode's return falls short
    q_min: float = 0.0  # least weight of Q
    return_star: float = 1.1  # what an episode falls short of, in returns of the best one

    def __post_init__(self) -> None:
        if self.q_scale < 0 or self.q_min < 0:
            raise UserError(
                f"q_scale is {self.q_scale} and q_min {self.q_min}; they must be at least 0"
            )


@dataclass(frozen=True)
class AgentConfig:
    """What every agent has."""

    registry: ClassVar[dict[str, type[AgentConfig]]] = {}
    kind: ClassVar[str]
    agent: ClassVar[type[Any]]  # the SequenceAgent that it is of
    summary: ClassVar[str]
    layouts: ClassVar[tuple[tuple[str, ...], ...]]  # the choices for `tokens`

    context_length: int = 20  # K, environment steps a training window
    tokens: tuple[str, ...] = ("return_to_go", "observation", "action")  # of one step, in order
    returns: ReturnSpec = field(default_factory=ReturnSpec)
    # of the timestep embedding: 0; N(0, 1) as in the papers' code for vectors; or no embedding
    timestep_init: TimestepInit = "zero"
    # of continuous actions; l1: the absolute error, whose least is at the median of what was done.
    # Validation losses are squared errors either way
    loss: ActionLoss = "mse"
    temperature: float = 0.0  # at which discrete actions are sampled; 0 takes the likeliest
    encoder: ImageEncoderConfig | None = None  # of images, by default nature; vectors take none
    encoders: dict[str, ImageEncoderConfig] = field(default_factory=dict)  # of one image, by path
    frame_stack: int | None = None  # last images seen at a step; by default 4 of gray, 1 of others
    # what values that are fitted before training add to the loss
    guidance: GuidanceConfig | None = None
    advantage_weight: float = 0.0  # beta in exp(beta (Q - V) / its rms), which weighs the error
    backbone: BackboneConfig = field(default_factory=MambaConfig)

    def __post_init__(self) -> None:
        if self.context_length < 1:
            raise UserError(f"context_length is {self.context_length}; it must be at least 1")
        if self.advantage_weight < 0:
            raise UserError(f"advantage_weight is {self.advantage_weight}; it must be at least 0")
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}; it must be at least 0")
        if self.frame_stack is not None and not 1 <= self.frame_stack <= 64:
            raise UserError(f"frame_stack is {self.frame_stack}; it must be from 1 to 64")
        if self.tokens not in self.layouts:
            choices = " or ".join(f"[{', '.join(layout)}]" for layout in self.layouts)
            raise UserError(f"tokens is [{', '.join(self.tokens)}]; {self.kind} takes {choices}")

    @property
    def follows_target(self) -> bool:
        """Whether it must be told a target return to act."""
        return "return_to_go" in self.tokens

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tokens of a step that come before its action; the action is read at the last."""
        return tuple(kind for kind in self.tokens if kind != "action")


A = TypeVar("A", bound=type[Any])


def register(kind: str, summary: str, config: type[AgentConfig]) -> Callable[[A], A]:
    """Class decorator: make an agent available as `agent.kind`."""

    def add(agent: A) -> A:
        config.agent = agent
        register_config(kind, summary)(config)
        return agent

    return add


@dataclass(frozen=True)
class AgentSpec:
    """What the data says about the problem."""

    observation_shape: tuple[int, ...]  # in the data: (S,), (H, W(, C)) of images, () of records
    action_dim: int  # A, or the number of discrete actions
    discrete: bool
    max_timestep: int  # last timestep of the longest episode; later ones share its embedding
    env: str | None = None  # the environment to act in, where the data name it, with arguments
    action_count_known: bool = False  # else there may be more discrete actions than were seen
    action_start: int = 0  # what the environment calls the first of its discrete actions
    actions_seen: tuple[int, int] | None = None  # the lowest and highest, as it calls them

    # of what is more than one vector, gray image or choice
    observation_space: Table | None = None
    action_space: Table | None = None

    @property
    def frames(self) -> bool:
        """Whether observations are images or hold some, of which the agent sees stacks."""
        return len(self.observation_shape) != 1

    @property
    def action_codec(self) -> ActionCodec | None:
        """Of actions that are no single vector or choice."""
        table = self.action_space
        return ActionCodec(table) if table and not all(p.scaled for p in table.numbers) else None

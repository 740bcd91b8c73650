"""Goal-conditioned supervised learning (arXiv:1912.06088) with a sequence model: what the data did
on the way to where it came to. Goals in hindsight are those of arXiv:1707.01495."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decision_seq.agents.base import SequenceAgent
from decision_seq.agents.spec import AgentConfig, AgentSpec, register
from decision_seq.data.windows import Hindsight
from decision_seq.errors import UserError


@dataclass(frozen=True)
class GoalConditionedConfig(AgentConfig):
    """Tokens of a step: goal, observation, action; without the action, or with a return."""

    layouts = (
        ("goal", "observation", "action"),
        ("goal", "observation"),
        ("goal", "return_to_go", "observation", "action"),
    )

    tokens: tuple[str, ...] = ("goal", "observation", "action")
    goal: str = "desired_goal"  # part of an observation, by its path
    achieved: str = "achieved_goal"  # part that says what is reached, in the same numbers
    hindsight: float = 1.0  # share of windows whose goal is what their episode came to later

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hindsight <= 1:
            raise UserError(f"hindsight is {self.hindsight}; it must be from 0 to 1")


@register("goal_conditioned", "acts towards the goal that is observed", GoalConditionedConfig)
class GoalConditioned(SequenceAgent):
    """Predicts the action of the data given what their episode came to. The goal is a token of
    its own, in units of what is achieved; the observation is all other numbers."""

    config: GoalConditionedConfig

    def __init__(self, config: GoalConditionedConfig, spec: AgentSpec) -> None:
        goal, achieved = goal_columns(config, spec)
        everything = np.arange(spec.observation_shape[0])
        self.goal_width = goal.stop - goal.start
        others = np.delete(everything, goal)
        self.others = others.tolist()
        super().__init__(config, spec)
        self.goal, self.achieved = goal, achieved
        self.other_columns: Tensor
        self.register_buffer("other_columns", torch.from_numpy(others), persistent=False)

    @property
    def features(self) -> int:
        """Numbers of the observation token."""
        return len(self.others)

    @property
    def token_widths(self) -> dict[str, int]:
        """And of the goal's."""
        return {"goal": self.goal_width}

    @property
    def hindsight(self) -> Hindsight | None:
        """Which goals training puts in the place of the data's."""
        share = self.config.hindsight
        return Hindsight(self.goal, self.achieved, share) if share else None

    def preprocess(
        self, observations: Tensor, actions: Tensor, returns_to_go: Tensor
    ) -> dict[str, Tensor]:
        """See `SequenceAgent`."""
        values = super().preprocess(observations, actions, returns_to_go)
        mean, std = self.observation_mean[self.achieved], self.observation_std[self.achieved]
        goal = (observations[..., self.goal] - mean) / std
        seen = values["observation"].index_select(-1, self.other_columns)
        return values | {"goal": goal, "observation": seen}


def goal_columns(config: GoalConditionedConfig, spec: AgentSpec) -> tuple[slice, slice]:
    """Columns of the goal, and of what is achieved. Raises UserError where there are none."""
    if spec.observation_space is None or spec.frames:
        kind = "images" if spec.frames else "one vector"
        raise UserError(
            f"agent.kind goal_conditioned needs observations with a part `{config.goal}`, but the "
            f"data's are {kind}; train an agent without goals"
        )
    goal, achieved = (spec.observation_space.columns(p) for p in (config.goal, config.achieved))
    if goal.stop - goal.start != achieved.stop - achieved.start:
        raise UserError(
            f"`{config.goal}` has {goal.stop - goal.start} numbers, `{config.achieved}` "
            f"{achieved.stop - achieved.start}; goals must be such as are achieved"
        )
    return goal, achieved

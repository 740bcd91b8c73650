"""Max-return sequence modelling: Reinformer (arXiv:2405.08740)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from decision_seq.agents.base import Extend, SequenceAgent
from decision_seq.agents.spec import AgentConfig, AgentSpec, register
from decision_seq.backbones.pointwise import PointwiseConfig
from decision_seq.data.windows import Batch
from decision_seq.errors import UserError


@dataclass(frozen=True)
class MaxReturnConfig(AgentConfig):
    """Tokens of a step: observation, return-to-go, action; the action may be left out."""

    layouts = (("observation", "return_to_go", "action"), ("observation", "return_to_go"))

    tokens: tuple[str, ...] = ("observation", "return_to_go", "action")
    expectile: float = 0.99  # of the returns seen from a state: 0.5 is their mean, 1 their maximum

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.expectile < 1:
            raise UserError(f"expectile is {self.expectile}; it must be above 0 and below 1")
        if isinstance(self.backbone, PointwiseConfig):
            raise UserError(
                "backbone.kind is pointwise, with which the action, read at the return token, "
                "would never see the observation; choose a backbone that mixes tokens"
            )

    @property
    def follows_target(self) -> bool:
        """No: it predicts the return it asks for."""
        return False


@register("max_return", "predicts the best return in reach and acts towards it", MaxReturnConfig)
class MaxReturn(SequenceAgent):
    """The return-to-go is predicted from the output at the observation, by expectile regression
    with an expectile near 1, so that it tends to the highest return that the data reached from
    there. The action is predicted from the output at the return token; when acting, that token is
    the predicted return, so no target is asked for.

    The published action loss is the negative log-likelihood of a tanh-Gaussian with an entropy
    bonus; here it is the error that all agents share, so that agents differ in one thing only.
    """

    def __init__(self, config: MaxReturnConfig, spec: AgentSpec) -> None:
        super().__init__(config, spec)
        self.expectile = config.expectile
        self.return_head = nn.Linear(config.backbone.width, 1)

    def per_step_loss(self, batch: Batch) -> Tensor:
        """[B, K] error of every step: the action's and the return's."""
        values = self.preprocess(batch.observations, batch.actions, batch.returns_to_go)
        tokens = self.dropout(self.embedding(values, batch.timesteps))  # [B, K * T, D]
        features = self.mix(tokens).unflatten(1, (-1, len(self.config.tokens)))
        action = self.predict(features[:, :, self.action_position])  # [B, K, A]
        best = self.predict_return(features[:, :, 0]).float()  # [B, K]
        return self.action_errors(action, values, batch) + expectile_errors(
            best, batch.returns_to_go, self.expectile
        )

    def predict_return(self, features: Tensor) -> Tensor:
        """Features at observation tokens [.., D] -> the best return in reach [..], scaled."""
        return self.return_head(features).squeeze(-1)

    def forward_step(self, values: dict[str, Tensor], extend: Extend) -> Tensor:
        """Predict the return at the observation, and go on from it as the return token."""
        values["return_to_go"] = self.predict_return(extend(("observation",)))
        return self.predict(extend(("return_to_go",)))


def expectile_errors(predicted: Tensor, actual: Tensor, expectile: float) -> Tensor:
    """Squared errors, weighted `expectile` where the prediction is too low, else 1 - `expectile`.

    Their mean is least where `predicted` is the expectile of `actual`.
    """
    error = actual - predicted
    return (expectile - (error < 0).to(error)).abs() * error.square()

"""SequenceAgent: tokens in, actions out, trained on windows and acting step by step.

An agent owns all it needs to act: observation statistics, return and action scales are buffers, so
a checkpoint acts in the environment with nothing but itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decision_seq.agents.at_once import AtOnce
from decision_seq.agents.context import CONTEXTS, Memory, Moment, StepInput
from decision_seq.agents.recorded import Recorder
from decision_seq.backbones import BackboneConfig, Layout
from decision_seq.backbones.mamba import MambaConfig
from decision_seq.config import register as register_config
from decision_seq.data.origin import recorded
from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import ObservationNorm, ReturnSpec
from decision_seq.data.windows import Batch
from decision_seq.envs.atari import FRAME_STACK
from decision_seq.errors import UserError
from decision_seq.model.encoders import FrameEncoder, ImageEncoderConfig, NatureConfig
from decision_seq.model.tokens import TimestepInit, TokenEmbedding
from decision_seq.ops.layers import Dropout

Context = Literal["window", "stream"]


@dataclass(frozen=True)
class AgentConfig:
    """What every agent has."""

    registry: ClassVar[dict[str, type[AgentConfig]]] = {}
    kind: ClassVar[str]
    agent: ClassVar[type[SequenceAgent]]
    summary: ClassVar[str]
    layouts: ClassVar[tuple[tuple[str, ...], ...]]  # the choices for `tokens`

    context_length: int = 20  # K, environment steps a training window
    tokens: tuple[str, ...] = ("return_to_go", "observation", "action")  # of one step, in order
    returns: ReturnSpec = field(default_factory=ReturnSpec)
    # of the timestep embedding: 0; N(0, 1) as in the papers' code for vectors; or no embedding
    timestep_init: TimestepInit = "zero"
    temperature: float = 0.0  # at which discrete actions are sampled; 0 takes the likeliest
    encoder: ImageEncoderConfig | None = None  # of frames, by default nature; vectors take none
    backbone: BackboneConfig = field(default_factory=MambaConfig)

    def __post_init__(self) -> None:
        if self.context_length < 1:
            raise UserError(f"context_length is {self.context_length}; it must be at least 1")
        if self.temperature < 0:
            raise UserError(f"temperature is {self.temperature}; it must be at least 0")
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


A = TypeVar("A", bound="SequenceAgent")


def register(kind: str, summary: str, config: type[AgentConfig]) -> Callable[[type[A]], type[A]]:
    """Class decorator: make an agent available as `agent.kind`."""

    def add(agent: type[A]) -> type[A]:
        config.agent = agent
        register_config(kind, summary)(config)
        return agent

    return add


@dataclass(frozen=True)
class AgentSpec:
    """What the data says about the problem."""

    observation_shape: tuple[int, ...]  # of a step in the data: (S,), or (H, W) of frames
    action_dim: int  # A, or the number of discrete actions
    discrete: bool
    max_timestep: int  # last timestep of the longest episode; later ones share its embedding
    env: str | None = None  # the environment to act in, where the data name it, with arguments
    action_count_known: bool = False  # else there may be more discrete actions than were seen
    action_start: int = 0  # what the environment calls the first of its discrete actions
    actions_seen: tuple[int, int] | None = None  # the lowest and highest, as it calls them

    @property
    def frames(self) -> bool:
        """Whether observations are frames, of which the agent sees stacks [4, H, W]."""
        return len(self.observation_shape) == 2


@dataclass
class AgentState:
    """What an agent carries from step to step, for every lane."""

    target_return: Tensor  # [lanes] float32, scaled: what a lane starts from
    return_to_go: Tensor  # [lanes] float32, scaled
    timestep: Tensor  # [lanes] int64, of the next observation
    seed: Tensor  # [lanes] int64, of the actions that are drawn
    memory: Memory


class SequenceAgent(nn.Module):
    """Predicts a_t from the output at the last token before it, which is s_t unless an agent says
    otherwise. B windows, K steps, T tokens a step, D = width."""

    def __init__(self, config: AgentConfig, spec: AgentSpec) -> None:
        super().__init__()
        if config.temperature and not spec.discrete:
            raise UserError(
                f"agent.temperature is {config.temperature}, but the data's actions are continuous "
                "and are not sampled; leave it out"
            )
        if config.encoder is not None and not spec.frames:
            raise UserError(
                f"agent.encoder is {config.encoder.kind}, which is for frames, but the data's "
                f"observations are vectors of width {spec.observation_shape[0]}; leave it out"
            )
        self.config, self.spec = config, spec
        width = config.backbone.width
        self.encoder: FrameEncoder | None = None
        if spec.frames:
            encoder, (height, breadth) = config.encoder or NatureConfig(), spec.observation_shape
            self.encoder = FrameEncoder(encoder, (FRAME_STACK, height, breadth))
        self.embedding = TokenEmbedding(
            config.tokens,
            self.features,
            spec.action_dim,
            spec.discrete,
            spec.max_timestep,
            width,
            bounded=spec.frames,
            timestep_init=config.timestep_init,
        )
        self.dropout = Dropout(config.backbone.dropout)
        self.backbone = config.backbone.build(Layout(config.context_length, len(config.tokens)))
        self.action_head = nn.Linear(width, spec.action_dim)
        self.observation_mean: Tensor
        self.observation_std: Tensor
        self.action_scale: Tensor
        if not spec.frames:
            self.register_buffer("observation_mean", torch.zeros(spec.observation_shape))
            self.register_buffer("observation_std", torch.ones(spec.observation_shape))
        self.register_buffer("action_scale", torch.ones(() if spec.discrete else spec.action_dim))
        usual = all(
            getattr(type(self), name) is getattr(SequenceAgent, name)
            for name in ("values", "look", "predict", "advance")
        )
        self._at_once, self._recorder = AtOnce(self, usual), Recorder()

    @classmethod
    def for_dataset(cls, config: AgentConfig, store: EpisodeStore) -> SequenceAgent:
        """An untrained agent that fits the data: widths, statistics, longest episode."""
        if store.info.get("rewards") == "clipped" and not config.returns.clipped:
            raise UserError(
                f"{store.name}: holds rewards clipped to [-1, 1]; set agent.returns.clipped to "
                "true, so that what an environment gives is counted alike, and give targets in "
                "clipped returns"
            )
        start, seen = store.info.get("action_start", 0), None
        if store.discrete:
            seen = (start + int(store.actions.min()), start + int(store.actions.max()))
        spec = AgentSpec(
            observation_shape=store.observations.shape[1:],
            action_dim=store.action_dim,
            discrete=store.discrete,
            max_timestep=int(store.lengths.max()) - 1,
            env=store.info.get("eval_env_id") or next(iter(recorded(store.info)), None),
            action_count_known="action_count" in store.info,
            action_start=start,
            actions_seen=seen,
        )
        if spec.frames and config.encoder is None:  # a checkpoint names what it holds
            config = replace(config, encoder=NatureConfig())
        agent = config.agent(config, spec)
        if agent.encoder is not None:
            norm = ObservationNorm.of_frames(store.observations)
            mean, std = agent.encoder.mean, agent.encoder.std
        else:
            norm = ObservationNorm.of(store.observations)
            mean, std = agent.observation_mean, agent.observation_std
        mean.copy_(torch.as_tensor(norm.mean))
        std.copy_(torch.as_tensor(norm.std))
        if not spec.discrete:  # actions beyond [-1, 1] are brought into tanh's range
            scale = np.abs(store.actions).max(axis=0).clip(min=1.0)
            agent.action_scale.copy_(torch.from_numpy(scale))
        return agent

    # ---- training -------------------------------------------------------------------------

    def loss(self, batch: Batch, valid: Tensor | None = None) -> Tensor:
        """Mean over valid steps of `errors`; in training with `penalty`. `valid` [] is
        what their sum is divided by, where the batch is a share of a larger one."""
        penalty = self.penalty() if self.training else 0.0  # not an error: no validation
        valid = batch.mask.sum() if valid is None else valid
        return (self.errors(batch) * batch.mask).sum() / valid + penalty

    def penalty(self) -> Tensor | float:
        """What training adds to the loss on account of the weights."""
        encoder = 0.0 if self.encoder is None else self.encoder.penalty()
        return self.backbone.penalty() + encoder

    def errors(self, batch: Batch) -> Tensor:
        """[B, K] error of every step: the action's."""
        values = self.values(batch.observations, batch.actions, batch.returns_to_go)
        return self.action_errors(self(values, batch.timesteps), values["action"])

    def action_errors(self, predicted: Tensor, actions: Tensor) -> Tensor:
        """[B, K]: squared error of predictions [B, K, A], or cross-entropy if discrete."""
        predicted = predicted.float()
        if self.spec.discrete:
            return F.cross_entropy(predicted.transpose(1, 2), actions, reduction="none")
        return (predicted - actions).square().mean(dim=-1)

    def forward(self, values: dict[str, Tensor], timesteps: Tensor) -> Tensor:
        """Actions for every step of the windows.

        Args:
            values: normalised inputs by token kind, from `values`.
            timesteps: [B, K] int64.

        Returns:
            [B, K, A]: tanh-squashed actions in units of `action_scale`, or logits if discrete.
        """
        tokens = self.dropout(self.embedding(values, timesteps))  # [B, K * T, D]
        read = slice(self.action_position, None, len(self.config.tokens))
        return self.predict(self.backbone(tokens, read))  # features [B, K, D]

    def values(
        self, observations: Tensor, actions: Tensor, returns_to_go: Tensor
    ) -> dict[str, Tensor]:
        """Raw observations [.., S] (or stacks of frames [.., 4, H, W] uint8), actions [.., A] and
        scaled returns [..] as network inputs."""
        return {
            "return_to_go": returns_to_go,
            "observation": self.encoder(observations)
            if self.encoder is not None
            else (observations - self.observation_mean) / self.observation_std,
            "action": actions if self.spec.discrete else actions / self.action_scale,
        }

    def predict(self, features: Tensor) -> Tensor:
        """Features at the last tokens before actions [.., D] -> action prediction [.., A]."""
        action = self.action_head(features)
        return action if self.spec.discrete else torch.tanh(action)

    @property
    def features(self) -> int:
        """Numbers that `values` makes of an observation: S, or the features of an image."""
        return self.spec.observation_shape[0] if self.encoder is None else self.encoder.features

    @property
    def action_position(self) -> int:
        """Index among a step's tokens of the one where its action is read."""
        return len(self.config.inputs) - 1

    # ---- acting ---------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.action_head.weight.device

    def init_state(
        self,
        lanes: int,
        context: Context = "window",
        target_return: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> AgentState:
        """State of `lanes` parallel environments before their first observation.

        Args:
            lanes: number of parallel environments.
            context: "window" recomputes the last K steps at each step (the papers' evaluation);
                "stream" carries the backbone's state. They agree while t < K.
            target_return: [lanes] return to ask for, in the environment's units.
            seed: [lanes] int64 of the draws of sampled actions, by default the lane's number. A
                lane's draws depend on its own seed and timestep alone.
        """
        if context not in CONTEXTS:
            raise UserError(f"context is {context!r}; it must be one of {', '.join(CONTEXTS)}")
        if target_return is None:
            if self.config.follows_target:
                raise UserError("this agent is conditioned on a return; give it a target return")
            target_return = torch.zeros(lanes)
        target = target_return.to(self.device, torch.float32) / self.config.returns.scale
        return AgentState(
            target_return=target,
            return_to_go=target.clone(),
            timestep=torch.zeros(lanes, dtype=torch.int64, device=self.device),
            seed=torch.arange(lanes) if seed is None else seed,
            memory=CONTEXTS[context].empty(self, lanes),
        )

    @torch.inference_mode()
    def act(
        self, observation: Tensor, prev_action: Tensor, prev_reward: Tensor, state: AgentState
    ) -> tuple[Tensor, AgentState]:
        """Choose an action in every lane. Call in eval mode, or dropout stays on.

        Args:
            observation: [lanes, S] raw, or stacks of frames [lanes, 4, H, W] uint8.
            prev_action: [lanes, A] (or [lanes]) taken at the step before; ignored at t = 0.
            prev_reward: [lanes] received for it; ignored at t = 0.
            state: from `init_state` or the last call.

        Returns:
            Actions [lanes, A] in the environment's units (or indices [lanes]), and the new state.
        """
        device, times = self.device, state.timestep.tolist()
        to_go = self._still_to_go(prev_reward.to(device, torch.float32), state, times)
        seen = observation.to(device), prev_action.to(device), to_go
        now = Moment(*seen, state.timestep, times, state.memory)
        if (done := self._at_once.predict(now)) is not None:
            predicted, memory = done
        else:
            predicted, to_go, memory = self._recorder.advance(self, now)
        later = state.timestep + 1
        after = AgentState(state.target_return, to_go, later, state.seed, memory)
        return self.choose(predicted, state), after

    def _still_to_go(self, reward: Tensor, state: AgentState, times: list[int]) -> Tensor:
        """[lanes] return-to-go, scaled, once `reward` [lanes] has been received by all lanes but
        those at time 0."""
        returns, before = self.config.returns, state.return_to_go
        if returns.delayed:  # nothing arrives on the way
            return before
        spent = reward.clamp(-1, 1) if returns.clipped else reward
        after = before - spent / returns.scale
        return torch.where(state.timestep > 0, after, before) if 0 in times else after

    def advance(self, now: Moment) -> tuple[Tensor, Tensor, Memory]:
        """One step of all lanes -> predictions [lanes, A], the returns-to-go [lanes] that were
        acted on, and what is remembered. On a GPU it waits for nothing."""
        values = self.values(now.observation, now.action, now.to_go)
        step = StepInput(values, now.timestep, now.times)
        features, memory = self.look(now.memory, step)  # [lanes, D]
        return self.predict(features), step.now["return_to_go"], memory

    def look(self, memory: Memory, step: StepInput) -> tuple[Tensor, Memory]:
        """Take the step in. Returns features [lanes, D] where the action is read.

        An agent that makes up a token itself writes it into `step.now`.
        """
        return memory.advance(self, step, self.config.inputs)

    def choose(self, predicted: Tensor, state: AgentState) -> Tensor:
        """Predictions [lanes, A] -> actions in the environment's units, or indices [lanes]."""
        if not self.spec.discrete:
            return predicted * self.action_scale
        if self.config.temperature:  # the likeliest under Gumbel noise is a sample
            noise = gumbel_noise(state.seed, state.timestep, predicted.shape[-1])
            predicted = predicted / self.config.temperature + noise.to(predicted)
        return predicted.argmax(-1)

    def reset(self, state: AgentState, lanes: Tensor) -> AgentState:
        """`lanes` [lanes] bool begin a new episode with their target; others are untouched."""
        lanes = lanes.to(self.device)
        return replace(
            state,
            return_to_go=torch.where(lanes, state.target_return, state.return_to_go),
            timestep=state.timestep.masked_fill(lanes, 0),
            memory=state.memory.reset(self, lanes),
        )

    def select(self, state: AgentState, lanes: Tensor) -> AgentState:
        """The state of those `lanes` [lanes] bool alone."""
        here = lanes.to(self.device)
        return AgentState(
            target_return=state.target_return[here],
            return_to_go=state.return_to_go[here],
            timestep=state.timestep[here],
            seed=state.seed[lanes.cpu()],
            memory=state.memory.holding([t[here] for t in state.memory.tensors()]),
        )


def gumbel_noise(seeds: Tensor, timesteps: Tensor, width: int) -> Tensor:
    """[lanes, width] standard Gumbel noise, a pure function of each lane's seed and timestep."""
    pairs = zip(seeds.tolist(), timesteps.tolist(), strict=True)
    draws = [np.random.default_rng(pair).gumbel(size=width) for pair in pairs]
    return torch.from_numpy(np.stack(draws))

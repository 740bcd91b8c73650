"""What a run is: environment, data, agent, training, evaluation. One YAML file, one dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from decision_seq.agents import PRESETS
from decision_seq.agents.base import AgentConfig, Context
from decision_seq.agents.presets import preset_of
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.config import build, dump_yaml, load_yaml, merge, parse_overrides, to_plain
from decision_seq.data.sources import absolute
from decision_seq.errors import UserError
from decision_seq.files import write_text
from decision_seq.model.encoders import ImageEncoderConfig


@dataclass(frozen=True)
class DataConfig:
    """Which episodes to learn from."""

    sources: tuple[str, ...]  # files, folders, imported names or Minari ids: together one dataset
    weights: tuple[float, ...] = ()  # how often to draw from each source; by default by its steps
    top_fraction: float = 1.0  # learn from the best episodes with this share of the steps (%BC)
    validation_fraction: float = 0.05  # share of those episodes held out for the validation loss
    windows: Literal["any", "full"] = "any"  # begin at any step, or only where K steps remain

    def __post_init__(self) -> None:
        if len(self.weights) not in (0, len(self.sources)):
            raise UserError(
                f"weights has {len(self.weights)} numbers for {len(self.sources)} sources; give "
                "one a source, or none"
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise UserError(f"weights is {list(self.weights)}; they must be above 0")
        if not 0 < self.top_fraction <= 1:
            raise UserError(f"top_fraction is {self.top_fraction}; it must be above 0, at most 1")
        if not 0 <= self.validation_fraction < 1:
            raise UserError(
                f"validation_fraction is {self.validation_fraction}; it must be in [0, 1)"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation. Defaults are the papers' for Gym."""

    steps: int = 100_000  # gradient steps
    batch_size: int = 64  # windows a step
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4  # on matrices only: not biases, norms, embeddings, A_log, D
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    warmup_steps: int = 10_000  # learning rate rises linearly over these
    schedule: Literal["constant", "cosine"] = "constant"  # after warm-up; cosine ends at 0
    gradient_clip: float = 0.25  # largest norm of the gradient
    ema: float | None = None  # decay of an average of the weights, which then is what is saved
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast of matrix products
    log_interval: int = 100  # steps between rows of metrics.jsonl
    checkpoint_interval: int = 1000  # steps between checkpoints and validation losses
    keep_interval: int = 0  # weights to keep for `evaluate --checkpoint best`; 0: none but the last
    skip_nonfinite: int = 0  # batches with a loss or gradient that is not finite, before it stops

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_interval", "checkpoint_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep_interval < 0 or self.keep_interval % self.checkpoint_interval:
            raise UserError(
                f"keep_interval is {self.keep_interval}; it must be 0 or a multiple of "
                f"checkpoint_interval, {self.checkpoint_interval}"
            )
        if self.batch_size > 1_000_000:
            raise UserError(f"batch_size is {self.batch_size}; it must be at most 1000000")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError("weight_decay must be at least 0 and betas at least 0 and below 1")
        if self.learning_rate <= 0 or self.gradient_clip <= 0 or self.warmup_steps < 0:
            raise UserError(
                "learning_rate and gradient_clip must be above 0, warmup_steps at least 0"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"ema is {self.ema}; it must be between 0 and 1, or left out")
        if self.skip_nonfinite < 0:
            raise UserError(f"skip_nonfinite is {self.skip_nonfinite}; it must be at least 0")


@dataclass(frozen=True)
class EvalConfig:
    """Rollouts of the trained agent."""

    # returns to ask for (an agent without return tokens needs none), or auto: each episode is asked
    # for what the data make probable from its first observation, at `target_quantile`
    targets: tuple[float, ...] | Literal["auto"] = ()
    target_quantile: float = 0.9  # one in ten of the data's episodes from there returned more
    episodes: int = 100  # a target
    context: Context = "window"  # the papers' evaluation; stream carries state at O(1) a step
    seed: int = 0  # of the environments: episode i starts from seed + i, whatever the target
    interval: int = 0  # also roll out every so many training steps; 0: only when evaluate is called

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.interval < 0:
            raise UserError("episodes must be at least 1 and interval at least 0")
        if self.targets != "auto" and not all(math.isfinite(target) for target in self.targets):
            raise UserError(f"targets is {list(self.targets)}; they must be finite numbers")
        if not 0 < self.target_quantile < 1:
            raise UserError(
                f"target_quantile is {self.target_quantile}; it must be above 0 and below 1"
            )
        check_seed(self.seed)


@dataclass(frozen=True)
class RunConfig:
    """Everything that makes a run what it is; its YAML in the run folder can be fed back."""

    env: str  # environment name or gymnasium id
    data: DataConfig
    agent: AgentConfig = field(default_factory=ReturnConditionedConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0  # of data order, initialisation and dropout
    name: str = ""  # what reports call this agent; by default its preset, else its backbone

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.name:
            name = preset_of(self.agent) or self.agent.backbone.kind
            object.__setattr__(self, "name", name)  # the way to do so in a frozen dataclass


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from YAML, with `--set` assignments laid over it.

    Raises UserError naming file, key and the nearest valid key.
    """
    return run_config(load_yaml(path), parse_overrides(overrides), str(path))


def run_config(base: Mapping[str, Any], override: Mapping[str, Any], source: str) -> RunConfig:
    """A run from plain data: presets expanded, `override` laid over `base`, file paths absolute."""
    base, override = dict(base), dict(override)
    agent = _expand_preset(base.get("agent", {}), source)
    change = _expand_preset(override.get("agent", {}), source)
    if change.get("kind", agent.get("kind")) != agent.get("kind"):
        kept = {f.name for f in fields(AgentConfig)} - {"tokens"}  # each kind has its own tokens
        agent = {k: v for k, v in agent.items() if k in kept}
    parts: dict[str, type[Any]] = {"backbone": BackboneConfig, "encoder": ImageEncoderConfig}
    for key, base_class in parts.items():
        new = _mapping(change.get(key) or {}, f"agent.{key}", source)
        old = _mapping(agent.get(key) or {}, f"agent.{key}", source)
        if new.get("kind", old.get("kind")) != old.get("kind"):
            shared = {f.name for f in fields(base_class)}  # what all of them have is kept
            agent[key] = {k: v for k, v in old.items() if k in shared}
    merged = merge(base | {"agent": agent}, override | {"agent": change})
    config = build(RunConfig, merged, source)
    sources = tuple(absolute(s) for s in config.data.sources)
    return replace(config, data=replace(config.data, sources=sources))


def write_run_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config atomically."""
    write_text(path, dump_yaml(config))


def check_same_run(run: Path, config: RunConfig) -> None:
    """Raise UserError unless the run folder's config is `config`, up to evaluation, bad batches to
    skip and, where the learning rate does not depend on it, the number of steps."""
    path = run / "config.yaml"
    old, new = _identity(load_run_config(path)), _identity(config)
    changed = [key for key in new if old[key] != new[key]]
    if changed:
        raise UserError(
            f"{path}: the run there has other settings ({', '.join(changed)}); use the same "
            "config, or choose another --out"
        )


def check_seed(seed: int) -> None:
    """Raise UserError unless every generator takes it."""
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2147483648")


def _identity(config: RunConfig) -> dict[str, Any]:
    plain = to_plain(config)
    del plain["eval"], plain["train"]["keep_interval"]
    del plain["train"]["skip_nonfinite"]  # raised to get past a bad batch
    if config.train.schedule == "constant":
        del plain["train"]["steps"]
    return plain


def _expand_preset(agent: Any, source: str) -> dict[str, Any]:
    agent = dict(_mapping(agent, "agent", source))
    preset = agent.pop("preset", None)
    if preset is None:
        return agent
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UserError(
            f"{source}: `agent.preset` is {preset!r}; it must be one of {', '.join(PRESETS)}"
        )
    return merge(PRESETS[preset], agent)


def _mapping(value: Any, key: str, source: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{source}: `{key}` must be a mapping, found {value!r}")
    return value

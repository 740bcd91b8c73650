"""What a run is beside its agent: settings of data, training and evaluation. No torch is needed to
read them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from decision_seq.errors import UserError

Context = Literal["window", "stream"]  # the last K steps computed again, or a state carried on
# `auto`: the fastest that is the environment's own to the last bit; `warp`: MuJoCo Warp, in float32
Simulator = Literal["auto", "warp"]
LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]  # of training/loggers.py


@dataclass(frozen=True)
class DataConfig:
    """Which episodes to learn from."""

    sources: tuple[str, ...]  # files, folders, imported names or Minari ids: together one dataset
    weights: tuple[float, ...] = ()  # how often to draw from each source; by default by its steps
    top_fraction: float = 1.0  # learn from the best episodes with this share of the steps (%BC)
    validation_fraction: float = 0.05  # share of those episodes held out for the validation loss
    leave_out: tuple[str, ...] = ()  # parts of observations that no agent reads, such as texts
    windows: Literal["any", "full"] = "any"  # begin at any step, or only where K steps remain

    def __post_init__(self) -> None:
        _check_once("sources", self.sources, "remove it (weights draw from one more often)")
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
    # consecutive windows of an episode, the backbone's state carried from one to the next
    stream: bool = False
    # decay of an average of the weights, which then is what is saved; at step t at most
    # (1 + t) / (10 + t)
    ema: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast of matrix products
    # on a GPU a gradient step is recorded once and launched as one (a CUDA graph); off: never
    compile: Literal["auto", "off"] = "auto"
    log_interval: int = 100  # steps between rows of metrics.jsonl
    checkpoint_interval: int = 1000  # steps between checkpoints and validation losses
    keep_interval: int = 0  # weights to keep for `evaluate --checkpoint best`; 0: none but the last
    skip_nonfinite: int = 0  # batches with a loss or gradient that is not finite, before it stops
    loggers: tuple[LoggerName, ...] = ("tensorboard",)  # that get what metrics.jsonl gets

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
        if self.weight_decay < 0:
            raise UserError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas is {list(self.betas)}; they must be at least 0 and below 1")
        for name in ("learning_rate", "gradient_clip"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps is {self.warmup_steps}; it must be at least 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"ema is {self.ema}; it must be between 0 and 1, or left out")
        if self.stream and self.precision != "float32":
            raise UserError(
                f"precision is {self.precision}, but a state that is carried adds up in float32; "
                "leave out precision, or stream"
            )
        if self.skip_nonfinite < 0:
            raise UserError(f"skip_nonfinite is {self.skip_nonfinite}; it must be at least 0")
        _check_once("loggers", self.loggers)


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
    # an episode is cut off there; by default only in an environment that names no time limit, at
    # ten times the longest episode of the data
    max_steps: int | None = None
    simulator: Simulator = "auto"  # warp: thousands of lanes of a MuJoCo robot on a GPU
    # returns of a random policy and of an expert, for normalized scores; by default the data's own,
    # else the published ones
    score_reference: tuple[float, float] | None = None

    def judging(self) -> EvalConfig:
        """The same with episodes that judge: from the environment seeds after those of the
        reported ones."""
        return dataclasses.replace(self, seed=self.seed + self.episodes)

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"episodes is {self.episodes}; it must be at least 1")
        if self.interval < 0:
            raise UserError(f"interval is {self.interval}; it must be at least 0")
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max_steps is {self.max_steps}; it must be at least 1, or left out")
        if self.score_reference is not None:
            low, high = self.score_reference
            if not (math.isfinite(low) and math.isfinite(high)) or low == high:
                raise UserError(
                    f"score_reference is {list(self.score_reference)}; it must be two different "
                    "returns, of a random policy and of an expert"
                )
        if self.targets != "auto":
            if not all(math.isfinite(target) for target in self.targets):
                raise UserError(f"targets is {list(self.targets)}; they must be finite numbers")
            _check_once("targets", self.targets)
        if not 0 < self.target_quantile < 1:
            raise UserError(
                f"target_quantile is {self.target_quantile}; it must be above 0 and below 1"
            )
        check_seed(self.seed)


def check_seed(seed: int) -> None:
    """Raise UserError unless every generator takes it."""
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2147483648")


def _check_once(name: str, values: tuple[Any, ...], fix: str = "remove it") -> None:
    if len(set(values)) < len(values):
        raise UserError(f"{name} is {list(values)}, which names one twice; {fix}")

"""What a run is: environment, data, agent, training, evaluation. One YAML file, one dataclass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from decision_seq.agents import PRESETS, SequenceAgent, load_agent
from decision_seq.agents.presets import preset_of
from decision_seq.agents.return_conditioned import ReturnConditionedConfig
from decision_seq.agents.spec import AgentConfig
from decision_seq.backbones import BackboneConfig
from decision_seq.config import (
    build,
    check_command,
    dump_yaml,
    in_words,
    load_yaml,
    merge,
    nearest,
    parse_overrides,
    to_plain,
)
from decision_seq.data.sources import absolute
from decision_seq.errors import UserError
from decision_seq.files import write_text
from decision_seq.model.encoders import ImageEncoderConfig
from decision_seq.run_folder import agent_at
from decision_seq.settings import DataConfig, EvalConfig, TrainConfig, check_seed
from decision_seq.shipped import config_file
from decision_seq.values.critic import ValuesConfig


@dataclass(frozen=True)
class RunConfig:
    """Everything that makes a run what it is; its YAML in the run folder can be fed back."""

    env: str | None  # environment name or gymnasium id; none of logs that have no simulator
    data: DataConfig
    agent: AgentConfig = field(default_factory=ReturnConditionedConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    values: ValuesConfig = field(default_factory=ValuesConfig)  # where agent.guidance asks for them
    seed: int = 0  # of data order, initialisation and dropout
    name: str = ""  # what reports call this agent; by default its preset, else its backbone

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.name:
            name = preset_of(self.agent) or self.agent.backbone.kind
            object.__setattr__(self, "name", name)  # the way to do so in a frozen dataclass


def load_run_config(config: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run from YAML, or the shipped config of that name, with `--set` assignments laid over
    it.

    Raises UserError naming file, key and the nearest valid key.
    """
    path = config_file(config)
    base, override = load_yaml(path), parse_overrides(overrides)
    check_command(base, path, "train")
    with blaming(path, overrides):
        return run_config(base, override, str(path))


@contextmanager
def blaming(path: Path, overrides: Sequence[str]) -> Iterator[None]:
    """A UserError about a key of the config at `path` names the `--set` that gave it, where one
    did."""
    try:
        yield
    except UserError as error:
        said = str(error)
        at = re.escape(str(path))  # perhaps with its base in brackets and what a sweep tried
        about = re.match(rf"{at}(?: \([^)]*\))?: ([\w.]+)", said)
        about = about or re.match(rf"{at}.*?: `([\w.]+)", said)
        if about is None:
            raise
        key = f"{about[1]}."
        for typed in reversed(overrides):
            given = f"{typed.partition('=')[0]}."
            if key.startswith(given) or given.startswith(key):
                rest = said[said.rindex(": ", 0, about.start(1)) :]
                raise UserError(f"--set {typed}{rest}") from None
        raise


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
    config = build(RunConfig, {"env": None} | merged, source)
    sources = tuple(absolute(s) for s in config.data.sources)
    return replace(config, data=replace(config.data, sources=sources))


def write_run_config(config: RunConfig, path: Path) -> None:
    """Write the resolved config atomically."""
    write_text(path, dump_yaml(config))


def check_same_run(run: Path, config: RunConfig) -> None:
    """Raise UserError unless the run folder's config is `config`, up to evaluation, loggers, bad
    batches to skip, whether steps are recorded and, where the learning rate does not depend on it,
    the number of steps."""
    path = run / "config.yaml"
    old, new = _identity(load_run_config(path)), _identity(config)
    changed = [
        f"{key} is {in_words(there)} there and {in_words(here)} here"
        for key, there, here in differences(old, new)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{path}: the run there has other settings ({', '.join(changed[:3])}{more}); use the "
            "same config, or choose another --out"
        )


def check_unchanged(run: Path, config: RunConfig, trained: AgentConfig) -> None:
    """Raise UserError if the run's config says of the agent what it was not trained with."""
    there, here = to_plain(config.agent), to_plain(trained)
    for key in ("encoder", "encoders", "frame_stack"):  # chosen by the data where they are left out
        del there[key], here[key]
    for name, says, was in differences(there, here, "agent"):
        raise UserError(
            f"{run / 'config.yaml'}: {name} is {in_words(says)} there and {in_words(was)} in the "
            "checkpoint, which acts as it was trained; put the file's value back, or train another "
            "run"
        )


def trained_agent(
    run: Path, config: RunConfig, step: int, device: torch.device | str = "cpu"
) -> SequenceAgent:
    """The agent of the checkpoint at `step`. Raises UserError if it cannot be read, or the run's
    `config` was edited after training."""
    agent = load_agent(agent_at(run, step), device)
    check_unchanged(run, config, agent.config)
    return agent


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """`train.batch_size`, 64, 32"""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**old, **new}:
            yield from differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def _identity(config: RunConfig) -> dict[str, Any]:
    plain = to_plain(config)
    del plain["eval"], plain["train"]["keep_interval"], plain["train"]["loggers"]
    del plain["train"]["skip_nonfinite"]  # raised to get past a bad batch
    del plain["train"]["compile"]  # the numbers are the same
    if config.train.schedule == "constant":
        del plain["train"]["steps"]
    return plain


def _expand_preset(agent: Any, source: str) -> dict[str, Any]:
    agent = dict(_mapping(agent, "agent", source))
    preset = agent.pop("preset", None)
    if preset is None:
        return agent
    if not isinstance(preset, str) or preset not in PRESETS:
        hint = nearest(str(preset), PRESETS)
        raise UserError(f"{source}: `agent.preset` is {preset!r}, which there is not; {hint}")
    return merge(PRESETS[preset], agent)


def _mapping(value: Any, key: str, source: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{source}: `{key}` must be a mapping, found {value!r}")
    return value

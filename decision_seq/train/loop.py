"""The training loop: batches in, gradient steps, checkpoints out."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decision_seq.agents import SequenceAgent
from decision_seq.agents.fit import check_fit
from decision_seq.config import to_plain
from decision_seq.data.inspect import write_summary
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.transforms import delay_rewards, hold_out, top_fraction
from decision_seq.data.windows import WindowSampler
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.progress import progress_bar
from decision_seq.run_config import RunConfig, load_run_config, write_run_config
from decision_seq.train.checkpoint import has_checkpoint, load_state, save_checkpoint
from decision_seq.train.log import MetricsLog, stop_on_signal
from decision_seq.train.optim import learning_rate, make_optimizer

VALIDATION_BATCHES = 8


@dataclass
class Learner:
    """Everything that changes during training."""

    agent: SequenceAgent
    averaged: SequenceAgent  # the moving average of the weights, or the agent itself
    optimizer: torch.optim.Optimizer
    loss_sum: torch.Tensor  # since the last logged row
    step: int = 0

    def state(self) -> dict[str, Any]:
        """What resuming needs, as tensors and plain values."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "step": self.step,
            "agent": self.agent.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": cuda,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`, bit for bit on CPU."""
        self.step = state["step"]
        self.agent.load_state_dict(state["agent"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_sum.copy_(state["loss_sum"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def train(
    config: RunConfig,
    out: Path,
    device: torch.device,
    resume: bool = False,
    on_interval: Callable[[SequenceAgent, int], dict[str, float]] | None = None,
) -> bool:
    """Train the agent of `config` into the run folder `out`.

    Args:
        config: the run.
        out: run folder; new, or with `resume` one that was interrupted.
        device: where to train.
        resume: continue from the last checkpoint, if there is one.
        on_interval: called with agent and step every `eval.interval` steps; its scalars are logged.

    Returns:
        False if Ctrl-C or SIGTERM stopped it; its state is saved then.
    """
    check_run_folder(config, out, resume)
    torch.manual_seed(config.seed)
    store = open_store(config.data.sources)
    agent = SequenceAgent.for_dataset(config.agent, store).to(device)
    env = make(config.env)
    check_fit(agent.spec, env)
    env.close()
    training, validation = make_samplers(config, store, device)
    write_run_config(config, out / "config.yaml")
    write_summary(out / "dataset.json", store, config.env)
    averaged = agent if config.train.ema is None else copy.deepcopy(agent).eval()
    optimizer = make_optimizer(agent, config.train)
    learner = Learner(agent, averaged, optimizer, torch.zeros((), device=device))
    if resume and has_checkpoint(out):
        learner.restore(load_state(out))
    with MetricsLog(out, learner.step) as log, stop_on_signal() as stop, progress_bar() as bar:
        total = config.train.steps
        task = bar.add_task("training", total=total, completed=learner.step, note="")
        clock = _Clock(learner.step)
        while learner.step < total and not stop.requested:
            norm = gradient_step(learner, training, config)
            step = learner.step
            if step % config.train.log_interval == 0:
                loss = _mean_loss(learner, config)
                rate = clock.rate(step)
                lr = learning_rate(step - 1, config.train)
                log.write(
                    step,
                    loss=loss,
                    learning_rate=lr,
                    gradient_norm=float(norm),
                    steps_per_second=rate,
                )
                bar.update(task, note=f"loss {loss:.4f}")
            last = step == total or stop.requested
            if step % config.train.checkpoint_interval == 0 or last:
                error = validation_loss(learner.averaged, validation, config)
                if error is not None:
                    log.write(step, validation_loss=error)
                save_checkpoint(out, step, learner.averaged, learner.state(), error)
                clock.rate(step)  # leave the pause out of the rate
            if on_interval and config.eval.interval and step % config.eval.interval == 0:
                log.write(step, **_with_rng_kept(on_interval, learner.averaged, step))
                clock.rate(step)
            bar.update(task, completed=step)
    return learner.step >= total


def gradient_step(learner: Learner, sampler: WindowSampler, config: RunConfig) -> torch.Tensor:
    """One step of AdamW on one batch. Returns the gradient's norm before clipping."""
    settings, agent = config.train, learner.agent
    batch = sampler.batch(learner.step, settings.batch_size)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(learner.step, settings)
    agent.train()
    with _autocast(config, agent.device):
        loss = agent.loss(batch)
    learner.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(agent.parameters(), settings.gradient_clip)
    learner.optimizer.step()
    if settings.ema is not None:
        averages: list[torch.Tensor] = list(learner.averaged.parameters())
        weights: list[torch.Tensor] = list(agent.parameters())
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - settings.ema)
    learner.loss_sum += loss.detach()
    learner.step += 1
    return norm


@torch.no_grad()
def validation_loss(
    agent: SequenceAgent, sampler: WindowSampler | None, config: RunConfig
) -> float | None:
    """Mean loss over a fixed set of held-out windows, or None where nothing is held out."""
    if sampler is None:
        return None
    agent.eval()
    with _autocast(config, agent.device):
        size = config.train.batch_size
        losses = [agent.loss(sampler.batch(i, size)) for i in range(VALIDATION_BATCHES)]
    return float(torch.stack(losses).mean())


def make_samplers(
    config: RunConfig, store: EpisodeStore, device: torch.device
) -> tuple[WindowSampler, WindowSampler | None]:
    """Windows to learn from, and held-out ones (None if there are none)."""
    returns = config.agent.returns
    kept = top_fraction(store, config.data.top_fraction)
    if returns.delayed:
        store = delay_rewards(store)
    training, held_out = hold_out(kept, config.data.validation_fraction, config.seed)

    def sampler(episodes: np.ndarray) -> WindowSampler:
        return WindowSampler(
            store, episodes, config.agent.context_length, returns, config.seed, device
        )

    return sampler(training), sampler(held_out) if len(held_out) else None


def check_run_folder(config: RunConfig, out: Path, resume: bool) -> None:
    """Raise UserError if `out` holds another run, or one that nobody asked to resume."""
    path = out / "config.yaml"
    if path.exists() and not resume:
        raise UserError(
            f"{out}: already holds a run; continue it with --resume, or choose another --out"
        )
    if path.exists():
        old, new = (_identity(c) for c in (load_run_config(path), config))
        if old != new:
            changed = [key for key in new if old[key] != new[key]]
            raise UserError(
                f"{path}: the run to resume had other settings ({', '.join(changed)}); resume "
                "with the same config, or choose another --out"
            )


def _identity(config: RunConfig) -> dict[str, Any]:
    """What must not change on resume: all but the number of steps and the evaluation."""
    same_length = dataclasses.replace(config.train, steps=1)
    plain = to_plain(dataclasses.replace(config, train=same_length))
    del plain["eval"]
    return plain


def _mean_loss(learner: Learner, config: RunConfig) -> float:
    loss = float(learner.loss_sum) / config.train.log_interval
    learner.loss_sum.zero_()
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {learner.step}; lower train.learning_rate (now "
            f"{config.train.learning_rate}), or check the data with `decision-seq data check`"
        )
    return loss


def _autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    enabled = config.train.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _with_rng_kept(
    call: Callable[[SequenceAgent, int], dict[str, float]], agent: SequenceAgent, step: int
) -> dict[str, float]:
    """Rollouts on the way must not change what training draws next."""
    state = torch.get_rng_state()
    try:
        return call(agent.eval(), step)
    finally:
        torch.set_rng_state(state)


class _Clock:
    """Steps a second since the last question."""

    def __init__(self, step: int) -> None:
        self.step, self.time = step, time.perf_counter()

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return rate

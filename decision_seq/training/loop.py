"""The training loop: batches in, gradient steps, checkpoints out."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from decision_seq.agents import SequenceAgent
from decision_seq.agents.fit import check_fit, check_left_out, check_origin
from decision_seq.agents.return_prior import ensure_prior
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.data.streams import Sampler
from decision_seq.data.tools.info import read_summary, remarks, write_summary
from decision_seq.envs.registry import make
from decision_seq.errors import UserError
from decision_seq.files import exclusive, remove_leftovers
from decision_seq.hardware import peak_memory_mib
from decision_seq.progress import progress_bar
from decision_seq.run_config import RunConfig, write_run_config
from decision_seq.run_folder import has_checkpoint
from decision_seq.signals import stop_on_signal
from decision_seq.training.checkpoint import (
    check_run_folder,
    load_state,
    mend_weights,
    save_checkpoint,
)
from decision_seq.training.distributed import World, joined
from decision_seq.training.faults import FiniteGuard, stop_for_fault
from decision_seq.training.log import MetricsLog, NoLog
from decision_seq.training.loggers import check_loggers
from decision_seq.training.optim import learning_rate, make_optimizer
from decision_seq.training.random import RandomStream
from decision_seq.training.recorded import RecordedSteps, SingleSteps, can_record
from decision_seq.training.samplers import make_samplers
from decision_seq.training.step import Learner, gradient_step
from decision_seq.training.validation import validation_loss
from decision_seq.values.guide import guide_for

# from agent and step to scalars for the log
OnInterval = Callable[[SequenceAgent, int], dict[str, float]]


def train(
    config: RunConfig,
    out: Path,
    device: torch.device,
    resume: bool = False,
    on_interval: OnInterval | None = None,
) -> bool:
    """Train the agent of `config` into the run folder `out`; under `torchrun`, with the other
    processes.

    Args:
        config: the run.
        out: run folder; new, or with `resume` one that was interrupted.
        device: where to train.
        resume: continue from the last checkpoint, if there is one.
        on_interval: called with agent and step every `eval.interval` steps; its scalars are logged.

    Returns:
        False if Ctrl-C or SIGTERM stopped it; its state is saved then.
    """
    with joined(device) as (world, device), contextlib.ExitStack() as held:
        (run,) = open_runs([config], [out], device, resume, [on_interval], world, held)
        parts = run.learner, run.training, config
        step = RecordedSteps(SingleSteps(*parts)) if can_record(run.learner, config) else None
        train_all([run], lambda _: [step() if step else gradient_step(*parts)])
    return run.finished


def open_runs(
    configs: Sequence[RunConfig],
    outs: Sequence[Path],
    device: torch.device,
    resume: bool,
    on_intervals: Sequence[OnInterval | None],
    world: World,
    held: contextlib.ExitStack,
) -> list[Run]:
    """Runs on the same data, new or as their last checkpoints left them; `held` keeps their folders
    locked and their logs open. The arguments are those of `train`."""
    for config, out in zip(configs, outs, strict=True):
        check_run_folder(config, out, resume)
        check_loggers(config.train.loggers)
        world.check(config.train.batch_size)
        if config.train.stream and world.size > 1:
            raise UserError("train.stream runs in one process; leave out torchrun, or stream")
    store = open_store(configs[0].data.sources)
    check_left_out(store, configs[0].data.leave_out)
    if world.is_rank_zero:
        for line in remarks(store):
            print(line, file=sys.stderr)
    parts = zip(configs, outs, on_intervals, strict=True)
    return [held.enter_context(_opened(c, store, o, device, f, world)) for c, o, f in parts]


@dataclass(eq=False)
class Run:
    """A run that is being trained: what it is, what it learns from and where it writes."""

    config: RunConfig
    out: Path
    learner: Learner
    training: Sampler
    validation: dict[str, Sampler]
    log: MetricsLog | NoLog
    on_interval: OnInterval | None

    def __post_init__(self) -> None:
        self.clock, self.saved = _Clock(self.learner.step), self.learner.step
        self.note = ""  # for the progress bar

    @property
    def finished(self) -> bool:
        """Whether it has come to its last step."""
        return self.learner.step >= self.config.train.steps

    def after_step(self, norm: torch.Tensor) -> None:
        """At intervals a row, a checkpoint, rollouts; `norm` [] is that of the step's gradient."""
        settings, learner, step = self.config.train, self.learner, self.learner.step
        intervals = (settings.log_interval, settings.checkpoint_interval)
        if learner.loss_sum.device.type == "cpu" or not all(step % i for i in intervals):
            check_finite(learner, self.training, self.config, self.out)
        if step % settings.log_interval == 0:
            loss = _mean_loss(learner)
            self.log.write(
                step,
                loss=loss,
                learning_rate=learning_rate(step - 1, settings),
                gradient_norm=float(norm),
                steps_per_second=self.clock.rate(step),
                peak_memory_mib=peak_memory_mib(learner.loss_sum.device),
                **learner.guard.scalars(),
            )
            self.note = f"loss {loss:.4f}"
        if step % settings.checkpoint_interval == 0:
            self.save()
        if self.on_interval and self.config.eval.interval and step % self.config.eval.interval == 0:
            roll = partial(self.on_interval, learner.averaged.eval(), step)
            self.log.write(step, **(learner.world.rank_zero_only(roll) or {}))
            self.clock.rate(step)

    def save(self) -> None:
        """Write a checkpoint."""
        self.learner.world.rank_zero_only(self._write_checkpoint)
        self.clock.rate(self.learner.step)  # leave the pause out of the rate
        self.saved = self.learner.step

    def close(self) -> None:
        """Save what is not saved yet."""
        if self.learner.step > self.saved:
            check_finite(self.learner, self.training, self.config, self.out)
            self.save()

    def _write_checkpoint(self) -> None:
        settings, learner = self.config.train, self.learner
        due = learner.step % settings.checkpoint_interval == 0 or self.finished
        errors = {
            name: validation_loss(learner.averaged, sampler, self.config)
            for name, sampler in (self.validation.items() if due else ())
        }
        if errors:
            self.log.write(learner.step, **errors)
        state, keep, error = learner.state(), settings.keep_interval, errors.get("validation_loss")
        save_checkpoint(self.out, learner.step, learner.averaged, state, error, keep)


@contextlib.contextmanager
def _opened(
    config: RunConfig,
    store: EpisodeStore,
    out: Path,
    device: torch.device,
    on_interval: OnInterval | None,
    world: World,
) -> Iterator[Run]:
    learner = fresh_learner(config, store, device, world)
    if config.env is not None:
        env = make(config.env)
        check_origin(store, env)
        check_fit(learner.agent.spec, env)
        env.close()
    elif config.eval.interval:
        raise UserError("eval.interval asks for rollouts, but no env is named; add `env:`")
    samplers = make_samplers(config, store, device, learner.agent.hindsight)
    with contextlib.ExitStack() as held:

        def take() -> None:
            held.enter_context(exclusive(out / ".train.lock", wait=False))
            for folder in (out, out / "checkpoints"):
                remove_leftovers(folder)

        def describe() -> None:
            write_run_config(config, out / "config.yaml")
            write_summary(out / "dataset.json", store, config.env)
            ensure_prior(out, store, config.data.top_fraction, config.seed)

        world.rank_zero_only(take)
        if has_checkpoint(out):
            restore_run(config, out, store, learner)
        world.separate(learner.random, config.seed, learner.step)
        world.rank_zero_only(describe)
        agent = learner.agent
        agent.guide = guide_for(agent, store, out, config.values, config.seed)
        log = MetricsLog(out, config, learner.step) if world.is_rank_zero else NoLog()
        held.enter_context(log)
        yield Run(config, out, learner, *samplers, log, on_interval)


def fresh_learner(
    config: RunConfig, store: EpisodeStore, device: torch.device, world: World
) -> Learner:
    """With an untrained agent of `config.seed`."""
    random = RandomStream(config.seed, device)
    with random:
        agent = SequenceAgent.for_dataset(config.agent, store).to(device)
    averaged = agent if config.train.ema is None else copy.deepcopy(agent).eval()
    optimizer = make_optimizer(agent, config.train)
    guard = FiniteGuard(config.train.skip_nonfinite, device)
    loss_sum, loss_count = torch.zeros(2, device=device)
    return Learner(
        agent, averaged, optimizer, guard, loss_sum, loss_count, world=world, random=random
    )


def train_all(
    runs: Sequence[Run], take_step: Callable[[list[Run]], Sequence[torch.Tensor]]
) -> None:
    """Steps until each run has come to its last one, or a signal. One that a bad batch stops does
    not stop the others; its UserError is raised in the end.

    Args:
        runs: of one length; several only in one process.
        take_step: makes a gradient step of each run that goes on, and returns their norms.
    """
    world, steps = runs[0].learner.world, runs[0].config.train.steps
    active, failed = [run for run in runs if not run.finished], []
    with stop_on_signal(patient=world.size > 1) as stop, progress_bar(world.is_rank_zero) as bar:
        task = bar.add_task("training", total=steps, completed=runs[0].learner.step, note="")
        while active and not world.any(stop.requested):
            going = []
            for run, norm in zip(active, take_step(active), strict=True):
                try:
                    run.after_step(norm)
                    if run.finished:
                        run.close()
                    else:
                        going.append(run)
                except UserError as error:
                    failed.append(error)
            bar.update(task, completed=active[0].learner.step, note=active[0].note)
            active = going
        for run in active:
            run.close()
    if failed:
        raise failed[0]


def check_finite(learner: Learner, sampler: Sampler, config: RunConfig, out: Path) -> None:
    """Raise UserError, after saving what shows it again, if too many batches were not finite."""
    fatal = learner.guard.tripped()
    if fatal is not None:
        allowed = config.train.skip_nonfinite
        fault = partial(stop_for_fault, fatal, learner.agent, sampler, config, out, allowed)
        learner.world.rank_zero_only(fault)


def restore_run(config: RunConfig, out: Path, store: EpisodeStore, learner: Learner) -> None:
    """Bring `learner` to the last checkpoint of `out`.

    Raises UserError if that run was trained on other episodes, or further than `config` asks.
    """
    before = read_summary(out / "dataset.json")["hash"]
    if before != store.hash:
        raise UserError(
            f"{out}: was trained on other episodes (hash {before}) than {store.name} holds now "
            f"({store.hash}); restore the data, or choose another --out"
        )
    state = load_state(out)
    try:
        learner.restore(state)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{out}: its training state does not fit ({type(error).__name__}), it is damaged or "
            "from another version of decision-seq; train the run again in another folder"
        ) from None
    if learner.step > config.train.steps:
        raise UserError(
            f"{out}: is at step {learner.step} already, beyond train.steps {config.train.steps}; "
            "raise train.steps, or choose another --out"
        )
    learner.world.rank_zero_only(partial(mend_weights, out, learner.averaged))


def _mean_loss(learner: Learner) -> float:
    loss = float(learner.loss_sum / learner.loss_count)  # NaN if all were skipped
    learner.loss_sum.zero_()
    learner.loss_count.zero_()
    return loss


class _Clock:
    """Steps a second since the last question."""

    def __init__(self, step: int) -> None:
        self.step, self.time = step, time.perf_counter()

    def rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return rate

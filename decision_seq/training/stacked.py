"""Several seeds trained as one: their agents' weights lie in one matrix, a row a seed, and a
gradient step of all is one of `torch.func.vmap` over the rows. A GPU then launches about as many
kernels for all as for one, which is what a step of so small a model consists of.

Everything else of a run is its own: its batches, its dropout, its clipping, the batches it skips,
its folder. The learners' tensors are views of the rows, so a run is logged, saved and evaluated as
if it were trained alone, and what it saves can go on alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from decision_seq.agents.base import Guide
from decision_seq.data.windows import Batch
from decision_seq.errors import UserError
from decision_seq.hardware import to_device
from decision_seq.ops.graphs import Record
from decision_seq.ops.seeds import each_drawing_from, seed_by_seed
from decision_seq.run_config import RunConfig
from decision_seq.training.distributed import Loss, joined
from decision_seq.training.faults import FiniteGuard
from decision_seq.training.loop import OnInterval, Run, open_runs, train_all
from decision_seq.training.optim import autocast
from decision_seq.training.recorded import RecordedSteps, can_record
from decision_seq.training.step import Learner, step_numbers

ALIGNED = 64  # numbers: where in a row a tensor may begin, as products want it


def train_seeds(
    config: RunConfig,
    seeds: Sequence[int],
    out: Path,
    device: torch.device,
    resume: bool = False,
    on_interval: Callable[[RunConfig, Path], OnInterval] | None = None,
) -> bool:
    """Train `config` with each of `seeds` into `out`/seed0, `out`/seed1, ...: as `train` does with
    one after the other, up to the order of sums.

    Args:
        config: the runs, but for their seeds.
        seeds: one or more, all different.
        out: the folder of the run folders; or theirs, with {seed} in place of the seed.
        device: where to train.
        resume: continue those that were interrupted, which need not be at the same step.
        on_interval: makes what `train` takes of a run and its folder.

    Returns:
        False if Ctrl-C or SIGTERM stopped it; all states are saved then.
    """
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: names a seed twice; remove it")
    if config.train.stream:
        raise UserError(
            "--seeds cannot carry a state from batch to batch, as train.stream asks; train one "
            "seed after the other"
        )
    configs = [replace(config, seed=seed) for seed in seeds]
    outs = folders(out, seeds)
    calls = [on_interval and on_interval(*run) for run in zip(configs, outs, strict=True)]
    with joined(device) as (world, device), contextlib.ExitStack() as held:
        if world.size > 1:
            raise UserError(
                "--seeds trains in one process; start it without torchrun, or one seed with it"
            )
        runs = open_runs(configs, outs, device, resume, calls, world, held)
        train_all(runs, Stepper())
    return all(run.finished for run in runs)


def folders(out: Path, seeds: Sequence[int]) -> list[Path]:
    """The run folders of `seeds`."""
    place = str(out) if "{seed}" in str(out) else str(out / "seed{seed}")
    return [Path(place.replace("{seed}", str(seed))) for seed in seeds]


class Stepper:
    """Gradient steps of runs, stacked anew when one of them has ended; recorded where that can be
    done, as `record` does it."""

    def __init__(self, record: Record | None = None) -> None:
        self.record = record
        self.runs: list[Run] = []

    def __call__(self, runs: list[Run]) -> list[Tensor]:
        """One step of each; the norms of their gradients."""
        if runs != self.runs:
            self.runs, stack = list(runs), Stack(runs)
            recorded = self.record or can_record(runs[0].learner, runs[0].config)
            self.step = RecordedSteps(stack, self.record) if recorded else stack.plain
        return list(self.step())


class Stack:
    """The learners of S runs of one shape; their tensors become views of those here.

    A row of P numbers is every parameter of an agent, flat, each from a multiple of ALIGNED on.
    """

    @torch.no_grad()
    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs, self.settings = runs, runs[0].config.train
        self.learners = learners = [run.learner for run in runs]
        self.fields: list[str] = []  # of a batch
        first = learners[0]
        self.loss = Loss(first.agent)  # whose tensors are replaced in every call
        self.guides = [x.agent.guide for x in learners if x.agent.guide]
        named = dict(first.agent.named_parameters())
        shapes = [p.shape for p in named.values()]
        self.sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in named.values()]
        states = [_optimizer_states(learner) for learner in learners]
        self.weights = self._rows([list(x.agent.parameters()) for x in learners])  # [S, P]
        self.averages: Tensor | None = None
        if first.averaged is not first.agent:
            self.averages = self._rows([list(x.averaged.parameters()) for x in learners])
        self.first = self._rows([[s["exp_avg"] for s in own] for own in states])
        self.second = self._rows([[s["exp_avg_sq"] for s in own] for own in states])
        self.steps = torch.stack([max(s["step"] for s in own) for own in states])  # [S]
        for own, step in zip(states, self.steps, strict=True):
            for state in own:
                state["step"].data = step
        self.loss_sum = _stacked([x.loss_sum for x in learners])  # [S]
        self.loss_count = _stacked([x.loss_count for x in learners])
        self.guard = FiniteGuard(first.guard.allowed, self.weights.device)
        self.guard.skipped = _stacked([x.guard.skipped for x in learners])
        self.guard.fatal_step = _stacked([x.guard.fatal_step for x in learners])
        self.buffers = {
            name: _stacked(
                [x.agent.get_buffer(name) for x in learners],
                [x.averaged.get_buffer(name) for x in learners],
            )
            for name in first.agent.state_dict()
            if name not in named
        }
        self.parameters = {
            name: part[:, : shape.numel()].view(-1, *shape).requires_grad_()  # [S, ...]
            for name, shape, part in zip(
                named, shapes, self.weights.split(self.sizes, dim=1), strict=True
            )
        }
        gaps = [size - shape.numel() for size, shape in zip(self.sizes, shapes, strict=True)]
        self.gaps = [self.weights.new_zeros(len(learners), gap) for gap in gaps]
        groups = first.optimizer.param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        each = torch.tensor([decays[id(p)] for p in named.values()])
        self.decay = each.repeat_interleave(torch.tensor(self.sizes)).to(self.weights)  # [P]

    def plain(self) -> Tensor:
        """One gradient step of each run; the norms of their gradients before clipping [S]."""
        (norms,) = self.compute(self.inputs())
        self.ended()
        return norms

    def inputs(self) -> list[Tensor]:
        """Each seed's own batch and numbers, [S, ...]; they make the step a function of tensors
        alone (`recorded.py`)."""
        for learner in self.learners:
            if not learner.agent.training:  # as rollouts and validation leave it
                learner.agent.train()
        size = self.settings.batch_size
        drawn = [vars(run.training.batch(run.learner.step, size)) for run in self.runs]
        self.fields = list(drawn[0])
        batches = [torch.stack([batch[name] for batch in drawn]) for name in self.fields]
        numbers = [step_numbers(learner.step, self.settings) for learner in self.learners]
        sent = torch.tensor(numbers, dtype=torch.float64)
        return [*batches, to_device(sent, self.weights.device)]

    def compute(self, inputs: list[Tensor]) -> list[Tensor]:
        """Steps number `step`, at `rate`; an average keeps `kept` of itself, each [S]."""
        *batches, numbers = inputs
        step, rate, kept = numbers.T
        loss = self._losses(dict(zip(self.fields, batches, strict=True)))
        with torch.no_grad():
            gradient = self._gradient(loss)  # [S, P]
            norm = torch.linalg.vector_norm(gradient, dim=1)
            skip = self.guard.judge(step, loss, norm)  # [S]
            gradient *= (self.settings.gradient_clip / (norm + 1e-6)).clamp(max=1).unsqueeze(1)
            gradient.masked_fill_(skip.bool().unsqueeze(1), 0)
            self._update(gradient, rate.float(), 1 - skip, self.settings.betas)
            if self.averages is not None:
                self.averages.lerp_(self.weights, 1 - kept.float().unsqueeze(1))
            self.loss_sum += loss.detach().masked_fill(skip.bool(), 0)
            self.loss_count += 1 - skip
        return [norm]

    def ended(self) -> None:
        """Count it."""
        for learner in self.learners:
            for group in learner.optimizer.param_groups:
                group["lr"] = step_numbers(learner.step, self.settings)[1]
            learner.step += 1

    def recording(self) -> contextlib.AbstractContextManager[object]:
        """Nothing has to be told."""
        return contextlib.nullcontext()

    def _losses(self, batches: dict[str, Tensor]) -> Tensor:
        """[S], each seed's on its own batch, with its own random numbers."""

        def loss(tensors: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
            own = {f"agent.{name}": tensor for name, tensor in tensors.items()}
            return functional_call(self.loss, own, (Batch(**batch),))

        streams = [learner.random for learner in self.learners]
        agent = self.learners[0].agent
        own, agent.guide = agent.guide, self._guide if agent.guide else None
        try:
            with each_drawing_from(streams), autocast(self.weights.device, self.settings.precision):
                losses: Tensor = vmap(loss)(self.parameters | self.buffers, batches)
        finally:
            agent.guide = own
        return losses

    def _guide(
        self, errors: Tensor, predicted: Tensor, values: dict[str, Tensor], batch: Batch
    ) -> Tensor:
        """What each seed's values add to its errors; in the place of an agent's `guide`."""

        def asked(guide: Guide) -> Callable[..., Tensor]:
            def ask(
                e: Tensor, p: Tensor, s: Tensor, a: Tensor, raw: Tensor, returns: Tensor
            ) -> Tensor:
                own = replace(batch, observations=raw, episode_returns=returns)
                return guide(e, p, {"observation": s, "action": a}, own)

            return ask

        guides = [asked(guide) for guide in self.guides]
        seen = values["observation"], values["action"], batch.observations, batch.episode_returns
        return seed_by_seed(guides, errors, predicted, *seen)

    def _gradient(self, loss: Tensor) -> Tensor:
        """[S, P]; zeros, and from now on no decay, where the loss does not depend on a weight."""
        parts = list(self.parameters.values())
        gradients = torch.autograd.grad(loss, parts, torch.ones_like(loss), allow_unused=True)
        pieces = []
        decays = self.decay.split(self.sizes)
        for part, gradient, decay, gap in zip(parts, gradients, decays, self.gaps, strict=True):
            if gradient is None:
                gradient = torch.zeros_like(part)
                decay.zero_()
            pieces += [gradient.flatten(1), gap]
        return torch.cat(pieces, dim=1)

    def _update(
        self, gradient: Tensor, rate: Tensor, went: Tensor, betas: tuple[float, float]
    ) -> None:
        """AdamW (arXiv:1711.05101) of every row with its own rate [S] and number of steps; `went`
        [S] is 0 for rows that stay as they are, else 1."""
        eps = self.learners[0].optimizer.defaults["eps"]
        self.steps += went
        count = self.steps.double().clamp(min=1)
        first, second = ((1 - beta**count).float().unsqueeze(1) for beta in betas)
        size, went = (rate * went).unsqueeze(1), went.unsqueeze(1)  # [S, 1]
        self.first.lerp_(gradient, (1 - betas[0]) * went)
        self.second.lerp_(gradient.square(), (1 - betas[1]) * went)
        spread = (self.second / second).sqrt_().add_(eps)
        self.weights.mul_(1 - size * self.decay)
        self.weights.addcdiv_(self.first * (size / first), spread, value=-1)

    def _rows(self, each: list[list[Tensor]]) -> Tensor:
        """[S, P] of every learner's tensors, which become views of it."""
        device = each[0][0].device
        rows = torch.zeros(len(each), sum(self.sizes), device=device)
        for row, tensors in zip(rows, each, strict=True):
            for tensor, part in zip(tensors, row.split(self.sizes), strict=True):
                view = part[: tensor.numel()].view(tensor.shape)
                tensor.data = view.copy_(tensor)
        return rows


def _stacked(*each: list[Tensor]) -> Tensor:
    """[S, ...] of the first list, of which the tensors of all lists become views."""
    stacked = torch.stack(each[0])
    for tensors in each:
        for tensor, view in zip(tensors, stacked, strict=True):
            tensor.data = view
    return stacked


def _optimizer_states(learner: Learner) -> list[dict[str, Tensor]]:
    """Of each parameter, made where there is none yet."""
    states = []
    for parameter in learner.agent.parameters():
        state = learner.optimizer.state[parameter]
        if not state:
            zero = torch.zeros_like(parameter)
            state |= {"step": zero.new_zeros(()), "exp_avg": zero, "exp_avg_sq": zero.clone()}
        states.append(state)
    return states

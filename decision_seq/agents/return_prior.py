"""ReturnPrior: what the data make probable, as two AttnBMs fitted when training starts.

It proposes target returns, so that nobody has to guess them, and says how far the states that an
agent visits lie from the data. Both are questions to a density with missing parts, which the AttnBM
(arXiv:2212.04692) answers exactly:

- `starts`, over (first observation, return of the episode), stores an episode in each pattern. Its
  conditional given a first observation is one step of attention over the episodes.
- `states`, over (observation, return-to-go) of all steps, has a few hundred components fitted by
  maximum likelihood. The return-to-go is integrated out where it is not known.

One machine for both would know next to nothing of first observations, one step in a thousand.
Returns are undiscounted, undelayed and unscaled, in the environment's units: what a target is given
in, whatever the agent's own return specification.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from decision_seq.data.columns import least_deviation, magnitude
from decision_seq.data.store import EpisodeStore
from decision_seq.data.transforms import top_fraction
from decision_seq.errors import UserError
from decision_seq.files import atomic_file, same_bytes
from decision_seq.hopfield.boltzmann import AttnBM
from decision_seq.hopfield.mixture import fit_mixture

FORMAT = "decision-seq return prior 1"
FILE = "return_prior.safetensors"
EPISODES = 1024  # at most so many patterns of first observations
STEPS = 40_000  # at most so many steps are fitted
COMPONENTS = 256
STEPS_A_COMPONENT = 20  # fewer components where there are few steps
# widths of the kernels around an episode, in standard deviations of the data
OBSERVATION_WIDTHS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
RETURN_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


class WhitenedBM(nn.Module):
    """An AttnBM over (raw - mean) / width; a component's standard deviation is `width`.

    Args:
        machine: over the whitened values.
        mean: [N]
        width: [N], in raw units.
    """

    def __init__(self, machine: AttnBM, mean: Tensor, width: Tensor) -> None:
        super().__init__()
        self.machine = machine.requires_grad_(False)
        self.mean: Tensor
        self.width: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("width", width)

    @classmethod
    def empty(cls, patterns: int, dims: int) -> WhitenedBM:
        """One to load a state into."""
        weight = torch.zeros(patterns, dims, dtype=torch.float64)
        return cls(AttnBM(weight, weight[0], weight[:, 0]), weight[0].clone(), weight[0].clone())

    @torch.no_grad()
    def log_prob_of_first(self, raw: Tensor) -> Tensor:
        """Log-density [B] of the first dimensions `raw` [B, n], up to a constant, the others
        integrated out."""
        return self.machine.marginal(range(raw.shape[1])).log_prob(self._whiten(raw))

    @torch.no_grad()
    def quantile_of_last(self, raw: Tensor, probability: float) -> Tensor:
        """Quantile [B] of the last dimension given all before it, `raw` [B, N - 1]."""
        law = self.machine.conditional(self._whiten(raw), range(raw.shape[1]))
        return law.quantile(probability) * self.width[-1] + self.mean[-1]

    def _whiten(self, raw: Tensor) -> Tensor:
        dims = raw.shape[1]
        return (raw.double() - self.mean[:dims]) / self.width[:dims]


class ReturnPrior(nn.Module):
    """Target returns and out-of-distribution scores from the data. On CPU, in float64.

    Args:
        starts: over (first observation [S], return).
        states: over (observation [S], return-to-go).
        surprise: [2], mean and standard deviation of the data's negative log-likelihood.
    """

    def __init__(self, starts: WhitenedBM, states: WhitenedBM, surprise: Tensor) -> None:
        super().__init__()
        self.starts, self.states = starts, states
        self.surprise: Tensor
        self.register_buffer("surprise", surprise)

    @classmethod
    def fit(cls, store: EpisodeStore, episodes: np.ndarray, seed: int) -> ReturnPrior:
        """Fit to `episodes` (indices) of `store`: seconds, and no global generator is touched."""
        rng = np.random.default_rng(seed)
        some = np.sort(rng.permutation(episodes)[:EPISODES])
        starts = _fit_starts(_rows(store, store.offsets[some]))
        steps = np.concatenate([np.arange(*store.offsets[m : m + 2]) for m in episodes])
        rows = _rows(store, np.sort(rng.permutation(steps)[:STEPS]))
        states = _fit_states(rows, torch.Generator().manual_seed(seed))
        cost = -states.log_prob_of_first(rows[:, :-1])
        deviation = cost.std(correction=0).clamp(min=1e-6)
        return cls(starts, states, torch.stack([cost.mean(), deviation]))

    def propose(self, first_observation: Tensor, quantile: float) -> Tensor:
        """Target return [B] for episodes that begin at `first_observation` [B, S]: the exact
        conditional quantile of what the data's episodes returned from there."""
        return self.starts.quantile_of_last(first_observation, quantile)

    def novelty(self, observation: Tensor) -> Tensor:
        """How far each `observation` [B, S] lies from the data, [B]: its negative log-likelihood
        in standard deviations from that of the data's steps, which have mean 0."""
        mean, deviation = self.surprise
        return (-self.states.log_prob_of_first(observation) - mean) / deviation


def _rows(store: EpisodeStore, steps: np.ndarray) -> Tensor:
    """(observation, return-to-go) of `steps`, [n, S + 1] float64."""
    columns = [store.observations[steps], store.returns_to_go[steps, None]]
    return torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float64))


def _standardise(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with mean 0 and deviation 1, and both; what never varies keeps its unit."""
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    least = torch.from_numpy(least_deviation(magnitude(rows.numpy())))
    deviation = torch.where(deviation > least, deviation, 1.0)
    return (rows - mean) / deviation, mean, deviation


def _fit_starts(rows: Tensor) -> WhitenedBM:
    """A pattern for each row, with the two kernel widths under which every episode's return is
    most probable given its first observation and the other episodes (leave-one-out)."""
    points, mean, deviation = _standardise(rows)
    seen, returns = points[:, :-1], points[:, -1:]
    itself = torch.eye(len(rows), dtype=torch.bool)
    apart = torch.cdist(seen, seen).square() / 2
    gap = (returns - returns.T).square() / 2
    best, widths = -torch.inf, (OBSERVATION_WIDTHS[0], RETURN_WIDTHS[0])  # kept if there is one row
    for wide in OBSERVATION_WIDTHS:
        attention = (-apart / wide**2).masked_fill(itself, -torch.inf).log_softmax(-1)
        for narrow in RETURN_WIDTHS:
            density = torch.logsumexp(attention - gap / narrow**2, dim=-1).mean() - np.log(narrow)
            if density > best:
                best, widths = float(density), (wide, narrow)
    width = torch.full_like(mean, widths[0])
    width[-1] = widths[1]
    equal = torch.zeros(len(rows), dtype=points.dtype)
    return WhitenedBM(AttnBM.from_mixture(equal, points / width), mean, deviation * width)


def _fit_states(rows: Tensor, generator: torch.Generator) -> WhitenedBM:
    """Components and widths of maximum likelihood."""
    points, mean, deviation = _standardise(rows)
    components = min(COMPONENTS, max(1, len(rows) // STEPS_A_COMPONENT))
    fit = fit_mixture(points, components, generator)
    machine = AttnBM.from_mixture(fit.log_weights, fit.means / fit.widths)
    return WhitenedBM(machine, mean, deviation * fit.widths)


# ---- in a run folder --------------------------------------------------------------------------


def ensure_prior(run: Path, store: EpisodeStore, fraction: float, seed: int) -> None:
    """Leave the prior of the best `fraction` of `store` in the run folder; one that is there is
    kept if it was fitted to the same data. Frames have none: they are no vectors with a density
    that a mixture could tell apart."""
    if store.frames:
        return
    header = {
        "format": FORMAT,
        "data": store.hash,
        "top_fraction": repr(fraction),
        "seed": str(seed),
    }
    if _header(run / FILE) == header:
        return
    prior = ReturnPrior.fit(store, top_fraction(store, fraction), seed)
    with atomic_file(run / FILE) as temporary:
        temporary.write_bytes(same_bytes(save(prior.state_dict(), header)))


def load_prior(run: Path) -> ReturnPrior | None:
    """The run's prior, or None where it has none. Raises UserError if the file is damaged."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shapes = [tensors[f"{part}.machine.weight"].shape for part in ("starts", "states")]
        starts, states = (WhitenedBM.empty(*shape) for shape in shapes)
        prior = ReturnPrior(starts, states, torch.zeros(2, dtype=torch.float64))
        prior.load_state_dict(tensors)
        return prior
    except (OSError, SafetensorError, KeyError, RuntimeError, TypeError):
        raise UserError(
            f"{path}: is damaged; delete it and run the training command with --resume, which "
            "fits it again"
        ) from None


def _header(path: Path) -> dict[str, str] | None:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata()
    except (OSError, SafetensorError):
        return None

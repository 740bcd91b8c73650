"""Is the return prior worth its machine? Against a quantile of the nearest neighbours' returns.

    decision-seq collect Reacher-v5 random --steps 50000
    python -m benchmarks.return_prior decision-seq/reacher-v5/random-v0
    python -m benchmarks.return_prior decision-seq/hopper/medium-v0+decision-seq/hopper/expert-v0

A fifth of the episodes is held out, five times. What is asked of their first observations is a
quantile of the return. It is judged by the quantile (pinball) loss, in standard deviations of the
returns, whose least value in expectation has the true quantile, and by the share of returns that
lie below. Nobody tells the neighbours their number: that of the least leave-one-out loss is taken.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from decision_seq.agents.return_prior import ReturnPrior
from decision_seq.data.store import EpisodeStore, open_store
from decision_seq.hardware import hardware

QUANTILES = (0.5, 0.9)
NEIGHBOURS = (5, 10, 20, 50, 100, 200)
SPLITS = 5


def pinball(returns: np.ndarray, asked: np.ndarray, quantile: float) -> float:
    """Mean quantile loss of `asked` [B] for `returns` [B]."""
    beyond = returns - asked
    return float(np.maximum(quantile * beyond, (quantile - 1) * beyond).mean())


class Neighbours:
    """Quantiles of the returns of the k episodes that began nearest, in standard deviations."""

    def __init__(self, firsts: np.ndarray, returns: np.ndarray, quantile: float) -> None:
        deviation = firsts.std(0)
        self.unit = np.where(deviation > 0, deviation, 1.0)
        self.firsts, self.returns, self.quantile = firsts / self.unit, returns, quantile
        near = self._nearest(self.firsts, skip=1)  # [n, most]; each is its own nearest
        losses = {k: pinball(returns, self._quantile(near[:, :k]), quantile) for k in self.tried}
        self.k = min(losses, key=lambda k: losses[k])

    @property
    def tried(self) -> tuple[int, ...]:
        return tuple(k for k in NEIGHBOURS if k < len(self.returns))

    def propose(self, firsts: np.ndarray) -> np.ndarray:
        """[B] of first observations [B, S]."""
        return self._quantile(self._nearest(firsts / self.unit)[:, : self.k])

    def _nearest(self, firsts: np.ndarray, skip: int = 0) -> np.ndarray:
        apart = torch.cdist(torch.from_numpy(firsts), torch.from_numpy(self.firsts))
        return apart.topk(self.tried[-1] + skip, largest=False).indices[:, skip:].numpy()

    def _quantile(self, near: np.ndarray) -> np.ndarray:
        return np.quantile(self.returns[near], self.quantile, axis=1)


def judge(store: EpisodeStore) -> dict[tuple[str, float], list[tuple[float, float]]]:
    """(loss, share below) of every split, by (who, quantile)."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    starts = store.offsets[:-1]
    firsts = store.observations[starts].astype(np.float64)  # [episodes, S]
    returns = store.returns_to_go[starts].astype(np.float64)  # [episodes]
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(store.episodes)
        held, kept = np.split(order, [store.episodes // 5])
        prior = ReturnPrior.fit(store, kept, seed)
        for quantile in QUANTILES:
            neighbours = Neighbours(firsts[kept], returns[kept], quantile)
            asked = {
                "AttnBM": prior.propose(torch.from_numpy(firsts[held]), quantile).numpy(),
                "nearest neighbours": neighbours.propose(firsts[held]),
                "all episodes": np.full(len(held), np.quantile(returns[kept], quantile)),
            }
            for who, targets in asked.items():
                loss = pinball(returns[held], targets, quantile) / returns.std()
                below = float((returns[held] <= targets).mean())
                found.setdefault((who, quantile), []).append((loss, below))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("datasets", nargs="+", help="one, or several joined by +")
    torch.set_num_threads(1)
    print(hardware(torch.device("cpu")))
    for name in parser.parse_args().datasets:
        store = open_store(name.split("+"))
        print(f"\n{name}: {store.episodes} episodes, {SPLITS} splits")
        found = judge(store)
        for (who, quantile), splits in found.items():
            losses, below = np.array(splits).T
            ours = np.array(found["AttnBM", quantile])[:, 0]
            better = sum(losses < ours)
            print(
                f"quantile {quantile}  {who:18}  loss {losses.mean():.3f} ± {losses.std():.3f}"
                f"  {below.mean():.1%} below  better than AttnBM in {better} of {SPLITS}"
            )


if __name__ == "__main__":
    main()

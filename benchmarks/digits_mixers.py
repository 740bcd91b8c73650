"""Mixers over image patches as classifiers of scikit-learn's digits: what symmetry costs.

    python -m benchmarks.digits_mixers

1797 images of 8 x 8 in patches of 2 x 2, half of them for testing. A seed fixes the halves, the
order of the batches and the initial weights; every contender sees the same halves and batches.
Beside the test accuracy, its difference from the symmetric mixer's with the same seed, and eta,
the breaking of symmetry in token and in channel mixing, as training goes on.
"""

import math
import statistics
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import processor
from decision_seq.config import build
from decision_seq.model.encoders import ImageEncoderConfig
from decision_seq.model.encoders.mixers import PatchMixer

SEEDS = range(6)
SHAPE, CLASSES = (1, 8, 8), 10
SIZE = {"width": 32, "patch": 2, "layers": 2, "token_hidden": 16, "channel_hidden": 128}
EPOCHS, BATCH, LEARNING_RATE = 25, 64, 1e-3
WATCHED = (0, 2, 5, 10, 25)  # epochs after which eta is noted
CONTENDERS: dict[str, dict] = {
    "symmetric": {"kind": "symmetric"},
    "asymmetric, lambda 0.1": {"kind": "asymmetric", "symmetry_penalty": 0.1},
    "asymmetric, lambda 0.01": {"kind": "asymmetric", "symmetry_penalty": 0.01},
    "asymmetric, lambda 0.001": {"kind": "asymmetric", "symmetry_penalty": 0.001},
    "asymmetric, lambda 0": {"kind": "asymmetric", "symmetry_penalty": 0.0},
    "vanilla": {"kind": "vanilla"},
    "imixer": {"kind": "imixer"},
}


@dataclass
class Outcome:
    """One contender, over all seeds."""

    parameters: int = 0
    train: list[float] = field(default_factory=list)  # accuracy in percent, one a seed
    test: list[float] = field(default_factory=list)
    eta: list[list[dict[str, float]]] = field(default_factory=list)  # [seeds][WATCHED]


def main() -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    outcomes = {name: Outcome() for name in CONTENDERS}
    for seed in SEEDS:
        halves = digits(seed)
        for name, fields in CONTENDERS.items():
            train(outcomes[name], fields, seed, *halves)
    print(f"{processor()}, 1 thread, torch {torch.__version__}")
    print(f"{len(SEEDS)} seeds, {time.process_time() - start:.0f} s of processor time\n")
    print_accuracy(outcomes)
    print_eta(outcomes)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [N, 1, 8, 8] around zero and labels [N], for training and for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    halves = train_test_split(
        data.images, data.target, test_size=0.5, stratify=data.target, random_state=seed
    )
    x_train, x_test = (torch.tensor(x, dtype=torch.float32)[:, None] / 8 - 1 for x in halves[:2])
    return x_train, x_test, torch.tensor(halves[2]), torch.tensor(halves[3])


def train(
    outcome: Outcome,
    fields: dict,
    seed: int,
    x_train: Tensor,
    x_test: Tensor,
    y_train: Tensor,
    y_test: Tensor,
) -> None:
    torch.manual_seed(seed)
    config = build(ImageEncoderConfig, SIZE | fields, "digits_mixers")  # type: ignore[type-abstract]
    encoder = config.build(SHAPE)
    assert isinstance(encoder, PatchMixer)
    model = nn.Sequential(encoder, nn.Linear(SIZE["width"], CLASSES))
    outcome.parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    eta = [encoder.symmetry_breaking()]
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(x_train), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(x_train[rows]), y_train[rows]) + encoder.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch in WATCHED:
            eta.append(encoder.symmetry_breaking())
    model.eval()
    outcome.train.append(accuracy(model, x_train, y_train))
    outcome.test.append(accuracy(model, x_test, y_test))
    outcome.eta.append(eta)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * float((model(x).argmax(1) == y).float().mean())


def print_accuracy(outcomes: dict[str, Outcome]) -> None:
    """Mean and standard deviation over seeds; differences with the standard error of their mean."""
    print("| mixer | parameters | train accuracy % | test accuracy % | against symmetric |")
    print("|---|---|---|---|---|")
    reference = outcomes["symmetric"].test
    for name, outcome in outcomes.items():
        differences = [a - b for a, b in zip(outcome.test, reference, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        print(
            f"| {name} | {outcome.parameters} | {spread(outcome.train)} | {spread(outcome.test)} "
            f"| {statistics.mean(differences):+.2f} ± {error:.2f} |"
        )
    print()


def print_eta(outcomes: dict[str, Outcome]) -> None:
    print(f"| eta of tokens, channels after epoch | {' | '.join(str(e) for e in WATCHED)} |")
    print("|---" * (len(WATCHED) + 1) + "|")
    for name, outcome in outcomes.items():
        cells = []
        for moment in zip(*outcome.eta, strict=True):
            means = [statistics.mean(e[m] for e in moment) for m in ("tokens", "channels")]
            cells.append(f"{means[0]:.3f}, {means[1]:.3f}")
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()

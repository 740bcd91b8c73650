"""All benchmarks by one command: ours beside what else can be installed, in one process.

    python -m benchmarks                    everything, about a quarter of an hour on two cores
    python -m benchmarks --quick            a look, a few minutes
    python -m benchmarks --minutes 8        as much as fits; what does not is named
    python -m benchmarks --only scan lanes  some of them; --list names them all
    python -m benchmarks --gpu              the same on a GPU (see gpu.sh)
    python -m benchmarks --rehearse         does it run? Every contender once or twice
    python -m benchmarks --out results      also writes results/benchmarks.md and .json

Peers that are not installed are left out: `pip install -e '.[benchmarks]'` brings mambapy and
transformers; for d3rlpy, which pins another gymnasium, set DECISION_SEQ_D3RLPY_PYTHON.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import math
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import measure, models, scan
from benchmarks.measure import BENCHMARKS, Listing, Options, Table, floor, hardware
from decision_seq.hardware import keep_freed_memory

# Each registers its own; what is most wanted comes first, as time may be up before the last.
for module in ("scan", "training", "seeds", "rollouts", "export", "sampling", "growth", "curves"):
    importlib.import_module(f"benchmarks.{module}")


def main() -> None:
    """Print every table as soon as it is there. Exits with 1 if a benchmark failed."""
    arguments = parse()
    if arguments.list:
        for name, entry in BENCHMARKS.items():
            print(f"{name:12} {entry.what}")
        return
    end = time.perf_counter() + 60 * arguments.minutes
    torch.set_num_threads(arguments.threads)
    if arguments.rehearse:  # models are as small as they go, too
        models.WIDTH, models.LAYERS, models.EPISODES = 16, 1, 10
        scan.BATCH, scan.WIDTH = 2, 16
        measure.PEERS = False  # importing one takes longer than all else of a section
    keep_freed_memory()  # as training does
    options = Options(
        quick=arguments.quick or arguments.rehearse,
        rehearsed=arguments.rehearse,
        device="cuda" if arguments.gpu else "cpu",
        threads=arguments.threads,
        data=arguments.data,
        seconds=1e-3 if arguments.rehearse else 1.0 if arguments.quick else Options.seconds,
    )
    report = Report(options, arguments.out)
    names = arguments.only or list(BENCHMARKS)
    for place, name in enumerate(names):
        left = end - time.perf_counter()
        if left > 0:
            report.run(name, left / (len(names) - place))
        else:
            report.say(f"{name} is skipped: the {arguments.minutes:g} minutes are over.")
        report.write()
    sys.exit(report.failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--rehearse", action="store_true", help="no measurement at all")
    parser.add_argument("--minutes", type=float, default=math.inf, help="that all may take")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--gpu", action="store_true", help="on the GPU")
    parser.add_argument("--data", default=Options.data, help="dataset of `curves`")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (1: processor time)")
    parser.add_argument("--out", type=Path, help="folder for benchmarks.md and benchmarks.json")
    parser.add_argument("--list", action="store_true", help="name the benchmarks")
    arguments = parser.parse_args()
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu: PyTorch finds no GPU here")
    return arguments


@dataclass
class Report:
    """What there is so far, printed as it comes."""

    options: Options
    folder: Path | None
    tables: dict[str, list[Table | Listing]] = field(default_factory=dict)  # of each benchmark
    failed: bool = False

    def __post_init__(self) -> None:
        self.text = ""
        self.say(f"{hardware(self.options)}.\n\n{floor(self.options).text()}")

    def say(self, text: str) -> None:
        self.text += f"{text}\n\n"
        print(f"{text}\n", flush=True)

    def run(self, name: str, share: float) -> None:
        """One benchmark, in about `share` seconds: setting and warming up take two in three."""
        start, entry = time.perf_counter(), BENCHMARKS[name]
        seconds = min(self.options.seconds, share / 3 / entry.tables)
        try:
            for table in entry.run(dataclasses.replace(self.options, seconds=seconds)):
                self.tables.setdefault(name, []).append(table)
                self.say(table.markdown().rstrip())
        except Exception as error:  # the others are worth having
            traceback.print_exc()
            self.say(f"{name} failed: {type(error).__name__}, {error}.")
            self.failed = True
        print(f"[{name}: {time.perf_counter() - start:.0f} s]", file=sys.stderr, flush=True)

    def write(self) -> None:
        """For people and for programs."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tables = {name: [dataclasses.asdict(t) for t in own] for name, own in self.tables.items()}
        for table in itertools.chain(*tables.values()):
            for file, svg in table.pop("figures", {}).items():
                (self.folder / file).write_text(svg)
        record = {
            "hardware": hardware(self.options),
            "options": dataclasses.asdict(self.options),
            "floor": dataclasses.asdict(floor(self.options)),
            "tables": tables,
        }
        (self.folder / "benchmarks.md").write_text(self.text)
        (self.folder / "benchmarks.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

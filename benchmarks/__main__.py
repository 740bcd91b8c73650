"""All benchmarks by one command: ours beside what else can be installed, in one process.

    python -m benchmarks                    everything, about a quarter of an hour on two cores
    python -m benchmarks --quick            a look, a few minutes
    python -m benchmarks --only scan lanes  some of them; --list names them all
    python -m benchmarks --gpu              the same on a GPU
    python -m benchmarks --out results      also writes results/benchmarks.md and .json

Peers that are not installed are left out: `pip install -e '.[benchmarks]'` brings mambapy and
transformers; for d3rlpy, which pins another gymnasium, set DECISION_SEQ_D3RLPY_PYTHON.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks import curves, growth, rollouts, sampling, scan, training  # noqa: F401  (they register themselves)
from benchmarks.measure import BENCHMARKS, Listing, Options, Table, floor, hardware

Tables = dict[str, list[Table | Listing]]  # of each benchmark


def main() -> None:
    """Print every table as soon as it is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--gpu", action="store_true", help="on the GPU")
    parser.add_argument("--data", default=Options.data, help="dataset of `curves`")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (1: processor time)")
    parser.add_argument("--out", type=Path, help="folder for benchmarks.md and benchmarks.json")
    parser.add_argument("--list", action="store_true", help="name the benchmarks")
    arguments = parser.parse_args()
    if arguments.list:
        for name, entry in BENCHMARKS.items():
            print(f"{name:12} {entry.what}")
        return
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu: PyTorch finds no GPU here")
    torch.set_num_threads(arguments.threads)
    device = "cuda" if arguments.gpu else "cpu"
    options = Options(arguments.quick, device, arguments.threads, arguments.data)
    head = f"{hardware(options)}.\n\n{floor(options).text()}\n"
    print(head, flush=True)
    tables: Tables = {}
    for name in arguments.only or BENCHMARKS:
        start = time.perf_counter()
        for table in BENCHMARKS[name].run(options):
            tables.setdefault(name, []).append(table)
            print(table.markdown(), flush=True)
        print(f"[{name}: {time.perf_counter() - start:.0f} s]", file=sys.stderr, flush=True)
        if arguments.out:
            write(arguments.out, head, options, tables)


def write(folder: Path, head: str, options: Options, tables: Tables) -> None:
    """What there is so far, for people and for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(table.markdown() for group in tables.values() for table in group)
    (folder / "benchmarks.md").write_text(f"{head}\n{text}")
    plain = {name: [dataclasses.asdict(t) for t in group] for name, group in tables.items()}
    for table in itertools.chain(*plain.values()):
        for file, svg in table.pop("figures", {}).items():
            (folder / file).write_text(svg)
    record = {
        "hardware": hardware(options),
        "options": dataclasses.asdict(options),
        "floor": dataclasses.asdict(floor(options)),
        "tables": plain,
    }
    (folder / "benchmarks.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

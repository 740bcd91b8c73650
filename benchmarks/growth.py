"""Time and peak memory of a backbone as the window grows from 60 to 6,000 tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import models
from benchmarks.measure import Call, Options, Row, Table, benchmark, peak_memory, timer
from decision_seq.backbones import BackboneConfig, Layout

LENGTHS = (60, 600, 6000)
BATCH = 2
RECURRENT = ("mamba", "mamba2", "mamba3", "gated_deltanet", "mlstm", "rg_lru", "lstm")


def window(kind: str, tokens: int, device: str = "cpu") -> Call:
    """Forward and backward of one backbone over BATCH windows."""
    torch.manual_seed(0)
    config = BackboneConfig.registry[kind](width=models.WIDTH, layers=models.LAYERS, dropout=0.0)
    backbone = config.build(Layout(tokens // 3, 3)).to(device)
    x = torch.randn(BATCH, tokens, models.WIDTH, device=device)
    return lambda: backbone(x).square().mean().backward()


@benchmark(
    "growth", "time and memory of mixers over windows of 60, 600 and 6,000 tokens", len(LENGTHS)
)
def growth(options: Options) -> Iterator[Table]:
    for tokens in LENGTHS[: 2 if options.quick else 3]:
        rows = []
        for kind in (*RECURRENT, "attention"):
            run = timer(window(kind, tokens, options.device), options)
            run()
            seconds = [run() for _ in range(3)]
            rows.append(Row(kind, seconds, note=memory(kind, tokens, options)))
        yield Table(
            f"Forward + backward over {tokens} tokens, 3 layers of width 128, batch {BATCH}",
            rows,
            base=RECURRENT[0],
        )


def memory(kind: str, tokens: int, options: Options) -> str:
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        window(kind, tokens, "cuda")()
        used = float(torch.cuda.max_memory_allocated() - before)
    else:
        used = peak_memory(window, kind, tokens)
    return f"{used / 2**20:.0f} MiB"

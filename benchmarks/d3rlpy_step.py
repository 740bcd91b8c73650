"""Training steps or batches of d3rlpy's Decision Transformer, in an environment of its own.

    PYTHON benchmarks/d3rlpy_step.py step|batch DEVICE THREADS

Writes a line when it is ready; then every line it reads is a turn, and it writes the seconds of
that. Run by peers.py. Settings are those of d3rlpy's own reproduction of the paper.
"""

import os
import sys
import time

import numpy as np
import torch

work, device, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # d3rlpy logs to standard output

import d3rlpy  # noqa: E402

rng = np.random.default_rng(0)
steps = 200_000
observations = rng.standard_normal((steps, 11), dtype=np.float32)
data = d3rlpy.dataset.MDPDataset(
    observations,
    rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
    rng.standard_normal(steps, dtype=np.float32),
    np.zeros(steps, dtype=np.float32),
    (np.arange(1, steps + 1) % 1000 == 0).astype(np.float32),
)
algo = d3rlpy.algos.DecisionTransformerConfig(
    batch_size=64,
    context_size=20,
    num_heads=1,
    num_layers=3,
    attn_dropout=0.1,
    resid_dropout=0.1,
    embed_dropout=0.1,
    max_timestep=1000,
    encoder_factory=d3rlpy.models.VectorEncoderFactory([128], exclude_last_activation=True),
    optim_factory=d3rlpy.optimizers.GPTAdamWFactory(
        weight_decay=1e-4,
        clip_grad_norm=0.25,
        lr_scheduler_factory=d3rlpy.optimizers.WarmupSchedulerFactory(10_000),
    ),
    observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(
        mean=observations.mean(0), std=observations.std(0)
    ),
    reward_scaler=d3rlpy.preprocessing.MultiplyRewardScaler(0.001),
).create(device=device if device == "cpu" else f"{device}:0")
algo.build_with_dataset(data)


def turn() -> float:
    """The seconds of one, by the clock that measure.py takes."""
    clock = time.process_time if threads == 1 and device == "cpu" else time.perf_counter
    batch = data.sample_trajectory_batch(64, 20)  # not part of a step's time
    start = clock()
    if work == "step":
        algo.update(batch)
    else:
        data.sample_trajectory_batch(64, 20)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


turn()
print("ready", file=answers, flush=True)
for _ in sys.stdin:
    print(turn(), file=answers, flush=True)

"""Seconds of training steps of d3rlpy's Decision Transformer, as JSON; run by training.py in an
environment of its own, for d3rlpy pins another gymnasium.

    PYTHON benchmarks/d3rlpy_step.py DEVICE THREADS
"""

import json
import sys
import time

import numpy as np
import torch

device, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)

import d3rlpy  # noqa: E402

rng = np.random.default_rng(0)
steps = 5000
data = d3rlpy.dataset.MDPDataset(
    rng.standard_normal((steps, 11), dtype=np.float32),
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
    max_timestep=1000,
    encoder_factory=d3rlpy.models.VectorEncoderFactory([128]),
).create(device=device if device == "cpu" else f"{device}:0")
algo.build_with_dataset(data)
times = []
for _ in range(30):
    batch = data.sample_trajectory_batch(64, 20)
    clock = time.process_time if threads == 1 and device == "cpu" else time.perf_counter
    start = clock()
    algo.update(batch)
    times.append(clock() - start)
print(json.dumps(times[5:]))

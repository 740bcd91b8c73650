"""Training: the loop, its optimiser, checkpoints, random numbers, log and processes."""

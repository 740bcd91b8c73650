"""Trained agents measured: rollouts, comparisons, reports, and what an agent looks back at."""

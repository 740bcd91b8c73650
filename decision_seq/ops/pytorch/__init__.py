"""The operations in PyTorch alone: the slow reference, and what runs without a kernel."""

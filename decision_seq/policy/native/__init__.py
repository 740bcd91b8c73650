"""The engine in C, over one packed block of weights: one call a step on a CPU.

With one lane a step of PyTorch's takes several times as long as its arithmetic: the weights have
pushed everything else out of the nearer caches by the time each small operation runs.
"""

"""torch's AdamW without its guards against torch.compile: to keep the compiler off an optimiser
they import it, which takes as long as all of torch (2 s), in every process that trains. Nothing
here compiles an optimiser."""

from __future__ import annotations

import inspect

import torch
from torch.optim import Optimizer


class AdamW(torch.optim.AdamW):
    """As torch.optim.AdamW (arXiv:1711.05101), bit for bit, but `differentiable`."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))

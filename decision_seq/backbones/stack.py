"""Blocks by one call instead of two dozen operations each, where C knows their mixers.

Without gradients and for a few tokens of each lane: a step of a stream, or a window. What C would
read is checked by every call, and whatever it does not do is left to PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils.hooks import RemovableHandle

from decision_seq.ops import Addresses, Layer, Stack, stack_step, streams
from decision_seq.ops.layers import Dropout

if TYPE_CHECKING:
    from decision_seq.backbones.base import Block, State

BLOCK_WEIGHTS = (  # in the order of ops/block.c
    *("norm_mixer.weight", "norm_mixer.bias", "norm_mlp.weight", "norm_mlp.bias"),
    *("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"),
)
# A lane has one thread: for more tokens of greater width PyTorch's do better, but for many lanes.
WIDE, FEW_TOKENS, FEW_LANES = 256, 16, 8
SHAPE = attrgetter("shape")


@dataclass(frozen=True)
class Kernel:
    """What C takes of a mixer that it knows."""

    name: str  # of ops.cpu_stream.MIXERS
    weights: tuple[str, ...]  # of the mixer's parameters, in the order of ops/mixers.c
    state: tuple[str, ...] = ()  # its state's tensors
    dtypes: tuple[torch.dtype, ...] = ()  # and theirs


class KernelCall(NamedTuple):
    """What it takes for some tokens of some lanes."""

    sizes: tuple[int, ...]  # as ops/mixers.c has them
    before: tuple[tuple[int, ...], ...] = ()  # shapes of the state
    after: tuple[tuple[int, ...], ...] = ()


class Weights:
    """Where the weights of a module live, for calls that take them all: looking them up by name
    would cost as much as the kernel, and what has been trained or loaded since must be seen."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        paths = [name.rpartition(".") for name in names]
        self.homes = [(module.get_submodule(path)._parameters, name) for path, _, name in paths]
        self.shapes = list(map(SHAPE, self.now()))
        # Where they were when they were last looked at one by one; what lies there is kept, so that
        # nothing else can.
        self.places, self.kept = b"", list[Tensor]()

    def now(self) -> list[Tensor]:
        """As they are."""
        return [home[name] for home, name in self.homes]  # type: ignore[misc]

    def addresses(self) -> Addresses | None:
        """Where they are, or None unless they are float32 on the CPU, of the shapes that they were
        built with."""
        weights = self.now()
        found = Addresses(weights)
        if (places := found.table.tobytes()) != self.places:
            fit = list(map(SHAPE, weights)) == self.shapes
            if not fit or not all(w.dtype is torch.float32 and w.is_cpu for w in weights):
                return None
            self.places, self.kept = places, [tensor.detach() for tensor in found.tensors]
        return found


_registered = 0  # modules so far, anywhere


def _count(*_: object) -> None:
    global _registered
    _registered += 1


register_module_module_registration_hook(_count)


class Watch:
    """Whether modules still do what they were built to do, and nothing around them: none was put in
    or taken out, none has hooks, none drops anything.

    Looking at all of them would take a tenth of a step, since their memory is far away by then. So
    they are looked at again once any module or hook has been registered anywhere.
    """

    def __init__(self, *roots: nn.Module) -> None:
        self.modules = [module for root in roots for module in root.modules()]
        self.children = [dict(module._modules) for module in self.modules]
        self.dropping = [  # and blocks and mixers that have dropout
            m for m in self.modules if isinstance(m, Dropout) or hasattr(m, "dropout")
        ]
        self.seen = (-1, -1)

    def intact(self) -> bool:
        now = _registered, RemovableHandle.next_id
        if now != self.seen:
            if [module._modules for module in self.modules] != self.children:
                return False
            if any(module._forward_hooks or module._forward_pre_hooks for module in self.modules):
                return False
            self.seen = now
        return not any(module.training for module in self.dropping)


class InOneCall:
    """Some blocks, and the norm after them if there is one."""

    def __init__(self, blocks: Sequence[Block], norm: nn.LayerNorm | None) -> None:
        self.blocks, self.mixers = blocks, [block.mixer for block in blocks]
        self.kernels = [kernel for block in blocks if (kernel := known(block)) is not None]
        self.possible = len(self.kernels) == len(blocks)
        self.normed = norm is not None
        if not self.possible:
            return
        every = nn.ModuleDict({str(i): block for i, block in enumerate(blocks)})
        names = [
            f"{i}.{name}"
            for i, kernel in enumerate(self.kernels)
            for name in (*BLOCK_WEIGHTS, *(f"mixer.{own}" for own in kernel.weights))
        ]
        if norm is not None:
            every["norm"] = norm
            names += ["norm.weight", "norm.bias"]
        self.weights, self.watch = Weights(every, names), Watch(*blocks, *filter(None, [norm]))
        self.norms = [m for m in every.modules() if isinstance(m, nn.LayerNorm)]
        self.counts = [len(BLOCK_WEIGHTS) + len(kernel.weights) for kernel in self.kernels]

    def forward(self, x: Tensor, read: slice) -> Tensor | None:
        """`Backbone.forward`, or None where that is left to PyTorch."""
        if not self._may(x, read):
            return None
        state: State = [mixer.init_state(len(x), x.device, torch.float32) for mixer in self.mixers]
        done = self._step(x, state, read, remember=False)
        return None if done is None else done[0]

    def step(self, x: Tensor, state: State, read: slice) -> tuple[Tensor, State] | None:
        """`Backbone.step`, or None where that is left to PyTorch."""
        return self._step(x, state, read) if self._may(x, read) else None

    def _may(self, x: Tensor, read: slice) -> bool:
        if not self.possible or x.ndim != 3:
            return False
        lanes, length, width = x.shape
        if width > WIDE and length > FEW_TOKENS and lanes < FEW_LANES:
            return False
        return streams(x, lanes, length) and is_suffix(read, length) and not x.is_neg()

    def _step(
        self, x: Tensor, state: State, read: slice, remember: bool = True
    ) -> tuple[Tensor, State] | None:
        lanes, length, width = x.shape
        call = self.stack(state, lanes, length, remember)
        if call is None or width != len(call[0].weights.tensors[0]):
            return None
        return stack_step(x, call[0], len(range(length)[read])), call[1]

    def stack(
        self, state: State, lanes: int, tokens: int, remember: bool = True
    ) -> tuple[Stack, State] | None:
        """What a kernel takes, and the state that it fills in; None if something does not fit."""
        same = len(self.blocks) == len(self.mixers) and self.watch.intact()
        weights = self.weights.addresses() if same else None
        eps = self.norms[0].eps
        if weights is None or any(norm.eps != eps for norm in self.norms):
            return None
        layers, after = [], []
        parts = zip(self.mixers, self.kernels, self.counts, state, strict=True)
        for mixer, kernel, count, own in parts:
            call = mixer.kernel_call(own, lanes, tokens, remember)
            names, dtypes = kernel.state, kernel.dtypes
            before = [own[name] for name in names]
            if not all(map(holds, before, call.before, dtypes)):
                return None
            new = [t.new_empty(shape) for t, shape in zip(before, call.after, strict=True)]
            layers.append(Layer(kernel.name, count, call.sizes, before, new))
            after.append(dict(zip(names, new, strict=True)))
        return Stack(weights, eps, layers, self.normed), after


def known(block: Block) -> Kernel | None:
    """How C knows a block. A class that is derived from one that C knows may do otherwise."""
    from decision_seq.backbones.base import Block

    return vars(type(block.mixer)).get("kernel") if type(block) is Block else None


def holds(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return tensor.shape == shape and tensor.dtype is dtype and tensor.is_cpu


def is_suffix(read: slice, length: int) -> bool:
    """Whether `read` are the last of `length` tokens."""
    start, stop, stride = read.indices(length)
    return start < stop == length and stride == 1

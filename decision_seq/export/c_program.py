"""A function of tensors as a list of operations on numbers in one piece of memory, which
csrc/program.c carries out: what C needs of any backbone.

The function is run once and its calls are written down. A tensor is where it lies and how far apart
its numbers are, as PyTorch laid it out, so that views cost nothing; an operation is one of the few
that program.c has, over sizes that are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decision_seq.errors import UserError
from decision_seq.ops.calls import Call, recorded_calls, register_of

AXES, OPERANDS, INDICES = 6, 4, 2  # at most, as in program.c
OPERATIONS = ("pointwise", "contract", "cumsum", "softmax", "layer_norm", "argmax", "gather",
              "scatter", "solve")  # fmt: skip
POINTWISE = ("copy", "add", "sub", "mul", "div", "pow", "remainder", "maximum", "minimum", "eq",
             "ge", "gt", "le", "lt", "and", "where", "addcmul", "exp", "tanh", "sigmoid", "neg",
             "relu", "cos", "sin", "sqrt", "abs", "expm1", "softplus", "log_sigmoid", "gelu",
             "silu", "rsqrt", "log", "log1p", "reciprocal")  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8)
ALIGNED = 64  # bytes


@dataclass(frozen=True)
class View:
    """Numbers of a tensor's storage; steps may be 0 or negative, which PyTorch's cannot."""

    tensor: Tensor
    offset: int  # numbers from the storage's start
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def moved(self, *axes: int) -> View:
        """With these axes last, in this order."""
        axes = tuple(axis % len(self.sizes) for axis in axes)
        order = [a for a in range(len(self.sizes)) if a not in axes] + list(axes)
        sizes, strides = (tuple(part[a] for a in order) for part in (self.sizes, self.strides))
        return View(self.tensor, self.offset, sizes, strides)

    def narrow(self, axis: int, start: int, length: int) -> View:
        """As `Tensor.narrow`."""
        sizes = (*self.sizes[:axis], length, *self.sizes[axis + 1 :])
        return View(self.tensor, self.offset + start * self.strides[axis], sizes, self.strides)

    def expand(self, sizes: Sequence[int]) -> View:
        """As `Tensor.expand`."""
        missing = len(sizes) - len(self.sizes)
        own = ((1,) * missing + self.sizes, (0,) * missing + self.strides)
        steps = tuple(s if n == m else 0 for n, s, m in zip(*own, sizes, strict=True))
        return View(self.tensor, self.offset, tuple(sizes), steps)

    def flip(self, axis: int) -> View:
        """As `Tensor.flip`, without a copy."""
        last = self.offset + (self.sizes[axis] - 1) * self.strides[axis]
        turned = (*self.strides[:axis], -self.strides[axis], *self.strides[axis + 1 :])
        return View(self.tensor, last, self.sizes, turned)


def view(value: Tensor | View) -> View:
    """A tensor as it lies."""
    if isinstance(value, View):
        return value
    return View(value, int(value.storage_offset()), tuple(value.shape), value.stride())


@dataclass
class Instruction:
    """One operation over `sizes`; operand 0 is what it makes. An operand's strides are 0 along the
    axes that it does not have."""

    operation: str
    code: int
    sizes: Sequence[int]
    operands: Sequence[View]
    number: float
    steps: Sequence[tuple[int, int]]  # gather, scatter: (stride, size) of each indexed axis


@dataclass
class Program:
    """The operations so far, and tensors that must stay alive for their memory to stay theirs."""

    instructions: list[Instruction] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor that is made on the way."""
        self.kept.append(tensor)
        return tensor

    def constant(self, value: Any, dtype: torch.dtype) -> View:
        """A number."""
        return view(self.keep(torch.as_tensor(value).to(dtype).clone()))

    def add(
        self,
        operation: str,
        sizes: Sequence[int],
        *operands: View,
        code: int = 0,
        number: float = 0.0,
        steps: Sequence[tuple[int, int]] = (),
    ) -> None:
        """An operation; nothing where there are no numbers."""
        if 0 in sizes:
            return
        if operation == "pointwise":
            sizes, operands = _joined(sizes, operands)
        if len(sizes) > AXES:
            raise UserError(f"--to c has at most {AXES} axes, the agent's {operation} {len(sizes)}")
        self.instructions.append(Instruction(operation, code, sizes, operands, number, steps))

    def pointwise(self, name: str, made: Tensor | View, *given: Any) -> None:
        """Number by number; `given` are tensors or numbers, of as many axes as they like."""
        out = view(made)
        dtypes = [v.dtype for v in given if isinstance(v, Tensor)]
        kind = dtypes[0] if dtypes else out.tensor.dtype
        inputs = [
            (view(v) if isinstance(v, Tensor | View) else self.constant(v, _wide(v, kind))).expand(
                out.sizes
            )
            for v in given
        ]
        self.add("pointwise", out.sizes, out, *inputs, code=POINTWISE.index(name))

    def write(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bytes:
        """What program.c reads: 64-bit words, and the memory's first part, which is known."""
        places, known, total = self._places(inputs, outputs)
        words: list[int] = []
        for one in self.instructions:
            pad = AXES - len(one.sizes)
            words += [OPERATIONS.index(one.operation), one.code, *[1] * pad, *one.sizes]
            words.append(int(np.float64(one.number).view(np.int64)))
            for stride, size in (*one.steps, *[(0, 0)] * INDICES)[:INDICES]:
                words += [stride, size]
            words.append(len(one.operands))
            for operand in (*one.operands, *[one.operands[0]] * OPERANDS)[:OPERANDS]:
                words += [_dtype(operand.tensor), _place(operand, places)]
                words += [*[0] * pad, *operand.strides]
        ends = [word for t in (*inputs, *outputs) for word in _described(t, places)]
        head = [len(self.instructions), len(inputs), len(outputs), len(known), total]
        return np.array([*head, *ends, *words], np.int64).tobytes() + known

    def _places(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> tuple[dict[int, int], bytes, int]:
        """Where each storage lies, what the known ones hold, and bytes in all. What is no longer
        needed leaves its place to others."""
        spans: dict[int, list[int]] = {}
        storages: dict[int, torch.UntypedStorage] = {}
        end = len(self.instructions)
        for at, tensors in (
            (-1, [view(t) for t in inputs]),
            *((i, one.operands) for i, one in enumerate(self.instructions)),
            (end, [view(t) for t in outputs]),
        ):
            for operand in tensors:
                storage = operand.tensor.untyped_storage()
                storages[storage.data_ptr()] = storage
                spans.setdefault(storage.data_ptr(), [at, at])[1] = at
        made = {_storage(one.operands[0].tensor) for one in self.instructions}
        made |= {_storage(t) for t in inputs}
        places: dict[int, int] = {}
        known = bytearray()
        for pointer in spans.keys() - made:
            places[pointer] = len(known)
            known += torch.empty(0, dtype=torch.uint8).set_(storages[pointer]).numpy().tobytes()
            known += b"\0" * (-len(known) % ALIGNED)
        total = len(known)
        taken: list[tuple[int, int, int]] = []
        for pointer in sorted(made & spans.keys(), key=lambda p: spans[p][0]):
            first, last = spans[pointer]
            size = storages[pointer].nbytes() + -storages[pointer].nbytes() % ALIGNED
            start = len(known)
            for low, high, _ in sorted(t for t in taken if t[2] >= first):
                if low - start >= size:
                    break
                start = max(start, high)
            places[pointer] = start
            taken.append((start, start + size, last))
            total = max(total, start + size)
        return places, bytes(known), total


Rule = Callable[[Program, Call], None]
RULES: dict[str, Rule] = {}
rule = register_of(RULES)


def to_program(
    function: Callable[..., tuple[Tensor, ...]], example: Sequence[Tensor]
) -> tuple[Program, tuple[Tensor, ...]]:
    """The program of a call of `function`, and the tensors that are its outputs there.

    Raises:
        UserError: it does what has no rule.
    """
    calls, made = recorded_calls(function, list(example))
    program = Program(kept=[*example, *made])
    live = {_storage(t) for t in example}
    for _ in range(2):  # what is written to later holds nothing that is known
        for call in calls:
            if any(_storage(t) in live for t in _tensors(call.arguments)):
                live |= {_storage(t) for t in _tensors(call.result)}
    for call in calls:
        program.kept += [*_tensors(call.arguments), *_tensors(call.result)]
        given = {_storage(t) for t in _tensors(call.arguments)}
        makes = {_storage(t) for t in _tensors(call.result)}
        if not makes & live or (makes <= given and not call.in_place):
            continue  # known by now, or the same numbers seen otherwise
        if call.name not in RULES:
            raise UserError(f"--to c has no aten::{call.name}, which the agent uses; use --to onnx")
        RULES[call.name](program, call)
    return program, made


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_tensors, value))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _dtype(tensor: Tensor) -> int:
    return DTYPES.index(tensor.dtype)


def _place(operand: View, places: dict[int, int]) -> int:
    return places[_storage(operand.tensor)] + operand.offset * operand.tensor.element_size()


def _described(tensor: Tensor, places: dict[int, int]) -> tuple[int, int, int]:
    assert tensor.is_contiguous()
    return _dtype(tensor), _place(view(tensor), places), tensor.numel()


def _wide(value: Any, dtype: torch.dtype) -> torch.dtype:
    """Of a number beside a tensor of `dtype`."""
    return torch.float32 if isinstance(value, float) and not dtype.is_floating_point else dtype


def _joined(
    sizes: Sequence[int], operands: Sequence[View]
) -> tuple[tuple[int, ...], tuple[View, ...]]:
    """Axes that lie one after another in every operand as one."""
    axes: list[tuple[int, list[int]]] = []
    for axis, size in enumerate(sizes):
        strides = [operand.strides[axis] for operand in operands]
        if size == 1:
            continue
        if axes and axes[-1][1] == [s * size for s in strides]:
            axes[-1] = (axes[-1][0] * size, strides)
        else:
            axes.append((size, strides))
    whole = tuple(size for size, _ in axes)
    return whole, tuple(
        View(o.tensor, o.offset, whole, tuple(strides[i] for _, strides in axes))
        for i, o in enumerate(operands)
    )

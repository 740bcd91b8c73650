"""How each call of PyTorch that agents make is carried out by the operations of csrc/program.c."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decision_seq.export.c_program import Program, View, rule, view
from decision_seq.ops.calls import Call

OPERANDS = {"where": 3} | dict.fromkeys(
    ("mul", "div", "pow", "remainder", "maximum", "minimum", "eq", "ge", "gt", "le", "lt"), 2
)
OPERANDS |= dict.fromkeys(
    ("exp", "tanh", "sigmoid", "neg", "relu", "cos", "sin", "sqrt", "abs", "expm1", "softplus"), 1
)
OPERANDS |= dict.fromkeys(("gelu", "silu", "rsqrt", "log", "log1p", "reciprocal"), 1)


@rule(*OPERANDS)
def _same(program: Program, call: Call) -> None:
    given = call.arguments[: OPERANDS[call.name]]
    program.pointwise(call.name, call.result, *given)


@rule("bitwise_and", "logical_and")
def _and(program: Program, call: Call) -> None:
    program.pointwise("and", call.result, *call.arguments)


@rule("add", "sub", "rsub")
def _sum(program: Program, call: Call) -> None:
    one, two, *factor = call.arguments
    assert factor in ([], [1]), factor  # of the second
    sides = (two, one) if call.name == "rsub" else (one, two)
    program.pointwise(call.name.removeprefix("r"), call.result, *sides)


@rule("addcmul")
def _addcmul(program: Program, call: Call) -> None:
    assert call.arguments[3:] in ([], [1]), call.arguments[3:]
    program.pointwise("addcmul", call.result, *call.arguments[:3])


@rule("clone", "_to_copy", "copy", "full")
def _copy(program: Program, call: Call) -> None:
    program.pointwise("copy", call.result, call.arguments[call.name in ("copy", "full")])


@rule("zeros", "new_zeros", "zeros_like", "ones", "new_ones", "ones_like")
def _filled(program: Program, call: Call) -> None:
    program.pointwise("copy", call.result, int("ones" in call.name))


@rule("clamp")
def _clamp(program: Program, call: Call) -> None:
    value, *bounds = call.arguments
    for name, bound in zip(("maximum", "minimum"), bounds, strict=True):
        if bound is not None:
            program.pointwise(name, call.result, value, bound)
            value = call.result


@rule("masked_fill")
def _masked_fill(program: Program, call: Call) -> None:
    value, mask, filling = call.arguments
    number = program.constant(filling, value.dtype)
    program.pointwise("where", call.result, mask, number, value)


@rule("log_sigmoid_forward")
def _log_sigmoid(program: Program, call: Call) -> None:
    program.pointwise("log_sigmoid", call.result[0], call.arguments[0])


@rule("mm", "bmm", "addmm")
def _product(program: Program, call: Call) -> None:
    *bias, one, two = call.arguments[: 2 + (call.name == "addmm")]
    product(program, view(call.result), view(one), view(two), *map(view, bias))


def product(program: Program, made: View, one: View, two: View, bias: View | None = None) -> None:
    """[.., M, K] and [.., K, N] to [.., M, N], over sizes (.., M, N, K)."""
    sizes = (*made.sizes, one.sizes[-1])
    operands = [
        View(made.tensor, made.offset, sizes, (*made.strides, 0)),
        View(one.tensor, one.offset, sizes, (*one.strides[:-1], 0, one.strides[-1])),
        View(two.tensor, two.offset, sizes, (*two.strides[:-2], 0, *two.strides[:-3:-1])),
    ]
    if bias is not None:
        wide = bias.expand(made.sizes)
        operands.append(View(bias.tensor, bias.offset, sizes, (*wide.strides, 0)))
    program.add("contract", sizes, *operands)


@rule("sum", "mean")
def _reduce(program: Program, call: Call) -> None:
    value, axes, kept = call.arguments[:3]
    axes = sorted(axis % value.ndim for axis in (axes or range(value.ndim)))
    if axes[-1] - axes[0] == len(axes) - 1 and axes[-1] == value.ndim - 1 and len(axes) > 1:
        value = value.view(*value.shape[: axes[0]], -1)  # which fails unless they lie together
        axes = [value.ndim - 1]
    assert len(axes) == 1, axes
    made = call.result if kept else call.result.unsqueeze(axes[0])
    own, out = view(value).moved(axes[0]), view(made).moved(axes[0])
    factor = 1.0 if call.name == "sum" else 1 / value.shape[axes[0]]
    one = program.constant(factor, value.dtype).expand(own.sizes)
    program.add("contract", own.sizes, out.expand(own.sizes), own, one)


@rule("cumsum", "argmax", "_softmax", "_safe_softmax")
def _along(program: Program, call: Call) -> None:
    value, axis = call.arguments[:2]
    name = call.name.removeprefix("_safe").removeprefix("_")
    made = call.result
    if name == "argmax" and not call.arguments[2]:
        made = made.unsqueeze(axis)
    own, out = view(value).moved(axis), view(made).moved(axis)
    program.add(name, own.sizes, out.expand(own.sizes), own)


@rule("native_layer_norm")
def _layer_norm(program: Program, call: Call) -> None:
    x, shape, weight, bias, epsilon = call.arguments
    assert len(shape) == 1, shape
    sides = [
        (program.constant(default, x.dtype) if given is None else view(given)).expand(x.shape)
        for given, default in ((weight, 1), (bias, 0))
    ]
    made = view(call.result[0])
    program.add("layer_norm", made.sizes, made, view(x), *sides, number=epsilon)


@rule("cat", "stack")
def _cat(program: Program, call: Call) -> None:
    parts, axis = call.arguments[0], (call.arguments[1:] or [0])[0] % call.axes
    start = 0
    for part in parts:
        part = part.unsqueeze(axis) if call.name == "stack" else part
        if part.ndim != call.axes:
            continue  # an empty one of one axis, as cat takes them
        size = part.shape[axis]
        program.pointwise("copy", view(call.result).narrow(axis, start, size), part)
        start += size


@rule("constant_pad_nd")
def _pad(program: Program, call: Call) -> None:
    value, sides, filling = call.arguments
    program.pointwise("copy", call.result, program.constant(filling, call.dtype))
    own, made = view(value), view(call.result)
    for i, (before, after) in enumerate(zip(sides[::2], sides[1::2], strict=True)):
        axis = value.ndim - 1 - i
        cut = max(0, -before)
        length = own.sizes[axis] - cut - max(0, -after)
        own = own.narrow(axis, cut, length)
        made = made.narrow(axis, max(0, before), length)
    program.pointwise("copy", made, own)


@rule("flip")
def _flip(program: Program, call: Call) -> None:
    own = view(call.arguments[0])
    for axis in call.arguments[1]:
        own = own.flip(axis % call.axes)
    program.pointwise("copy", call.result, own)


@rule("roll")
def _roll(program: Program, call: Call) -> None:
    value, (shift,), (axis,) = call.arguments
    axis %= call.axes
    size = value.shape[axis]
    shift %= size
    own, made = view(value), view(call.result)
    for start, to, length in ((0, shift, size - shift), (size - shift, 0, shift)):
        if length:
            moved = made.narrow(axis, to, length)
            program.pointwise("copy", moved, own.narrow(axis, start, length))


@rule("tril")
def _tril(program: Program, call: Call) -> None:
    value, diagonal = call.arguments
    kept = program.keep(torch.ones(value.shape[-2:], dtype=torch.bool).tril(diagonal))
    program.pointwise("where", call.result, kept, value, program.constant(0, value.dtype))


@rule("linalg_solve_triangular")
def _solve(program: Program, call: Call) -> None:
    """[.., n, n] and [.., n, m] over sizes (.., n, m, n)."""
    assert call.arguments[2:5] == [False, True, True]  # lower, from the left, ones on the diagonal
    matrix, right, made = view(call.arguments[0]), view(call.arguments[1]), view(call.result)
    sizes = (*made.sizes, made.sizes[-2])
    rows = View(matrix.tensor, matrix.offset, sizes,
                (*matrix.strides[:-1], 0, matrix.strides[-1]))  # fmt: skip
    x, b = (View(v.tensor, v.offset, sizes, (*v.strides, 0)) for v in (made, right))
    program.add("solve", sizes, x, rows, b)


@rule("convolution")
def _convolution(program: Program, call: Call) -> None:
    """As a matrix product over the places that a kernel covers."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.arguments
    made = call.result
    if x.ndim == 3:  # along one axis: a row of height 1
        x, weight, made = x.unsqueeze(2), weight.unsqueeze(2), made.unsqueeze(2)
        stride, padding = [1, *stride], [0, *padding]
    assert x.ndim == 4 and x.shape[0] == 1 and groups == 1 and not transposed, call
    assert set(dilation) == {1}, dilation
    if any(padding):
        height, width = x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1]
        padded = program.keep(torch.empty(1, x.shape[1], height, width))
        program.pointwise("copy", padded, program.constant(0, x.dtype))
        inner = view(padded).narrow(2, padding[0], x.shape[2]).narrow(3, padding[1], x.shape[3])
        program.pointwise("copy", inner, x)
        x = padded
    sc, sh, sw = x.stride()[1:]
    channels, tall, wide = weight.shape[1:]
    sizes = (channels, tall, wide, *made.shape[2:])
    strides = (sc, sh, sw, sh * stride[0], sw * stride[1])
    columns = program.keep(torch.empty(sizes))
    program.pointwise("copy", columns, View(x, x.storage_offset(), sizes, strides))
    out = view(made.view(made.shape[1], -1))
    flat = view(columns.view(-1, out.sizes[1]))
    row = None if bias is None else view(bias.unsqueeze(1))
    product(program, out, view(weight.reshape(len(weight), -1)), flat, row)


@rule("embedding", "index_select", "index")
def _gather(program: Program, call: Call) -> None:
    value = call.arguments[0]
    if call.name == "index":
        indices = call.arguments[1]
    elif call.name == "embedding":
        indices = [call.arguments[1]]
    else:
        axis = call.arguments[1] % value.ndim
        indices = [None] * axis + [call.arguments[2]]
    place, indices, steps = _indexed(view(value), indices, tuple(call.result.shape))
    made = view(call.result)
    program.add("gather", made.sizes, made, place, *indices, steps=steps)


@rule("index_put")
def _scatter(program: Program, call: Call) -> None:
    """The result is written to where it is not the tensor itself."""
    value, indices, numbers = call.arguments[:3]
    assert not any(call.arguments[3:]), call.arguments  # adding up
    if not call.in_place:
        program.pointwise("copy", call.result, value)
    shape = _result_shape(value, indices)
    place, indices, steps = _indexed(view(call.result), indices, shape)
    program.add("scatter", shape, place, view(numbers).expand(shape), *indices, steps=steps)


def _result_shape(value: Tensor, indices: list[Any]) -> tuple[int, ...]:
    return tuple(value[tuple(slice(None) if i is None else i for i in indices)].shape)


def _indexed(
    value: View, indices: list[Any], sizes: tuple[int, ...]
) -> tuple[View, list[View], list[tuple[int, int]]]:
    """What `value[indices]` of these sizes reads: where all indices are 0; each index; and the
    (stride, size) of its axis. The indexed axes must lie together."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    assert axes == list(range(axes[0], axes[-1] + 1)), "indices apart from one another"
    given = [indices[axis] for axis in axes]
    assert all(index.dtype == torch.int64 for index in given), "an index that is a mask"
    width = max(index.ndim for index in given)
    after = len(value.sizes) - axes[-1] - 1
    strides = (*value.strides[: axes[0]], *[0] * width, *value.strides[len(value.sizes) - after :])
    spread = [view(index.reshape(*index.shape, *[1] * after)).expand(sizes) for index in given]
    steps = [(value.strides[axis], value.sizes[axis]) for axis in axes]
    return View(value.tensor, value.offset, sizes, strides), spread, steps

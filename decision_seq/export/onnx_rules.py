"""How each operation of PyTorch that agents use is said in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from decision_seq.export.onnx_graph import Graph, kind, rule
from decision_seq.ops.calls import Call

END = 2**63 - 1
ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"}
ARITHMETIC |= {"maximum": "Max", "minimum": "Min", "fmod": "Mod", "remainder": "Mod"}


@rule(*ARITHMETIC)
def _arithmetic(graph: Graph, call: Call, given: list[Any]) -> Any:
    pairs = zip(given[:2], call.arguments, strict=False)
    sides = [graph.cast(value, call.dtype, of) for value, of in pairs]
    if given[2:] not in ([], [1]):  # add and sub: a factor of the second
        sides[1] = graph.add("Mul", sides[1], graph.cast(given[2], call.dtype))
    if call.name == "remainder" and call.dtype.is_floating_point:  # of the divisor's sign
        whole = graph.add("Floor", graph.add("Div", *sides))
        return graph.add("Sub", sides[0], graph.add("Mul", whole, sides[1]))
    modulus = {"fmod": int(call.name == "fmod")} if ARITHMETIC[call.name] == "Mod" else {}
    return graph.add(ARITHMETIC[call.name], *sides, **modulus)


@rule("rsub")
def _rsub(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Sub", graph.cast(given[1], call.dtype, call.arguments[1]), given[0])


@rule("addcmul")
def _addcmul(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Add", given[0], graph.add("Mul", given[1], given[2]))


COMPARISONS = {"eq": "Equal", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less"}
COMPARISONS |= {"le": "LessOrEqual", "logical_and": "And", "bitwise_and": "And"}


@rule(*COMPARISONS)
def _comparison(graph: Graph, call: Call, given: list[Any]) -> Any:
    dtype = next(x for x in call.arguments if isinstance(x, Tensor)).dtype
    pairs = zip(given, call.arguments, strict=True)
    return graph.add(COMPARISONS[call.name], *(graph.cast(v, dtype, of) for v, of in pairs))


UNARY = {"exp": "Exp", "tanh": "Tanh", "sigmoid": "Sigmoid", "neg": "Neg", "relu": "Relu"}
UNARY |= {"cos": "Cos", "sin": "Sin", "sqrt": "Sqrt", "log": "Log", "abs": "Abs"}
UNARY |= {"reciprocal": "Reciprocal"}


@rule(*UNARY)
def _unary(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add(UNARY[call.name], given[0])


@rule("alias", "clone", "detach")
def _same(graph: Graph, call: Call, given: list[Any]) -> Any:
    return given[0]


@rule("rsqrt")
def _rsqrt(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Reciprocal", graph.add("Sqrt", given[0]))


@rule("silu")
def _silu(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Mul", given[0], graph.add("Sigmoid", given[0]))


@rule("softplus")
def _softplus(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Softplus", given[0])


@rule("log_sigmoid_forward")
def _log_sigmoid(graph: Graph, call: Call, given: list[Any]) -> Any:
    return [graph.add("Neg", graph.add("Softplus", graph.add("Neg", given[0])))]


@rule("log1p")
def _log1p(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Log", graph.add("Add", given[0], np.float32(1)))


@rule("expm1")
def _expm1(graph: Graph, call: Call, given: list[Any]) -> Any:
    """2 e^(x/2) sinh(x/2), which loses nothing near 0."""
    half = graph.add("Mul", given[0], np.float32(0.5))
    product = graph.add("Mul", graph.add("Exp", half), graph.add("Sinh", half))
    return graph.add("Mul", product, np.float32(2))


@rule("gelu")
def _gelu(graph: Graph, call: Call, given: list[Any]) -> Any:
    bell = graph.add("Erf", graph.add("Mul", given[0], np.float32(0.5**0.5)))
    half = graph.add("Mul", given[0], np.float32(0.5))
    return graph.add("Mul", half, graph.add("Add", bell, np.float32(1)))


@rule("_to_copy")
def _to_copy(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.cast(given[0], call.dtype, call.arguments[0])


@rule("clamp")
def _clamp(graph: Graph, call: Call, given: list[Any]) -> Any:
    value = given[0]
    for bounding, bound in (("Max", given[1]), ("Min", given[2])):
        if bound is not None:
            value = graph.add(bounding, value, graph.cast(bound, call.dtype))
    return value


@rule("where")
def _where(graph: Graph, call: Call, given: list[Any]) -> Any:
    sides = (graph.cast(given[i], call.dtype, call.arguments[i]) for i in (1, 2))
    return _choose(graph, call, given[0], *sides)


@rule("masked_fill")
def _masked_fill(graph: Graph, call: Call, given: list[Any]) -> Any:
    return _choose(graph, call, given[1], graph.cast(given[2], call.dtype), given[0])


def _choose(graph: Graph, call: Call, which: Any, one: Any, other: Any) -> Any:
    if call.dtype is not torch.bool:
        return graph.add("Where", which, one, other)
    one = graph.add("And", which, one)  # runtimes have no Where of bools
    return graph.add("Or", one, graph.add("And", graph.add("Not", which), other))


@rule("mm", "bmm")
def _product(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("MatMul", given[0], given[1])


@rule("addmm")
def _linear(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Gemm", given[1], given[2], given[0])


@rule("convolution")
def _convolution(graph: Graph, call: Call, given: list[Any]) -> Any:
    x, weight, bias, stride, padding, dilation, _, _, groups = given
    more = {"strides": stride, "pads": padding * 2, "dilations": dilation, "group": groups}
    return graph.add("Conv", x, weight, *([] if bias is None else [bias]), **more)


@rule("native_layer_norm")
def _layer_norm(graph: Graph, call: Call, given: list[Any]) -> Any:
    x, shape, weight, bias, eps = given
    weight = torch.ones(shape) if weight is None else weight
    bias = torch.zeros(shape) if bias is None else bias
    return [graph.add("LayerNormalization", x, weight, bias, axis=-len(shape), epsilon=eps)]


@rule("_softmax", "_safe_softmax")
def _softmax(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Softmax", given[0], axis=given[1])


@rule("sum", "mean")
def _reduce(graph: Graph, call: Call, given: list[Any]) -> Any:
    if call.name == "sum":
        axes = np.array(given[1], np.int64)
        return graph.add("ReduceSum", given[0], axes, keepdims=int(given[2]))
    return graph.add("ReduceMean", given[0], axes=given[1], keepdims=int(given[2]))


@rule("cumsum")
def _cumsum(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("CumSum", given[0], np.int64(given[1]))


@rule("argmax")
def _argmax(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("ArgMax", given[0], axis=given[1], keepdims=int(given[2]))


@rule("view", "_unsafe_view")
def _view(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Reshape", given[0], graph.numbers(given[1]))


@rule("expand")
def _expand(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Expand", given[0], graph.numbers([1 if n == -1 else n for n in given[1]]))


@rule("zeros", "new_zeros", "zeros_like", "ones", "new_ones", "ones_like")
def _filled(graph: Graph, call: Call, given: list[Any]) -> Any:
    value = torch.full((), "ones" in call.name, dtype=call.dtype)
    if call.name.endswith("like"):
        return graph.add("Expand", value, graph.add("Shape", given[0]))
    return graph.add("Expand", value, graph.numbers(given[call.name.startswith("new")]))


@rule("arange")
def _arange(graph: Graph, call: Call, given: list[Any]) -> Any:
    end = graph.add("Squeeze", graph.numbers([given[0]]))
    return graph.add("Range", np.int64(0), end, np.int64(1))


@rule("linalg_solve_triangular")
def _solve(graph: Graph, call: Call, given: list[Any]) -> Any:
    """x of (1 - M) x = b, M strictly triangular and so nilpotent: (1 + M)(1 + M^2)(1 + M^4).. b."""
    assert call.arguments[2:5] == [False, True, True]  # lower, from the left, ones on the diagonal
    power = graph.add("Neg", graph.add("Trilu", given[0], np.int64(-1), upper=0))
    x, reach = given[1], 1
    while reach < call.result.shape[-2]:
        x = graph.add("Add", x, graph.add("MatMul", power, x))
        power, reach = graph.add("MatMul", power, power), 2 * reach
    return x


@rule("permute")
def _permute(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Transpose", given[0], perm=[axis % call.axes for axis in given[1]])


@rule("t", "transpose")
def _transpose(graph: Graph, call: Call, given: list[Any]) -> Any:
    order = list(range(call.axes))
    one, two = given[1:] if call.name == "transpose" else (0, 1)
    order[one], order[two] = order[two], order[one]
    return graph.add("Transpose", given[0], perm=order)


@rule("unsqueeze", "squeeze")
def _squeeze(graph: Graph, call: Call, given: list[Any]) -> Any:
    kind_ = call.name.capitalize()
    if call.axes == call.arguments[0].ndim:  # nothing there to squeeze
        return given[0]
    return graph.add(kind_, given[0], np.array([given[1]], np.int64))


@rule("cat")
def _cat(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Concat", *given[0], axis=given[1])


@rule("stack")
def _stack(graph: Graph, call: Call, given: list[Any]) -> Any:
    axis = given[1] % call.axes
    parts = [graph.add("Unsqueeze", part, np.array([axis], np.int64)) for part in given[0]]
    return graph.add("Concat", *parts, axis=axis)


@rule("constant_pad_nd")
def _pad(graph: Graph, call: Call, given: list[Any]) -> Any:
    before, after = ([0] * call.axes for _ in range(2))
    for axis in range(len(given[1]) // 2):
        before[-1 - axis], after[-1 - axis] = given[1][2 * axis : 2 * axis + 2]
    sides = np.array([*before, *after], np.int64)
    if call.dtype is torch.bool:  # runtimes pad no bools
        padded = graph.add(
            "Pad", graph.add("Cast", given[0], to=kind(torch.int32)), sides, np.int32(given[2])
        )
        return graph.add("Cast", padded, to=kind(torch.bool))
    return graph.add("Pad", given[0], sides, torch.tensor(given[2], dtype=call.dtype))


@rule("slice")
def _slice(graph: Graph, call: Call, given: list[Any]) -> Any:
    x, axis, start, end, step = given
    bounds = (graph.numbers([n]) for n in (start or 0, END if end is None else end))
    return graph.add("Slice", x, *bounds, *(np.array([n], np.int64) for n in (axis, step)))


@rule("flip")
def _flip(graph: Graph, call: Call, given: list[Any]) -> Any:
    count = len(given[1])
    back, end, axes = np.full(count, -1), np.full(count, -END), np.array(given[1], np.int64)
    return graph.add("Slice", given[0], back, end, axes, back)


@rule("tril")
def _tril(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Trilu", given[0], np.int64(given[1]), upper=0)


@rule("diagonal")
def _diagonal(graph: Graph, call: Call, given: list[Any]) -> Any:
    matrix = call.arguments[0]
    last = {matrix.ndim - 2, matrix.ndim - 1}
    assert given[1] == 0 and {axis % matrix.ndim for axis in given[2:]} == last
    own = graph.add("Mul", given[0], torch.eye(matrix.shape[-1], dtype=matrix.dtype))
    return graph.add("ReduceSum", own, np.array([-1], np.int64), keepdims=0)


@rule("roll")
def _roll(graph: Graph, call: Call, given: list[Any]) -> Any:
    (shift,), (axis,) = given[1], given[2]
    size = call.result.shape[axis]
    return graph.add("Gather", given[0], (np.arange(size) - shift) % size, axis=axis)


@rule("select")
def _select(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Gather", given[0], np.int64(given[2]), axis=given[1])


@rule("unbind")
def _unbind(graph: Graph, call: Call, given: list[Any]) -> Any:
    places = range(len(call.result))
    return [graph.add("Gather", given[0], np.int64(i), axis=given[1]) for i in places]


@rule("split", "unsafe_split", "split_with_sizes")
def _split(graph: Graph, call: Call, given: list[Any]) -> Any:
    sizes = np.array([part.shape[given[2]] for part in call.result], np.int64)
    made = graph.add("Split", given[0], sizes, outputs=len(sizes), axis=given[2])
    return made if len(sizes) > 1 else [made]


@rule("embedding")
def _embedding(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Gather", given[0], given[1], axis=0)


@rule("index_select")
def _index_select(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("Gather", given[0], given[2], axis=given[1])


@rule("index")
def _index(graph: Graph, call: Call, given: list[Any]) -> Any:
    places = [axis for axis, index in enumerate(given[1]) if index is not None]
    if len(places) == 1:
        return graph.add("Gather", given[0], given[1][places[0]], axis=places[0])
    return graph.add("GatherND", given[0], _together(graph, given[1]))


@rule("index_put")
def _index_put(graph: Graph, call: Call, given: list[Any]) -> Any:
    return graph.add("ScatterND", given[0], _together(graph, given[1]), given[2])


def _together(graph: Graph, indices: list[Any]) -> Any:
    """Indices of the first dimensions, [lanes] each, as one [lanes, dimensions]."""
    last = np.array([1], np.int64)
    return graph.add("Concat", *(graph.add("Unsqueeze", index, last) for index in indices), axis=1)

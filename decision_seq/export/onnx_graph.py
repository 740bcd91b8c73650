"""A function of tensors as an ONNX graph of plain operators, with any number of lanes.

The function is run twice, with two and with three lanes, and its operations are written down: they
are the same, and a number that differs between the two is a multiple of the lanes. What depends on
weights alone has been computed by then and is stored. PyTorch's own exporter takes minutes for a
window of Mamba, whose scan is a long graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from decision_seq.errors import UserError

OPSET = 17
LANES = (2, 3)
END = 2**63 - 1


@dataclass(frozen=True)
class Lanes:
    """So many times the number of lanes."""

    times: int


@dataclass
class Call:
    """An operation of PyTorch that was carried out."""

    function: Any
    arguments: list[Any]  # by position, those left out as their defaults
    result: Any

    @property
    def name(self) -> str:
        """Without what tells forms of it apart: what changes a tensor in place meets none here
        that is looked at again as it was."""
        return self.function._schema.name.removeprefix("aten::").rstrip("_")

    @property
    def dtype(self) -> torch.dtype:
        """Of its result."""
        return self.result.dtype

    @property
    def axes(self) -> int:
        """Of its result."""
        return self.result.ndim


class Recorder(TorchDispatchMode):
    """Writes down what is carried out within. It keeps every tensor, so that none takes the place
    of another."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if isinstance(result, Tensor | list | tuple):
            places = enumerate(function._schema.arguments)
            given = [
                args[i] if i < len(args) else kwargs.get(a.name, a.default_value) for i, a in places
            ]
            self.calls.append(Call(function, given, result))
        return result


class Graph:
    """The nodes so far. A value is a name in the graph, or a tensor or number known by now."""

    def __init__(self, lanes_of: str) -> None:
        self.nodes: list[Any] = []
        self.stored: dict[str, np.ndarray] = {}
        self.names: dict[Any, str] = {}  # of what is stored, by content
        self.lanes_of, self.lanes = lanes_of, ""  # an input whose dimension 0 they are

    def add(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output's name, or a list of them."""
        from onnx import helper

        given = [self.name(value) for value in inputs]
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, given, names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, value: Any) -> str:
        """The name of a value; what is known is stored."""
        if isinstance(value, str):
            return value
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        content = (array.dtype, array.shape, array.tobytes())  # a weight that is used twice is one
        if content not in self.names:
            self.names[content] = f"c{len(self.stored)}"
            own = np.ascontiguousarray(array).reshape(array.shape)
            self.stored[self.names[content]] = own
        return self.names[content]

    def numbers(self, values: Sequence[int | Lanes]) -> Any:
        """Integers as a vector, where some may depend on the lanes."""
        if not any(isinstance(value, Lanes) for value in values):
            return np.array(values, np.int64)
        if not self.lanes:
            self.lanes = self.add("Shape", self.lanes_of, start=0, end=1)
        parts = [
            self.add("Mul", self.lanes, np.array([value.times], np.int64))
            if isinstance(value, Lanes)
            else np.array([value], np.int64)
            for value in values
        ]
        return parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)

    def cast(self, value: Any, dtype: torch.dtype, of: Any = None) -> Any:
        """A value in `dtype`; `of` is the tensor that a named one stands for."""
        if isinstance(value, Tensor):
            return value.to(dtype)
        if not isinstance(value, str):
            return torch.tensor(value, dtype=dtype)
        same = isinstance(of, Tensor) and of.dtype == dtype
        return value if same else self.add("Cast", value, to=kind(dtype))


Rule = Callable[[Graph, Call, list[Any]], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: how operations `names` of PyTorch are said in ONNX."""

    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def to_onnx(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: dict[str, Callable[[int], Tensor]],
    outputs: Sequence[str],
) -> Any:
    """The model.

    Args:
        function: of tensors, dimension 0 of each being the lane, to such tensors.
        inputs: by name, what makes an example of so many lanes.
        outputs: names.

    Raises:
        UserError: it does what has no rule here.
    """
    from onnx import checker, helper, numpy_helper

    examples = [[make(lanes) for make in inputs.values()] for lanes in LANES]
    (calls, made), (others, _) = (_recorded(function, example) for example in examples)
    graph = Graph(next(iter(inputs)))
    # names of what depends on inputs; every other tensor is one that is known
    named: dict[int, Any] = dict(zip(map(id, examples[0]), inputs, strict=True))
    for call, other in zip(calls, others, strict=True):
        assert call.function is other.function, f"{call.name} becomes {other.name}"
        pairs = zip(call.arguments, other.arguments, strict=True)
        given = [_argument(one, two, named) for one, two in pairs]
        flat = [part for x in given for part in (x if isinstance(x, list) else [x])]
        if not any(isinstance(value, str | Lanes) for value in flat):
            continue
        if call.name not in RULES:
            raise UserError(f"ONNX has no aten::{call.name} here, which the agent uses")
        result = RULES[call.name](graph, call, given)
        if isinstance(call.result, Tensor):
            named[id(call.result)] = result
        else:
            named |= dict(zip(map(id, call.result), result, strict=False))
    for tensor, name in zip(made, outputs, strict=True):
        source = graph.name(named.get(id(tensor), tensor))
        graph.nodes.append(helper.make_node("Identity", [source], [name]))

    def described(name: str, tensor: Tensor) -> Any:
        shape = ["lanes", *tensor.shape[1:]]
        return helper.make_tensor_value_info(name, kind(tensor.dtype), shape)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "policy",
            [described(*pair) for pair in zip(inputs, examples[0], strict=True)],
            [described(*pair) for pair in zip(outputs, made, strict=True)],
            [numpy_helper.from_array(array, name) for name, array in graph.stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="decision-seq",
    )
    checker.check_model(model)
    return model


def kind(dtype: torch.dtype) -> int:
    """ONNX's number of a dtype."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(torch.zeros((), dtype=dtype).numpy().dtype)


def _recorded(
    function: Callable[..., tuple[Tensor, ...]], example: list[Tensor]
) -> tuple[list[Call], tuple[Tensor, ...]]:
    """What is carried out, in small operations: no fused attention, no LSTM in one."""
    with warnings.catch_warnings(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # of settings beside the one that is changed
        with torch.backends.mkldnn.flags(enabled=False), Recorder() as recorder:
            made = function(*example)
    return recorder.calls, made


def _argument(one: Any, two: Any, named: dict[int, Any]) -> Any:
    if isinstance(one, Tensor):
        return named.get(id(one), one)
    if isinstance(one, list | tuple):
        return [_argument(a, b, named) for a, b in zip(one, two, strict=True)]
    if type(one) is int and one != two:
        assert one % LANES[0] == 0 and one // LANES[0] * LANES[1] == two, f"{one} becomes {two}"
        return Lanes(one // LANES[0])
    return one


# ---- how each operation is said -----------------------------------------------------------------

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

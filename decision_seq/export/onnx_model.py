"""A function of tensors as an ONNX graph of plain operators, with any number of lanes.

The function is run twice, with two and with three lanes, and its operations are written down: they
are the same, and a number that differs between the two is a multiple of the lanes. What depends on
weights alone has been computed by then and is stored. PyTorch's own exporter takes minutes for a
window of Mamba, whose scan is a long graph, and has no way to say `linalg_solve_triangular`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from decision_seq.errors import UserError
from decision_seq.export import onnx_rules  # noqa: F401  # fills the register
from decision_seq.export.onnx_graph import RULES, Graph, Lanes, kind
from decision_seq.ops.calls import recorded_calls

OPSET = 17
LANES = (2, 3)


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
    (calls, made), (others, _) = (recorded_calls(function, example) for example in examples)
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


def _argument(one: Any, two: Any, named: dict[int, Any]) -> Any:
    if isinstance(one, Tensor):
        return named.get(id(one), one)
    if isinstance(one, list | tuple):
        return [_argument(a, b, named) for a, b in zip(one, two, strict=True)]
    if type(one) is int and one != two:
        assert one % LANES[0] == 0 and one // LANES[0] * LANES[1] == two, f"{one} becomes {two}"
        return Lanes(one // LANES[0])
    return one

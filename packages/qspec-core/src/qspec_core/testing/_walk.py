"""Run a converted graph, and bound the distance of each element of its values from those of another program."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from qspec_core import ops
from qspec_core._torch import OpOverload, schema_of
from qspec_core.graph import called_operator
from qspec_core.lowering import Quantized, quantized_value
from qspec_core.testing._errors import CheckName, ConformanceError
from qspec_core.testing._samples import ErrorRule, Operands

__all__ = ["Other", "Range", "Walk", "first_tensor", "walk"]


class Other(Enum):
    """The program that the graph is compared with.

    The bound for a quantize with step s, an input error of at most e, and an input d outside of the range is:

    - against the float program, e + d + s / 2: the error of the input, clamping by d, and half a step of rounding;
    - against the lowered program, which quantizes too, s (floor(e / s) + 1): two inputs e apart are rounded to integers
      that are at most floor(e / s) + 1 apart, one more if a rounding boundary lies between them.

    The error of a weight stored as integers is s / 2 in the first case, and 0 in the second.
    """

    FLOAT = "float"
    LOWERED = "lowered"


@dataclass
class Range:
    """The values that were quantized with one set of static parameters.

    Args:
        low: smallest value.
        high: largest value.
    """

    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Walk:
    """One run of a converted graph.

    Args:
        output: the result.
        bound: bound on the error of each element, in float64.
        step: step of the result if it is a dequantized tensor, else None.
        ranges: the values that were quantized, by the parameters: scale, zero point, smallest and largest integer.
    """

    output: Tensor
    bound: Tensor
    step: float | None
    ranges: Mapping[tuple[float, int, int, int], Range] = field(default_factory=dict)


def walk(module: GraphModule, inputs: tuple[Tensor, ...], rules: Mapping[OpOverload, ErrorRule], other: Other) -> Walk:
    """Run a converted graph and compute a bound on the error of its first output.

    Args:
        module: from `convert_pt2e`.
        inputs: its arguments.
        rules: the error rule of each operator.
        other: the program that it is compared with.
    Raises: ConformanceError: an operator has no rule.
    Cost: two to three times a run, with error bounds in float64.
    """
    run = _Run(module, rules, other)
    with torch.no_grad():
        result = run.run(*inputs)
    last = module.graph.output_node().all_input_nodes[0]
    value = first_tensor(result)
    quantized = quantized_value(last) if ops.is_dequantize(last) else None
    step = quantized.scale if quantized is not None and isinstance(quantized.scale, float) else None
    return Walk(value, run.errors[last], step, run.ranges)


def first_tensor(value: object) -> Tensor:
    """A module's first output.

    Raises: ConformanceError: it is not a tensor.
    """
    first = value[0] if isinstance(value, tuple | list) and value else value
    if isinstance(first, Tensor):
        return first
    raise ConformanceError(
        "the first output of a module is not a tensor",
        check=CheckName.SHAPE,
        found=type(first).__qualname__,
        expected="the outputs of the float module, in their structure",
        remedy="return the outputs of the converted module, in their structure",
    )


class _Run(Interpreter):
    """Keeps the error bound of each node's value: a tensor, a list of tensors, or None if it has no floats."""

    def __init__(self, module: GraphModule, rules: Mapping[OpOverload, ErrorRule], other: Other) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.errors: dict[Node, Any] = {}  # as above
        self.ranges: dict[tuple[float, int, int, int], Range] = {}
        self._rules = rules
        self._other = other

    def run_node(self, n: Node) -> Any:  # a node may return anything
        value = super().run_node(n)
        self.errors[n] = self._error(n, value)
        return value

    def _error(self, node: Node, value: Any) -> Any:  # as in run_node
        found = quantized_value(node)
        if found is not None:
            return self._of_quantize(found, node) if ops.is_quantize(node) else self._of_dequantize(found)
        if node.op == "call_function" and node.target is operator.getitem:
            source = self.errors[node.all_input_nodes[0]]
            return None if source is None else source[node.args[1]]
        called = called_operator(node)
        if node.op in ("placeholder", "get_attr"):  # inputs and constants are exact
            return torch.zeros_like(value, dtype=torch.float64) if _is_float(value) else None
        if called is None or called.namespace == ops.QUANTIZE.namespace or not _is_float(value):
            return None
        return self._of_call(called, node)

    def _of_call(self, called: OpOverload, node: Node) -> Any:  # as in run_node
        rule = self._rules.get(called)
        if rule is None:
            raise ConformanceError(
                f"there is no error rule of {called}",
                check=CheckName.SAMPLE,
                where=node,
                found=called,
                remedy=f"pass samples={{{called}: Sample(..., error=<rule>)}} to conformance_cases",
            )
        values, errors = _bound_arguments(called, node, self.env), _bound_arguments(called, node, self.errors)
        return rule(Operands(called, values, {name: e for name, e in errors.items() if _is_error(e)}))

    def _of_quantize(self, found: Quantized, node: Node) -> Tensor:
        source = node.args[0]
        if not isinstance(source, Node):
            raise ConformanceError(
                "a quantize reads a constant",
                check=CheckName.MATCHED_AGAIN,
                where=node,
                remedy="fold it when converting",
            )
        value, error = self.env[source].double(), self.errors[source]
        scale, zero = (_along(self._value(item), found, value) for item in (found.scale, found.zero_point))
        low, high = (found.quant_min - zero) * scale, (found.quant_max - zero) * scale
        if isinstance(found.scale, float) and isinstance(found.zero_point, int):
            key = (found.scale, found.zero_point, found.quant_min, found.quant_max)
            seen = self.ranges.setdefault(key, Range())
            seen.low, seen.high = min(seen.low, value.min().item()), max(seen.high, value.max().item())
        if self._other is Other.LOWERED:
            result: Tensor = scale * (torch.floor(error / scale) + 1)
            return result
        outside = torch.clamp(torch.maximum(low - value, value - high), min=0.0)
        result = error + outside + scale / 2
        return result

    def _of_dequantize(self, found: Quantized) -> Tensor:
        error = self.errors[found.integers]
        if isinstance(error, Tensor):
            return error
        integers = self.env[found.integers]
        if self._other is Other.LOWERED:
            return torch.zeros_like(integers, dtype=torch.float64)
        scale = _along(self._value(found.scale), found, integers)
        return (scale / 2).expand(integers.shape).clone()

    def _value(self, item: Any) -> Any:  # a number or a node
        return self.env[item] if isinstance(item, Node) else 0 if item is None else item


def _along(value: Any, found: Quantized, like: Tensor) -> Tensor:
    """Parameters in float64, in a shape that broadcasts against `like`: (channels,) -> (1, channels, 1...)."""
    tensor, axis = torch.as_tensor(value, dtype=torch.float64), found.ch_axis
    if found.by_token:
        return tensor.reshape(*like.shape[:-1], 1)  # (tokens,) -> (..., 1)
    if found.group_size is not None:
        return tensor.reshape(like.shape[0], -1).repeat_interleave(
            found.group_size, dim=1
        )  # (rows, groups) -> (rows, in)
    if axis is None:
        return tensor.reshape(())
    return tensor.reshape([-1 if dim == axis % like.dim() else 1 for dim in range(like.dim())])


def _is_float(value: object) -> bool:
    first = value[0] if isinstance(value, tuple | list) and value else value
    return isinstance(first, Tensor) and first.is_floating_point()


def _is_error(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value))


def _bound_arguments(called: OpOverload, node: Node, table: Mapping[Node, Any]) -> dict[str, Any]:
    """Arguments of a call by name, each node replaced by what the table holds for it."""

    def looked_up(item: Node) -> Any:  # as in the table
        return table[item]

    schema = schema_of(called).arguments
    given = dict(zip((argument.name for argument in schema), map_arg(node.args, looked_up), strict=False))
    given |= map_arg(dict(node.kwargs), looked_up)
    return {a.name: given.get(a.name, a.default_value) for a in schema}

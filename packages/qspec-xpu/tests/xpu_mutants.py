"""Mutation testing of the XPU lowering: change one argument of one lowered call and see whether a check notices.

    python packages/qspec-xpu/tests/xpu_mutants.py [--only TEXT]

For each case of the conformance kit the lowered graph is changed in one place: two arguments swapped, a scale inverted,
a zero point negated, an axis or a layout changed, a post-op dropped or applied in another order. A mutant is caught if
the contract of the kernels, the trace on the fake device or the comparison on the reference fails.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves
from xpu_contract import arguments_of, kernel_of
from xpu_reference import OnReference, trace_on_xpu
from xpu_samples import SAMPLES

from qspec_core.testing import Case, conformance_cases
from qspec_xpu import BACKEND, lower_portable
from qspec_xpu._lowering._kernels import qconv_sum

__all__ = ["Mutant", "main", "mutants_of", "run"]

aten = torch.ops.aten
SUM_NAMES = (
    *("qx", "x_scale", "x_zero_point", "qw", "w_scale", "w_zero_point", "bias", "stride", "padding", "dilation"),
    *("groups", "output_scale", "output_zero_point", "output_dtype", "relu", "qaccum", "accum_scale"),
    *("accum_zero_point", "may_overwrite"),
)
"""Arguments of `qconv_sum`, by the names of the operator that it calls."""
EQUIVALENT = "no change"
"""Kind of the mutants that leave every result as it is, bit by bit."""
SWAPS = (
    *(("x_scale", "output_scale"), ("x_zero_point", "output_zero_point"), ("w_scale", "w_zero_point")),
    *(("stride", "padding"), ("stride", "dilation"), ("padding", "dilation"), ("kernel_size", "stride")),
    *(("output_scale", "accum_scale"), ("output_zero_point", "accum_zero_point"), ("qx", "qaccum"), ("qx", "other")),
    *(("bias", "w_scale"), ("qScale", "qZeros"), ("x_scale", "accum_scale"), ("mat2", "scales")),
)
SCALES = ("x_scale", "output_scale", "accum_scale", "w_scale", "scales", "qScale")
ZERO_POINTS = ("x_zero_point", "output_zero_point", "accum_zero_point", "qZeros")
POST_OPS = ("attr", "post_op_name", "unary_post_op", "unary_attr", "binary_post_op")
AXES: Mapping[Any, str] = {
    aten.cat.default: "dim",
    aten.slice.Tensor: "dim",
    aten.select.int: "dim",
    aten.unsqueeze.default: "dim",
    aten.flatten.using_ints: "start_dim",
    aten.transpose.int: "dim0",
}


@dataclass(frozen=True)
class Mutant:
    """One change of a lowered graph.

    Args:
        kind: class of the change.
        what: the change, in words.
        node: name of the call.
        apply: makes the change in a graph, to the call of that name.
    """

    kind: str
    what: str
    node: str
    apply: Callable[[GraphModule, Node], None]

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} of {self.node}"


def given(node: Node) -> dict[str, Any]:
    """Arguments of a call by name; nothing for calls that are neither kernels nor operators."""
    if node.target is qconv_sum:
        return dict(zip(SUM_NAMES, node.args, strict=True))
    return dict(arguments_of(node.target, node.args, node.kwargs)) if hasattr(node.target, "_schema") else {}


def write(node: Node, changed: Mapping[str, Any]) -> None:
    """Give a call these arguments."""
    if node.target is qconv_sum:
        node.args = tuple(changed[name] for name in SUM_NAMES)
        return
    schema: Any = node.target
    names = [argument.name for argument in schema._schema.arguments if not argument.kwarg_only]
    node.args = tuple(changed[name] for name in names if name in changed)
    node.kwargs = {name: value for name, value in changed.items() if name not in names}


def _changing(**changes: Any) -> Callable[[GraphModule, Node], None]:
    def apply(module: GraphModule, node: Node) -> None:
        write(node, {**given(node), **changes})

    return apply


def _through(name: str, operator: Any, *arguments: Any) -> Callable[[GraphModule, Node], None]:
    """Pass one argument through an operator."""

    def apply(module: GraphModule, node: Node) -> None:
        with module.graph.inserting_before(node):
            changed = module.graph.call_function(operator, (given(node)[name], *arguments))
        write(node, {**given(node), name: changed})

    return apply


def _swapped(first: str, second: str) -> Callable[[GraphModule, Node], None]:
    def apply(module: GraphModule, node: Node) -> None:
        values = given(node)
        write(node, {**values, first: values[second], second: values[first]})

    return apply


def _is_kernel(node: Node) -> bool:
    name = kernel_of(node.target)
    return node.target is qconv_sum or name.startswith(("onednn.", "quantized.max", "aten._weight_int"))


def mutants_of(graph: GraphModule) -> Iterator[Mutant]:
    """Every mutant of a lowered graph. A change that leaves the value as it is makes none."""
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        values = given(node)
        if _is_kernel(node):
            yield from _swaps(node, values)
            yield from _numbers(node, values)
            yield from _weights(node, values, graph)
            yield from _post_ops(node, values)
        else:
            yield from _axes(node, values)


def _swaps(node: Node, values: Mapping[str, Any]) -> Iterator[Mutant]:
    for first, second in SWAPS:
        if first in values and second in values and values[first] != values[second]:
            yield Mutant("swap", f"{first} and {second}", node.name, _swapped(first, second))


def _numbers(node: Node, values: Mapping[str, Any]) -> Iterator[Mutant]:
    for name in SCALES:
        value = values.get(name)
        if isinstance(value, Node):
            yield Mutant("inverse", name, node.name, _through(name, aten.reciprocal.default))
        elif value is not None and value != 1.0:
            yield Mutant("inverse", name, node.name, _changing(**{name: 1.0 / value}))
    for name in ZERO_POINTS:
        value = values.get(name)
        if isinstance(value, Node) and value.op == "call_function":
            yield Mutant("sign", name, node.name, _through(name, aten.sub.Scalar, 1))
        elif isinstance(value, Node):
            yield Mutant("sign", name, node.name, _through(name, aten.neg.default))
        elif value:
            yield Mutant("sign", name, node.name, _changing(**{name: -value}))


def _weights(node: Node, values: Mapping[str, Any], graph: GraphModule) -> Iterator[Mutant]:
    name = "qw" if "qw" in values else "mat2" if "mat2" in values else None
    if name is None:
        return
    weight = graph.get_buffer(str(values[name].target))
    changes: dict[str, tuple[Any, tuple[Any, ...], bool]] = {
        "outputs reversed": (aten.flip.default, ([1 if "post_op_name" in values else 0],), True),
        "two axes exchanged": (aten.transpose.int, (0, 1), weight.shape[0] != 1 or weight.shape[1] != 1),
        "last axis reversed": (aten.flip.default, ([-1],), weight.shape[-1] > 1),
    }
    for what, (operator, arguments, differs) in changes.items():
        if differs and not _is_same(weight, operator(weight, *arguments)):
            yield Mutant("axis", f"weight, {what}", node.name, _through(name, operator, *arguments))
    scale = next((key for key in ("w_scale", "scales") if key in values), None)
    if scale is not None and graph.get_buffer(str(values[scale].target)).numel() > 1:
        yield Mutant("axis", f"{scale} reversed", node.name, _through(scale, aten.flip.default, [0]))


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and bool((first == second).all())


def _post_ops(node: Node, values: Mapping[str, Any]) -> Iterator[Mutant]:
    for name in POST_OPS:
        if values.get(name, "none") not in ("none", "sum"):
            cleared: dict[str, Any] = {"scalars": [None]} if "scalars" in values else {}
            cleared |= {"post_op_args": [None], "post_op_algorithm": ""} if name == "post_op_name" else {}
            yield Mutant("post-op", f"no {values[name]}", node.name, _changing(**{name: "none"}, **cleared))
    if values.get("post_op_name") == "gelu":
        other = "tanh" if values["post_op_algorithm"] == "none" else "none"
        yield Mutant("post-op", "the other gelu", node.name, _changing(post_op_algorithm=other))
    if values.get("relu"):
        yield Mutant("post-op", "no relu", node.name, _changing(relu=False))
        yield Mutant("order", "relu before the sum", node.name, _retargeted(_sum_after_relu))
    if values.get("unary_post_op") == "relu":
        yield Mutant("order", "relu before the sum", node.name, _retargeted(_add_after_relu))
    if values.get("bias") is not None:
        yield Mutant("post-op", "no bias", node.name, _changing(bias=None))
    if isinstance(values.get("output_dtype"), torch.dtype) and not values["output_dtype"].is_floating_point:
        other_dtype = torch.uint8 if values["output_dtype"] is torch.int8 else torch.int8
        yield Mutant("dtype", "the other 8 bits", node.name, _changing(output_dtype=other_dtype))


def _retargeted(function: Callable[..., Any]) -> Callable[[GraphModule, Node], None]:
    def apply(module: GraphModule, node: Node) -> None:
        node.target = function

    return apply


def _quantized(y: torch.Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point:
        return y.to(dtype)
    limits = torch.iinfo(dtype)
    return (torch.round(y / scale) + zero_point).clamp(limits.min, limits.max).to(dtype)


def _sum_after_relu(*args: Any) -> torch.Tensor:
    """`qconv_sum`, with its two post-ops in the other order."""
    values = dict(zip(SUM_NAMES, args, strict=True))
    kernel = torch.ops.onednn.qconv_pointwise.default
    y = kernel(*args[:11], 1.0, 0, torch.float32, "relu", [None], "")
    y = y + (values["qaccum"].float() - values["accum_zero_point"]) * values["accum_scale"]
    return _quantized(y, values["output_scale"], values["output_zero_point"], values["output_dtype"])


def _add_after_relu(*args: Any) -> torch.Tensor:
    """`onednn.qlinear_pointwise.binary`, with its two post-ops in the other order."""
    operands, other, bias, (scale, zero_point, dtype) = args[:6], args[6], args[7], args[8:11]
    packet = torch.ops.onednn.qlinear_pointwise
    kernel = packet.tensor if isinstance(args[1], torch.Tensor) else packet.default
    y = kernel(*operands, bias, 1.0, 0, torch.float32, "relu", [None], "") + other
    return _quantized(y, scale, zero_point, dtype)


def _axes(node: Node, values: Mapping[str, Any]) -> Iterator[Mutant]:
    reads_integers = isinstance(node.args[0], Node | list | tuple)
    name = AXES.get(node.target)
    if name is not None and reads_integers:
        axis = values.get(name, 0)
        yield Mutant("axis", f"{name} of {node.target}", node.name, _changing(**{name: axis + 1 if axis >= 0 else 0}))
    if node.target is aten.permute.default and list(values["dims"]) != list(reversed(values["dims"])):
        yield Mutant("axis", "dims reversed", node.name, _changing(dims=list(reversed(values["dims"]))))
    if node.target is aten.constant_pad_nd.default:
        if values.get("value"):
            yield Mutant("sign", "padding value", node.name, _changing(value=-values["value"]))
        if list(values["pad"]) != list(reversed(values["pad"])):
            yield Mutant("axis", "sides reversed", node.name, _changing(pad=list(reversed(values["pad"]))))
    source = node.args[0]
    is_copy = "memory_format" in node.kwargs and isinstance(source, Node)
    if is_copy and isinstance(source, Node) and str(source.target).startswith("quantized_decomposed.quantize"):
        yield Mutant("layout", "no copy to channels-last", node.name, _skipped)


def _skipped(module: GraphModule, node: Node) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]  # the tensor that it copies


def _same_results(first: GraphModule, second: GraphModule, inputs: tuple[Any, ...]) -> bool:
    with torch.no_grad():
        results = [tree_leaves(OnReference(graph)(*inputs)) for graph in (first, second)]
    return all(map(torch.equal, *results))


@dataclass
class _Lowering:
    """Lowers, and applies the mutant of one number.

    Args:
        number: of the mutant, from 0.
        applied: the mutant; None if there is none of this number.
        is_equivalent: tells whether the results of the graph are the same with the mutant, bit by bit.
    """

    number: int = 0
    applied: Mutant | None = None
    is_equivalent: Callable[[], bool] = bool

    def __call__(self, converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        lowered = lower_portable(converted)
        found = list(mutants_of(lowered))
        if self.number >= len(found):
            return OnReference(lowered)
        self.applied = found[self.number]
        node = next(node for node in lowered.graph.nodes if node.name == self.applied.node)
        self.applied.apply(lowered, node)
        lowered.recompile()
        self.is_equivalent = partial(_same_results, lower_portable(converted), lowered, example_inputs)
        trace_on_xpu(lowered, example_inputs)
        return OnReference(lowered)


def run(only: str = "") -> tuple[Counter[str], list[tuple[str, Mutant]]]:
    """Test every mutant of the cases whose name contains a text.

    Returns: the number of mutants of each kind, and those that changed a result unnoticed, each with its case.
    """
    counts: Counter[str] = Counter()
    survivors: list[tuple[str, Mutant]] = []
    lowering = _Lowering()
    for case in conformance_cases(BACKEND, samples=SAMPLES, lower=lowering):
        name = str(case)
        if only not in name or name.startswith(("table:", "lowering refuses")):
            continue
        for number in count():
            is_caught, mutant = _test(case, lowering, number)
            if mutant is None:
                break
            if not is_caught and lowering.is_equivalent():
                counts[EQUIVALENT] += 1
                continue
            counts[mutant.kind] += 1
            survivors += [] if is_caught else [(name, mutant)]
    return counts, survivors


def _test(case: Case, lowering: _Lowering, number: int) -> tuple[bool, Mutant | None]:
    """Whether a case fails with the mutant of a number, and the mutant; None if there is none."""
    lowering.number, lowering.applied = number, None
    try:
        case.check()
    except Exception:  # whatever a check or an operator raises
        return True, lowering.applied
    return False, lowering.applied


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the share of mutants caught, and the survivors; return how many survived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # it logs every refusal
    counts, survivors = run(parser.parse_args(arguments).only)
    left = Counter(mutant.kind for _, mutant in survivors)
    same = counts.pop(EQUIVALENT, 0)
    total = counts.total()
    lines = [f"{kind}: {made - left[kind]} of {made} caught" for kind, made in sorted(counts.items())]
    lines += [f"survived: {name}: {mutant}" for name, mutant in survivors]
    lines += [f"{total - len(survivors)} of {total} mutants caught; {same} more change no result and are not counted"]
    sys.stdout.write("\n".join(lines) + "\n")
    return len(survivors)


if __name__ == "__main__":
    sys.exit(min(main(), 1))

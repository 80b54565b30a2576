"""Tools for a backend's lowering: find rows in a converted graph, and the integers and parameters of its edges."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from qspec_core import ops
from qspec_core._errors import GraphError, LoweringError
from qspec_core.canonical import canonicalize
from qspec_core.graph import (
    add_constant,
    argument,
    constant_value,
    copy_graph_module,
    gc_paused,
    graph_modules,
    is_call,
    require_exported,
    require_no_observers,
    tensor_value,
    wrap_graph,
)
from qspec_core.graph._bodies import loop_bodies
from qspec_core.graph._sinking import lift_constants, sink_constants
from qspec_core.patterns import (
    Delegated,
    Flow,
    Match,
    Mode,
    Note,
    OtherRole,
    PatternTable,
    Reason,
    ReasonCode,
    Role,
    match_rows,
)

__all__ = [
    "FLOAT_KEY",
    "Lowering",
    "Quantized",
    "lower_rows",
    "match_converted",
    "on_device",
    "quantized_operand",
    "quantized_value",
    "require_converted",
]

FLOAT_KEY = "qspec_float"
"""Key in the metadata of a converted graph's node that rows must leave in float: its kernel gave other numbers."""
Options = TypeVar("Options")
Scale = float | Node
ZeroPoint = int | Node | None


@dataclass(frozen=True)
class Quantized:
    """An integer tensor with its parameters, as a dequantize reads it or a quantize writes it.

    Args:
        node: the quantize or dequantize.
        integers: node of the integer tensor.
        scale: a number, or the node of a tensor for parameters by channel, token or group, and for dynamic ones.
        zero_point: a number or a node, as `scale`; None if the operator has none.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        dtype: dtype of the integers.
        ch_axis: dimension that has one scale for each index; None for any other granularity.
        group_size: number of elements along the last dimension that have one scale; None if there are no groups.
        by_token: each vector along the last dimension has a scale.
    """

    node: Node
    integers: Node
    scale: Scale
    zero_point: ZeroPoint
    quant_min: int
    quant_max: int
    dtype: torch.dtype
    ch_axis: int | None = None
    group_size: int | None = None
    by_token: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether the parameters are computed from the tensor when the model runs."""
        return isinstance(self.scale, Node) and self.scale.op == "call_function"

    @property
    def parameters(self) -> tuple[object, ...]:
        """The fields that two integer tensors must have in common to be interchangeable."""
        return self.scale, self.zero_point, self.quant_min, self.quant_max, self.dtype, self.ch_axis


def quantized_value(node: object) -> Quantized | None:
    """Read a quantize or dequantize node of any granularity; None for everything else."""
    if not isinstance(node, Node) or not (ops.is_quantize(node) or ops.is_dequantize(node)):
        return None
    per_channel = is_call(node, ops.QUANTIZE_PER_CHANNEL, ops.DEQUANTIZE_PER_CHANNEL)
    per_group = is_call(node, ops.QUANTIZE_PER_GROUP, ops.DEQUANTIZE_PER_GROUP)
    by_token = is_call(node, ops.QUANTIZE_PER_TOKEN, ops.DEQUANTIZE_PER_TOKEN)
    several = per_channel or per_group or by_token
    names = ("scales", "zero_points") if several else ("scale", "zero_point")
    return Quantized(
        node=node,
        integers=argument(node, "input") if ops.is_dequantize(node) else node,
        scale=argument(node, names[0]),
        zero_point=argument(node, names[1]),
        quant_min=argument(node, "quant_min"),
        quant_max=argument(node, "quant_max"),
        dtype=argument(node, "dtype"),
        ch_axis=argument(node, "axis") if per_channel else None,
        group_size=argument(node, "group_size") if per_group else None,
        by_token=by_token,
    )


def quantized_operand(match: Match, name: str) -> Quantized:
    """The integers that an operand is dequantized from, for a match that `match_converted` found.

    Raises: LoweringError: the operand is not dequantized, so the match did not come from there.
    """
    value = match.operand(name)
    found = quantized_value(value) if ops.is_dequantize(value) else None
    if found is None:
        raise LoweringError(
            f"operand {name!r} of row {match.row.name} is not dequantized",
            where=match.anchor,
            found=value,
            remedy="lower matches of match_converted only",
        )
    return found


def _mode(dequantize: Node) -> Mode:
    found = quantized_value(dequantize)
    return Mode.DYNAMIC if found is not None and found.is_dynamic else Mode.STATIC


def _require_integers(match: Match) -> Reason | None:
    """Accept a match if its activations, its weight and the quantized second operands of its chain are dequantized.

    The activations of a weight-only row may be anything. A row that starts integers takes only activations quantized in
    one of its modes.
    """
    if any(FLOAT_KEY in node.meta for node in match.nodes):
        return Reason(ReasonCode.DIVERGED, "it runs in float")
    activations = () if match.row.modes == {Mode.WEIGHT_ONLY} else (Role.ACTIVATION, Role.ACTIVATIONS)
    for operand, node in match.inputs(*activations, Role.WEIGHT):
        if not ops.is_dequantize(node):
            return Reason(ReasonCode.INPUT_NOT_QUANTIZED, f"operand {operand.name} is float in the converted graph")
        if match.row.flow is Flow.STARTS and operand.role is not Role.WEIGHT and _mode(node) not in match.row.modes:
            return Reason(ReasonCode.UNSUPPORTED_MODE, f"operand {operand.name} is quantized in another mode")
    for link in match.links:
        if link.post_op.other is OtherRole.QUANTIZED and not ops.is_dequantize(link.other):
            return Reason(ReasonCode.INPUT_NOT_QUANTIZED, f"second operand of {link.post_op.kernel} is float")
        if link.post_op.other is OtherRole.FLOAT and ops.is_dequantize(link.other):
            return Reason.unsupported(f"second operand of {link.post_op.kernel} is quantized")
    return None


def match_converted(module: GraphModule, table: PatternTable) -> tuple[Match, ...]:
    """Find the rows of a table in a converted graph in canonical form; their operands must be dequantized integers."""
    return match_rows(module.graph, table.rows, accept=_require_integers).matches


def require_converted(module: object, step: str) -> GraphModule:
    """The module itself, if it is a graph from `convert_pt2e`.

    Args:
        module: the object that the user passed.
        step: name of the calling function, for the message.
    Raises: GraphError: it is no graph, holds live observers, or holds no integers.
    """
    graph = require_exported(module, step)
    require_no_observers(
        graph,
        "the graph is prepared, not converted: its observers are live",
        expected="a graph from convert_pt2e",
        remedy="call convert_pt2e on it first",
    )
    if not any(ops.is_dequantize(node) for _, body in graph_modules(graph) for node in body.graph.nodes):
        raise GraphError(
            "the graph is not quantized",
            found="no dequantize operators",
            expected="a graph from convert_pt2e",
            remedy="prepare it with a quantizer, calibrate and convert it first; coverage() says what was quantized",
        )
    return graph


def on_device(module: GraphModule, device: torch.device | str) -> GraphModule:
    """Copy a graph to a device: a model may be calibrated or trained on another device than it is deployed to.

    Args:
        module: an exported graph module; not changed.
        device: the device of all tensors of the copy, including those that the graph creates.
    Returns: a copy; the module itself if all tensors are on the device already.
    Cost: O(nodes + edges + parameters) for the copy.
    """
    device = torch.device(device)
    values = [*module.parameters(), *module.buffers(), *map(tensor_value, module.graph.nodes)]
    if all(value.device == device for value in values if value is not None):
        return module
    tensors: dict[int, Tensor] = {}

    def move(value: Any) -> Any:  # an argument of a node, or its value
        if isinstance(value, torch.device):
            return device
        if not isinstance(value, Tensor):
            return value
        if id(value) not in tensors:  # a tied weight stays one tensor
            moved = value.detach().to(device)
            tensors[id(value)] = nn.Parameter(moved, value.requires_grad) if isinstance(value, nn.Parameter) else moved
        return tensors[id(value)]

    with gc_paused():
        copied = copy_graph_module(module)
        for owner in copied.modules():
            for name, value in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
                setattr(owner, name, move(value))
        for _, body in graph_modules(copied):
            for node in body.graph.nodes:
                node.args, node.kwargs = map_aggregate(node.args, move), map_aggregate(node.kwargs, move)
                if "val" in node.meta:
                    node.meta["val"] = map_aggregate(node.meta["val"], move)
            body.recompile()
    return copied


@dataclass
class Lowering(Generic[Options]):
    """The graph that a row's `lower` rewrites.

    Args:
        module: the module being lowered, owned by the pass.
        target: class of the deployment device.
        options: the backend's own object, passed to its rows.
        in_loop: whether the module is the body of a loop, which runs once for each step.
    """

    module: GraphModule
    target: str
    options: Options
    in_loop: bool = False

    def tensor(self, node: object) -> Tensor:
        """Constant that a `get_attr` node reads.

        Raises: LoweringError: the node is no constant.
        """
        value = constant_value(self.module, node)
        if value is None:
            where = node if isinstance(node, Node) else None
            raise LoweringError(
                "a constant was expected here",
                where=where,
                found=node,
                remedy="decline the match with a reason when an operand may be computed",
            )
        return value

    def constant(self, prefix: str, value: Tensor, before: Node) -> Node:
        """Store a tensor, and insert a node that reads it before `before`."""
        return add_constant(self.module, prefix, value, before)

    def call(self, before: Node, target: Any, *args: Any, like: Node | None = None, **kwargs: Any) -> Node:
        """Insert an operator call before `before`, with the metadata of `like`, `val` included."""
        with self.module.graph.inserting_before(before):
            node = self.module.graph.call_function(target, args, kwargs)
        if like is not None:
            node.meta = dict(like.meta)
        return node

    def requantize(self, tail: Node) -> Quantized | None:
        """The quantize that reads `tail`, if every reader quantizes it with the same parameters: the first one.

        None if some reader takes the float, or if the parameters differ.
        """
        found = [quantized_value(user) if ops.is_quantize(user) else None for user in tail.users]
        first = found[0] if found else None
        if first is None or any(other is None or other.parameters != first.parameters for other in found):
            return None
        return first

    def replace_quantizes(self, tail: Node, integers: Node) -> None:
        """Replace the quantizes that read `tail` by `integers`."""
        for user in list(tail.users):
            user.replace_all_uses_with(integers)
            self.module.graph.erase_node(user)


@dataclass(frozen=True)
class Lowered:
    """Result of `lower_rows`.

    Args:
        module: the lowered module.
        lowered: label of each match that was lowered, by the name of its anchor; in a body, `submod_1.linear`.
        declined: the reason for each match that its row could not lower, by the name of the anchor.
        notes: what rows remarked about matches that they lowered, by the name of the anchor.
    """

    module: GraphModule
    lowered: Mapping[str, str]
    declined: Mapping[str, Reason]
    notes: Mapping[str, Note]


def lower_rows(converted: GraphModule, table: PatternTable, *, target: str, options: object = None) -> Lowered:
    """Lower every row of a table found in a converted graph and in the bodies in it. The input is not touched.

    Args:
        converted: a graph from `convert_pt2e`, or one loaded again from disk.
        table: rows that each know how to lower themselves.
        target: class of the deployment device.
        options: passed to the rows as they are.
    Returns: the lowered module, with what was lowered, what was declined, and the rows' notes.
    Cost: O(nodes + edges), plus the rows' own packing of weights.
    """
    with gc_paused():
        module = copy_graph_module(converted)
        sink_constants(module)
        lowered: dict[str, str] = {}
        declined: dict[str, Reason] = {}
        notes: dict[str, Note] = {}
        loops = loop_bodies(module)
        for prefix, body in graph_modules(module):
            canonicalize(body)
            context = Lowering(body, target, options, in_loop=id(body) in loops)
            # In graph order: a producer is lowered before its readers.
            for match in match_converted(body, table):
                if isinstance(match.row.lower, Delegated):
                    continue
                name, label = f"{prefix}{match.anchor.name}", match.label
                outcome = match.row.lower(match, context)
                if isinstance(outcome, Reason):
                    declined[name] = outcome
                    continue
                lowered[name] = label
                if outcome is not None:
                    notes[name] = outcome
            body.graph.eliminate_dead_code()
        for prefix, body in reversed(list(graph_modules(module))):
            lift_constants(body)
            if prefix:
                _drop_unread(body)
        wrapped = wrap_graph(module, module.graph)
    return Lowered(wrapped, lowered, declined, notes)


def _drop_unread(body: GraphModule) -> None:
    """Delete the tensors of a body that no node reads: the integers that kernels have in another form."""
    read = {str(node.target) for node in body.graph.find_nodes(op="get_attr")}
    for name, _ in (*body.named_parameters(recurse=False), *body.named_buffers(recurse=False)):
        if name not in read:
            delattr(body, name)

"""Lower a converted graph to integer kernels, in eager or portable form."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core.graph import called_operator, constant_value, fresh_attribute_name, graph_modules, is_call
from qspec_core.lowering import lower_rows, on_device, require_converted, write_ranges
from qspec_core.patterns import Reason, ReasonCode
from qspec_x86._lowering import NARROWED
from qspec_x86._lowering._kernels import PACK_FOUR_BITS, PREPACK
from qspec_x86._lowering._loops import give_sizes_to_loops, run_loops_directly
from qspec_x86._lowering._options import Form, Options
from qspec_x86._rows import TABLE
from qspec_x86._target import resolve_target

__all__ = ["LOWERING_KEY", "LoweringReport", "lower_eager", "lower_portable"]

aten = torch.ops.aten

LOWERING_KEY = "qspec_x86_lowering"
"""Key of a lowered module's `LoweringReport` in its `meta`."""


@dataclass(frozen=True)
class LoweringReport:
    """Report of one lowering.

    Args:
        target: class of the deployment CPU: "any" or "vnni".
        lowered: label of each match that was lowered, by the name of its anchor.
        declined: reason why a match was not lowered, by the name of its anchor.
        narrowed: anchors whose weights got coarser scales, because the CPU may sum two products in 16 bits.
    """

    target: str
    lowered: Mapping[str, str]
    declined: Mapping[str, Reason]
    narrowed: tuple[str, ...]

    def summary(self) -> str:
        """The report as text: one line for each match that was declined, and one for narrowed weights."""
        lines = [f"for target {self.target!r}: {len(self.lowered)} lowered, {len(self.declined)} declined"]
        lines += [f"{name}: {reason}" for name, reason in self.declined.items()]
        if self.narrowed:
            names = ", ".join(self.narrowed)
            lines.append(f"weights quantized again to fewer bits, because their sums could overflow 16 bits: {names}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Serialize for a package's metadata."""
        declined = {name: [reason.code.value, reason.detail] for name, reason in self.declined.items()}
        data = {"target": self.target, "lowered": dict(self.lowered), "declined": declined, "narrowed": self.narrowed}
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> "LoweringReport":
        """Read the text of `to_json`."""
        data = json.loads(text)
        declined = {name: Reason(ReasonCode(code), detail) for name, (code, detail) in data["declined"].items()}
        return cls(
            data["target"],
            MappingProxyType(data["lowered"]),
            MappingProxyType(declined),
            tuple(data["narrowed"]),
        )


def lower_portable(converted: GraphModule, target: str = "any") -> GraphModule:
    """Lower to plain int8 weights, which nodes of the graph pack, without operators that mutate.

    The result can be exported, saved and compiled ahead of time. Run directly, it packs its weights on every call.

    Args:
        converted: from `convert_pt2e`. It is not changed.
        target: class of the deployment CPU: "any", "vnni" or "native".
    Returns: a graph module; `meta["qspec_x86_lowering"]` holds its `LoweringReport`.
    Raises:
        BackendError: there is no such target.
        GraphError: the module is not from `convert_pt2e`.
    Cost: O(nodes + edges + weights).
    """
    lowered = _lower(converted, target, Form.PORTABLE)
    for _, body in graph_modules(lowered):
        give_sizes_to_loops(body)
        body.recompile()
    return lowered


def lower_eager(converted: GraphModule, target: str = "any") -> GraphModule:
    """Lower to a graph module that runs directly and under `torch.compile`: its weights are packed, and residual sums
    run in kernels.

    Args:
        converted: from `convert_pt2e`. It is not changed.
        target: class of the deployment CPU: "any", "vnni" or "native".
    Returns: a graph module; `meta["qspec_x86_lowering"]` holds its `LoweringReport`. Its packed weights are in the
        format of this CPU, and are not part of its state dictionary.
    Raises:
        BackendError: there is no such target.
        GraphError: the module is not from `convert_pt2e`.
    Cost: O(nodes + edges + weights).
    """
    lowered = _lower(converted, target, Form.EAGER)
    for _, body in graph_modules(lowered):
        run_loops_directly(body)
        body.recompile()
    _pack_weights(lowered)
    return lowered


def _lower(converted: GraphModule, target: str, form: Form) -> GraphModule:
    resolved = resolve_target(target)
    converted = on_device(require_converted(converted, "lowering to x86"), "cpu")
    options = Options(form, full_range=resolved == "vnni")
    found = lower_rows(converted, TABLE, target=resolved, options=options)
    narrowed = tuple(name for name, note in found.notes.items() if note is NARROWED)
    report = LoweringReport(
        resolved, MappingProxyType(dict(found.lowered)), MappingProxyType(dict(found.declined)), narrowed
    )
    for _, body in graph_modules(found.module):
        write_ranges(body, stores_rows=form is Form.PORTABLE)
        _reshape_in_place_of_view(body)
    found.module.meta[LOWERING_KEY] = report
    return found.module


def _reshape_in_place_of_view(module: GraphModule) -> None:
    """Replace views by reshapes: kernels write channels-last tensors, which may have no such view."""
    for node in module.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    module.recompile()


def _pack_weights(module: GraphModule) -> None:
    """Run the packing nodes and keep their results as buffers. The plain weights are deleted."""
    graph = module.graph
    with torch.no_grad():
        for node in list(graph.nodes):
            operator = called_operator(node)
            if operator not in (PREPACK, PACK_FOUR_BITS):
                continue
            packed = operator(*(_constant(module, value) for value in node.args))
            name = fresh_attribute_name(module, "_x86_packed")
            module.register_buffer(name, packed, persistent=False)
            with graph.inserting_before(node):
                read = graph.get_attr(name)
            node.replace_all_uses_with(read)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    _drop_unread(module)
    module.recompile()


def _constant(module: nn.Module, value: Any) -> Any:  # an argument of the packing node may be of any fx type
    if is_call(value, aten.to.dtype):  # a weight stored as bytes, which packing takes as int32
        return _constant(module, value.args[0]).to(value.args[1])
    tensor = constant_value(module, value)
    return value if tensor is None else tensor


def _drop_unread(module: GraphModule) -> None:
    """Delete top-level buffers and parameters that no node reads."""
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for name, value in (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)):
        if name not in read and isinstance(value, Tensor):
            delattr(module, name)

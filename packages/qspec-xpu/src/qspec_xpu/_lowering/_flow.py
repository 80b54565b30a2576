"""Lower a converted graph to the integer kernels of Intel GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from qspec_core import LoweringError, SourceLocation
from qspec_core.graph import graph_modules, is_call, require_exported
from qspec_core.lowering import lower_rows, require_converted, write_ranges
from qspec_core.patterns import Reason
from qspec_xpu._lowering._kernels import qconv_sum
from qspec_xpu._rows import TABLE

__all__ = ["LOWERING_KEY", "LoweringReport", "lower_portable"]

aten = torch.ops.aten

LOWERING_KEY = "qspec_xpu_lowering"
"""Key of a lowered module's `LoweringReport` in its `meta`."""


@dataclass(frozen=True)
class LoweringReport:
    """Report of one lowering.

    Args:
        lowered: label of each match that was lowered, by the name of its anchor.
        declined: reason why a match was not lowered, by the name of its anchor.
    """

    lowered: Mapping[str, str]
    declined: Mapping[str, Reason]

    def summary(self) -> str:
        """The report as text: one line for each match that was declined."""
        head = f"{len(self.lowered)} lowered, {len(self.declined)} declined"
        return "\n".join([head, *(f"{name}: {reason}" for name, reason in self.declined.items())])


def lower_portable(converted: GraphModule) -> GraphModule:
    """Lower to a graph that calls the kernels, with tensors on the device where they are: no GPU is needed.

    The result runs once its tensors are on a GPU, directly and under `torch.compile`. It can be exported and saved: the
    weights are plain int8, and nothing is packed.

    Args:
        converted: from `convert_pt2e`. It is not changed.
    Returns: a graph module; `meta["qspec_xpu_lowering"]` holds its `LoweringReport`.
    Raises:
        GraphError: the module is not from `convert_pt2e`.
        LoweringError: the graph is lowered already, or its tensors are on two devices.
    Cost: O(nodes + edges + weights).
    """
    _require_not_lowered(require_exported(converted, "lowering to XPU"))
    _require_one_device(require_converted(converted, "lowering to XPU"))
    found = lower_rows(converted, TABLE, target="any")
    for _, body in graph_modules(found.module):
        write_ranges(body, stores_rows=False)
        for node in body.graph.find_nodes(op="call_function", target=aten.view.default):
            node.target = aten.reshape.default  # kernels write channels-last tensors, which may have no such view
        body.recompile()
    # Plain dictionaries: the module can be copied and pickled with its report.
    found.module.meta[LOWERING_KEY] = LoweringReport(dict(found.lowered), dict(found.declined))
    return found.module


def _require_not_lowered(graph: GraphModule) -> None:
    for _, body in graph_modules(graph):
        node = next(filter(_is_kernel, body.graph.nodes), None)
        if node is not None:
            raise LoweringError(
                "the graph is lowered already, for this or another device",
                where=SourceLocation.of(node),
                found=str(node.target),
                expected="a graph from convert_pt2e",
                remedy="keep the converted graph and lower that one for each device",
            )


def _is_kernel(node: Node) -> bool:
    return node.target is qconv_sum or (is_call(node) and str(node.target).startswith("onednn."))


def _require_one_device(graph: GraphModule) -> None:
    values = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    devices = {str(value.device): name for name, value in values.items()}
    if len(devices) > 1:
        found = ", ".join(f"{name} on {device}" for device, name in sorted(devices.items()))
        raise LoweringError(
            "the tensors of the graph are on several devices",
            found=found,
            expected="all on one",
            remedy="move the model to one device before it is exported",
        )

"""Nodes that call observers."""

from torch import nn
from torch.fx import GraphModule, Node

from qspec_core.graph._bodies import attribute

__all__ = ["is_observer", "observer_nodes"]


def is_observer(module: object) -> bool:
    """Whether a submodule is an observer or a fake-quantize, of qspec or another stack: it has `calculate_qparams`."""
    return isinstance(module, nn.Module) and callable(getattr(module, "calculate_qparams", None))


def observer_nodes(module: GraphModule) -> list[tuple[Node, nn.Module]]:
    """The nodes that call observers, each with its observer, in graph order."""
    found = ((node, attribute(module, str(node.target))) for node in module.graph.find_nodes(op="call_module"))
    return [(node, called) for node, called in found if is_observer(called)]

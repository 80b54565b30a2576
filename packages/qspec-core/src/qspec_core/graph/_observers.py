"""Nodes that call observers."""

from torch import nn
from torch.fx import GraphModule, Node

from qspec_core._errors import GraphError
from qspec_core.graph._bodies import attribute, graph_modules

__all__ = ["is_observer", "observer_nodes", "require_no_observers"]


def is_observer(module: object) -> bool:
    """Whether a submodule is an observer or a fake-quantize, of qspec or another stack: it has `calculate_qparams`."""
    return isinstance(module, nn.Module) and callable(getattr(module, "calculate_qparams", None))


def observer_nodes(module: GraphModule) -> list[tuple[Node, nn.Module]]:
    """The nodes that call observers, each with its observer, in graph order."""
    found = ((node, attribute(module, str(node.target))) for node in module.graph.find_nodes(op="call_module"))
    return [(node, called) for node, called in found if is_observer(called)]


def require_no_observers(module: GraphModule, problem: str, *, expected: str, remedy: str) -> None:
    """Raise if a node of the graph or of a body in it calls an observer.

    Args:
        module: an exported graph module, only read.
        problem, expected, remedy: these parts of the error's message.
    Raises: GraphError: there are such nodes; it names the first.
    """
    live = [node for _, body in graph_modules(module) for node, _ in observer_nodes(body)]
    if live:
        raise GraphError(problem, where=live[0], found=f"{len(live)} live observers", expected=expected, remedy=remedy)

"""Debug handles of operators, and loggers that record the outputs of operators."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core._errors import GraphError, module_path
from qspec_core.canonical import NUMERIC_DEBUG_HANDLE_KEY, debug_handle, set_debug_handle, value_source
from qspec_core.graph import copy_graph_module, fresh_attribute_name, graph_modules, require_exported

__all__ = [
    "DebugKey",
    "Logged",
    "NodeSourceDebugInfo",
    "OutputLogger",
    "extract_results_from_loggers",
    "generate_numeric_debug_handle",
    "logged_copy",
    "prepare_for_propagation_comparison",
]


class NodeSourceDebugInfo(NamedTuple):
    """The operator of the exported graph that a node was made from.

    Args:
        name: the operator's name in that graph.
        graph_id: identifies that graph.
    """

    name: str
    graph_id: int


DebugKey = int | NodeSourceDebugInfo
"""Identifies an operator in two programs: its debug handle, or the operator that it was made from."""


class OutputLogger(nn.Module):
    """Records a copy of every value that passes: a tensor, or tensors in lists, tuples or dictionaries.

    Args:
        debug_info: key of the operator; None for loggers that only `compare` uses.
        node_name: name of the node; in a body of control flow, `submod_1.linear`.
        nn_module_stack: the modules that it was traced in, as recorded by `torch.export`.
        operator: the operator called.
        module: path of the module that it was traced in.
    """

    _is_impure = True  # torch.fx does not remove it as dead code

    def __init__(
        self,
        debug_info: DebugKey | None,
        node_name: str | None = None,
        nn_module_stack: object = None,
        *,
        operator: str = "",
        module: str = "",
    ) -> None:
        super().__init__()
        self.debug_info, self.node_name, self.nn_module_stack = debug_info, node_name, nn_module_stack
        self.operator, self.module = operator, module
        self.stats: list[object] = []

    def forward(self, x: object) -> object:
        """Record a copy, since later operators may write to the tensor."""
        self.stats.append(_copied(x))
        return x

    def extra_repr(self) -> str:
        """The operator and the number of calls."""
        return f"debug_info={self.debug_info}, node_name={self.node_name}, num_stats={len(self.stats)}"


def _copied(value: Any) -> Any:  # of the same type
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)([_copied(item) for item in value]) if isinstance(value, list | tuple) else value


def generate_numeric_debug_handle(ep: "torch.export.ExportedProgram | GraphModule") -> None:
    """Give every operator of an exported model a number, in bodies of control flow too. Writes metadata in place.

    The numbers survive prepare and convert. A layer that a batch norm was folded into takes the number of the batch
    norm, since it now computes that value.

    Args:
        ep: the exported program, or its graph module.
    """
    module = ep.graph_module if isinstance(ep, torch.export.ExportedProgram) else ep
    require_exported(module, "generate_numeric_debug_handle")
    calls = (node for _, body in graph_modules(module) for node in body.graph.nodes if node.op == "call_function")
    for handle, node in enumerate(calls, start=1):
        set_debug_handle(node, handle)


def prepare_for_propagation_comparison(model: GraphModule) -> GraphModule:
    """Copy a model and log the output of every operator.

    Operators are identified by their debug handles, if `generate_numeric_debug_handle` was called on the model, else by
    the operator of the exported graph that they were made from.

    Args:
        model: the exported float model, or a prepared or converted one made from it.
    Returns: a copy that shares parameters; run it, then `extract_results_from_loggers`.
    Raises: GraphError: no operator has a handle, or a record of the operator that it was made from.
    """
    nodes = [
        (f"{prefix}{node.name}", node)
        for prefix, body in graph_modules(require_exported(model, "prepare_for_propagation_comparison"))
        for node in body.graph.nodes
        if node.op == "call_function"
    ]
    handles: dict[str, DebugKey] = {name: handle for name, node in nodes if (handle := debug_handle(node)) is not None}
    keys = handles or {name: NodeSourceDebugInfo(*source) for name, node in nodes if (source := _source(node))}
    if not keys:
        raise GraphError(
            f"none of the model's {len(nodes)} operators has a debug handle or a record of where it came from",
            found="a graph without debug handles and from_node",
            expected=f"node.meta['from_node'] or node.meta['custom'][{NUMERIC_DEBUG_HANDLE_KEY!r}]",
            remedy="call generate_numeric_debug_handle on the exported model before prepare",
        )
    copied, loggers = logged_copy(model, keys)
    for name, logger in loggers.items():
        logger.debug_info = keys[name]
    return copied


def _source(node: Node) -> tuple[str, int] | None:
    """The operator that a node was made from; None for a node that computes no tensor."""
    value = node.meta.get("val")
    found = isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value))
    return value_source(node) if found else None


class Logged(NamedTuple):
    """The record of a logger.

    Args:
        node_name: name of the node.
        nn_module_stack: the modules that it was traced in, as recorded by `torch.export`.
        stats: the operator's output at each call.
        module: path of the module that it was traced in.
    """

    node_name: str
    nn_module_stack: object
    stats: list[Any]  # tensors, or tensors in lists, tuples or dictionaries
    module: str = ""


def extract_results_from_loggers(model: GraphModule) -> dict[DebugKey, Logged]:
    """The records of all loggers of a model, by the key of the operator. Operators that never ran are left out."""
    loggers = [part for part in model.modules() if isinstance(part, OutputLogger)]
    return {
        logger.debug_info: Logged(logger.node_name or "", logger.nn_module_stack, logger.stats, logger.module)
        for logger in loggers
        if logger.debug_info is not None and logger.stats
    }


def logged_copy(module: GraphModule, names: Iterable[str]) -> tuple[GraphModule, dict[str, OutputLogger]]:
    """A copy of a module with a logger after each node of these names, and the loggers by name."""
    wanted = frozenset(names)
    copied = copy_graph_module(module)
    loggers: dict[str, OutputLogger] = {}
    for prefix, body in graph_modules(copied):
        for node in list(body.graph.nodes):
            name = f"{prefix}{node.name}"
            if name in wanted:
                stack, place = node.meta.get("nn_module_stack"), module_path(node)
                loggers[name] = OutputLogger(None, name, stack, operator=str(node.target), module=place)
                _log(body, node, loggers[name])
        body.recompile()
    return copied, loggers


def _log(body: GraphModule, node: Node, logger: OutputLogger) -> None:
    target = fresh_attribute_name(body, f"{node.name}_logger")
    body.add_module(target, logger)
    with body.graph.inserting_after(node):
        body.graph.call_module(target, (node,))

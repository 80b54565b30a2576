"""Marks on operators, and loggers that keep what the operators gave."""

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
    """The operator of the exported graph whose value a node has.

    Args:
        name: the operator's name there.
        graph_id: tells that graph from others.
    """

    name: str
    graph_id: int


DebugKey = int | NodeSourceDebugInfo
"""What an operator is known by in two programs: its debug handle, or where it came from."""


class OutputLogger(nn.Module):
    """Keeps a copy of every value that passes: a tensor, or tensors in lists, tuples or dictionaries.

    Args:
        debug_info: what the operator is known by; None where only `compare` asks.
        node_name: name of the node; in a body of control flow, `submod_1.linear`.
        nn_module_stack: the modules that it was traced in, as `torch.export` notes them.
        operator: the operator called.
        module: path of the module that it was traced in.
    """

    _is_impure = True  # torch.fx keeps it where dead code goes

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
        """Keep a copy: what reads the tensor may write to it."""
        self.stats.append(_copied(x))
        return x

    def extra_repr(self) -> str:
        """What it logs and how often it was called."""
        return f"debug_info={self.debug_info}, node_name={self.node_name}, num_stats={len(self.stats)}"


def _copied(value: Any) -> Any:  # of the same type
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)([_copied(item) for item in value]) if isinstance(value, list | tuple) else value


def generate_numeric_debug_handle(ep: "torch.export.ExportedProgram | GraphModule") -> None:
    """Number every operator of an exported model, bodies of control flow included. Only metadata is written, in place.

    The numbers survive prepare and convert. What is folded hands its number on: a layer that a batch norm was folded
    into has the batch norm's, since it now computes its value.

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

    Operators are known by their debug handles, where the model was marked by `generate_numeric_debug_handle`, else by
    the operator of the exported graph that they came from.

    Args:
        model: the exported float model, or a prepared or converted one made from it.
    Returns: a copy that shares parameters; run it, then `extract_results_from_loggers`.
    Raises: GraphError: no operator has a handle, or says where it came from.
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
            "no operator of the model has a debug handle or says where it came from",
            found="a graph without marks",
            expected=f"node.meta['from_node'] or node.meta['custom'][{NUMERIC_DEBUG_HANDLE_KEY!r}]",
            remedy="call generate_numeric_debug_handle on the exported model before prepare",
        )
    copied, loggers = logged_copy(model, keys)
    for name, logger in loggers.items():
        logger.debug_info = keys[name]
    return copied


def _source(node: Node) -> tuple[str, int] | None:
    """Where an operator that computes tensors came from."""
    value = node.meta.get("val")
    found = isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value))
    return value_source(node) if found else None


class Logged(NamedTuple):
    """What a logger kept.

    Args:
        node_name: name of the node.
        nn_module_stack: the modules that it was traced in, as `torch.export` notes them.
        stats: its output at each call.
        module: path of the module that it was traced in.
    """

    node_name: str
    nn_module_stack: object
    stats: list[Any]  # tensors, or tensors in lists, tuples or dictionaries
    module: str = ""


def extract_results_from_loggers(model: GraphModule) -> dict[DebugKey, Logged]:
    """What every logger of a model kept, by what its operator is known by; operators that never ran are left out."""
    loggers = [part for part in model.modules() if isinstance(part, OutputLogger)]
    return {
        logger.debug_info: Logged(logger.node_name or "", logger.nn_module_stack, logger.stats, logger.module)
        for logger in loggers
        if logger.debug_info is not None and logger.stats
    }


def logged_copy(module: GraphModule, names: Iterable[str]) -> tuple[GraphModule, dict[str, OutputLogger]]:
    """A copy of a module with a logger behind each node of these names, and the loggers."""
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

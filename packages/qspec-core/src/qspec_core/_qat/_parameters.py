"""The parameters that a prepared graph trains: those of the caller's model, read as the graph reads them."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import GraphModule, Node

from qspec_core.canonical._batch_norm_forms import is_counter
from qspec_core.canonical._normalized import normalized_layer
from qspec_core.graph import (
    argument,
    attribute,
    calls,
    constant_value,
    graph_modules,
    replace_argument,
    set_attribute,
    tensor_value,
)

__all__ = ["own_weight_readers", "read_parameters", "share_statistics", "view_parameters"]

aten = torch.ops.aten


def read_parameters(module: GraphModule) -> dict[int, tuple[str, nn.Parameter]]:
    """The parameters that a graph and the bodies in it read, with a name of each, by identity."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for _, body in graph_modules(module):
        for node in body.graph.find_nodes(op="get_attr"):
            value = attribute(body, str(node.target))
            if isinstance(value, nn.Parameter) and value.requires_grad and node.users:
                found.setdefault(id(value), (str(node.target), value))
    return found


def share_statistics(given: GraphModule, copied: GraphModule) -> None:
    """Let a copy write to the running statistics and counters of the given graph: training the copy trains them."""
    statistics = [
        argument(norm, name)
        for norm in calls(copied.graph, aten.batch_norm.default)
        for name in ("running_mean", "running_var")
    ]
    counters = [argument(node, "self") for node in calls(copied.graph, aten.add_.Tensor)]
    for source in (*statistics, *(counter for counter in counters if is_counter(copied, counter))):
        if isinstance(source, Node) and source.op == "get_attr":
            set_attribute(copied, str(source.target), attribute(given, str(source.target)))


def own_weight_readers(module: GraphModule) -> None:
    """Give each layer with a batch norm a node of its own that reads its weight.

    Layers that share a weight are folded with different factors, so each needs an observer of its own.
    """
    for norm in calls(module.graph, aten.batch_norm.default):
        layer = normalized_layer(norm)
        if not isinstance(layer, Node):
            continue
        weight = argument(layer, "weight")
        if weight.op != "get_attr" or len(weight.users) == 1:
            continue
        with module.graph.inserting_before(weight):
            own = module.graph.get_attr(str(weight.target))
        own.meta = dict(weight.meta)
        replace_argument(layer, "weight", own)


def view_parameters(module: GraphModule, trained: Mapping[int, tuple[str, nn.Parameter]]) -> None:
    """Read transposed parameters through an operator, so that gradients reach them.

    The canonical form stores the transpose of a matrix as a constant, which shares the memory of the parameter.
    """
    by_place = {value.data_ptr(): (name, value) for name, value in trained.values() if value.dim() == 2}
    for node in module.graph.find_nodes(op="get_attr"):
        value = constant_value(module, node)
        if value is None or isinstance(value, nn.Parameter) or value.dim() != 2:
            continue
        name, parameter = by_place.get(value.data_ptr(), ("", None))
        if parameter is None or value.shape != parameter.shape[::-1] or value.stride() != parameter.stride()[::-1]:
            continue
        with module.graph.inserting_before(node):
            source = module.graph.get_attr(name)
            source.meta["val"] = tensor_value(node)
            view = module.graph.call_function(aten.t.default, (source,))
        view.meta = dict(node.meta)
        node.replace_all_uses_with(view)
        module.graph.erase_node(node)

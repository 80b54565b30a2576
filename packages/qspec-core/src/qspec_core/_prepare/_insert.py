"""Insert observers into a graph."""

from torch import nn
from torch.fx import GraphModule, Node

from qspec_core._spec import EdgeOrNode
from qspec_core.canonical._functional import is_private
from qspec_core.graph import argument, called_operator, derived_meta, fresh_attribute_name, written_arguments

__all__ = ["insert_observers"]


def insert_observers(module: GraphModule, observers: dict[EdgeOrNode, nn.Module]) -> None:
    """Insert observers after each producer: that of its output, then one for each other group among its readers.

    An edge whose observer differs from the one of its producer's output reads through both. An edge stays as it is if
    the reader writes to the tensor and others see that: the write must reach the tensor itself. Guards read the inputs,
    not the observers.

    Cost: O(points + edges).
    """
    edges: dict[Node, dict[nn.Module, list[Node]]] = {}
    for point, observer in observers.items():
        if isinstance(point, tuple):
            edges.setdefault(point[0], {}).setdefault(observer, []).append(point[1])
    after_inputs = _after_inputs(module)
    position = {node: index for index, node in enumerate(module.graph.nodes)}
    kept = {
        (node, source)
        for node in module.graph.nodes
        for source in node.all_input_nodes
        if _writes(node, source) and not is_private(source, position, position[node])
    }
    for producer in list(module.graph.nodes):
        own, readers = observers.get(producer), edges.get(producer, {})
        if own is None and not readers:
            continue
        spot = after_inputs if producer.op == "placeholder" else producer.next
        source = producer
        if own is not None:
            source = _observe(module, own, producer, spot, next(iter(producer.users), None))
            for user in list(producer.users):
                if user is not source and not _is_guard(user) and (user, producer) not in kept:
                    user.replace_input_with(producer, source)
        for observer, consumers in readers.items():
            if observer is own:
                continue
            observed = _observe(module, observer, source, spot, consumers[0])
            for consumer in consumers:
                if (consumer, producer) not in kept:
                    consumer.replace_input_with(source, observed)


def _after_inputs(module: GraphModule) -> Node:
    """The first node after the inputs and the guards of `torch.export`: a refused input must not be observed."""
    inputs = module.graph.find_nodes(op="placeholder")
    spot: Node = inputs[-1].next if inputs else next(iter(module.graph.nodes))
    while spot.op == "get_attr" or _is_guard(spot):
        spot = spot.next
    return spot


def _is_guard(node: Node) -> bool:
    """Whether a node is a check of the inputs, which `torch.export` calls as a module without a result."""
    return node.op == "call_module" and not node.users


def _observe(module: GraphModule, observer: nn.Module, source: Node, before: Node, reader: Node | None) -> Node:
    name = fresh_attribute_name(module, "activation_post_process_")
    module.add_module(name, observer)
    with module.graph.inserting_before(before):
        node = module.graph.call_module(name, (source,))
    node.meta = derived_meta(source, "prepare_pt2e", reader)
    return node


def _writes(consumer: Node, producer: Node) -> bool:
    operator = called_operator(consumer)
    return operator is not None and any(argument(consumer, n) is producer for n in written_arguments(operator))

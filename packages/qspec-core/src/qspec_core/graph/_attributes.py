"""The tensors and submodules that `get_attr` and `call_module` nodes name."""

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from qspec_core._torch import FakeTensors
from qspec_core.graph._bodies import attribute
from qspec_core.graph._metadata import derived_meta
from qspec_core.graph._mutation import STATE_KEY, mutated_attributes
from qspec_core.graph._values import tensor_value

__all__ = ["Constants", "add_constant", "constant_value", "fresh_attribute_name"]


def constant_value(module: nn.Module, node: object) -> Tensor | None:
    """Tensor that a `get_attr` node reads; None for any other node or value."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = attribute(module, str(node.target))
    return value if isinstance(value, Tensor) else None


def fresh_attribute_name(module: nn.Module, prefix: str) -> str:
    """The first of `prefix0`, `prefix1`, ... that the module does not have. Counters are kept on the module."""
    counters: dict[str, int] = module.__dict__.setdefault("_qspec_counters", {})
    index = counters.get(prefix, 0)
    while hasattr(module, f"{prefix}{index}"):
        index += 1
    counters[prefix] = index + 1
    return f"{prefix}{index}"


def add_constant(module: GraphModule, prefix: str, value: Tensor, before: Node, *, fake: Tensor | None = None) -> Node:
    """Store a tensor (as a parameter if it is one, else a buffer) and insert a node that reads it.

    Args:
        module: a graph module that qspec owns.
        prefix: start of the attribute's name; a number is added.
        value: the tensor; stored, not copied.
        before: the node before which the new one is inserted.
        fake: a fake tensor of the same shape and dtype, if the caller has one; making one costs 0.3 ms.
    Returns: the `get_attr` node.
    """
    name = fresh_attribute_name(module, prefix)
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    if fake is None or fake.shape != value.shape or fake.dtype != value.dtype:
        node.meta["val"] = FakeTensors(_example(module)).like(value)
    else:
        node.meta["val"] = fake
    return node


def _example(module: GraphModule) -> Tensor | None:
    """The first fake tensor in a graph; None if its nodes have none."""
    found = map(tensor_value, module.graph.nodes)
    return next((value for value in found if value is not None), None)


class Constants:
    """The tensors and submodules of a graph that is being written and has no module yet.

    Args:
        source: module that the graph is written from; only read. Buffers that its graph mutates are cloned, with their
            values before calibration where its metadata has them.
        graph: the graph being written, at whose insertion point nodes are made.
    """

    def __init__(self, source: GraphModule, graph: Graph) -> None:
        self._graph = graph
        self._counters: dict[str, int] = {}
        targets = (str(node.target) for node in source.graph.nodes if node.op in ("get_attr", "call_module"))
        self.attributes: dict[str, object] = {target: attribute(source, target) for target in targets}
        state = source.meta.get(STATE_KEY, {})
        for target in mutated_attributes(source):
            value = state.get(target, self.attributes[target])
            self.attributes[target] = value.clone() if isinstance(value, Tensor) else value
        self.fakes = FakeTensors(_example(source))

    def add(self, prefix: str, value: Tensor, like: Node, pass_name: str) -> Node:
        """Keep a tensor under the first free name that starts with `prefix`, and write a node that reads it.

        The node gets the metadata of `like`.
        """
        index = self._counters.get(prefix, 0)
        while f"{prefix}{index}" in self.attributes:
            index += 1
        self._counters[prefix] = index + 1
        self.attributes[f"{prefix}{index}"] = value
        return self.read(f"{prefix}{index}", like, pass_name)

    def read(self, name: str, like: Node, pass_name: str) -> Node:
        """Write a node that reads a tensor kept under this name."""
        node = self._graph.get_attr(name)
        node.meta = derived_meta(like, pass_name)
        node.meta["val"] = self.fakes.like(self.attributes[name])
        return node

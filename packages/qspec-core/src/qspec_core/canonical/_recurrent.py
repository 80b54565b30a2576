"""Write recurrent layers as linear layers and gates, with one loop over the time steps for each layer and direction.

A layer gets one linear layer over all steps for its input. The body of the loop has one for the hidden state, so that
rows for linear layers quantize both. The size of the graph does not depend on the length of the sequence.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from qspec_core._torch import OpOverload
from qspec_core.canonical._record import fold_node
from qspec_core.graph import (
    argument,
    attribute,
    calls,
    constant_value,
    derived_meta,
    graph_modules,
    is_call,
    is_view,
    tensor_value,
)
from qspec_core.graph._attributes import fresh_attribute_name
from qspec_core.graph._sinking import ORIGIN_KEY
from qspec_core.graph._work import STEPS_KEY

__all__ = ["FEATURES_KEY", "RECURRENT_KEY", "Layer", "expand_recurrent_layers", "layers_of_recurrent"]

aten = torch.ops.aten
_PASS = "expand_recurrent_layers"
RECURRENT_KEY = "qspec_recurrent"
"""Key in the metadata of each node that was written for a recurrent layer: the `Layer`."""
FEATURES_KEY = "qspec_features"
"""Key in the metadata of a linear layer that reads few features of a recurrent layer's sequence, which the model is
given and does not compute."""
_FEW = 6
"""Features are few if the hidden state has at least so many times as many: then a seventh of the products at most."""
_NOTE = "written as linear layers and a loop"


class Layer(NamedTuple):
    """A recurrent layer that was expanded.

    Args:
        name: name of its node.
        operator: the operator that it called.
    """

    name: str
    operator: str


class _Writer:
    """Writes nodes at the insertion point of a graph, for a recurrent layer."""

    def __init__(self, graph: Graph, owner: Node, steps: int | torch.SymInt) -> None:
        self.graph = graph
        self._owner = owner
        self._steps = steps

    def call(self, target: Any, *args: Any, name: str | None = None) -> Node:  # nodes, numbers, lists of them
        """Call an operator; its value is computed from the values of its arguments."""
        made = self.graph.create_node("call_function", target, args, name=name)
        values = torch.fx.map_arg(args, lambda node: node.meta["val"])
        self.describe(made, target(*values))
        return made

    def linear(self, x: Node, weight: Node, bias: Node | None, name: str) -> Node:
        """Call a linear layer; coverage counts its multiply-adds once for each step."""
        made = self.call(aten.linear.default, x, weight, bias, name=name)
        made.meta[STEPS_KEY] = self._steps
        return made

    def describe(self, node: Node, value: object) -> None:
        """Give a node a value, and the place of the layer in the model."""
        node.meta = derived_meta(self._owner, _PASS) | {"val": value}
        node.meta[RECURRENT_KEY] = Layer(self._owner.name, str(self._owner.target))


class _Weights(NamedTuple):
    """Weights of one layer and direction, (gates * hidden, ...), and the projection of the hidden state."""

    inputs: Any  # nodes; a bias or the projection may be None
    hidden: Any
    input_bias: Any = None
    hidden_bias: Any = None
    projection: Any = None


_Step = Callable[[_Writer, Node, Node, Sequence[Node]], tuple[Node, ...]]
"""Writes the gates of one step, from the two products and the states to the new states."""


def _columns(writer: _Writer, x: Node, first: int, last: int, width: int) -> Node:
    # (batch, gates * width) -> (batch, (last - first) * width)
    return writer.call(aten.slice.Tensor, x, 1, first * width, last * width)


def _lstm_gates(writer: _Writer, inputs: Node, hidden: Node, states: Sequence[Node]) -> tuple[Node, ...]:
    """Source: Gers, Schmidhuber, Cummins, "Learning to forget", 2000; gates in torch's order: i, f, g, o."""
    cell = states[1]
    width = cell.meta["val"].shape[-1]
    both = writer.call(aten.add.Tensor, hidden, inputs)
    gates = [_columns(writer, both, index, index + 1, width) for index in range(4)]
    i, f, o = (writer.call(aten.sigmoid.default, gates[index]) for index in (0, 1, 3))
    g = writer.call(aten.tanh.default, gates[2])
    kept, added = writer.call(aten.mul.Tensor, f, cell), writer.call(aten.mul.Tensor, i, g)
    cell = writer.call(aten.add.Tensor, kept, added)
    return writer.call(aten.mul.Tensor, o, writer.call(aten.tanh.default, cell)), cell


def _gru_gates(writer: _Writer, inputs: Node, hidden: Node, states: Sequence[Node]) -> tuple[Node, ...]:
    """Source: Cho and others, 2014, with the reset gate after the product, as torch has it; gates r, z, n."""
    state = states[0]
    width = state.meta["val"].shape[-1]
    first, second = (_columns(writer, x, 0, 2, width) for x in (inputs, hidden))
    both = writer.call(aten.sigmoid.default, writer.call(aten.add.Tensor, first, second))
    r, z = (_columns(writer, both, index, index + 1, width) for index in range(2))
    seen, known = (_columns(writer, x, 2, 3, width) for x in (inputs, hidden))
    n = writer.call(aten.add.Tensor, seen, writer.call(aten.mul.Tensor, r, known))
    n = writer.call(aten.tanh.default, n)
    moved = writer.call(aten.mul.Tensor, z, writer.call(aten.sub.Tensor, state, n))
    return (writer.call(aten.add.Tensor, n, moved),)


def _plain(activation: OpOverload) -> _Step:
    def write(writer: _Writer, inputs: Node, hidden: Node, states: Sequence[Node]) -> tuple[Node, ...]:
        del states  # a plain layer reads its state only through the product
        return (writer.call(activation, writer.call(aten.add.Tensor, hidden, inputs)),)

    return write


_tanh, _relu = _plain(aten.tanh.default), _plain(aten.relu.default)
_SEQUENCES = MappingProxyType(
    {
        aten.lstm.input: _lstm_gates,
        aten.gru.input: _gru_gates,
        aten.rnn_tanh.input: _tanh,
        aten.rnn_relu.input: _relu,
    }
)
_CELLS = MappingProxyType(
    {
        aten.lstm_cell.default: _lstm_gates,
        aten.gru_cell.default: _gru_gates,
        aten.rnn_tanh_cell.default: _tanh,
        aten.rnn_relu_cell.default: _relu,
    }
)


def expand_recurrent_layers(module: GraphModule, is_selected: Callable[[Node], bool]) -> None:
    """Write LSTM, GRU and plain recurrent layers, and single cells, as linear layers and gates, in place.

    Layers over packed sequences, and layers with dropout in training mode, are left as they are.

    Args:
        module: an exported graph module that the caller owns; its code is not generated again. Each new body holds its
            weights as attributes, as after `sink_constants`.
        is_selected: whether a layer is to be expanded; called once for each node that can be.
    Cost: O(nodes found), whatever the length of the sequences.
    """
    with torch.no_grad():
        for node in calls(module.graph, *_SEQUENCES):
            if _is_known(node, "params") and not _drops_out(node) and is_selected(node):
                _Sequence(module, node).expand()
        for node in calls(module.graph, *_CELLS):
            if _is_known(node) and is_selected(node):
                _expand_cell(module, node)


def layers_of_recurrent(module: GraphModule) -> dict[str, list[str]]:
    """The linear layers that each expanded recurrent layer was written as, by its name, without those that have
    `FEATURES_KEY`.

    Names of nodes in bodies start with those of the bodies, as in `graph_modules`.
    """
    found: dict[str, list[str]] = {}
    for prefix, body in graph_modules(module):
        for node in calls(body.graph, aten.linear.default):
            layer = node.meta.get(RECURRENT_KEY)
            if layer is None or FEATURES_KEY in node.meta:
                continue
            *path, last = ("", *prefix.split(".")[:-1])  # a loop's body belongs to the graph around it
            outer = ".".join(path[1:]) if last.startswith(f"{layer.name}_step_") else prefix[:-1]
            found.setdefault(f"{outer}.{layer.name}" if outer else layer.name, []).append(f"{prefix}{node.name}")
    return found


def _is_known(node: Node, *lists: str) -> bool:
    """Whether the values of a layer's operands are known, and its weights are constants of one floating-point dtype."""
    module = node.graph.owning_module
    weights = [w for name in lists for w in argument(node, name)] or [w for w in node.args[2:] if w is not None]
    values = [tensor_value(n) for n in node.all_input_nodes]
    dtypes = {value.dtype for value in values if value is not None}
    is_constant = module is not None and all(constant_value(module, weight) is not None for weight in weights)
    is_float = len(dtypes) == 1 and all(dtype.is_floating_point for dtype in dtypes)
    items = all(user.target is operator.getitem for user in node.users) or isinstance(node.meta.get("val"), Tensor)
    return is_constant and is_float and None not in values and items


def _drops_out(node: Node) -> bool:
    return bool(argument(node, "train")) and argument(node, "dropout") > 0


def _is_given(node: Node) -> bool:
    """Whether a tensor is an input of the graph, or an input in another shape or order."""
    while is_view(node) or is_call(node, aten.flip.default):
        node = node.all_input_nodes[0]
    return node.op == "placeholder"


def _grouped(params: Sequence[Node], count: int) -> list[_Weights]:
    """The weights of each layer and direction, from the flat list of an operator."""
    size = len(params) // count
    groups = [params[start : start + size] for start in range(0, len(params), size)]
    if size == 3:  # weights without biases, and the projection
        return [_Weights(group[0], group[1], projection=group[2]) for group in groups]
    return [_Weights(*group) for group in groups]


def _expand_cell(module: GraphModule, node: Node) -> None:
    gates = _CELLS[node.target]  # type: ignore[index]  # calls() found it by them
    states = argument(node, "hx")
    states = list(states) if isinstance(states, list | tuple) else [states]
    weights = _Weights(*(argument(node, name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")))
    writer = _Writer(module.graph, node, 1)
    with module.graph.inserting_before(node):
        inputs = writer.linear(argument(node, "input"), weights.inputs, weights.input_bias, f"{node.name}_ih")
        hidden = writer.linear(states[0], weights.hidden, weights.hidden_bias, f"{node.name}_hh")
        found = gates(writer, inputs, hidden, states)
    if isinstance(node.meta["val"], Tensor):
        fold_node(module, node, found[0], _NOTE)
        return
    _replace_items(module, node, found)


def _replace_items(module: GraphModule, node: Node, results: Sequence[Node | None]) -> None:
    """Let the readers of each item of a layer's result read the node that has it now."""
    for item in list(node.users):
        found = results[item.args[1]]  # type: ignore[index]  # export writes a number
        if found is not None:
            fold_node(module, item, found, _NOTE)
    last = next(found for found in results if found is not None)
    fold_node(module, node, last, _NOTE, same_value=False)


@dataclass
class _Sequence:
    """A layer over sequences, and its graph."""

    module: GraphModule
    node: Node

    def __post_init__(self) -> None:
        node = self.node
        value: Tensor = argument(node, "input").meta["val"]
        self._batch_first = bool(argument(node, "batch_first"))
        self._steps = value.shape[1 if self._batch_first else 0]
        self._writer = _Writer(self.module.graph, node, self._steps)
        self._gates = _SEQUENCES[node.target]  # type: ignore[index]  # calls() found it by them
        states = argument(node, "hx")
        self._states = list(states) if isinstance(states, list | tuple) else [states]

    def expand(self) -> None:
        """Write all layers and directions, and replace the node."""
        node, call = self.node, self._writer.call
        directions = 2 if argument(node, "bidirectional") else 1
        weights = _grouped(argument(node, "params"), argument(node, "num_layers") * directions)
        finals: list[tuple[Node, ...]] = []
        with self.module.graph.inserting_before(node):
            x = argument(node, "input")
            if self._batch_first:
                x = call(aten.transpose.int, x, 0, 1)  # (batch, steps, features) -> (steps, batch, features)
            for layer in range(argument(node, "num_layers")):
                outputs = []
                for direction in range(directions):
                    index = layer * directions + direction
                    suffix = f"l{layer}_reverse" if direction else f"l{layer}"
                    output, states = self._direction(x, weights[index], index, suffix)
                    outputs.append(output)
                    finals.append(states)
                x = outputs[0] if len(outputs) == 1 else call(aten.cat.default, outputs, -1)
            if self._batch_first:
                x = call(aten.transpose.int, x, 0, 1)
            results = [x, *(self._final(finals, state) for state in range(len(self._states)))]
        _replace_items(self.module, node, results)

    def _final(self, finals: Sequence[Sequence[Node]], state: int) -> Node | None:
        """The last values of a state, (layers * directions, batch, features); None if nothing reads them."""
        if not any(item.args[1] == state + 1 for item in self.node.users):
            return None
        parts = [self._writer.call(aten.unsqueeze.default, final[state], 0) for final in finals]
        return parts[0] if len(parts) == 1 else self._writer.call(aten.cat.default, parts, 0)

    def _direction(self, x: Node, weights: _Weights, index: int, suffix: str) -> tuple[Node, tuple[Node, ...]]:
        """Write one layer and direction: its output (steps, batch, features), and the last value of each state."""
        call, name = self._writer.call, f"{self.node.name}_ih_{suffix}"
        if suffix.endswith("reverse"):
            x = call(aten.flip.default, x, [0])
        # (steps, batch, features) -> (steps, batch, gates * hidden)
        products = self._writer.linear(x, weights.inputs, weights.input_bias, name)
        products.meta.pop(STEPS_KEY)  # its shape has the steps
        if _is_given(x) and weights.inputs.meta["val"].shape[1] * _FEW <= weights.hidden.meta["val"].shape[1]:
            products.meta[FEATURES_KEY] = True
        first = [call(aten.detach.default, call(aten.select.int, state, 0, index)) for state in self._states]
        products = call(aten.detach.default, products)  # differentiating a loop traces it, which takes seconds a call
        body = self._body(products, first, weights, suffix)
        target = fresh_attribute_name(self.module, f"{self.node.name}_step_{suffix}_")
        self.module.add_module(target, body)
        reader = self.module.graph.get_attr(target)
        loop = self.module.graph.create_node(
            "call_function", torch.ops.higher_order.scan, (reader, first, [products], ()), name=f"{self.node.name}_loop"
        )
        last = [state.meta["val"].clone() for state in first]
        output = last[0].new_empty((self._steps, *last[0].shape))
        self._writer.describe(loop, (*last, output))
        *states, output = (call(operator.getitem, loop, item) for item in range(len(first) + 1))
        if suffix.endswith("reverse"):
            output = call(aten.flip.default, output, [0])
        return output, tuple(states)

    def _body(self, products: Node, first: Sequence[Node], weights: _Weights, suffix: str) -> GraphModule:
        """The graph of one step: (states..., input product) -> [states..., output]."""
        graph = Graph()
        writer = _Writer(graph, self.node, self._steps)
        states = [graph.placeholder(f"state_{position}") for position in range(len(first))]
        for state, outer in zip(states, first, strict=True):
            writer.describe(state, outer.meta["val"].clone())
        inputs = graph.placeholder("inputs")
        writer.describe(inputs, products.meta["val"][0].clone())
        held: dict[str, object] = {}
        inner = weights._replace(inputs=None, input_bias=None)
        inner = _Weights(*(self._held(graph, held, name, outer) for name, outer in inner._asdict().items()))
        hidden = writer.linear(states[0], inner.hidden, inner.hidden_bias, f"{self.node.name}_hh_{suffix}")
        found = list(self._gates(writer, inputs, hidden, states))
        if inner.projection is not None:
            found[0] = writer.linear(found[0], inner.projection, None, f"{self.node.name}_hr_{suffix}")
        graph.output([*found, writer.call(aten.clone.default, found[0])])  # two results may not share memory
        body = GraphModule(held, graph)
        body.meta = {}
        return body

    def _held(self, graph: Graph, held: dict[str, object], name: str, outer: Node | None) -> Node | None:
        """A node of the body that reads the tensor of a node of the graph, without its gradient; both share memory."""
        if outer is None:
            return None
        held[name] = attribute(self.module, str(outer.target)).detach()
        made = graph.get_attr(name)
        made.meta = {**outer.meta, ORIGIN_KEY: str(outer.target)}
        return made

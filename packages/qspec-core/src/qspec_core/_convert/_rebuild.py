"""Write the converted graph, node by node, from the prepared one."""

import operator
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument

from qspec_core import ops
from qspec_core._errors import module_path
from qspec_core._spec import Q_ANNOTATION_KEY
from qspec_core._torch import OpOverload, move_codegen
from qspec_core.graph import bodies, constant_value, derived_meta, port_meta, tensor_value, wrap_graph
from qspec_core.graph._attributes import Constants
from qspec_core.graph._mutation import STATE_KEY
from qspec_core.graph._sinking import lift_constants
from qspec_core.observers import ConvertedForm, Step

__all__ = ["ConvertedGraphWriter"]

_PASS = "convert_pt2e"

_TAKE_OUT_DTYPE = (ops.DEQUANTIZE, ops.DEQUANTIZE_DYNAMIC, ops.DEQUANTIZE_PER_CHANNEL)


class ConvertedGraphWriter:
    """Writes the converted graph node by node from the prepared one: a single pass, and code is generated once.

    Args:
        prepared: the graph to read.
        observers: the observer of each node that calls one, bodies included.
        plan: the converted form of each observer, by its identity.
        fold_quantize: store constants as integers.
    """

    def __init__(
        self,
        prepared: GraphModule,
        observers: Mapping[Node, nn.Module],
        plan: Mapping[int, ConvertedForm | torch.dtype],
        fold_quantize: bool,
    ) -> None:
        self._prepared = prepared
        self._observers = observers
        self._plan = plan
        self._fold = fold_quantize
        self._graph = Graph()
        self._constants = Constants(prepared, self._graph)
        self._nodes: dict[Node, Node] = {}
        self._integers: dict[Node, tuple[OpOverload, tuple[Argument, ...], tuple[Step, ...]]] = {}
        self._frozen: dict[tuple[str, int], str] = {}

    def run(self) -> GraphModule:
        """Write the graph and return its module."""
        inner = bodies(self._prepared)
        for target, body in inner.items():
            self._constants.attributes[target] = ConvertedGraphWriter(
                body, self._observers, self._plan, self._fold
            ).run()
        for node in self._prepared.graph.nodes:
            if node in self._observers:
                if node.users:
                    self._quantize(node, self._observers[node])
            else:
                copied = self._nodes[node] = self._graph.node_copy(node, self._reads_of(node))
                copied.meta.pop(
                    Q_ANNOTATION_KEY, None
                )  # it refers to nodes of the float model, and would keep that alive
        move_codegen(self._prepared.graph, self._graph)
        for constant in self._graph.find_nodes(op="get_attr"):
            if not constant.users:  # a float weight that integers have replaced
                self._graph.erase_node(constant)
        converted = wrap_graph(self._prepared, self._graph, self._constants.attributes)
        converted.meta.pop(STATE_KEY, None)
        if inner:
            lift_constants(converted)
        return converted

    def _reads_of(self, reader: Node) -> Callable[[Node], Node]:
        """`_read` for one reader. A tensor that it takes twice is dequantized once."""
        made: dict[Node, Node] = {}

        def read(node: Node) -> Node:
            if node not in made:
                made[node] = self._read(reader, node)
            return made[node]

        return read

    def _read(self, reader: Node, node: Node) -> Node:
        """The new node that a reader reads in place of a prepared one; for an observer, its own dequantize."""
        found = self._integers.get(node)
        if found is None:
            return self._nodes[node]
        target, arguments, after = found
        dequantize = self._graph.call_function(target, arguments, _out_dtype(target, node))
        dequantize.meta = derived_meta(node, _PASS)
        if self._is_annotated(reader, node):
            port_meta(reader, dequantize)
        integers = arguments[0]
        if after and isinstance(integers, Node):  # the tensor is in another shape until all steps are done
            self._set_value(dequantize, self._cast(tensor_value(integers), _dtype(node)))
        return self._steps(after, dequantize)

    def _is_annotated(self, reader: Node, node: Node) -> bool:
        """Whether a reader's annotation has a spec for the tensor that an observer observes."""
        while node in self._observers:
            node = node.all_input_nodes[0]
        annotation = reader.meta.get(Q_ANNOTATION_KEY)
        return annotation is not None and annotation.input_qspec_map.get(node) is not None

    def _owner(self, node: Node, source: Node, form: ConvertedForm) -> Node | None:
        """The node whose `stack_trace` and `quantization_tag` the quantize of an observer gets.

        That is the constant, if one is observed; the annotated reader, if parameters are computed at run time; else the
        producer, if its output has a spec.
        """
        if source.op == "get_attr":
            return source
        if form.choose is not None:
            return next((reader for reader in node.users if self._is_annotated(reader, node)), None)
        annotation = source.meta.get(Q_ANNOTATION_KEY)
        return source if annotation is not None and annotation.output_qspec is not None else None

    def _quantize(self, node: Node, observer: nn.Module) -> None:
        """Write the quantize of an observer, and keep what its readers need to dequantize."""
        form = self._plan[id(observer)]
        source = node.all_input_nodes[0]
        if isinstance(form, ConvertedForm):
            self._quantize_by_form(node, source, id(observer), form)
        elif form == torch.float32:
            self._nodes[node] = self._read(node, source)
        else:
            narrow = self._call(ops.CONVERT_ELEMENT_TYPE, (self._read(node, source), form), node, form)
            self._nodes[node] = self._call(ops.CONVERT_ELEMENT_TYPE, (narrow, _dtype(node)), node, _dtype(node))

    def _call(self, target: OpOverload, arguments: tuple[Argument, ...], like: Node, dtype: torch.dtype) -> Node:
        call = self._graph.call_function(target, arguments)
        call.meta = derived_meta(like, _PASS)
        self._set_value(call, self._cast(tensor_value(call), dtype))
        return call

    def _cast(self, fake: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if fake is None else self._constants.fakes.cast(fake, dtype)

    def _set_value(self, node: Node, fake: object) -> None:
        """Set the fake tensor of a node, or remove it if it is not known."""
        node.meta.pop("val", None)
        if fake is not None:
            node.meta["val"] = fake

    def _steps(self, steps: tuple[Step, ...], tensor: Node) -> Node:
        for step in steps:
            call = self._graph.call_function(step.target, (tensor, *step.arguments))
            call.meta = derived_meta(tensor, _PASS)
            fake = tensor_value(call)
            self._set_value(call, None if fake is None else step(fake))
            tensor = call
        return tensor

    def _quantize_by_form(self, node: Node, source: Node, observer: int, form: ConvertedForm) -> None:
        value, owner = constant_value(self._prepared, source), self._owner(node, source, form)
        if value is not None and self._fold and form.choose is None:
            qparams = self._qparams(form, node, source, None)
            integers = self._freeze(node, source, observer, partial(form.integers, value.detach()))
        else:
            tensor = self._steps(form.before, self._read(node, source))
            qparams = self._qparams(form, node, source, tensor)
            like = tensor if form.before else node
            integers = self._call(form.quantize, (tensor, *qparams, *form.limits), like, form.dtype)
        if owner is not None:
            port_meta(owner, integers)
            if form.choose is not None and isinstance(qparams[0], Node):
                port_meta(owner, qparams[0].all_input_nodes[0])
        self._integers[node] = form.dequantize, (integers, *qparams, *form.limits, *_last(form, node)), form.after

    def _qparams(self, form: ConvertedForm, node: Node, source: Node, tensor: Node | None) -> tuple[Argument, Argument]:
        """Scale and zero point: numbers, nodes that read buffers, or nodes that compute them from `tensor`."""
        if form.choose is not None:
            chosen = self._graph.call_function(form.choose.target, (tensor, *form.choose.arguments))
            first, second = (self._graph.call_function(operator.getitem, (chosen, i)) for i in range(2))
            for made in (chosen, first, second):
                made.meta = derived_meta(node, _PASS)
            fake = tensor_value(tensor)
            if fake is not None:
                values = tuple(form.choose(fake))
                for made, value in ((chosen, values), (first, values[0]), (second, values[1])):
                    self._set_value(made, value)
            return first, second
        if not isinstance(form.scale, Tensor) or not isinstance(form.zero_point, Tensor):
            return form.scale, form.zero_point
        is_constant = constant_value(self._prepared, source) is not None
        scope = "" if is_constant else module_path(source).rpartition(".")[2].replace(".", "_")
        return (
            self._constants.add(f"{scope}_scale_", form.scale, node, _PASS),
            self._constants.add(f"{scope}_zero_point_", form.zero_point, node, _PASS),
        )

    def _freeze(self, node: Node, source: Node, observer: int, quantize: Callable[[], Tensor]) -> Node:
        """A node that reads the integers of a constant; readers through one observer share them."""
        key = str(source.target), observer
        if key in self._frozen:
            return self._constants.read(self._frozen[key], node, _PASS)
        frozen = self._constants.add("_frozen_param", quantize().contiguous(), node, _PASS)
        self._frozen[key] = str(frozen.target)
        return frozen


def _dtype(observed: Node) -> torch.dtype:
    """Dtype of an observed tensor; float32 where it is not known."""
    value = tensor_value(observed)
    return torch.float32 if value is None else value.dtype


def _out_dtype(target: OpOverload, observed: Node) -> dict[str, Argument]:
    """Keyword arguments of a dequantize that give it the dtype of the observed tensor; float32 is its default."""
    dtype = _dtype(observed)
    return {} if target not in _TAKE_OUT_DTYPE or dtype is torch.float32 else {"out_dtype": dtype}


def _last(form: ConvertedForm, observed: Node) -> tuple[Argument, ...]:
    """Last arguments of a dequantize by group or by token, which is given the dtype of the observed tensor there."""
    return () if form.output_dtype is None else (_dtype(observed),)

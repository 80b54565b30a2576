"""convert: observers become quantize and dequantize operators, weights become integers."""

import operator
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument

from qspec_core import ops
from qspec_core._by_itself import let_convert
from qspec_core._observed import fold_observed, has_observed, inner_observer, qparams
from qspec_core._torch import OpOverload, move_codegen
from qspec_core.coverage import COVERAGE_KEY
from qspec_core.errors import GraphError, SpecError, module_path
from qspec_core.graphs import (
    Constants,
    constant_value,
    derived_meta,
    gc_paused,
    port_meta,
    require_exported,
    wrap_graph,
)
from qspec_core.observers import ConvertedForm, ObserverNeverRanWarning, Step
from qspec_core.prepare import observer_nodes
from qspec_core.reference import to_reference
from qspec_core.sinking import lift_constants
from qspec_core.spec import Q_ANNOTATION_KEY
from qspec_core.subgraphs import bodies, graph_modules

__all__ = ["convert_pt2e"]

_PLAIN_DTYPES: Mapping[torch.dtype, torch.dtype] = {
    torch.qint8: torch.int8,
    torch.quint8: torch.uint8,
    torch.qint32: torch.int32,
}
_CASTS = (torch.float16, torch.bfloat16)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)
_PASS = "convert_pt2e"
Observed = tuple[str, Node, nn.Module, Tensor | None]
"""A call of an observer: the node's name, the node, the observer, and the constant observed if it is one."""
_NAME_THEIR_DTYPE = (ops.DEQUANTIZE, ops.DEQUANTIZE_DYNAMIC, ops.DEQUANTIZE_PER_CHANNEL)
_DYNAMIC_EPS = 2.0**-12  # what an observer without a scale floor of its own gets


def convert_pt2e(
    model: GraphModule, use_reference_representation: bool = False, fold_quantize: bool = True
) -> GraphModule:
    """Turn a prepared and calibrated module into a quantized one. The prepared module is not changed, but that
    observers of constants which saw no data observe them now.

    Every observer becomes a quantize of its tensor and a dequantize for each reader. A constant, or what follows from
    constants alone, is stored as integers, with the dequantize alone left in the graph. What a quantizer noted under
    `quantization_tag` goes to the quantize of an annotated output and the dequantize of an annotated input.

    Args:
        model: from `prepare_pt2e`, after it ran on calibration data.
        use_reference_representation: write the result in integer arithmetic of plain operators, as
            `qspec_core.reference.to_reference` does: for checking what a device computes.
        fold_quantize: store constants as integers; False keeps them in float, with their quantize in the graph.
    Returns: the quantized module, in `quantized_decomposed` operators, without the float weights that it does not need.
    Raises:
        GraphError: the model is no graph module, was not prepared, or is converted already.
        SpecError: a flag is neither True nor False.
    Warns: ObserverNeverRanWarning, once, naming the points of activations that saw no data.
    Cost: O(nodes + edges), plus quantizing each weight, one at a time.
    """
    _require_flags(use_reference_representation=use_reference_representation, fold_quantize=fold_quantize)
    _require_prepared(require_exported(model, "convert_pt2e"))
    with gc_paused(), torch.no_grad():
        if fold_quantize:
            model = fold_observed(model)
        observed = _observed(model)
        unseen = _unseen(observed)
        _observe_constants(observed, unseen)
        left = let_convert(model, fold_quantize=fold_quantize)
        if left is not model:
            model, observed = left, _observed(left)
            unseen = _unseen(observed)
        observers = {node: observer for _, node, observer, _ in observed}
        converted = _Rebuild(model, observers, _plan(observed, unseen), fold_quantize).run()
        return to_reference(converted) if use_reference_representation else converted


def _require_flags(**flags: object) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise SpecError(
                f"{name} of convert_pt2e is a flag",
                found=repr(value),
                expected="True or False",
                remedy=f"pass {name}=True or {name}=False; the quantizer goes to prepare_pt2e",
            )


def _require_prepared(model: GraphModule) -> None:
    graphs = [body for _, body in graph_modules(model)]
    if any(map(observer_nodes, graphs)):
        return
    if any(ops.is_dequantize(node) for body in graphs for node in body.graph.nodes):
        raise GraphError(
            "the model is converted already",
            found="a graph with dequantize operators and no observers",
            expected="what prepare_pt2e returned",
            remedy="use the module as it is, or convert the prepared one",
        )
    if COVERAGE_KEY not in model.meta:
        raise GraphError(
            "the model was not prepared",
            found="a graph without observers",
            expected="what prepare_pt2e returned",
            remedy="prepare it with prepare_pt2e, run it on calibration data, then convert it",
        )


def _observed(model: GraphModule) -> list[Observed]:
    """The calls of observers, bodies included."""
    return [
        (f"{prefix}{node.name}", node, observer, constant_value(body, node.args[0]))
        for prefix, body in graph_modules(model)
        for node, observer in observer_nodes(body)
    ]


def _unseen(found: Sequence[Observed]) -> set[int]:
    """The observers that saw no data, by identity."""
    return {id(observer) for _, _, observer, _ in found if not has_observed(observer)}


def _observe_constants(found: Sequence[Observed], unseen: Container[int]) -> None:
    """Let observers that saw no data observe their constants, all of them: one observer may serve several."""
    for _, _, observer, value in found:
        if value is not None and id(observer) in unseen:
            observer(value)


def _plan(observed: Sequence[Observed], unseen: Container[int]) -> dict[int, ConvertedForm | torch.dtype]:
    """What every observer is written as, by its identity. All that can raise or warn about observers happens here.

    Args:
        observed: the calls of observers.
        unseen: observers that had seen no data, before they were given the constants that they observe.
    """
    plan: dict[int, ConvertedForm | torch.dtype] = {}
    idle: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ObserverNeverRanWarning)
        for name, node, observer, value in observed:
            if id(observer) in plan:
                continue
            if id(observer) in unseen and not has_observed(observer):
                idle.append(f"{name} in {module_path(node)}" if module_path(node) else name)
            own = getattr(observer, "converted_form", None)
            plan[id(observer)] = own(_shape(node, value)) if callable(own) else _form(node, observer)
    if idle:
        shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
        warnings.warn(
            f"{len(idle)} observers saw no data; scale 1.0 and zero point 0 stand in at {shown}. "
            "Run the prepared module on calibration data before convert_pt2e.",
            ObserverNeverRanWarning,
            stacklevel=3,
        )
    return plan


def _shape(node: Node, value: Tensor | None) -> torch.Size:
    """Shape of what an observer observes, in which sizes may be symbolic."""
    fake = node.meta.get("val") if value is None else value
    if not isinstance(fake, Tensor):
        raise GraphError(
            "the shape of an observed tensor is not known",
            where=node,
            found="a node without a tensor in its metadata",
            remedy="export the model anew; a pass that ran on it dropped node.meta['val']",
        )
    return fake.shape


def _form(node: Node, observer: nn.Module) -> ConvertedForm | torch.dtype:
    """What an observer without a form of its own is written as; for a cast, the dtype."""
    dtype = observer.dtype
    plain = _PLAIN_DTYPES.get(dtype, dtype)  # type: ignore[call-overload]  # an observer's dtype is a torch.dtype
    if plain in (*_CASTS, torch.float32):
        cast: torch.dtype = plain
        return cast
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if low is None or high is None:
        natural = torch.iinfo(plain)
        low, high = natural.min if low is None else low, natural.max if high is None else high
    limits = int(low), int(high), plain
    if getattr(observer, "is_dynamic", False):
        eps = getattr(inner_observer(observer), "eps", None)
        is_symmetric = getattr(observer, "qscheme", None) == torch.per_tensor_symmetric
        chooser = ops.CHOOSE_QPARAMS_SYMMETRIC if is_symmetric else ops.CHOOSE_QPARAMS
        choose = Step(chooser, (*limits[:2], _DYNAMIC_EPS if eps is None else float(eps), plain))
        return ConvertedForm(ops.QUANTIZE_DYNAMIC, ops.DEQUANTIZE_DYNAMIC, plain, limits, choose=choose)
    is_per_channel = getattr(observer, "qscheme", None) in _PER_CHANNEL
    scale, zero_point = qparams(node, observer, is_per_channel=is_per_channel)
    if not is_per_channel:
        return ConvertedForm(ops.QUANTIZE, ops.DEQUANTIZE, plain, limits, float(scale), int(zero_point))
    arguments = getattr(inner_observer(observer), "ch_axis", 0), *limits
    operators = ops.QUANTIZE_PER_CHANNEL, ops.DEQUANTIZE_PER_CHANNEL
    return ConvertedForm(*operators, plain, arguments, scale.float(), zero_point)


class _Rebuild:
    """Writes the converted graph node by node from the prepared one: a single pass, and code is generated once.

    Args:
        prepared: only read.
        observers: of all nodes that call one, bodies included.
        plan: what every observer is written as, by its identity.
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
        """The converted module."""
        inner = bodies(self._prepared)
        for target, body in inner.items():
            self._constants.attributes[target] = _Rebuild(body, self._observers, self._plan, self._fold).run()
        for node in self._prepared.graph.nodes:
            if node in self._observers:
                if node.users:
                    self._quantize(node, self._observers[node])
            else:
                copied = self._nodes[node] = self._graph.node_copy(node, self._reads_of(node))
                copied.meta.pop(Q_ANNOTATION_KEY, None)  # its nodes would keep the float model alive
        move_codegen(self._prepared.graph, self._graph)
        for constant in self._graph.find_nodes(op="get_attr"):
            if not constant.users:  # a float weight whose integers took its place
                self._graph.erase_node(constant)
        converted = wrap_graph(self._prepared, self._graph, self._constants.attributes)
        if inner:
            lift_constants(converted)
        return converted

    def _reads_of(self, reader: Node) -> Callable[[Node], Node]:
        """`_read` for one reader: where it takes one tensor twice, that is dequantized once."""
        made: dict[Node, Node] = {}

        def read(node: Node) -> Node:
            if node not in made:
                made[node] = self._read(reader, node)
            return made[node]

        return read

    def _read(self, reader: Node, node: Node) -> Node:
        """What a reader of a prepared node reads now: a dequantize of its own where the node was an observer."""
        found = self._integers.get(node)
        if found is None:
            return self._nodes[node]
        target, arguments, after = found
        dequantize = self._graph.call_function(target, arguments, _out_dtype(target, node))
        dequantize.meta = derived_meta(node, _PASS)
        if self._is_asked_for(reader, node):
            port_meta(reader, dequantize)
        integers = arguments[0]
        if after and isinstance(integers, Node):  # the tensor is in another shape until all steps are done
            self._set_value(dequantize, self._cast(integers.meta.get("val"), torch.float32))
        return self._steps(after, dequantize)

    def _is_asked_for(self, reader: Node, node: Node) -> bool:
        """Whether a reader's annotation has a spec for the tensor that an observer observes."""
        while node in self._observers:
            node = node.all_input_nodes[0]
        annotation = reader.meta.get(Q_ANNOTATION_KEY)
        return annotation is not None and annotation.input_qspec_map.get(node) is not None

    def _owner(self, node: Node, source: Node, form: ConvertedForm) -> Node | None:
        """Whose notes the quantize of an observer takes over: those of a constant, of the reader that quantizes its
        input when the model runs, or of the producer whose output has a spec."""
        if source.op == "get_attr":
            return source
        if form.choose is not None:
            return next((reader for reader in node.users if self._is_asked_for(reader, node)), None)
        annotation = source.meta.get(Q_ANNOTATION_KEY)
        return source if annotation is not None and annotation.output_qspec is not None else None

    def _quantize(self, node: Node, observer: nn.Module) -> None:
        """Write the quantize that an observer stands for, and note how its readers dequantize."""
        form = self._plan[id(observer)]
        source = node.all_input_nodes[0]
        if isinstance(form, ConvertedForm):
            self._quantize_by_form(node, source, id(observer), form)
        elif form == torch.float32:
            self._nodes[node] = self._read(node, source)
        else:
            narrow = self._call(ops.CONVERT_ELEMENT_TYPE, (self._read(node, source), form), node, form)
            self._nodes[node] = self._call(ops.CONVERT_ELEMENT_TYPE, (narrow, torch.float32), node, torch.float32)

    def _call(self, target: OpOverload, arguments: tuple[Argument, ...], like: Node, dtype: torch.dtype) -> Node:
        call = self._graph.call_function(target, arguments)
        call.meta = derived_meta(like, _PASS)
        self._set_value(call, self._cast(call.meta.get("val"), dtype))
        return call

    def _cast(self, fake: object, dtype: torch.dtype) -> object:
        return self._constants.fakes.cast(fake, dtype) if isinstance(fake, Tensor) else None

    def _set_value(self, node: Node, fake: object) -> None:
        """Set what the node returns, or, where that is not known, leave it out."""
        node.meta.pop("val", None)
        if fake is not None:
            node.meta["val"] = fake

    def _steps(self, steps: tuple[Step, ...], tensor: Node) -> Node:
        for step in steps:
            call = self._graph.call_function(step.target, (tensor, *step.arguments))
            call.meta = derived_meta(tensor, _PASS)
            fake = call.meta.get("val")
            self._set_value(call, step(fake) if isinstance(fake, Tensor) else None)
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
        self._integers[node] = form.dequantize, (integers, *qparams, *form.limits, *form.last), form.after

    def _qparams(self, form: ConvertedForm, node: Node, source: Node, tensor: Node | None) -> tuple[Argument, Argument]:
        """Scale and zero point: found from `tensor` when the model runs, numbers, or buffers."""
        if form.choose is not None:
            chosen = self._graph.call_function(form.choose.target, (tensor, *form.choose.arguments))
            first, second = (self._graph.call_function(operator.getitem, (chosen, i)) for i in range(2))
            for made in (chosen, first, second):
                made.meta = derived_meta(node, _PASS)
            if isinstance(tensor, Node) and isinstance(tensor.meta.get("val"), Tensor):
                values = tuple(form.choose(tensor.meta["val"]))
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
        """Node that reads the integers of a constant. Readers of one constant through one observer share the tensor."""
        key = str(source.target), observer
        if key in self._frozen:
            return self._constants.read(self._frozen[key], node, _PASS)
        frozen = self._constants.add("_frozen_param", quantize().contiguous(), node, _PASS)
        self._frozen[key] = str(frozen.target)
        return frozen


def _out_dtype(target: OpOverload, observed: Node) -> dict[str, Argument]:
    """The dtype to name to a dequantize, which gives float32 unless told otherwise."""
    value = observed.meta.get("val")
    if target not in _NAME_THEIR_DTYPE or not isinstance(value, Tensor) or value.dtype is torch.float32:
        return {}
    return {"out_dtype": value.dtype}

"""convert: observers become quantize and dequantize operators, weights become integers."""

import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument

from qspec_core import ops
from qspec_core._torch import OpOverload, move_codegen
from qspec_core.coverage import COVERAGE_KEY
from qspec_core.errors import GraphError, Where, module_path
from qspec_core.graphs import Constants, constant_value, gc_paused, require_exported, wrap_graph
from qspec_core.observers import ObserverNeverRanWarning
from qspec_core.prepare import observer_nodes
from qspec_core.spec import Q_ANNOTATION_KEY

__all__ = ["convert_pt2e"]

_PLAIN_DTYPES: Mapping[torch.dtype, torch.dtype] = {
    torch.qint8: torch.int8,
    torch.quint8: torch.uint8,
    torch.qint32: torch.int32,
}
_CASTS = (torch.float16, torch.bfloat16)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)
_DYNAMIC_EPS = 2.0**-12  # what an observer without a scale floor of its own gets


@dataclass(frozen=True)
class _Parameters:
    """What a quantize at one observer needs. `scale` and `zero_point` are None for casts and dynamic quantization."""

    dtype: torch.dtype
    quant_min: int
    quant_max: int
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    ch_axis: int | None = None
    eps: float = _DYNAMIC_EPS


def convert_pt2e(model: GraphModule, *, fold_quantize: bool = True) -> GraphModule:
    """Turn a prepared and calibrated module into a quantized one. The prepared module is not changed.

    Every observer becomes a quantize of its tensor and a dequantize for each reader. A constant is stored as integers,
    with the dequantize alone left in the graph. Weights that no calibration reached are observed here.

    Args:
        model: from `prepare_pt2e`, after it ran on calibration data.
        fold_quantize: store constants as integers; False keeps them in float, with their quantize in the graph.
    Returns: the quantized module, in `quantized_decomposed` operators, without the float weights that it does not need.
    Raises: GraphError: the model is no graph module, was not prepared, or is converted already.
    Warns: ObserverNeverRanWarning, once, naming the points of activations that saw no data.
    Cost: O(nodes + edges), plus quantizing each weight, one at a time.
    """
    _require_prepared(require_exported(model, "convert_pt2e"))
    with gc_paused(), torch.no_grad():
        return _Rebuild(model, _plan(model), fold_quantize).run()


def _require_prepared(model: GraphModule) -> None:
    if observer_nodes(model):
        return
    if any(map(ops.is_dequantize, model.graph.nodes)):
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


def _plan(model: GraphModule) -> dict[int, _Parameters]:
    """Parameters of every observer, by its identity. All that can raise or warn about observers happens here."""
    plan: dict[int, _Parameters] = {}
    idle: list[str] = []
    nodes = observer_nodes(model)
    unseen = {id(observer) for _, observer in nodes if not _has_observed(observer)}
    for node, observer in nodes:  # before any parameters are asked for: one observer may serve several constants
        value = constant_value(model, node.args[0])
        if value is not None and id(observer) in unseen:
            observer(value)
    for node, observer in nodes:
        if id(observer) in plan:
            continue
        if not _has_observed(observer):
            idle.append(_label(Where.of(node)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ObserverNeverRanWarning)
            plan[id(observer)] = _parameters(observer)
    if idle:
        shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
        warnings.warn(
            f"{len(idle)} observers saw no data; scale 1.0 and zero point 0 stand in at {shown}. "
            "Run the prepared module on calibration data before convert_pt2e.",
            ObserverNeverRanWarning,
            stacklevel=3,
        )
    return plan


def _label(where: Where) -> str:
    return f"{where.node} in {where.module_path}" if where.module_path else str(where.node)


def _inner(observer: nn.Module) -> nn.Module:
    """The observer inside a fake-quantize, or the observer itself."""
    inner = getattr(observer, "activation_post_process", None)
    return inner if isinstance(inner, nn.Module) else observer


def _has_observed(observer: nn.Module) -> bool:
    return bool(getattr(_inner(observer), "has_observed", True)) or bool(getattr(observer, "is_dynamic", False))


def _parameters(observer: nn.Module) -> _Parameters:
    dtype = observer.dtype
    plain = _PLAIN_DTYPES.get(dtype, dtype)  # type: ignore[call-overload]  # an observer's dtype is a torch.dtype
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if plain in (*_CASTS, torch.float32):
        return _Parameters(plain, 0, 0)
    if low is None or high is None:
        natural = torch.iinfo(plain)
        low, high = natural.min if low is None else low, natural.max if high is None else high
    if getattr(observer, "is_dynamic", False):
        eps = getattr(_inner(observer), "eps", None)
        return _Parameters(plain, int(low), int(high), eps=_DYNAMIC_EPS if eps is None else float(eps))
    scale, zero_point = observer.calculate_qparams()  # type: ignore[operator]  # is_observer held
    per_channel = getattr(observer, "qscheme", None) in _PER_CHANNEL
    ch_axis = getattr(_inner(observer), "ch_axis", 0) if per_channel else None
    return _Parameters(plain, int(low), int(high), scale.float(), zero_point, ch_axis)


class _Rebuild:
    """Writes the converted graph node by node from the prepared one: a single pass, and code is generated once.

    Args:
        prepared: only read.
        plan: parameters of every observer, by its identity.
        fold_quantize: store constants as integers.
    """

    def __init__(self, prepared: GraphModule, plan: Mapping[int, _Parameters], fold_quantize: bool) -> None:
        self._prepared = prepared
        self._plan = plan
        self._fold = fold_quantize
        self._graph = Graph()
        self._constants = Constants(prepared, self._graph)
        self._nodes: dict[Node, Node] = {}
        self._integers: dict[Node, tuple[OpOverload, tuple[Argument, ...]]] = {}
        self._frozen: dict[tuple[str, int], str] = {}

    def run(self) -> GraphModule:
        """The converted module."""
        observers = dict(observer_nodes(self._prepared))
        for node in self._prepared.graph.nodes:
            if node in observers:
                if node.users:
                    self._quantize(node, observers[node])
            else:
                copied = self._nodes[node] = self._graph.node_copy(node, self._read)
                copied.meta.pop(Q_ANNOTATION_KEY, None)  # its nodes would keep the float model alive
        move_codegen(self._prepared.graph, self._graph)
        for constant in self._graph.find_nodes(op="get_attr"):
            if not constant.users:  # a float weight whose integers took its place
                self._graph.erase_node(constant)
        return wrap_graph(self._prepared, self._graph, self._constants.attributes)

    def _read(self, node: Node) -> Node:
        """What a reader of a prepared node reads now: a dequantize of its own where the node was an observer."""
        found = self._integers.get(node)
        if found is None:
            return self._nodes[node]
        target, arguments = found
        dequantize = self._graph.call_function(target, arguments)
        dequantize.meta = _meta(node)
        return dequantize

    def _quantize(self, node: Node, observer: nn.Module) -> None:
        """Write the quantize that an observer stands for, and note how its readers dequantize."""
        parameters = self._plan[id(observer)]
        prepared_source = node.all_input_nodes[0]
        if parameters.dtype == torch.float32:
            self._nodes[node] = self._read(prepared_source)
        elif parameters.dtype in _CASTS:
            source = self._read(prepared_source)
            narrow = self._call(ops.CONVERT_ELEMENT_TYPE, (source, parameters.dtype), node, parameters.dtype)
            self._nodes[node] = self._call(ops.CONVERT_ELEMENT_TYPE, (narrow, torch.float32), node, torch.float32)
        elif parameters.scale is None or parameters.zero_point is None:
            self._quantize_dynamic(node, self._read(prepared_source), parameters)
        else:
            self._quantize_static(node, prepared_source, id(observer), parameters.scale, parameters.zero_point)

    def _call(self, target: OpOverload, arguments: tuple[Argument, ...], like: Node, dtype: torch.dtype) -> Node:
        call = self._graph.call_function(target, arguments)
        call.meta = _meta(like)
        fake = call.meta.get("val")
        if isinstance(fake, Tensor):
            call.meta["val"] = self._constants.fakes.cast(fake, dtype)
        return call

    def _quantize_dynamic(self, node: Node, source: Node, parameters: _Parameters) -> None:
        limits = parameters.quant_min, parameters.quant_max, parameters.dtype
        chosen = self._graph.call_function(ops.CHOOSE_QPARAMS, (source, *limits[:2], parameters.eps, limits[2]))
        scale = self._graph.call_function(operator.getitem, (chosen, 0))
        zero_point = self._graph.call_function(operator.getitem, (chosen, 1))
        quantize = self._call(ops.QUANTIZE_DYNAMIC, (source, scale, zero_point, *limits), node, parameters.dtype)
        self._integers[node] = ops.DEQUANTIZE_DYNAMIC, (quantize, scale, zero_point, *limits)

    def _quantize_static(
        self, node: Node, prepared_source: Node, observer: int, scale: Tensor, zero_point: Tensor
    ) -> None:
        parameters = self._plan[observer]
        limits = parameters.quant_min, parameters.quant_max, parameters.dtype
        value = constant_value(self._prepared, prepared_source)
        per_channel = parameters.ch_axis is not None
        concrete: tuple[Any, ...]  # scale and zero point are numbers per tensor, tensors per channel
        written: tuple[Argument, ...]
        if per_channel:
            scope = "" if value is not None else module_path(prepared_source).rpartition(".")[2].replace(".", "_")
            qparams = (
                self._constants.add(f"{scope}_scale_", scale),
                self._constants.add(f"{scope}_zero_point_", zero_point),
            )
            concrete, written = (
                (scale, zero_point, parameters.ch_axis, *limits),
                (*qparams, parameters.ch_axis, *limits),
            )
        else:
            concrete = written = (float(scale), int(zero_point), *limits)
        target = ops.QUANTIZE_PER_CHANNEL if per_channel else ops.QUANTIZE
        if value is not None and self._fold:
            integers = self._freeze(prepared_source, observer, partial(target, value.detach(), *concrete))
        else:
            integers = self._call(target, (self._read(prepared_source), *written), node, parameters.dtype)
        self._integers[node] = ops.DEQUANTIZE_PER_CHANNEL if per_channel else ops.DEQUANTIZE, (integers, *written)

    def _freeze(self, source: Node, observer: int, quantize: Callable[[], Tensor]) -> Node:
        """Node that reads the integers of a constant. Readers of one constant through one observer share the tensor."""
        key = str(source.target), observer
        if key in self._frozen:
            return self._constants.read(self._frozen[key])
        node = self._constants.add("_frozen_param", quantize().contiguous())
        self._frozen[key] = str(node.target)
        return node


def _meta(source: Node) -> dict[str, object]:
    kept = ("val", "nn_module_stack", "stack_trace", "torch_fn")
    return {key: source.meta[key] for key in kept if key in source.meta}

"""convert: observers become quantize and dequantize operators, weights become integers."""

import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core.errors import GraphError, Where, module_path
from qspec_core.graphs import add_constant, constant_value, copy_graph_module, gc_paused, require_exported, wrap_graph
from qspec_core.observers import ObserverNeverRanWarning
from qspec_core.prepare import observer_nodes

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


@dataclass
class _Conversion:
    """The module being converted, and what was already made for it."""

    module: GraphModule
    fold_quantize: bool
    frozen: dict[tuple[str, int], str] = field(default_factory=dict)
    frozen_fakes: dict[str, Tensor] = field(default_factory=dict)
    fakes: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)


def convert_pt2e(model: GraphModule, *, fold_quantize: bool = True) -> GraphModule:
    """Turn a prepared and calibrated module into a quantized one. The prepared module is not changed.

    Every observer becomes a quantize of its tensor and a dequantize for each reader. A constant is stored as integers,
    with the dequantize alone left in the graph. Weights that no calibration reached are observed here.

    Args:
        model: from `prepare_pt2e`, after it ran on calibration data.
        fold_quantize: store constants as integers; False keeps them in float, with their quantize in the graph.
    Returns: the quantized module, in `quantized_decomposed` operators, without the float weights that it does not need.
    Raises: GraphError: the model is no graph module, or holds no observers although it was not prepared.
    Warns: ObserverNeverRanWarning, once, naming the points of activations that saw no data.
    Cost: O(nodes + edges), plus quantizing each weight, one at a time.
    """
    _require_prepared(require_exported(model, "convert_pt2e"))
    with gc_paused(), torch.no_grad():
        parameters = _plan(model)
        module = copy_graph_module(model)
        conversion = _Conversion(module, fold_quantize)
        for node, observer in observer_nodes(module):
            _replace(conversion, node, observer, parameters[id(observer)])
        module.graph.eliminate_dead_code()
        return wrap_graph(module, module.graph)


def _require_prepared(model: GraphModule) -> None:
    if not observer_nodes(model) and any(map(ops.is_dequantize, model.graph.nodes)):
        raise GraphError(
            "the model is converted already",
            found="a graph with dequantize operators and no observers",
            expected="what prepare_pt2e returned",
            remedy="use the module as it is, or convert the prepared one",
        )


def _plan(model: GraphModule) -> dict[int, _Parameters]:
    """Parameters of every observer, by its identity. All that can raise or warn about observers happens here."""
    plan: dict[int, _Parameters] = {}
    idle: list[str] = []
    for node, observer in observer_nodes(model):
        if id(observer) in plan:
            continue
        value = constant_value(model, node.args[0])
        if value is not None and not _has_observed(observer):
            observer(value)
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


def _replace(conversion: _Conversion, node: Node, observer: nn.Module, parameters: _Parameters) -> None:
    """Put a quantize in the place of an observer, and a dequantize in front of each of its readers."""
    graph, source = conversion.module.graph, node.all_input_nodes[0]
    if parameters.dtype == torch.float32:
        node.replace_all_uses_with(source)
    elif parameters.dtype in _CASTS:
        _cast(conversion, node, source, parameters.dtype)
    else:
        quantize, arguments = _quantize(conversion, node, source, observer, parameters)
        per_channel = parameters.ch_axis is not None
        dynamic = parameters.scale is None
        target = ops.DEQUANTIZE_PER_CHANNEL if per_channel else ops.DEQUANTIZE_DYNAMIC if dynamic else ops.DEQUANTIZE
        for user in list(node.users):
            with graph.inserting_before(user):
                dequantize = graph.call_function(target, (quantize, *arguments))
            dequantize.meta = _meta(source)
            user.replace_input_with(node, dequantize)
    graph.erase_node(node)


def _meta(source: Node) -> dict[str, object]:
    kept = ("val", "nn_module_stack", "stack_trace", "torch_fn")
    return {key: source.meta[key] for key in kept if key in source.meta}


def _integer_meta(conversion: _Conversion, source: Node, dtype: torch.dtype) -> dict[str, object]:
    meta = _meta(source)
    value = meta.get("val")
    if isinstance(value, Tensor):
        key = id(value), dtype
        if key not in conversion.fakes:
            conversion.fakes[key] = value.to(dtype)
        meta["val"] = conversion.fakes[key]
    return meta


def _cast(conversion: _Conversion, node: Node, source: Node, dtype: torch.dtype) -> None:
    graph = conversion.module.graph
    with graph.inserting_before(node):
        narrow = graph.call_function(ops.CONVERT_ELEMENT_TYPE, (source, dtype))
        wide = graph.call_function(ops.CONVERT_ELEMENT_TYPE, (narrow, torch.float32))
    narrow.meta, wide.meta = _integer_meta(conversion, source, dtype), _meta(source)
    node.replace_all_uses_with(wide)


def _quantize(
    conversion: _Conversion, node: Node, source: Node, observer: nn.Module, parameters: _Parameters
) -> tuple[Node, tuple[Any, ...]]:
    """Node of the integers, and the arguments that its dequantize takes after it (of any type fx knows)."""
    limits = parameters.quant_min, parameters.quant_max, parameters.dtype
    value = constant_value(conversion.module, source)
    if parameters.scale is None or parameters.zero_point is None:
        return _quantize_dynamic(conversion, node, source, parameters)
    if parameters.ch_axis is None:
        qparams: tuple[Any, ...] = float(parameters.scale), int(parameters.zero_point)
        target, arguments = ops.QUANTIZE, (*qparams, *limits)
        concrete = arguments
    else:
        scope = module_path(source).rpartition(".")[2].replace(".", "_") if value is None else ""
        scales = add_constant(conversion.module, f"{scope}_scale_", parameters.scale, before=node)
        zeros = add_constant(conversion.module, f"{scope}_zero_point_", parameters.zero_point, before=node)
        target, arguments = ops.QUANTIZE_PER_CHANNEL, (scales, zeros, parameters.ch_axis, *limits)
        concrete = (parameters.scale, parameters.zero_point, parameters.ch_axis, *limits)
    if value is not None and conversion.fold_quantize:
        return _frozen(conversion, node, source, id(observer), partial(target, value.detach(), *concrete)), arguments
    with conversion.module.graph.inserting_before(node):
        quantize = conversion.module.graph.call_function(target, (source, *arguments))
    quantize.meta = _integer_meta(conversion, source, parameters.dtype)
    return quantize, arguments


def _frozen(conversion: _Conversion, node: Node, source: Node, observer: int, quantize: Callable[[], Tensor]) -> Node:
    """Node that reads the integers of a constant. Readers of one constant through one observer share the tensor."""
    key = str(source.target), observer
    known = conversion.frozen.get(key)
    if known is None:
        frozen = add_constant(conversion.module, "_frozen_param", quantize().contiguous(), before=node)
        conversion.frozen[key] = str(frozen.target)
        conversion.frozen_fakes[str(frozen.target)] = frozen.meta["val"]
    else:
        with conversion.module.graph.inserting_before(node):
            frozen = conversion.module.graph.get_attr(known)
        frozen.meta["val"] = conversion.frozen_fakes[known]
    return frozen


def _quantize_dynamic(
    conversion: _Conversion, node: Node, source: Node, parameters: _Parameters
) -> tuple[Node, tuple[Any, ...]]:
    graph = conversion.module.graph
    limits = parameters.quant_min, parameters.quant_max, parameters.dtype
    with graph.inserting_before(node):
        chosen = graph.call_function(
            ops.CHOOSE_QPARAMS, (source, parameters.quant_min, parameters.quant_max, parameters.eps, parameters.dtype)
        )
        scale = graph.call_function(operator.getitem, (chosen, 0))
        zero_point = graph.call_function(operator.getitem, (chosen, 1))
        quantize = graph.call_function(ops.QUANTIZE_DYNAMIC, (source, scale, zero_point, *limits))
    quantize.meta = _integer_meta(conversion, source, parameters.dtype)
    return quantize, (scale, zero_point, *limits)

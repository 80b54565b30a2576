"""Use qspec's quantizers in torchao's PT2E flow.

The other direction needs no adapter: `prepare_pt2e` takes torchao's quantizers as they are.
"""

import functools
import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from qspec_core._errors import BackendError
from qspec_core._quantizer import Quantizer
from qspec_core._sharing import SharingGroup, resolve_sharing
from qspec_core._spec import (
    Q_ANNOTATION_KEY,
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
)
from qspec_core.graph import add_constant, constant_value, require_tensor_value
from qspec_core.observers import ConvertedForm, Step, build_observer

__all__ = ["for_torchao"]

_PT2E = "torchao.quantization.pt2e"
_FIELDS = ("dtype", "quant_min", "quant_max", "qscheme")


def for_torchao(quantizer: Quantizer) -> Any:  # an instance of torchao's Quantizer, which core does not import
    """Wrap a quantizer in torchao's class, which torchao's flow and NNCF's `quantize_pt2e` check for.

    Sharing is resolved as in `prepare_pt2e` and written as references to the first point of each group; implicit
    sharing is off. The observers are qspec's, each inside an observer of torchao's class. The quantizer's `validate`
    sees its own annotations, and its `prepare_obs_or_fq_callback` sees its own observers.

    Args:
        quantizer: any of qspec's.
    Returns: an instance of `torchao.quantization.pt2e.quantizer.Quantizer`.
    Raises: BackendError: torchao is not installed.
    """
    adapter: Any = _adapter_class()(quantizer)
    return adapter


def _torchao(module: str) -> Any:  # a module of torchao, which is untyped
    try:
        return importlib.import_module(f"{_PT2E}.{module}")
    except ModuleNotFoundError as error:
        raise BackendError(
            "torchao is not installed", found=str(error), remedy="pip install torchao, or use qspec's own prepare_pt2e"
        ) from error


@functools.cache
def _adapter_class() -> type:
    specs = _torchao("quantizer")

    class Adapter(specs.Quantizer):  # type: ignore[misc, name-defined]  # torchao is untyped
        """A qspec quantizer in torchao's class."""

        def __init__(self, quantizer: Quantizer) -> None:
            self.quantizer = quantizer

        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            return self.quantizer.transform_for_annotation(model)

        def annotate(self, model: GraphModule) -> GraphModule:
            model = self.quantizer.annotate(model)
            self.quantizer.validate(model)
            _translate(model)
            return model

        def validate(self, model: GraphModule) -> None:
            """Nothing: `annotate` has validated, before it translated."""

        def prepare_obs_or_fq_callback(
            self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, nn.Module]
        ) -> None:
            _call_back(self.quantizer, model, edge_or_node_to_obs_or_fq)

    return Adapter


@functools.cache
def _observer_class() -> type:
    observer = _torchao("observer")

    class Observer(observer.ObserverBase):  # type: ignore[misc, name-defined]  # torchao is untyped
        """A qspec observer or fake-quantize in torchao's class. Attributes not found are looked up in it."""

        def __init__(self, observer: Any) -> None:  # Any: an observer of any stack
            super().__init__(dtype=observer.dtype, is_dynamic=bool(getattr(observer, "is_dynamic", False)))
            self.observer = observer

        def forward(self, x: Tensor) -> Tensor:
            observed: Tensor = self.observer(x)
            return observed

        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            qparams: tuple[Tensor, Tensor] = self.observer.calculate_qparams()
            return qparams

        def __getattr__(self, name: str) -> Any:  # an attribute of the observer
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("observer"), name)

    return Observer


@functools.cache
def _block_observer_class() -> type:
    class BlockObserver(_observer_class()):  # type: ignore[misc]  # torchao is untyped
        """An observer with its own converted form, which torchao lets it write."""

        def convert(self, model: GraphModule, observer_node: Node) -> None:
            value = require_tensor_value(observer_node.all_input_nodes[0])
            _write(model, observer_node, self.observer.converted_form(value.shape))

    return BlockObserver


def _write(model: GraphModule, node: Node, form: ConvertedForm) -> None:
    """Replace an observer's node by a quantize and a dequantize; a constant is stored as integers."""
    graph, source = model.graph, node.all_input_nodes[0]
    value = constant_value(model, source)
    with graph.inserting_before(node):
        integers: Node | None = None
        qparams: list[Any] = []  # nodes or numbers
        if form.choose is None:
            qparams = [
                add_constant(model, f"_{name}_", given, before=node) if isinstance(given, Tensor) else given
                for name, given in (("scale", form.scale), ("zero_point", form.zero_point))
            ]
            if value is not None:
                integers = add_constant(model, "_frozen_param", form.integers(value.detach()), before=node)
        if integers is None:
            tensor = _steps(graph, form.before, source)
            if form.choose is not None:
                chosen = graph.call_function(form.choose.target, (tensor, *form.choose.arguments))
                qparams = [graph.call_function(operator.getitem, (chosen, index)) for index in range(2)]
            integers = graph.call_function(form.quantize, (tensor, *qparams, *form.limits))
        written = graph.call_function(form.dequantize, (integers, *qparams, *form.limits, *form.last))
        node.replace_all_uses_with(_steps(graph, form.after, written))
    graph.erase_node(node)


def _steps(graph: Graph, steps: Sequence[Step], tensor: Node) -> Node:
    for step in steps:
        tensor = graph.call_function(step.target, (tensor, *step.arguments))
    return tensor


def _translate(model: GraphModule) -> None:
    """Replace the annotations by torchao's: the first point of a group has the spec, the others refer to it.

    Cost: O(nodes + edges).
    """
    specs = _torchao("quantizer")
    resolution = resolve_sharing(model.graph)
    for node in model.graph.nodes:
        if node.meta.get(Q_ANNOTATION_KEY) is None:
            continue
        written: dict[EdgeOrNode, Any] = {}
        for point in (*((source, node) for source in node.all_input_nodes), node):
            group = resolution.group_of(point)
            if group is None:
                continue
            first = group.points[0]
            shared = point != first
            written[point] = specs.SharedQuantizationSpec(first) if shared else _spec(group, resolution.groups, specs)
        # torchao builds observers in this order: derived ones come after those that they derive from.
        inputs = {point[0]: spec for point, spec in written.items() if isinstance(point, tuple)}
        derived = {source: spec for source, spec in inputs.items() if hasattr(spec, "derive_qparams_fn")}
        node.meta[Q_ANNOTATION_KEY] = specs.QuantizationAnnotation(
            input_qspec_map={source: spec for source, spec in inputs.items() if source not in derived} | derived,
            output_qspec=written.get(node),
            allow_implicit_sharing=False,
            _annotated=True,
        )


def _spec(group: SharingGroup, groups: Sequence[SharingGroup], specs: Any) -> Any:  # torchao is untyped
    """The group's spec in torchao's class."""
    spec = group.spec
    fields = {name: getattr(spec, name) for name in _FIELDS}
    if isinstance(spec, FixedQParamsQuantizationSpec | DerivedQuantizationSpec) and spec.range is not None:
        fields |= {"quant_min": int(spec.range[0]), "quant_max": int(spec.range[1])}  # torchao needs them written out
    if isinstance(spec, FixedQParamsQuantizationSpec):
        fields["qscheme"] = torch.per_tensor_affine if spec.qscheme is None else spec.qscheme
        return specs.FixedQParamsQuantizationSpec(scale=spec.scale, zero_point=spec.zero_point, **fields)
    if isinstance(spec, DerivedQuantizationSpec):
        return specs.DerivedQuantizationSpec(
            derived_from=[groups[source].points[0] for source in group.derived_from],
            derive_qparams_fn=functools.partial(_derive, spec.derive_qparams_fn),
            ch_axis=spec.ch_axis,
            **fields,
        )
    if not isinstance(spec, QuantizationSpec):
        raise TypeError(f"no spec of torchao's is made from {type(spec).__qualname__}")  # resolve() refuses others
    constructor = _torchao("observer").PartialWrapper(functools.partial(_constructor(spec)))
    return specs.QuantizationSpec(
        observer_or_fake_quant_ctr=constructor, ch_axis=spec.ch_axis, is_dynamic=spec.is_dynamic, **fields
    )


def _constructor(spec: QuantizationSpec) -> Callable[..., nn.Module]:
    """A function that builds the observer of a spec. torchao passes it the spec's fields, which it does not need."""

    def build(**fields: object) -> nn.Module:
        return _wrapped(build_observer(spec))

    return build


def _wrapped(observer: nn.Module) -> nn.Module:
    has_form = hasattr(observer, "converted_form")
    wrapped: nn.Module = (_block_observer_class() if has_form else _observer_class())(observer)
    return wrapped


def _unwrapped(observer: nn.Module) -> nn.Module:
    inner = getattr(observer, "observer", None)
    return inner if isinstance(observer, _observer_class()) and isinstance(inner, nn.Module) else observer


def _derive(function: Callable[..., tuple[Tensor, Tensor]], observers: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    return function([_unwrapped(observer) for observer in observers])


def _call_back(quantizer: Quantizer, model: GraphModule, observers: dict[EdgeOrNode, nn.Module]) -> None:
    """Let the quantizer edit the map of observers: it sees qspec's observers, and those it adds are wrapped."""
    wrappers = {_unwrapped(observer): observer for observer in observers.values()}
    own = {point: _unwrapped(observer) for point, observer in observers.items()}
    quantizer.prepare_obs_or_fq_callback(model, own)
    observers.clear()
    for point, observer in own.items():
        if observer not in wrappers:
            wrappers[observer] = _wrapped(observer)
        observers[point] = wrappers[observer]

"""Read annotations of other PT2E stacks by their fields, so that quantizers written for those work unchanged."""

import warnings
from typing import Any

from torch.fx import GraphModule, Node

from qspec_core._errors import AnnotationError, SpecError
from qspec_core._spec import (
    Q_ANNOTATION_KEY,
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)
from qspec_core.observers._constructor import converts_itself

__all__ = ["adopt_annotations"]

_OWN_SPECS = (QuantizationSpec, FixedQParamsQuantizationSpec, SharedQuantizationSpec, DerivedQuantizationSpec)
_RANGED = ("dtype", "quant_min", "quant_max", "qscheme", "is_dynamic")


def adopt_annotations(module: GraphModule) -> None:
    """Replace annotations of other classes, on a graph that qspec owns, by qspec's own with the same content.

    A spec is recognised by its fields: `edge_or_node` shares, `derive_qparams_fn` derives, `scale` is fixed,
    `observer_or_fake_quant_ctr` observes. Its constructor is kept, whatever its class.

    A spec for an edge that the graph does not have is left out, as other stacks do: some quantizers rewrite an argument
    and still annotate the old one. Points that share with such an edge share with its producer's output instead. If
    that has no spec, the first of them gets the spec of the edge.

    Raises: AnnotationError: an annotation holds an object that has the fields of no spec.
    Warns: UserWarning, once: specs were left out.
    Cost: O(nodes + edges).
    """
    stale: dict[Any, Any] = {}  # specs by edge
    for node in module.graph.nodes:
        found = node.meta.get(Q_ANNOTATION_KEY)
        if found is None or _is_own(found) or not hasattr(found, "input_qspec_map"):  # prepare refuses the last
            continue
        inputs, arguments = found.input_qspec_map or {}, set(node.all_input_nodes)
        stale |= {(source, node): _spec(node, inputs[source]) for source in inputs if source not in arguments}
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            {source: _spec(node, spec) for source, spec in inputs.items() if source in arguments},
            _spec(node, found.output_qspec),
            bool(getattr(found, "allow_implicit_sharing", True)),
            _annotated=True,
            custom=dict(getattr(found, "custom", {}) or {}),
        )
    if stale:
        for node in module.graph.nodes:
            _redirect(node, stale)
        shown = ", ".join(f"{source} -> {consumer}" for source, consumer in list(stale)[:5])
        warnings.warn(f"specs for {len(stale)} edges that the graph does not have are left out: {shown}", stacklevel=3)


def _redirect(node: Node, stale: dict[Any, Any]) -> None:  # specs by edge
    """Redirect the points of a node that share with a stale edge: to its producer's output, or to its spec."""
    annotation = node.meta.get(Q_ANNOTATION_KEY)
    if annotation is None:
        return
    for place in (*annotation.input_qspec_map, node):
        spec = annotation.output_qspec if place is node else annotation.input_qspec_map[place]
        if not isinstance(spec, SharedQuantizationSpec) or spec.edge_or_node not in stale:
            continue
        edge: Any = spec.edge_or_node  # a pair, since only edges are stale
        source = edge[0]
        producer = source.meta.get(Q_ANNOTATION_KEY) if isinstance(source, Node) else None
        if producer is not None and producer.output_qspec is not None and source is not node:
            found: Any = SharedQuantizationSpec(source)
        else:
            found = stale[edge]
            stale[edge] = SharedQuantizationSpec(node if place is node else (place, node))
        if place is node:
            annotation.output_qspec = found
        else:
            annotation.input_qspec_map[place] = found


def _is_own(annotation: object) -> bool:
    if not isinstance(annotation, QuantizationAnnotation):
        return False
    specs = (*annotation.input_qspec_map.values(), annotation.output_qspec)
    return all(spec is None or isinstance(spec, _OWN_SPECS) for spec in specs)


def _fields(spec: object, *names: str) -> dict[str, Any]:  # each field has a type of its own
    return {name: getattr(spec, name) for name in names if getattr(spec, name, None) is not None}


def _spec(node: Node, spec: object) -> QuantizationSpecBase | None:
    """The same spec in qspec's class. In other stacks a per-channel scheme without an axis means axis 0."""
    if spec is None or isinstance(spec, _OWN_SPECS):
        return spec
    if hasattr(spec, "edge_or_node"):
        return SharedQuantizationSpec(spec.edge_or_node)
    axis = {"ch_axis": 0} if "per_channel" in str(getattr(spec, "qscheme", None)) else {}
    if hasattr(spec, "derive_qparams_fn"):
        fields = axis | _fields(spec, "derived_from", "derive_qparams_fn", "ch_axis", *_RANGED)
        return DerivedQuantizationSpec(**fields)
    if hasattr(spec, "zero_point") and hasattr(spec, "scale"):
        return FixedQParamsQuantizationSpec(**_fields(spec, "scale", "zero_point", *_RANGED))
    if hasattr(spec, "observer_or_fake_quant_ctr"):
        return _observing_spec(node, axis | _fields(spec, "observer_or_fake_quant_ctr", "ch_axis", *_RANGED))
    raise AnnotationError(
        "an annotation holds something that is not a quantization spec",
        where=node,
        found=repr(spec),
        expected="QuantizationSpec, FixedQParams-, Shared- or DerivedQuantizationSpec, or a class with their fields",
        remedy="annotate with one of the four specs, or with None for an edge that stays in float",
    )


def _observing_spec(node: Node, fields: dict[str, Any]) -> QuantizationSpec:  # each field has a type of its own
    """A `QuantizationSpec` with these fields.

    If the observer writes its own converted form, nothing reads the range, so a range that does not fit the dtype is
    dropped.
    """
    try:
        return QuantizationSpec(**fields)
    except SpecError as error:
        if converts_itself(fields["observer_or_fake_quant_ctr"]):
            unread = {name: value for name, value in fields.items() if name not in ("quant_min", "quant_max")}
            return QuantizationSpec(**unread)
        raise error.at(node) from error

"""Read the quantization points of a graph from its annotations, and check them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, TypeGuard

from torch.fx import Graph, Node

from qspec_core._errors import AnnotationError, SharingError, module_path
from qspec_core._sharing._solve import Point
from qspec_core._spec import (
    Q_ANNOTATION_KEY,
    DerivedQuantizationSpec,
    EdgeOrNode,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
)

__all__ = [
    "KEY_FIELDS",
    "Points",
    "collect",
    "consumer_of",
    "describe",
    "function_key",
    "link",
    "producer_of",
    "why_no_spec",
]

KEY_FIELDS = ("dtype", "is_dynamic", "quant_min", "quant_max", "qscheme", "ch_axis", "scale", "zero_point")
"""Fields that must be equal for points on one tensor to share. The constructor is not compared: two lambdas, for
example, are never equal."""

_KINDS = (QuantizationSpec, FixedQParamsQuantizationSpec, SharedQuantizationSpec, DerivedQuantizationSpec)


@dataclass(frozen=True)
class Points:
    """The points that carry a spec, in graph order: for each node its input edges, in argument order, then its output.

    Args:
        graph: the graph of the points.
        points: the points.
        specs: the spec of each point.
        allows: for each point, whether its annotation allows implicit sharing.
        index: position of each point in `points`.
        tensors: number of each node of the graph; it identifies the tensor that the node produces.
    """

    graph: Graph
    points: Sequence[EdgeOrNode]
    specs: Sequence[QuantizationSpecBase]
    allows: Sequence[bool]
    index: Mapping[EdgeOrNode, int]
    tensors: Mapping[Node, int]


def producer_of(point: EdgeOrNode) -> Node:
    """The node that produces the tensor of a point."""
    return point if isinstance(point, Node) else point[0]


def consumer_of(point: EdgeOrNode) -> Node:
    """The node whose annotation holds the spec of a point: the consumer of an edge, or the node of an output."""
    return point if isinstance(point, Node) else point[1]


def describe(point: object) -> str:
    """Describe a point, with the module it was traced in."""
    if not _is_point(point):
        return repr(point)
    path = module_path(consumer_of(point))
    place = f"in module '{path}'" if path else "in the root module"
    if isinstance(point, Node):
        return f"output of '{point.name}' ({place})"
    return f"edge '{point[0].name}' -> '{point[1].name}' ({place})"


def _is_point(value: object) -> TypeGuard[EdgeOrNode]:
    if isinstance(value, Node):
        return True
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(node, Node) for node in value)


def why_no_spec(points: Points, point: object) -> str:
    """Say why a point has no spec: the graph does not have the point, or its annotation leaves it in float."""
    if not _is_point(point):
        return "it is neither a node nor a pair (producer, consumer) of nodes"
    producer, consumer = producer_of(point), consumer_of(point)
    for node in (producer, consumer):
        if node not in points.tensors:
            return f"'{node.name}' {_why_not_in_graph(points.graph, node)}"
    if not isinstance(point, Node) and producer not in consumer.all_input_nodes:
        return f"'{producer.name}' is not an argument of '{consumer.name}'"
    if consumer.meta.get(Q_ANNOTATION_KEY) is None:
        return f"'{consumer.name}' has no annotation"
    part = "output_qspec" if isinstance(point, Node) else f"spec for its input '{producer.name}'"
    return f"the annotation of '{consumer.name}' has no {part}"


def _why_not_in_graph(graph: Graph, node: Node) -> str:
    return "was erased from the graph" if node.graph is graph else "belongs to another graph"


def collect(graph: Graph) -> Points:
    """Read every point that carries a spec.

    Args:
        graph: not changed. Annotations may be of any class with the attributes of a QuantizationAnnotation.
    Returns: the points in graph order.
    Raises: AnnotationError: an annotation names an edge or a node that is not in the graph, or holds something that is
        not a spec.
    Cost: O(nodes + edges).
    """
    tensors = {node: number for number, node in enumerate(graph.nodes)}
    points: list[EdgeOrNode] = []
    specs: list[QuantizationSpecBase] = []
    allows: list[bool] = []
    for node in graph.nodes:
        annotation = node.meta.get(Q_ANNOTATION_KEY)
        if annotation is None:
            continue
        for point, spec in _points_at(node, annotation, tensors):
            points.append(point)
            specs.append(spec)
            allows.append(bool(getattr(annotation, "allow_implicit_sharing", True)))
    index = {point: at for at, point in enumerate(points)}
    return Points(graph, points, specs, allows, index, tensors)


def _points_at(
    node: Node,
    annotation: Any,  # a class of torchao's or of the user's own with the same attributes
    tensors: Mapping[Node, int],
) -> list[tuple[EdgeOrNode, QuantizationSpecBase]]:
    """Points and specs of one annotation; inputs in the order of the node's arguments."""
    if not (hasattr(annotation, "input_qspec_map") and hasattr(annotation, "output_qspec")):
        raise AnnotationError(
            f"the annotation of '{node.name}' is not a QuantizationAnnotation",
            where=node,
            found=repr(annotation),
            expected="an object with input_qspec_map and output_qspec",
            remedy=f"store a QuantizationAnnotation under node.meta['{Q_ANNOTATION_KEY}']",
        )
    inputs = annotation.input_qspec_map
    given = {} if inputs is None else {producer: spec for producer, spec in inputs.items() if spec is not None}
    arguments = dict.fromkeys(node.all_input_nodes)
    for producer in given:
        if producer not in arguments or producer not in tensors:
            _refuse_edge(node, producer, tensors)
    found: list[tuple[EdgeOrNode, object]] = [((arg, node), given[arg]) for arg in arguments if arg in given]
    if annotation.output_qspec is not None:
        found.append((node, annotation.output_qspec))
    return [(point, _checked(point, spec)) for point, spec in found]


def _refuse_edge(consumer: Node, producer: object, tensors: Mapping[Node, int]) -> None:
    """Raise the error for an annotation with a spec for an edge that the graph does not have."""
    problem = (
        f"the annotation of '{consumer.name}' has a spec for {describe((producer, consumer))}, which is not an edge"
    )
    arguments = ", ".join(argument.name for argument in consumer.all_input_nodes)
    remedy = "use the arguments of the annotated node as keys of input_qspec_map"
    if isinstance(producer, Node):
        problem += f": '{producer.name}' "
        problem += "is not an argument of it" if producer in tensors else _why_not_in_graph(consumer.graph, producer)
        remedy += "; annotate after the last change to the graph, or annotate again"
    raise AnnotationError(
        problem,
        where=consumer,
        found=getattr(producer, "name", repr(producer)),
        expected=f"one of {arguments}" if arguments else "no input spec: the node has no arguments",
        remedy=remedy,
    )


def _checked(point: EdgeOrNode, spec: object) -> QuantizationSpecBase:
    if isinstance(spec, _KINDS):
        return spec
    raise AnnotationError(
        f"{describe(point)} is annotated with something that is not a quantization spec",
        where=consumer_of(point),
        found=repr(spec),
        expected=", ".join(kind.__name__ for kind in _KINDS),
        remedy="annotate it with one of these specs, or with None to leave it in float",
    )


def link(points: Points) -> list[Point]:
    """Translate points and specs into the solver's points.

    Raises: SharingError: a reference or a derivation names a point without a spec.
    Cost: O(points + references + derivations).
    """
    classes: dict[tuple[object, ...], int] = {}
    class_of: dict[int, int] = {}
    links = []
    for point, spec, allows in zip(points.points, points.specs, points.allows, strict=True):
        tensor, is_output = points.tensors[producer_of(point)], isinstance(point, Node)
        if isinstance(spec, SharedQuantizationSpec):
            reference = _target(points, point, "shares with", spec.edge_or_node)
            links.append(Point(tensor, is_output=is_output, allows=allows, reference=reference))
            continue
        sources: tuple[int, ...] = ()
        if isinstance(spec, DerivedQuantizationSpec):
            sources = tuple(_target(points, point, "derives from", source) for source in spec.derived_from)
        # A quantizer uses few spec objects at many points: compute the key of each object once.
        if id(spec) not in class_of:
            class_of[id(spec)] = classes.setdefault(_key(spec), len(classes))
        links.append(Point(tensor, class_of[id(spec)], is_output, allows, None, sources))
    return links


def _key(spec: QuantizationSpecBase) -> tuple[object, ...]:
    """The fields that must be equal, as a tuple. The solver compares the points that a derived spec names, by group."""
    function = function_key(spec) if isinstance(spec, DerivedQuantizationSpec) else ()
    return (function, *(getattr(spec, name, None) for name in KEY_FIELDS))


def function_key(spec: DerivedQuantizationSpec) -> tuple[int, ...]:
    """Identity of the function of a derived spec."""
    derive = spec.derive_qparams_fn
    # Each access of a bound method makes a new object; the function and the instance stay the same.
    return (id(derive.__self__), id(derive.__func__)) if isinstance(derive, MethodType) else (id(derive),)


def _target(points: Points, point: EdgeOrNode, verb: str, target: object) -> int:
    """Position of the point that `point` refers to."""
    at = points.index.get(target) if _is_point(target) else None
    if at is not None:
        return at
    tensor = producer_of(target) if _is_point(target) else None
    near = [describe(known) for known in points.points if producer_of(known) is tensor]
    raise SharingError(
        f"{describe(point)} {verb} {describe(target)}, which carries no spec",
        where=consumer_of(point),
        found=why_no_spec(points, target),
        expected=f"a point with a spec; on the same tensor: {'; '.join(near[:5]) or 'none'}",
        remedy="give that point a spec, or refer to a point that has one",
    )

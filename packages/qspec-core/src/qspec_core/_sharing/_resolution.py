"""Resolve a graph's annotations into groups of points that share one observer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Never

from torch.fx import Graph

from qspec_core._errors import SharingError
from qspec_core._sharing._explain import chain_text, explain
from qspec_core._sharing._points import Points, collect, consumer_of, describe, link
from qspec_core._sharing._solve import CycleError, Point, Solution, solve
from qspec_core._spec import EdgeOrNode, QuantizationSpecBase

__all__ = ["SharingGroup", "SharingResolution", "resolve_sharing"]


@dataclass(frozen=True)
class SharingGroup:
    """Points that share one observer or fake-quantize.

    Args:
        index: its position in `SharingResolution.groups`.
        points: its points, in graph order.
        spec: the spec whose constructor builds the observer; never a SharedQuantizationSpec.
        derived_from: for a DerivedQuantizationSpec, the groups of the points that it names, in the same order.
    """

    index: int
    points: tuple[EdgeOrNode, ...]
    spec: QuantizationSpecBase
    derived_from: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SharingResolution:
    """Groups of points that share one observer. Made by `resolve_sharing`.

    Args:
        groups: the groups, numbered in the order of their first point in the graph.
        order: group indices, each derived group after the groups that it derives from.
    """

    groups: tuple[SharingGroup, ...]
    order: tuple[int, ...]
    _points: Points = field(repr=False)
    _links: Sequence[Point] = field(repr=False)
    _solution: Solution = field(repr=False)

    def group_of(self, point: EdgeOrNode) -> SharingGroup | None:
        """The group of a point; None if the point has no spec."""
        at = self._points.index.get(point)
        return None if at is None else self.groups[self._solution.group_of[at]]

    def explain(self, a: EdgeOrNode, b: EdgeOrNode) -> str:
        """Say why two points share (the shortest chain of constraints between them), or why they do not.

        Cost: O(points).
        """
        return explain(self._points, self._links, self._solution, a, b)


def resolve_sharing(graph: Graph) -> SharingResolution:
    """Find the groups of quantization points that share one observer.

    Two points share if one refers to the other; or if they are on one tensor, their specs agree, and both annotations
    allow implicit sharing. The order of annotations does not matter. The order of nodes only numbers the groups and, if
    several specs of a group could build the observer, chooses one.

    Args:
        graph: not changed. Annotations are in the `meta` of its nodes.
    Returns: the groups.
    Raises:
        AnnotationError: an annotation names an edge or a node that is not in the graph, or holds something that is not
            a spec.
        SharingError: a reference or derivation names a point without a spec, or forms a cycle.
    Cost: O(nodes + edges) and a near-linear solver; one pass over the graph, no recursion.
    """
    points = collect(graph)
    links = link(points)
    try:
        solution = solve(links)
    except CycleError as cycle:
        _refuse_cycle(points, links, cycle)
    members: list[list[EdgeOrNode]] = [[] for _ in solution.constructors]
    for point, number in zip(points.points, solution.group_of, strict=True):
        members[number].append(point)
    groups = tuple(
        SharingGroup(number, tuple(members[number]), points.specs[at], solution.derived_from[number])
        for number, at in enumerate(solution.constructors)
    )
    order = tuple(sorted(range(len(groups)), key=solution.levels.__getitem__))
    return SharingResolution(groups, order, points, links, solution)


def _refuse_cycle(points: Points, links: Sequence[Point], cycle: CycleError) -> Never:
    """Raise the error for a cycle, with its points, their modules and the constraint from each point to the next."""
    following = (*cycle.points[1:], cycle.points[0])
    steps = []
    for here, there in zip(cycle.points, following, strict=True):
        verb = "derives from" if links[here].reference is None else "shares with"
        steps.append(f"{describe(points.points[here])} {verb} {describe(points.points[there])}")
    if cycle.derivation:
        kind, needed = "derivations", "from a point whose scale does not depend on it"
        remedy = f"let one of these points derive {needed}, or give it a QuantizationSpec"
    else:
        kind, remedy = "references", "give one of these points a spec of its own instead of its SharedQuantizationSpec"
    raise SharingError(
        f"a cycle of {kind} between quantization points:\n{chain_text(steps)}",
        where=consumer_of(points.points[cycle.points[0]]),
        found=f"{len(steps)} point(s), none of which refers to a spec outside the cycle",
        expected="references that end in a point with a spec of its own",
        remedy=remedy,
    ) from None

"""From a graph's annotations to the groups of points that share one observer."""

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
        index: its place in `Resolution.groups`.
        points: its points, in graph order.
        spec: the spec whose constructor builds the observer; never a SharedQuantizationSpec.
        derived_from: for a DerivedQuantizationSpec, the groups that hold the points it names, in its order.
    """

    index: int
    points: tuple[EdgeOrNode, ...]
    spec: QuantizationSpecBase
    derived_from: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SharingResolution:
    """Who shares with whom. Made by `resolve`.

    Args:
        groups: the groups, numbered in the order of their first point in the graph.
        order: group indices such that a derived group comes after those it derives from.
    """

    groups: tuple[SharingGroup, ...]
    order: tuple[int, ...]
    _points: Points = field(repr=False)
    _links: Sequence[Point] = field(repr=False)
    _solution: Solution = field(repr=False)

    def group_of(self, point: EdgeOrNode) -> SharingGroup | None:
        """The group of a point; None where the point carries no spec."""
        at = self._points.index.get(point)
        return None if at is None else self.groups[self._solution.group_of[at]]

    def explain(self, a: EdgeOrNode, b: EdgeOrNode) -> str:
        """Why two points share (the shortest chain of constraints between them), or why not.

        Cost: O(points), paid only when asked.
        """
        return explain(self._points, self._links, self._solution, a, b)


def resolve_sharing(graph: Graph) -> SharingResolution:
    """Find the groups of quantization points that share one observer.

    Points join where one refers to the other, and where they sit on one tensor, their specs agree and both annotations
    allow implicit sharing. The order of annotations never matters. The order of nodes numbers the groups and chooses
    between constructors of agreeing specs where references and the producer's output leave a choice; nothing else.

    Args:
        graph: only read. Annotations stand in the `meta` of its nodes.
    Returns: the groups.
    Raises:
        AnnotationError: an annotation names an edge that is none or a node that is not in the graph, or holds
            something that is not a spec.
        SharingError: a reference or derivation leads to a point without a spec, or back to where it started.
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
    """Raise the error that names the points of a cycle, their modules and what leads from each to the next."""
    following = (*cycle.points[1:], cycle.points[0])
    steps = []
    for here, there in zip(cycle.points, following, strict=True):
        verb = "derives from" if links[here].reference is None else "shares with"
        steps.append(f"{describe(points.points[here])} {verb} {describe(points.points[there])}")
    if cycle.derivation:
        kind, needed = "derivations", "from a point whose scale does not depend on it"
        remedy = f"let one of these points derive {needed}, or give it a QuantizationSpec"
    else:
        kind, remedy = "references", "give one of these points a spec of its own in place of its SharedQuantizationSpec"
    raise SharingError(
        f"a cycle of {kind} between quantization points:\n{chain_text(steps)}",
        where=consumer_of(points.points[cycle.points[0]]),
        found=f"{len(steps)} point(s), none of which leads to a spec outside the cycle",
        expected="references that end in a point with a spec of its own",
        remedy=remedy,
    ) from None

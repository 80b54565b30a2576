"""Solver: group points by references and agreement. It works on integers only."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["CycleError", "Point", "Solution", "solve"]


class Point(NamedTuple):
    """The facts about a quantization point that decide sharing. Other points are given by their position.

    Args:
        tensor: number of the tensor that it is on.
        key: number of its class of agreeing specs; not used if the point refers to another one.
        is_output: whether it is the output of the tensor's producer, not an edge to a consumer.
        allows: whether its annotation allows implicit sharing.
        reference: the point that it shares with; None if it has its own spec.
        derived_from: the points that its scale and zero point are computed from.
    """

    tensor: int
    key: int = -1
    is_output: bool = False
    allows: bool = True
    reference: int | None = None
    derived_from: tuple[int, ...] = ()


@dataclass(frozen=True)
class Solution:
    """The groups, numbered in the order of their first point.

    Args:
        group_of: group of each point.
        constructors: for each group, the point whose spec builds the observer; never one that refers to another.
        derived_from: for each group, the groups that it derives from, in the order of its spec.
        levels: for each group, 0, or one more than the highest level among the groups that it derives from.
    """

    group_of: Sequence[int]
    constructors: Sequence[int]
    derived_from: Sequence[tuple[int, ...]]
    levels: Sequence[int]


class CycleError(Exception):
    """References or derivations form a cycle. `resolve_sharing` turns it into an error that names the points.

    Args:
        points: the cycle; each point refers to or derives from the next, the last from the first.
        derivation: whether some step of the cycle is a derivation; otherwise all are references.
    """

    def __init__(self, points: tuple[int, ...], *, derivation: bool) -> None:
        super().__init__(points)
        self.points = points
        self.derivation = derivation


class _Partition:
    """Union-find with path halving. The smallest member represents its set."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, member: int) -> int:
        parent = self._parent
        while parent[member] != member:
            parent[member] = member = parent[parent[member]]
        return member

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        self._parent[max(one, other)] = min(one, other)


def solve(points: Sequence[Point]) -> Solution:
    """Divide points into the groups that share one observer.

    Args:
        points: in graph order. The order only numbers the groups and settles ties between constructors.
    Returns: the groups.
    Raises: CycleError: references, or derivations between groups, form a cycle.
    Cost: O(n log n) in the worst case, linear in practice; no recursion. n counts points, references and derivations.
    """
    roots = _follow_references(points)
    heights = _derivation_levels(points, roots)
    partition = _join_agreeing(points, roots, heights)
    numbers: dict[int, int] = {}
    group_of = [numbers.setdefault(partition.find(root), len(numbers)) for root in roots]
    constructors = _constructors(points, roots, group_of, len(numbers))
    return Solution(
        group_of=group_of,
        constructors=constructors,
        derived_from=[tuple(group_of[source] for source in points[point].derived_from) for point in constructors],
        levels=[heights.get(point, 0) for point in constructors],
    )


def _follow_references(points: Sequence[Point]) -> list[int]:
    """For each point, the point at the end of its chain of references; a point without a reference is its own end."""
    roots = [-1] * len(points)
    visited_from = [-1] * len(points)
    for start in range(len(points)):
        at = start
        path: list[int] = []
        while roots[at] < 0:
            reference = points[at].reference
            if reference is None:
                roots[at] = at
            elif visited_from[at] == start:
                raise CycleError(_smallest_first(path[path.index(at) :]), derivation=False)
            else:
                visited_from[at] = start
                path.append(at)
                at = reference
        for passed in path:
            roots[passed] = roots[at]
    return roots


def _derivation_levels(points: Sequence[Point], roots: Sequence[int]) -> dict[int, int]:
    """Level of every point that derives: 1 if it derives from plain points only.

    Derived specs that agree derive from the same groups, so they are on the same level. A level can be joined once all
    lower levels are.
    """
    needed_by: defaultdict[int, list[int]] = defaultdict(list)
    missing: dict[int, int] = {}
    for at, point in enumerate(points):
        if point.derived_from:
            missing[at] = 0
            for source in point.derived_from:
                if points[roots[source]].derived_from:
                    missing[at] += 1
                    needed_by[roots[source]].append(at)
    levels: dict[int, int] = {}
    ready, level = [at for at, count in missing.items() if count == 0], 1
    while ready:
        following = []
        for at in ready:
            levels[at] = level
            for user in needed_by.get(at, ()):
                missing[user] -= 1
                if missing[user] == 0:
                    following.append(user)
        ready, level = following, level + 1
    if len(levels) < len(missing):
        stuck = {at for at in missing if at not in levels}
        raise CycleError(_derivation_cycle(points, roots, stuck), derivation=True)
    return levels


def _derivation_cycle(points: Sequence[Point], roots: Sequence[int], stuck: set[int]) -> tuple[int, ...]:
    """A cycle of derivations and the references between them. Every stuck point derives from a stuck one."""
    steps: dict[int, list[int]] = {}
    at = min(stuck)
    while at not in steps:
        source = next(source for source in points[at].derived_from if roots[source] in stuck)
        passed = [at]
        while (reference := points[source].reference) is not None:
            passed.append(source)
            source = reference
        steps[at] = passed
        at = source
    order = list(steps)
    return _smallest_first([point for start in order[order.index(at) :] for point in steps[start]])


def _smallest_first(cycle: list[int]) -> tuple[int, ...]:
    """The same cycle, starting at its first point in graph order."""
    start = cycle.index(min(cycle))
    return (*cycle[start:], *cycle[:start])


def _join_agreeing(points: Sequence[Point], roots: Sequence[int], heights: dict[int, int]) -> _Partition:
    """Join points on one tensor that agree and allow it: plain specs first, then derived ones level by level."""
    partition = _Partition(len(points))
    levels = [heights.get(root, 0) for root in roots]
    in_order = sorted(range(len(points)), key=levels.__getitem__) if heights else range(len(points))
    sources: dict[int, tuple[int, ...]] = {}
    first_of: dict[tuple[int, int, tuple[int, ...]], int] = {}
    for at in in_order:
        root = roots[at]
        if not points[at].allows:
            continue
        if root not in sources:
            # Groups of lower levels are complete, so the representative of each one is final.
            sources[root] = tuple([partition.find(roots[source]) for source in points[root].derived_from])
        first = first_of.setdefault((points[at].tensor, points[root].key, sources[root]), root)
        if first != root:
            partition.join(first, root)
    return partition


def _constructors(points: Sequence[Point], roots: Sequence[int], group_of: Sequence[int], count: int) -> list[int]:
    """For each group, the point whose spec builds the observer.

    This is the end of its references, else the producer's output, else the first edge. If references end in several
    points of one group, outputs come before edges, then the first point is used.
    """
    best: list[tuple[bool, bool, int] | None] = [None] * count
    for at, point in enumerate(points):
        root = roots[at]
        rank = (point.reference is None, not points[root].is_output, root)
        known = best[group_of[at]]
        if known is None or rank < known:
            best[group_of[at]] = rank
    return [rank[2] for rank in best if rank is not None]

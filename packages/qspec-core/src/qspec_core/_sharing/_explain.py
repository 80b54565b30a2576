"""Explain why two quantization points share an observer, or do not."""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

from qspec_core._sharing._points import (
    KEY_FIELDS,
    Points,
    consumer_of,
    describe,
    function_key,
    producer_of,
    why_no_spec,
)
from qspec_core._sharing._solve import Point, Solution
from qspec_core._spec import DerivedQuantizationSpec, EdgeOrNode

__all__ = ["chain_text", "explain"]

_SHOWN = 6
"""Number of steps shown at each end of a long chain."""


def chain_text(steps: Sequence[str]) -> str:
    """Steps, one on each line; for a long chain, only both ends."""
    if len(steps) > 2 * _SHOWN:
        steps = [*steps[:_SHOWN], f"... {len(steps) - 2 * _SHOWN} more ...", *steps[-_SHOWN:]]
    return "\n".join(f"  {step}" for step in steps)


def explain(points: Points, links: Sequence[Point], solution: Solution, a: EdgeOrNode, b: EdgeOrNode) -> str:
    """Text that says why two points share one observer, or why they do not.

    Cost: O(points).
    """
    for point in (a, b):
        if point not in points.index:
            return f"{describe(point)} carries no spec and shares with nothing: {why_no_spec(points, point)}"
    one, other = points.index[a], points.index[b]
    if one == other:
        return f"{describe(a)} is one point"
    group, other_group = solution.group_of[one], solution.group_of[other]
    if group != other_group:
        return f"{describe(a)} and {describe(b)} do not share: {_why_separate(points, links, solution, one, other)}"
    members = [at for at, number in enumerate(solution.group_of) if number == group]
    steps = [_step(points, links, here, there) for here, there in _chain(links, members, one, other)]
    return f"{describe(a)} and {describe(b)} share, as members of group {group}:\n{chain_text(steps)}"


def _step(points: Points, links: Sequence[Point], here: int, there: int) -> str:
    """Describe the constraint between two points."""
    start, end = points.points[here], points.points[there]
    if links[here].reference == there:
        return f"{describe(start)} refers to {describe(end)}"
    if links[there].reference == here:
        return f"{describe(start)} is referred to by {describe(end)}"
    tensor = producer_of(start).name
    return f"{describe(start)} and {describe(end)} are on the tensor '{tensor}', agree, and both allow implicit sharing"


def _chain(links: Sequence[Point], members: Iterable[int], start: int, end: int) -> list[tuple[int, int]]:
    """Shortest chain of constraints between two points of one group."""
    referring: defaultdict[int, list[int]] = defaultdict(list)
    on_tensor: defaultdict[int, list[int]] = defaultdict(list)
    for at in members:
        reference = links[at].reference
        if reference is not None:
            referring[reference].append(at)
        if links[at].allows:
            on_tensor[links[at].tensor].append(at)
    came_from = {start: start}
    queue = deque([start])
    while end not in came_from:
        at = queue.popleft()
        reference = links[at].reference
        neighbours = referring[at] if reference is None else [*referring[at], reference]
        if links[at].allows:
            # Points on one tensor are all connected: the first one visited reaches the rest. Use each tensor once.
            neighbours = [*neighbours, *on_tensor.pop(links[at].tensor, [])]
        for neighbour in neighbours:
            if neighbour not in came_from:
                came_from[neighbour] = at
                queue.append(neighbour)
    steps = []
    while end != start:
        steps.append((came_from[end], end))
        end = came_from[end]
    return steps[::-1]


def _why_separate(points: Points, links: Sequence[Point], solution: Solution, one: int, other: int) -> str:
    """Say why two groups are separate, at the two points or at the first tensor that has points of both groups."""
    prefix = ""
    if links[one].tensor != links[other].tensor:
        names = " and ".join(f"'{producer_of(points.points[at]).name}'" for at in (one, other))
        prefix = f"they are on different tensors ({names}), and no chain of references connects them"
        meeting = _common_tensor(links, solution, one, other)
        if meeting is None:
            return prefix
        one, other = meeting
        prefix += f"; their groups meet at {describe(points.points[one])} and {describe(points.points[other])}, where "
    groups = (solution.group_of[one], solution.group_of[other])
    difference = _difference(points, solution, *groups)
    if difference is not None:
        return prefix + difference
    forbidding = dict.fromkeys(consumer_of(points.points[at]).name for at in (one, other) if not links[at].allows)
    owners = " and of ".join(f"'{name}'" for name in forbidding)
    return f"{prefix}their specs agree, but the annotation of {owners} has allow_implicit_sharing=False"


def _common_tensor(links: Sequence[Point], solution: Solution, one: int, other: int) -> tuple[int, int] | None:
    """The first two points, one of each group, that are on the same tensor."""
    group, other_group = solution.group_of[one], solution.group_of[other]
    on_tensor: dict[int, int] = {}
    for at, number in enumerate(solution.group_of):
        if number == group:
            on_tensor.setdefault(links[at].tensor, at)
    for at, number in enumerate(solution.group_of):
        if number == other_group and links[at].tensor in on_tensor:
            return on_tensor[links[at].tensor], at
    return None


def _difference(points: Points, solution: Solution, group: int, other: int) -> str | None:
    """The first difference between the specs of two groups; None if they agree."""
    spec, other_spec = (points.specs[solution.constructors[number]] for number in (group, other))
    derives = [isinstance(each, DerivedQuantizationSpec) for each in (spec, other_spec)]
    if derives[0] != derives[1]:
        return f"one of their specs is derived and the other is not ({spec!r} and {other_spec!r})"
    for name in KEY_FIELDS:
        value, other_value = getattr(spec, name, None), getattr(other_spec, name, None)
        if value != other_value:
            return f"their specs differ in {name}: {value} and {other_value}"
    if isinstance(spec, DerivedQuantizationSpec) and isinstance(other_spec, DerivedQuantizationSpec):
        if solution.derived_from[group] != solution.derived_from[other]:
            sources = f"{solution.derived_from[group]} and {solution.derived_from[other]}"
            return f"their specs derive from different groups: {sources}"
        if function_key(spec) != function_key(other_spec):
            functions = f"{spec.derive_qparams_fn} and {other_spec.derive_qparams_fn}"
            return f"their specs derive by different functions: {functions}"
    return None

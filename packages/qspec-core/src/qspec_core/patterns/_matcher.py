"""The one matcher: finds the rows of a table in a graph by its structure alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Graph, Node

from qspec_core._torch import OpOverload
from qspec_core.graph import argument, argument_names, is_call
from qspec_core.patterns._operands import PostOp, PreOp
from qspec_core.patterns._reasons import Reason, ReasonCode
from qspec_core.patterns._rows import Link, Match, Row

__all__ = ["Matching", "match_rows"]


@dataclass(frozen=True)
class Matching:
    """Result of a search.

    Args:
        matches: in the order of their anchors in the graph.
        declined: for each anchor that no row took, the reason of the last row that looked at it, other than that it
            has another mode.
    """

    matches: tuple[Match, ...]
    declined: Mapping[Node, Reason]


Accept = Callable[[Match], Reason | None]
Admit = Callable[[Row, Node], Reason | None]


def match_rows(
    graph: Graph, rows: Sequence[Row], *, accept: Accept | None = None, admit: Admit | None = None
) -> Matching:
    """Find the rows in a graph in canonical form.

    Rows claim nodes in their written order; the anchors of a row are visited from the end of the graph, so that of two
    producers of a sum the later one takes the sum into its kernel, in the float graph as in the converted one. A node
    is claimed once.

    Args:
        graph: exported graph, only read.
        rows: in the order in which they may claim nodes.
        accept: called with each candidate, longest chain first; a reason declines it.
        admit: called with a row and an anchor before the row's own checks, so that a row of another mode gives no
            reasons of its own.
    Returns: the matches, and the reasons of the anchors that none took.
    Cost: O(nodes * rows of one anchor) time, O(nodes) memory.
    """
    anchors = {row.anchor for row in rows}
    buckets: dict[OpOverload, list[Node]] = {}
    order: dict[Node, int] = {}
    for position, node in enumerate(graph.nodes):
        order[node] = position
        if is_call(node) and node.target in anchors:
            buckets.setdefault(node.target, []).append(node)
    claimed: dict[Node, Match] = {}
    declined: dict[Node, Reason] = {}
    matches: list[Match] = []
    for row in rows:
        for anchor in reversed(buckets.get(row.anchor, ())):
            if anchor in claimed:
                continue
            refusal = None if admit is None else admit(row, anchor)
            found = refusal if refusal is not None else _match_anchor(row, anchor, claimed, accept)
            if isinstance(found, Match):
                matches.append(found)
                claimed.update(dict.fromkeys(found.nodes, found))
                declined.pop(anchor, None)
            elif anchor not in declined or found.code is not ReasonCode.UNSUPPORTED_MODE:
                declined[anchor] = found
    matches.sort(key=_position(order))
    return Matching(tuple(matches), {n: r for n, r in declined.items() if n not in claimed})


def _position(order: Mapping[Node, int]) -> Callable[[Match], int]:
    def position(match: Match) -> int:
        return order[match.anchor]

    return position


def _match_anchor(row: Row, anchor: Node, claimed: Mapping[Node, Match], accept: Accept | None) -> Match | Reason:
    for check in row.checks:
        reason = check(anchor)
        if reason is not None:
            return reason
    absorbed = dict(_absorbed(row, anchor, claimed))
    reason = None
    for chain in row.chains:
        links = _links(chain, anchor, claimed)
        if isinstance(links, Reason):
            reason = links
            continue
        candidate = Match(row, anchor, links, absorbed)
        reason = None if accept is None else accept(candidate)
        if reason is None:
            return candidate
    return reason if reason is not None else Reason.unsupported(f"row {row.name} needs one of its chains")


def _absorbed(row: Row, anchor: Node, claimed: Mapping[Node, Match]) -> Iterator[tuple[str, tuple[PreOp, Node]]]:
    for operand in row.operands:
        if not operand.absorbs:
            continue
        node = argument(anchor, operand.name)
        for pre_op in operand.absorbs:
            if not is_call(node, pre_op.target) or node in claimed or len(node.users) != 1:
                continue
            if pre_op.check is None or pre_op.check(node) is None:
                yield operand.name, (pre_op, node)
                break


def _links(chain: Sequence[PostOp], anchor: Node, claimed: Mapping[Node, Match]) -> tuple[Link, ...] | Reason:
    links: list[Link] = []
    previous = anchor
    for post_op in chain:
        node = next(iter(previous.users), None)
        if node is None or len(previous.users) != 1 or node in claimed or not is_call(node, post_op.target):
            return Reason.unsupported(f"no {post_op.kernel} follows as the one reader")
        if post_op.other is not None and not _is_binary_with(node, previous):
            return Reason.unsupported(f"{post_op.kernel} has no second tensor of its own")
        if post_op.check is not None:
            reason = post_op.check(previous, node)
            if reason is not None:
                return reason
        links.append(Link(post_op, previous, node))
        previous = node
    return tuple(links)


def _is_binary_with(node: Node, previous: Node) -> bool:
    """Both operands are nodes, and exactly one of them is `previous`: `x + x` has no second operand to read."""
    first, second = (argument(node, name) for name in argument_names(node.target)[:2])  # type: ignore[arg-type]  # is_call held
    return isinstance(first, Node) and isinstance(second, Node) and (first is previous) != (second is previous)

"""Choose the joining and sharing matches: they run in integers where their inputs are integers already."""

from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

from qspec_core.patterns import Flow, Match, OtherRole, Outputs, Reason, ReasonCode, Role

__all__ = ["choose_joins", "ends_in_float_sum", "tensors_of_common_range"]

aten = torch.ops.aten

_TAKES_A_PART = frozenset({aten.slice.Tensor, aten.select.int})
"""Operators that take a part of their input. A quantize before one would have the range of the whole tensor, which may
be wider than that of the part: of all tokens, not of the one that is classified.
"""


def ends_in_float_sum(match: Match) -> bool:
    """Whether the chain ends in a sum with a float tensor: quantizing that residual stream ruins accuracy."""
    return any(link.post_op.other is OtherRole.FLOAT for link in match.links)


def choose_joins(
    starts: Sequence[Match], candidates: Sequence[Match], outputs: Outputs
) -> tuple[tuple[Match, ...], Mapping[Node, Reason]]:
    """Choose which joining and sharing matches run in integers, in one sweep forward and one backward.

    A match is chosen if each of its inputs is an integer tensor already: the result of a chosen match, or a tensor that
    a chosen match quantizes. A sharing match with one input and one reader is also chosen after a float producer, if
    the reader takes integers: the quantize then moves before the match, unless the match takes a part of its input. On
    a device that quantizes on demand, a match needs an integer reader too.

    Args:
        starts: matches that start integers, each static.
        candidates: joining and sharing matches, in graph order.
        outputs: which outputs the device wants quantized.
    Returns: the chosen candidates in graph order, and the reason for each anchor left out.
    Cost: O(edges).
    """
    integer: set[Node] = set()
    for match in starts:
        integer.update(_inputs(match))
        if not ends_in_float_sum(match):
            integer.add(match.tail)
    forward: set[Node] = set()
    for match in candidates:
        if all(node in integer for node in _inputs(match)):
            forward.add(match.anchor)
            integer.add(match.tail)
    return _backward(starts, candidates, forward, outputs)


def tensors_of_common_range(matches: Sequence[Match]) -> set[Node]:
    """The float tensors that sharing matches with several inputs quantize: all inputs of such a match have one range.

    Results of sharing matches are left out. They are integers already, and another range would round them twice.
    """
    common: set[Node] = set()
    sharing = [match for match in matches if match.row.flow is Flow.SHARES]
    for match in sharing:
        inputs = set(_inputs(match))
        if len(inputs) > 1:
            common |= inputs
    return common.difference(match.tail for match in sharing)


def _edges(match: Match) -> list[tuple[Node, Node]]:
    """Edges on which a match reads integers."""
    edges = [(node, match.consumer(operand)) for operand, node in match.inputs(Role.ACTIVATION, Role.ACTIVATIONS)]
    return edges + [(link.other, link.node) for link in match.links if link.post_op.other is OtherRole.QUANTIZED]


def _inputs(match: Match) -> list[Node]:
    return [producer for producer, _ in _edges(match)]


def _backward(
    starts: Sequence[Match], candidates: Sequence[Match], forward: set[Node], outputs: Outputs
) -> tuple[tuple[Match, ...], Mapping[Node, Reason]]:
    edges = {edge for match in starts for edge in _edges(match)}
    chosen: list[Match] = []
    reasons: dict[Node, Reason] = {}
    for match in reversed(candidates):
        tail = match.tail
        readers = [(tail, user) in edges for user in tail.users]
        if match.anchor not in forward and not _can_rise(match, readers):
            floats = ", ".join(dict.fromkeys(node.name for node in _inputs(match)))
            reasons[match.anchor] = Reason(ReasonCode.INPUT_NOT_QUANTIZED, f"not every input is integer: {floats}")
        elif outputs is Outputs.DEMAND and not any(readers):
            reasons[match.anchor] = Reason(ReasonCode.NO_INTEGER_READER, "nothing that reads it takes integers")
        else:
            chosen.append(match)
            edges.update(_edges(match))
    return tuple(reversed(chosen)), reasons


def _can_rise(match: Match, readers: Sequence[bool]) -> bool:
    """Whether the quantize of a match's only reader may move before the match.

    Args:
        readers: for each user, whether it takes integers.
    """
    shares = match.row.flow is Flow.SHARES and match.anchor.target not in _TAKES_A_PART
    return shares and len(_inputs(match)) == 1 and len(readers) == 1 and readers[0]

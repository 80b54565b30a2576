"""The matcher on graphs written by hand: which row takes which nodes."""

from dataclasses import replace
from typing import Any

import pytest
from core_support import ADD, ADD_ROW, CAT, CONV2D, FLOAT_ADD, LINEAR, PAD, RELU, aten, layer
from torch.fx import Graph, Node

from qspec_core.patterns import (
    Match,
    Matching,
    PostOp,
    PreOp,
    Reason,
    ReasonCode,
    Role,
    Row,
    activation,
    bias,
    match_rows,
    weight,
)


class Sketch:
    """A graph under construction."""

    def __init__(self, inputs: str = "xwb") -> None:
        self.graph = Graph()
        self.inputs = {name: self.graph.placeholder(name) for name in inputs}

    def conv(self, x: Node | None = None, target: Any = aten.conv2d.default) -> Node:
        source = self.inputs["x"] if x is None else x
        return self.call(target, source, self.inputs["w"], self.inputs["b"])

    def call(self, target: Any, *args: Any) -> Node:  # torch leaves operators and their arguments untyped
        return self.graph.call_function(target, args)

    def relu(self, x: Node) -> Node:
        return self.call(aten.relu.default, x)

    def add(self, x: Node, y: object) -> Node:
        return self.call(aten.add.Tensor, x, y)

    def match(self, *rows: Row, **options: Any) -> Matching:
        self.graph.output(None)
        return match_rows(self.graph, rows, **options)


def labels(matching: Matching) -> list[str]:
    return [match.label for match in matching.matches]


def test_longest_chain_that_fits_is_taken() -> None:
    for tail, want in ((0, "conv2d"), (1, "conv2d + add"), (2, "conv2d + add + relu")):
        g = Sketch("xwby")
        last = g.conv()
        nodes = [last]
        if tail > 0:
            nodes.append(last := g.add(last, g.inputs["y"]))
        if tail > 1:
            nodes.append(last := g.relu(last))
        g.relu(g.relu(g.call(aten.tanh.default, last)))
        (match,) = g.match(CONV2D).matches
        assert match.label == want
        assert match.nodes == tuple(nodes)
        assert match.tail is last


def test_order_of_chains_decides_not_their_length() -> None:
    g = Sketch()
    g.relu(g.conv())
    assert labels(g.match(replace(CONV2D, chains=((), (RELU,))))) == ["conv2d"]


@pytest.mark.parametrize("swapped", [False, True])
def test_sum_of_two_producers_goes_to_the_later_one(swapped: bool) -> None:
    g = Sketch()
    first, second = g.conv(), g.conv()
    total = g.add(second, first) if swapped else g.add(first, second)
    g.relu(total)
    matching = g.match(CONV2D)
    assert labels(matching) == ["conv2d", "conv2d + add + relu"]
    assert matching.matches[1].anchor is second
    link = matching.matches[1].links[0]
    assert (link.previous, link.node, link.other) == (second, total, first)
    assert matching.matches[1].links[1].other is None
    assert total in matching.matches[1].nodes


def test_node_with_two_readers_ends_the_chain() -> None:
    g = Sketch()
    conv = g.conv()
    relu = g.relu(conv)
    g.call(aten.tanh.default, conv)
    matching = g.match(CONV2D)
    assert labels(matching) == ["conv2d"]
    assert relu not in matching.matches[0].nodes


def test_sum_of_a_value_with_itself_is_no_binary_post_op() -> None:
    g = Sketch()
    conv = g.conv()
    g.add(conv, conv)
    assert labels(g.match(CONV2D)) == ["conv2d"]


def test_sum_with_a_number_is_no_binary_post_op() -> None:
    g = Sketch()
    g.add(g.conv(), 1.0)
    assert labels(g.match(CONV2D)) == ["conv2d"]


def test_anchor_that_needs_a_chain_is_declined_without_one() -> None:
    g = Sketch()
    conv = g.conv()
    matching = g.match(replace(CONV2D, chains=((ADD,), (RELU,))))
    assert matching.matches == ()
    assert matching.declined[conv].code is ReasonCode.UNSUPPORTED_ARGUMENT
    assert "relu" in matching.declined[conv].detail


def test_row_without_chains_declines_with_its_name() -> None:
    g = Sketch()
    conv = g.conv()
    assert "conv2d" in g.match(replace(CONV2D, chains=())).declined[conv].detail


def test_node_is_claimed_once_by_the_first_row_written() -> None:
    g = Sketch()
    relu = g.relu(g.conv())
    lone = Row("relu", aten.relu.default, (activation("self"),), PAD.flow, PAD.lower)
    assert labels(g.match(CONV2D, lone)) == ["conv2d + relu"]
    again = match_rows(g.graph, (lone, CONV2D))
    assert labels(again) == ["conv2d", "relu"]
    assert [match.nodes for match in again.matches] == [(relu.args[0],), (relu,)]


def test_row_tried_later_takes_what_an_earlier_one_declined() -> None:
    g = Sketch()
    conv = g.conv()
    second = replace(CONV2D, name="other", checks=())
    matching = g.match(replace(CONV2D, checks=(refuse,)), second)
    assert labels(matching) == ["other"]
    assert conv not in matching.declined


def refuse(node: Node) -> Reason:
    return Reason.unsupported(f"{node.name} refused")


def test_check_gives_the_reason() -> None:
    g = Sketch()
    conv = g.conv()
    matching = g.match(replace(CONV2D, checks=(refuse,)))
    assert matching.declined == {conv: Reason.unsupported(f"{conv.name} refused")}


def test_check_of_a_post_op_sees_both_nodes_and_shortens_the_chain() -> None:
    seen: list[tuple[Node, Node]] = []

    def check(previous: Node, node: Node) -> Reason:
        seen.append((previous, node))
        return Reason.unsupported("never")

    g = Sketch()
    conv = g.conv()
    relu = g.relu(conv)
    assert labels(g.match(replace(CONV2D, chains=((replace(RELU, check=check),), ())))) == ["conv2d"]
    assert seen == [(conv, relu)]


def test_accept_is_asked_longest_first_and_its_last_reason_stands() -> None:
    g = Sketch("xwby")
    conv = g.conv()
    g.relu(g.add(conv, g.inputs["y"]))
    asked: list[str] = []

    def accept(match: Match) -> Reason | None:
        asked.append(match.label)
        return Reason(ReasonCode.EXCLUDED, match.label)

    matching = g.match(CONV2D, accept=accept)
    assert asked == ["conv2d + add + relu", "conv2d + add", "conv2d"]
    assert matching.declined[conv] == Reason(ReasonCode.EXCLUDED, "conv2d")
    assert matching.matches == ()


PADDED = replace(
    CONV2D,
    operands=(activation("input", absorbs=(PreOp(aten.pad.default),)), weight("weight", ch_axis=0), bias("bias")),
)


def test_operator_before_the_anchor_is_absorbed_and_the_edge_moves() -> None:
    g = Sketch()
    pad = g.call(aten.pad.default, g.inputs["x"], [0, 1, 0, 1])
    conv = g.conv(pad)
    matching = g.match(PADDED, PAD)
    (match,) = matching.matches
    assert match.nodes == (pad, conv)
    operand = match.row.operands[0]
    assert match.operand("input") is g.inputs["x"]
    assert match.consumer(operand) is pad
    assert match.consumer(match.row.operands[1]) is conv


def test_operator_before_is_not_absorbed_where_another_reads_it_or_its_check_declines() -> None:
    g = Sketch()
    pad = g.call(aten.pad.default, g.inputs["x"], [0, 1, 0, 1])
    g.conv(pad)
    g.conv(pad)
    assert all(match.absorbed == {} for match in g.match(PADDED).matches)
    g = Sketch()
    g.conv(g.call(aten.pad.default, g.inputs["x"], [0, 1, 0, 1]))
    operand = activation("input", absorbs=(PreOp(aten.pad.default, check=refuse),))
    row = replace(CONV2D, operands=(operand, *CONV2D.operands[1:]))
    assert g.match(row).matches[0].absorbed == {}


def test_inputs_are_the_nodes_of_the_roles_asked_for() -> None:
    g = Sketch("xwby")
    cat = g.call(aten.cat.default, [g.inputs["x"], g.inputs["y"], g.inputs["x"]])
    conv = g.call(aten.conv2d.default, cat, g.inputs["w"])
    first, second = g.match(CONV2D, CAT).matches
    assert [node.name for _, node in first.inputs()] == ["x", "y", "x"]
    assert second.anchor is conv
    assert [(operand.role, node.name) for operand, node in second.inputs()] == [
        (Role.ACTIVATION, cat.name),
        (Role.WEIGHT, "w"),  # the bias is None, so it gives no pair
    ]
    assert [node.name for _, node in second.inputs(Role.WEIGHT)] == ["w"]


def test_second_operand_is_read_from_the_graph_as_it_is_now() -> None:
    g = Sketch("xwbyz")
    g.add(g.inputs["y"], g.conv())
    (match,) = g.match(CONV2D).matches
    assert match.links[0].other is g.inputs["y"]
    match.links[0].node.replace_input_with(g.inputs["y"], g.inputs["z"])
    assert match.links[0].other is g.inputs["z"]


def test_matches_come_in_graph_order_for_any_order_of_rows() -> None:
    g = Sketch()
    a = g.conv()
    b = g.conv(a, aten.linear.default)
    c = g.conv(b)
    assert [match.anchor for match in g.match(LINEAR, CONV2D).matches] == [a, b, c]


def test_other_role_does_not_change_the_structure() -> None:
    g = Sketch("xwby")
    g.add(g.conv(), g.inputs["y"])
    assert labels(g.match(replace(CONV2D, chains=((FLOAT_ADD,), ())))) == ["conv2d + add"]


def test_no_rows_and_no_nodes() -> None:
    assert Sketch().match() == Matching((), {})
    assert match_rows(Graph(), (CONV2D, ADD_ROW)).matches == ()


def work(length: int) -> dict[str, int]:
    """Number of calls of the rows' functions for a chain of residual blocks of this many nodes."""
    count = {"check": 0, "post-op": 0, "accept": 0}

    def check(node: Node) -> Reason | None:
        count["check"] += 1
        return None

    def post_op(previous: Node, node: Node) -> Reason | None:
        count["post-op"] += 1
        return None

    def accept(match: Match) -> Reason | None:
        count["accept"] += 1
        return None

    chain: tuple[PostOp, ...] = (replace(ADD, check=post_op), replace(RELU, check=post_op))
    rows = (
        replace(layer("conv2d", aten.conv2d.default, (chain, chain[:1], ())), checks=(check,)),
        replace(ADD_ROW, checks=(check,)),
    )
    g = Sketch()
    x = g.conv()
    for _ in range(length // 4):
        x = g.relu(g.add(g.conv(g.conv(x)), x))
    g.match(*rows, accept=accept)
    return count


def test_work_grows_linearly_with_the_graph() -> None:
    small, large = work(1_000), work(10_000)
    assert small == {"check": 501, "post-op": 500, "accept": 501}  # each convolution once, each block's tail once
    assert large == {"check": 5001, "post-op": 5000, "accept": 5001}


def test_deep_chain_of_post_ops_does_not_recurse() -> None:
    g = Sketch()
    last = g.conv()
    for _ in range(5_000):
        last = g.relu(last)
    (match,) = g.match(replace(CONV2D, chains=((RELU,) * 5_000, ()))).matches
    assert match.tail is last

"""Operands are found by their schema's name, however the call gives them."""

import operator

import pytest
import torch
from core_support import aten
from torch.fx import Graph, Node

from qspec_core import GraphError
from qspec_core.graph import (
    argument,
    argument_names,
    called_operator,
    calls,
    expand_integers,
    is_call,
    replace_argument,
    written_arguments,
)


def conv(graph: Graph | None = None, **keywords: object) -> Node:
    graph = Graph() if graph is None else graph
    x, w, b = (graph.placeholder(name) for name in "xwb")
    return graph.call_function(aten.conv2d.default, (x, w, b, [2, 2]), keywords)  # type: ignore[arg-type]  # any values


def test_argument_by_position_keyword_and_default() -> None:
    node = conv(groups=3)
    assert [argument(node, name).name for name in ("input", "weight", "bias")] == ["x", "w", "b"]
    assert argument(node, "stride") == [2, 2]
    assert argument(node, "groups") == 3
    assert argument(node, "dilation") == [1, 1]  # the schema's int[2] dilation=1
    assert argument(node, "padding") == [0, 0]


def test_default_none_is_a_value() -> None:
    graph = Graph()
    node = graph.call_function(aten.linear.default, (graph.placeholder("x"), graph.placeholder("w")))
    assert argument(node, "bias") is None


def test_unknown_or_missing_operand_is_named() -> None:
    with pytest.raises(GraphError, match="'bias_'") as caught:
        argument(conv(), "bias_")
    assert "weight, bias, stride" in str(caught.value.expected)
    graph = Graph()
    node = graph.call_function(aten.linear.default, (graph.placeholder("x"),))
    with pytest.raises(GraphError, match="'weight'") as caught:
        argument(node, "weight")
    assert caught.value.where.node == "linear_default"


def test_nodes_that_call_no_operator() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    item = graph.call_function(operator.getitem, (x, 0))
    module = graph.call_module("sub", (x,))
    for value in (x, item, module, 3, None, "relu"):
        assert called_operator(value) is None
        assert not is_call(value)
    with pytest.raises(GraphError, match="calls no operator"):
        argument(item, "self")
    with pytest.raises(GraphError, match="calls no operator"):
        replace_argument(x, "self", x)


def test_is_call_of_any_of_several_or_of_any_operator() -> None:
    node = conv()
    assert is_call(node)
    assert is_call(node, aten.linear.default, aten.conv2d.default)
    assert not is_call(node, aten.linear.default)
    assert not is_call(node, aten.conv2d.padding)
    assert called_operator(node) is aten.conv2d.default


def test_calls_are_found_in_graph_order_by_what_they_call_now() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    first, second, third = (
        graph.call_function(op, (x,)) for op in (aten.relu.default, aten.tanh.default, aten.relu.default)
    )
    assert calls(graph, aten.tanh.default, aten.relu.default) == [first, second, third]
    with graph.inserting_before(first):
        before = graph.call_function(aten.tanh.default, (x,))
    third.target = aten.sigmoid.default
    graph.erase_node(second)
    assert calls(graph, aten.relu.default, aten.tanh.default) == [before, first]
    assert calls(graph) == calls(graph, aten.gelu.default) == []


def test_replace_argument_keeps_the_way_it_was_given() -> None:
    node = conv(groups=3)
    replace_argument(node, "stride", [1, 1])
    replace_argument(node, "groups", 1)
    replace_argument(node, "dilation", [2, 2])
    assert node.args[3:] == ([1, 1],)
    assert node.kwargs == {"groups": 1, "dilation": [2, 2]}
    replace_argument(node, "bias", None)
    assert argument(node, "bias") is None
    assert node not in [user for n in node.graph.nodes if n.name == "b" for user in n.users]
    with pytest.raises(GraphError, match="'nothing'"):
        replace_argument(node, "nothing", 1)


def test_names_and_written_arguments_come_from_the_schema() -> None:
    assert argument_names(aten.add_.Tensor) == ("self", "other", "alpha")
    assert written_arguments(aten.add_.Tensor) == ("self",)
    assert written_arguments(aten.add.Tensor) == ()
    assert written_arguments(aten.add.out) == ("out",)
    assert written_arguments(torch.ops.aten.batch_norm.default) == ()


@pytest.mark.parametrize(
    ("values", "count", "want"), [(2, 3, (2, 2, 2)), ([3], 2, (3, 3)), ([1, 2], 2, (1, 2)), ([4], 1, (4,)), ([], 2, ())]
)
def test_integers_for_each_dimension(values: int | list[int], count: int, want: tuple[int, ...]) -> None:
    assert expand_integers(values, count) == want

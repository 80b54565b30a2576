"""Queries of the values that nodes compute."""

import pytest
import torch
from core_support import Net, calls, export
from torch import Tensor
from torch.fx import Graph

from qspec_core import GraphError
from qspec_core.graph import is_float, is_view, require_tensor_value, tensor_value


def test_views_are_known_by_schema_and_through_items_of_lists() -> None:
    def forward(_: Net, x: Tensor) -> tuple[Tensor, ...]:
        first, second = x.chunk(2)
        values, _indices = x.max(0)
        return first, second, x.view(-1), x + 1, values

    module = export(Net(forward), torch.randn(4, 2))
    views = {str(node.target).partition(".")[2] or node.name: is_view(node) for node in calls(module)}
    assert views["chunk.default"]
    assert views["view.default"]
    assert not views["add.Tensor"]
    assert not views["max.dim"]
    items = {node.args[0].name: is_view(node) for node in calls(module) if "getitem" in node.name}  # type: ignore[union-attr]  # nodes
    assert items == {"chunk": True, "max_1": False}
    assert not is_view(None)


def test_is_float_reads_the_fake_tensor() -> None:
    module = export(Net(lambda _, x: (x + 1, x > 0, x.max(0))), torch.randn(4, 2))
    assert {str(node.target): is_float(node) for node in calls(module)} == {
        "aten.add.Tensor": True,
        "aten.gt.Scalar": False,
        "aten.max.dim": False,
        "<built-in function getitem>": False,
    }
    assert not is_float(Graph().placeholder("x"))
    assert not is_float(torch.ones(1))


def test_tensor_value_is_the_fake_tensor_of_a_node_that_computes_one_tensor() -> None:
    module = export(Net(lambda _, x: (x.sum(0), x.max(0))), torch.randn(4, 2))
    found = {str(node.target): tensor_value(node) for node in calls(module)}
    total = found["aten.sum.dim_IntList"]
    assert total is not None
    assert tuple(total.shape) == (2,)
    assert found["aten.max.dim"] is None  # a tuple
    assert tensor_value(Graph().placeholder("x")) is None
    assert tensor_value(torch.ones(1)) is None
    assert tensor_value(None) is None


def test_a_required_value_that_is_missing_names_the_node() -> None:
    module = export(Net(lambda _, x: x + 1), torch.randn(4, 2))
    (node,) = calls(module)
    assert require_tensor_value(node) is tensor_value(node)
    del node.meta["val"]
    with pytest.raises(GraphError, match="shape of a tensor is not known") as caught:
        require_tensor_value(node)
    assert caught.value.where.node == node.name

"""Graph modules that qspec owns: what is shared with the caller's, and what is not."""

import gc

import torch
from core_support import Net, aten, calls, export
from torch import Tensor, nn
from torch.fx import Graph

from qspec_core.graphs import (
    add_constant,
    constant_value,
    copy_graph_module,
    fresh_attribute_name,
    gc_paused,
    is_float,
    is_view,
)
from qspec_core.subgraphs import attribute


def test_collector_is_paused_and_put_back_as_it_was() -> None:
    was = gc.isenabled()
    try:
        for enabled in (True, False):
            (gc.enable if enabled else gc.disable)()
            try:
                with gc_paused():
                    assert not gc.isenabled()
                    raise KeyError
            except KeyError:
                assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_fresh_names_skip_those_taken() -> None:
    module = nn.Module()
    module.register_buffer("x1", torch.ones(1))
    names = [fresh_attribute_name(module, "x") for _ in range(3)]
    assert names == ["x0", "x2", "x3"]
    assert fresh_attribute_name(module, "y") == "y0"


def test_attribute_follows_dots_and_knows_what_is_missing() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3)))
    linear = attribute(model, "0.0")
    assert attribute(model, "0.0.weight") is linear.weight
    assert attribute(model, "0.0.nothing") is None
    assert attribute(model, "1.0.weight") is None


def test_constants_keep_their_kind_and_get_a_fake() -> None:
    module = copy_graph_module(export(nn.Linear(4, 3), torch.randn(2, 4)))
    (linear,) = calls(module, aten.linear.default)
    for value in (nn.Parameter(torch.ones(3)), torch.arange(3)):
        node = add_constant(module, "made_", value, before=linear)
        assert constant_value(module, node) is value
        assert node.meta["val"].shape == (3,)
        assert node.meta["val"].dtype == value.dtype
    assert set(dict(module.named_parameters())) == {"weight", "bias", "made_0"}
    assert set(dict(module.named_buffers())) == {"made_1"}
    assert constant_value(module, linear) is None
    assert constant_value(module, 3) is None


def test_copy_computes_the_same_over_the_same_parameters() -> None:
    exported = export(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))
    exported.meta["note"] = {"a": 1}
    copied = copy_graph_module(exported)
    x = torch.randn(2, 4)
    assert torch.equal(copied(x), exported(x))
    assert copied.get_parameter("0.weight") is exported.get_parameter("0.weight")
    assert copied.meta["note"] == {"a": 1}
    copied.meta["note"]["b"] = 2
    calls(copied)[0].meta["mine"] = 1
    calls(copied)[0].target = aten.matmul.default
    assert exported.meta["note"] == {"a": 1}
    assert "mine" not in calls(exported)[0].meta
    assert calls(exported)[0].target is aten.linear.default


def test_buffers_that_are_not_saved_stay_so() -> None:
    class Masked(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.mask

    copied = copy_graph_module(export(nn.Sequential(Masked()), torch.randn(2, 4)))
    assert copied.state_dict() == {}
    assert set(dict(copied.named_buffers())) == {"0.mask"}


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

"""A graph that was calibrated on another device than it is deployed to."""

from typing import Any

import torch
from core_support import Frozen, Net, aten, calls, export, quantized
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core.graph import graph_modules
from qspec_core.lowering import on_device

X = torch.randn(2, 4)


def converted() -> GraphModule:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.inner(x) + m.inner(x + torch.arange(4, device=x.device))
        with torch.no_grad():
            z = m.inner(y) + torch.ones(4, device=x.device)
        m.calls.add_(1)
        return z * m.calls  # type: ignore[no-any-return]  # a buffer by name

    torch.manual_seed(0)
    model = Net(forward, inner=nn.Linear(4, 4), calls=torch.zeros(1))
    return quantized(export(model, X), (X,), (-X,))


def devices(module: GraphModule) -> set[str]:
    found: set[torch.device] = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    for _, body in graph_modules(module):
        for node in body.graph.nodes:
            held = (*node.kwargs.values(), *node.args, node.meta.get("val"))
            found |= {item.device for item in held if isinstance(item, Tensor)}
            found |= {item for item in held if isinstance(item, torch.device)}
    return {device.type for device in found}


def test_a_graph_that_is_there_is_not_copied() -> None:
    module = converted()
    assert on_device(module, "cpu") is module


def test_all_that_a_graph_holds_and_makes_is_moved() -> None:
    module = converted()
    frozen = Frozen(module)
    moved = on_device(module, "meta")
    assert devices(moved) == {"meta"}
    assert moved(X.to("meta")).device.type == "meta"
    frozen.check()
    assert devices(module) == {"cpu"}
    shapes = [{name: value.shape for name, value in of.state_dict().items()} for of in (moved, module)]
    assert shapes[0] == shapes[1]


def test_a_graph_that_makes_tensors_elsewhere_runs_here_with_the_same_numbers() -> None:
    module, expected = converted(), converted()(X)
    for node in calls(module, aten.arange.default):  # as if it had been exported on another device
        node.kwargs = {**node.kwargs, "device": torch.device("meta")}
        node.meta["val"] = node.meta["val"].to("meta")
    module.recompile()
    moved = on_device(module, "cpu")
    assert moved is not module
    assert torch.equal(moved(X), expected)


def test_tied_weights_stay_one() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = layer.weight
    moved = on_device(export(model, X), "meta")
    assert moved.get_parameter("0.weight") is moved.get_parameter("2.weight")
    assert isinstance(moved.get_parameter("2.weight"), nn.Parameter)

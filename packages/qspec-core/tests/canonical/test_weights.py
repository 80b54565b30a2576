"""Weights computed from parameters only become constants: the layer is quantized, the values stay."""

from typing import Any

import torch
import torch.nn.functional as F
from core_support import Frozen, Net, aten, calls, decomposed, export, quantizer, sqnr
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import convert_pt2e, coverage, prepare_pt2e
from qspec_core.canonical import fold_weights
from qspec_core.graph import argument, constant_value, copy_graph_module


def fold(model: nn.Module, *inputs: Tensor) -> GraphModule:
    """Fold, and compare with the float model."""
    exported = export(model, *inputs)
    frozen = Frozen(exported)
    want = exported(*inputs)
    module = copy_graph_module(exported)
    fold_weights(module)
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(*inputs), want)
    frozen.check()
    return module


def constants(module: GraphModule, name: str = "weight") -> list[Tensor | None]:
    layers = calls(module, aten.linear.default, aten.conv1d.default, aten.conv2d.default)
    return [constant_value(module, argument(layer, name)) for layer in layers]


def test_weight_norm() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2)
    module = fold(layer, torch.randn(2, 4, 9))
    (weight,) = constants(module)
    assert weight is not None
    torch.testing.assert_close(weight, layer.weight.detach())
    assert len(calls(module)) == 1


def test_weight_norm_of_a_decomposed_linear_is_quantized() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)).eval()
    x = torch.randn(3, 4)
    program = torch.export.export(model, (x,)).run_decompositions().module()
    assert isinstance(program, GraphModule)
    prepared = prepare_pt2e(program, quantizer())
    prepared(x)
    converted = convert_pt2e(prepared)
    assert [entry.operator for entry in coverage(converted).quantized_layers] == ["aten.linear.default"]
    assert sqnr(model(x).detach(), converted(x).detach()) > 30


def test_view_of_a_matrix_is_not_copied() -> None:
    model = Net(lambda self, x: torch.addmm(self.b, x, self.w.t()), w=nn.Parameter(torch.randn(5, 4)), b=torch.randn(5))
    module = fold(model, torch.randn(2, 4))
    assert calls(module, aten.t.default)


def standardized(m: Any, x: Tensor) -> Tensor:
    """A convolution whose kernels have mean 0 and variance 1, as big-transfer networks write it."""
    weight = F.batch_norm(m.conv.weight.reshape(1, 8, -1), None, None, training=True, eps=1e-6)
    return F.conv2d(x, weight.reshape_as(m.conv.weight), m.conv.bias)


def test_standardized_kernel_is_quantized() -> None:
    model = Net(standardized, conv=nn.Conv2d(4, 8, 3))
    x = torch.randn(2, 4, 9, 9)
    prepared = prepare_pt2e(export(model, x), quantizer())
    prepared(x)
    converted = convert_pt2e(prepared)
    assert len(coverage(converted).quantized_layers) == 1
    assert [str(node.target) for node in calls(converted, aten.batch_norm.default)] == []
    assert sqnr(model(x).detach(), converted(x).detach()) > 30


def test_slices_of_a_fused_projection() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        weights, biases = m.weight.chunk(3), m.bias.chunk(3)
        return sum(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))  # type: ignore[return-value]

    model = Net(forward, weight=nn.Parameter(torch.randn(12, 5)), bias=nn.Parameter(torch.randn(12)))
    module = fold(model, torch.randn(3, 5))
    for name, whole in (("weight", model.weight), ("bias", model.bias)):
        found = constants(module, name)
        assert len(found) == 3
        assert isinstance(whole, Tensor)
        assert torch.equal(torch.cat([part for part in found if part is not None]), whole)


def test_random_weight_stays() -> None:
    module = fold_only(Net(lambda m, x: F.linear(x, torch.rand_like(m.weight)), weight=nn.Parameter(torch.rand(3, 4))))
    assert constants(module) == [None]


def test_weight_from_a_mutated_buffer_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.state.add_(1)
        return F.linear(x, m.state * 2)

    module = fold_only(Net(forward, state=torch.rand(3, 4)))
    assert constants(module) == [None]


def test_dequantized_weight_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        weight = decomposed.dequantize_per_tensor(m.integers, 0.1, 0, -128, 127, torch.int8)
        return F.linear(x, weight.reshape(3, 4))

    module = fold_only(Net(forward, integers=torch.randint(-128, 127, (12,), dtype=torch.int8)))
    assert constants(module) == [None]


def test_weight_that_depends_on_an_input_stays() -> None:
    module = fold_only(Net(lambda m, x: F.linear(x, m.weight * x.sum()), weight=nn.Parameter(torch.rand(3, 4))))
    assert constants(module) == [None]


def fold_only(model: nn.Module) -> GraphModule:
    module = copy_graph_module(export(model, torch.rand(2, 4)))
    fold_weights(module)
    module.graph.lint()
    return module

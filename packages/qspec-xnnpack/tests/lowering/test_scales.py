"""Scales that are far apart, and weights with one scale in dynamic mode."""

import pytest
import torch
from torch import Tensor, nn
from xnnpack_support import lowered, quantized, sqnr

import qspec_core as qspec
from qspec_xnnpack import BACKEND, XNNPACKQuantizer, get_symmetric_quantization_config


def compared(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Signal to noise of the program, against the converted graph and against the float model."""
    result = quantized(model.eval(), x)
    with torch.no_grad():
        found = lowered(result)(x)
        return sqnr(result.converted(x), found), sqnr(model(x), found)


def test_tiny_activations_keep_their_precision() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    for layer in (model[0], model[2]):
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        with torch.no_grad():
            layer.bias.mul_(1e-4)
    to_converted, to_float = compared(model, torch.randn(1, 3, 12, 12) * 1e-4)
    assert to_converted > 45
    assert to_float > 33


def test_biases_far_larger_than_products_do_not_overflow() -> None:
    """A pruned channel: weights near 0, and a bias of 3, which is 2.5e10 steps of int32."""
    layer = nn.Conv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        layer.weight[3] *= 1e-7
        layer.bias[3] = 3  # type: ignore[index]  # the layer has a bias
    to_converted, to_float = compared(layer, torch.randn(1, 8, 8, 8) * 0.01)
    assert to_converted > 45
    assert to_float > 40


class Dead(nn.Module):
    """Results far smaller than the products that they are sums of, and a sum of a tiny and a large operand."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False)
        with torch.no_grad():
            self.small.weight.mul_(1e-7)

    def forward(self, x: Tensor) -> Tensor:
        large = self.large(x)
        return torch.relu(large + self.small(large)) * 0.5


def test_sums_of_operands_with_scales_far_apart_have_a_kernel() -> None:
    to_converted, to_float = compared(Dead(), torch.randn(1, 4, 8, 8))
    assert to_converted > 40
    assert to_float > 35


def test_results_that_are_always_zero_have_a_kernel() -> None:
    layer = nn.Conv2d(3, 4, 1)
    nn.init.constant_(layer.weight, -1e3)
    result = quantized(nn.Sequential(layer, nn.ReLU()).eval(), torch.rand(1, 3, 4, 4) + 1)
    assert float(lowered(result)(torch.rand(1, 3, 4, 4) + 1).abs().max()) == 0


@pytest.mark.parametrize("layer", [nn.Linear(16, 8), nn.Conv2d(16, 8, 3)], ids=str)
def test_dynamic_weights_with_one_scale_run_in_integers(layer: nn.Module) -> None:
    x = torch.randn(4, 16) if isinstance(layer, nn.Linear) else torch.randn(1, 16, 8, 8)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_dynamic=True))
    result = qspec.quantize(layer.eval(), (x,), backend=BACKEND, mode="dynamic", quantizer=quantizer)
    program = lowered(result)
    assert len(program.delegation.rows) == 1
    with torch.no_grad():
        assert sqnr(result.converted(x), program(x)) > 60
        assert sqnr(layer(x), program(x)) > 35

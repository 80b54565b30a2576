"""Quantization-aware training with the configurations of XPU: trained, converted, lowered, and compared."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from xpu_reference import OnReference, trace_on_xpu

from qspec_core import (
    convert_pt2e,
    coverage,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_qat_pt2e,
)
from qspec_xpu import (
    BACKEND,
    XPUInductorQuantizer,
    get_default_xpu_inductor_quantization_config,
    get_weight_only_quantization_config,
    lower_portable,
)


class Net(nn.Module):
    """A layer of each family that has a kernel, with batch norms, a residual sum and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = torch.relu(y + self.depthwise(y))
        result: Tensor = self.head(self.up(y).mean((2, 3)))
        return result


def trained(model: nn.Module, x: Tensor, quantizer: XPUInductorQuantizer) -> GraphModule:
    """Prepare, train for a few steps, and leave the module in evaluation mode."""
    module = torch.export.export(model.train(), (x,)).module()
    assert isinstance(module, GraphModule)
    prepared = prepare_qat_pt2e(module, quantizer)
    move_exported_model_to_train(prepared)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.02)
    for _ in range(3):
        loss = (prepared(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    move_exported_model_to_eval(prepared)
    return prepared


@pytest.mark.parametrize("options", [{}, {"is_dynamic": True}, {"symmetric": True}, {"dtype": torch.uint8}], ids=str)
def test_trained_converted_and_lowered(options: dict[str, Any]) -> None:
    config = get_default_xpu_inductor_quantization_config(is_qat=True, **options)
    x = torch.randn(4, 3, 8, 8)
    prepared = trained(Net(), x, XPUInductorQuantizer().set_global(config))
    assert len(coverage(prepared).quantized_layers) == 5
    with torch.no_grad():
        found = prepared(x)
        converted = convert_pt2e(prepared)
        lowered = lower_portable(converted)
        trace_on_xpu(lowered, (x,))
        given = OnReference(lowered)(x)
    # A value at a tie may round to the other side, and its step pass through the layers after it.
    torch.testing.assert_close(given, found, rtol=0, atol=0.02 * float(found.abs().max()))


@pytest.mark.parametrize("group_size", [None, 32])
def test_weights_only(group_size: int | None) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).bfloat16()
    x = torch.randn(4, 64).bfloat16()
    config = get_weight_only_quantization_config(group_size, is_qat=True)
    prepared = trained(net, x, XPUInductorQuantizer().set_global(config))
    with torch.no_grad():
        found = prepared(x)
        lowered = lower_portable(convert_pt2e(prepared))
        torch.testing.assert_close(OnReference(lowered)(x), found, rtol=0.02, atol=0.02)


def test_the_backend_has_a_quantizer_for_training() -> None:
    assert BACKEND.training_quantizer is not None
    quantizer = BACKEND.training_quantizer(mode=min(BACKEND.modes, key=str), target="any")
    assert isinstance(quantizer, XPUInductorQuantizer)

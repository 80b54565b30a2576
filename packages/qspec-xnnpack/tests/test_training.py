"""Quantization-aware training with the configurations of XNNPACK: trained, converted, executed, and compared."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    convert_pt2e,
    coverage,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_qat_pt2e,
)
from qspec_core.fake_quantize import enable_range_learning
from qspec_core.testing import Case, check_case, training_cases
from qspec_xnnpack import BACKEND, XNNPACKQuantizer, get_symmetric_quantization_config

FOUR_BITS = {"is_dynamic": True, "weight_qmin": -8, "weight_qmax": 7}


class Net(nn.Module):
    """A layer of each family that the delegate executes, with batch norms, a residual sum and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 32, 2, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = torch.relu(y + self.point(self.depthwise(y)))
        result: Tensor = self.head(self.up(y).mean((2, 3)))
        return result


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, 6),
        ({"is_per_channel": True}, 6),
        ({"learnable": True}, 6),
        ({"is_per_channel": True, "is_dynamic": True}, 2),
        ({"is_per_channel": True, **FOUR_BITS}, 2),
        ({"group_size": 32, **FOUR_BITS}, 2),
    ],
    ids=str,
)
def test_trained_converted_and_run(options: dict[str, Any], layers: int) -> None:
    x = torch.randn(4, 3, 8, 8)
    graph = torch.export.export(Net().train(), (x,)).module()
    assert isinstance(graph, GraphModule)
    config = get_symmetric_quantization_config(is_qat=True, **options)
    prepared = prepare_qat_pt2e(graph, XNNPACKQuantizer().set_global(config))
    assert len(coverage(prepared).quantized_layers) == layers
    move_exported_model_to_train(prepared)
    prepared(x)
    if "learnable" in options:
        prepared.apply(enable_range_learning)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.02)
    for _ in range(3):
        loss = (prepared(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        found = prepared(x)
        converted = convert_pt2e(prepared)
        integers = converted(x)
        lowered = BACKEND.lower(converted, (x,), "any")(x)
    # A value at a tie may round to the other side: one step of a rounded result, or a small change of a float one.
    result = prepared.graph.output_node().all_input_nodes[0]
    is_rounded = result.op == "call_module"
    step = getattr(prepared, str(result.target)).scale.item() if is_rounded else 0.03 * found.abs().max().item()
    torch.testing.assert_close(integers, found, rtol=0, atol=1.01 * step)
    torch.testing.assert_close(lowered, integers, rtol=0, atol=1.01 * step)


@pytest.mark.parametrize("case", training_cases(BACKEND), ids=str)
def test_conformance_in_training(case: Case) -> None:
    check_case(case)

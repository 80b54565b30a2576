"""Models on an accelerator: calibrated there, they give what they give on the CPU."""

import copy
from dataclasses import replace

import pytest
import torch
from core_support import ACT, CONFIG, DYNAMIC, WEIGHT_ONLY, export, quantized, settled, sqnr
from torch import nn

from qspec_core import QuantizationConfig
from qspec_core.lowering import on_device
from qspec_core.observers import HistogramObserver, MovingAverageMinMaxObserver

ACCELERATOR = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
pytestmark = pytest.mark.skipif(ACCELERATOR is None, reason="torch has no accelerator here")
CONFIGS = {
    "smallest and largest": CONFIG,
    "histograms": replace(CONFIG, input_activation=replace(ACT, observer_or_fake_quant_ctr=HistogramObserver)),
    "averages": replace(CONFIG, input_activation=replace(ACT, observer_or_fake_quant_ctr=MovingAverageMinMaxObserver)),
    "dynamic": DYNAMIC,
    "weights alone": WEIGHT_ONLY,
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_calibrated_on_an_accelerator(config: QuantizationConfig) -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 5))
    model = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), head))
    batches = [(torch.randn(2, 3, 8, 8),) for _ in range(4)]
    with torch.no_grad():
        expected = quantized(export(model, *batches[0]), *batches, config=config)(*batches[0])
        there = [(x.to(ACCELERATOR),) for (x,) in batches]
        converted = quantized(export(copy.deepcopy(model).to(ACCELERATOR), *there[0]), *there, config=config)
        assert {tensor.device.type for tensor in converted.state_dict().values()} == {there[0][0].device.type}
        # Sums of floats in another order round one integer in a thousand the other way.
        assert sqnr(expected, converted(*there[0]).cpu()) > 40
        assert sqnr(expected, on_device(converted, "cpu")(*batches[0])) > 40

"""Dithered rounding: noise of up to half a step, in every form of quantize, and in the bodies of control flow."""

import pytest
import torch
from core_support import CONFIG, DYNAMIC, export, quantized
from torch import nn

from qspec_core import QuantizationConfig
from qspec_core._agreement._dither import dithered


@pytest.mark.parametrize("config", [CONFIG, DYNAMIC], ids=["static", "dynamic"])
def test_results_move_as_if_each_input_were_rounded_at_random(config: QuantizationConfig) -> None:
    """Against stochastic rounding written out: floor(x / scale + u) with u uniform in 0..1."""
    x = torch.rand(20_000, 1) * 255 / 256  # a step is about 1 / 256: the rounding error is uniform
    linear = nn.Linear(1, 1, bias=False)
    nn.init.ones_(linear.weight)
    converted = quantized(export(linear, x), (x,), config=config)
    exact, moved = converted(x), dithered(converted)(x)
    step = float((exact.unique()[1:] - exact.unique()[:-1]).median())
    change = (moved - exact).abs()
    assert float(change.max()) <= 1.01 * step
    # Rounded at random, a quarter of the values goes to the other of the two steps around them.
    assert float((change > step / 2).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float((moved - exact).mean()) == pytest.approx(0.0, abs=step / 20)

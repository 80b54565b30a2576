"""Post-ops whose variants differ by less than a step: the float result of the kernel against float arithmetic."""

import pytest
import torch
from torch import nn
from xpu_reference import OnReference
from xpu_support import convert

from qspec_xpu import default_quantizer, lower_portable


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_the_variant_of_the_model(approximate: str) -> None:
    """The two differ by up to 5e-4; the kernel's arithmetic in float32 by a few roundings."""
    linear, x = nn.Linear(16, 64), torch.randn(8, 16)
    plain = convert(default_quantizer(), linear, x)
    converted = convert(default_quantizer(), nn.Sequential(linear, nn.GELU(approximate=approximate)), x)
    with torch.no_grad():
        expected = nn.functional.gelu(plain(x).double(), approximate=approximate)
        found = OnReference(lower_portable(converted))(x)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)

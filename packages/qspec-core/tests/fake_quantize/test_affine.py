"""Affine fake-quantize against the converted operators and plain arithmetic."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qspec_core import SpecError, ops
from qspec_core.fake_quantize import (
    AffineFakeQuantize,
    default_affine_fake_quant,
    default_affine_per_axis_fake_quant,
    default_groupwise_fake_quant,
)
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedPlaceholderObserver,
    MappingType,
    MinMaxObserver,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    ZeroPointDomain,
)


def test_default_groupwise_equals_its_operators() -> None:
    x = torch.randn(3, 256)
    module = default_groupwise_fake_quant()
    found = module(x)
    scale = x.reshape(3, 2, 128).abs().amax(2) / 127.5
    zeros = torch.zeros(3, 2, dtype=torch.int32)
    integers = ops.QUANTIZE_PER_GROUP(x, scale, zeros, -128, 127, torch.int8, 128)
    expected = ops.DEQUANTIZE_PER_GROUP(integers, scale, zeros, -128, 127, torch.int8, 128, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert not torch.equal(found, x)


def test_default_per_axis_and_per_tensor_equal_torch() -> None:
    x = torch.randn(3, 40)
    channels = default_affine_per_axis_fake_quant()(x)
    scale = x.abs().amax(1) / 127.5
    zeros = torch.zeros(3, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zeros, 0, -128, 127)
    torch.testing.assert_close(channels, expected, rtol=1e-6, atol=0)
    scale = (x.max() - x.min()) / 255
    zero_point = int(-torch.round(x.min() / scale))
    expected = torch.fake_quantize_per_tensor_affine(x, scale.item(), zero_point, 0, 255)
    torch.testing.assert_close(default_affine_fake_quant()(x), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerGroup(2), PerBlock((2, 4))], ids=str)
def test_gradient_passes_only_within_the_range(granularity: object) -> None:
    module = AffineFakeQuantize(mapping_type=MappingType.SYMMETRIC, target_dtype=torch.int8, granularity=granularity)
    module(torch.ones(4, 8))
    module.disable_observer()
    x = torch.full((4, 8), 0.5)
    x[1, 3] = 5.0
    x.requires_grad_()
    module(x).sum().backward()
    expected = torch.ones(4, 8)
    expected[1, 3] = 0.0
    torch.testing.assert_close(x.grad, expected)


def test_switches() -> None:
    module: Any = default_affine_fake_quant()  # a constructor with arguments promises any module
    x = torch.randn(50)
    module.disable_fake_quant()
    assert module(x) is x
    assert module.has_observed
    module.enable_fake_quant()
    module.disable_observer()
    before = module.calculate_qparams()
    module(x * 100)
    assert module.calculate_qparams() == before
    fresh: Any = default_affine_fake_quant()
    fresh.disable_observer()
    assert fresh(x) is x  # no range yet


def test_half_precision_stays() -> None:
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    found = default_affine_per_axis_fake_quant()(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, x, rtol=0.02, atol=0.05)


def plain(**keywords: object) -> MinMaxObserver:
    return MinMaxObserver()


@pytest.mark.parametrize("observer", [plain, AffineQuantizedPlaceholderObserver])
def test_other_observers_are_refused(observer: Callable[..., object]) -> None:
    with pytest.raises(SpecError, match="affine observer"):
        AffineFakeQuantize(
            observer, mapping_type=MappingType.SYMMETRIC, target_dtype=torch.int8, granularity=PerTensor()
        )


def test_state_round_trip() -> None:
    module: Any = default_groupwise_fake_quant()
    module(torch.randn(2, 256))
    copy = AffineFakeQuantize(
        AffineQuantizedMinMaxObserver,
        mapping_type=MappingType.SYMMETRIC,
        target_dtype=torch.int8,
        granularity=PerGroup(128),
    )
    assert (copy.scale.shape, copy.block_size) == ((1,), None)
    copy.load_state_dict(module.state_dict())
    assert torch.equal(copy.calculate_qparams()[0], module.calculate_qparams()[0])
    assert torch.equal(copy.scale, module.scale)
    assert torch.equal(copy.zero_point, module.zero_point)


def test_attributes_that_pytorch_code_reads() -> None:
    module: Any = default_groupwise_fake_quant()
    x = torch.randn(2, 256)
    module(x)
    assert module.block_size == (1, 128)
    assert torch.equal(module.scale, x.reshape(2, 2, 128).abs().amax(2) / 127.5)
    assert (module.zero_point.shape, module.zero_point.dtype) == ((2, 2), torch.int32)
    module.disable_observer()
    before = module.scale.clone()
    module(x * 100)
    assert torch.equal(module.scale, before)
    assert (module.target_dtype, module.mapping_type) == (torch.int8, MappingType.SYMMETRIC)
    assert (module.granularity, module.zero_point_domain) == (PerGroup(128), ZeroPointDomain.INT)
    shown = repr(module)
    parts = "fake_quant_enabled=", "target_dtype=torch.int8", "block_size=(1, 128)", "scale=tensor", "zero_point="
    assert all(part in shown for part in parts)


def test_two_forwards_before_one_backward() -> None:
    module: Any = default_affine_fake_quant()
    x = torch.rand(50, requires_grad=True)
    (module(x) + module(x * 2)).sum().backward()
    assert x.grad is not None
    inside = x != x.max()  # which may round to just outside the range, where the gradient ends
    torch.testing.assert_close(x.grad[inside], torch.full((49,), 3.0))


def test_parameters_follow_an_observer_that_changed_without_a_forward() -> None:
    module: Any = default_affine_fake_quant()
    module(torch.rand(50))
    module.activation_post_process(torch.full((2,), 10.0))
    module.update_qparams()
    torch.testing.assert_close(module.scale, torch.tensor([10 / 255]).reshape(module.scale.shape))

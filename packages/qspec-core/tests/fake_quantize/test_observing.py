"""Fake-quantizes against quantizing and dequantizing in NumPy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import qspec_core.fake_quantize as fake_quantize
from qspec_core import CalibrationError, SourceLocation, SpecError
from qspec_core.fake_quantize import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
)
from qspec_core.observers import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverNeverRanWarning,
    PlaceholderObserver,
)

VALUES = st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=20)


def reference(x: np.ndarray, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> np.ndarray:
    """float32 in, float32 out, as the operators compute: multiplied by the inverse of scale, in float32."""
    inverse = np.float32(1) / np.float32(scale)
    quantized = np.clip(np.rint(x * inverse) + zero_point, quant_min, quant_max)
    return np.asarray((quantized - zero_point) * np.float32(scale), dtype=np.float32)


@given(VALUES)
def test_output_is_quantize_then_dequantize(values: list[float]) -> None:
    tables: tuple[dict[str, Any], ...] = (
        {"dtype": torch.uint8},
        {"dtype": torch.int8, "qscheme": torch.per_tensor_symmetric},
        {"dtype": torch.int8, "quant_min": -8, "quant_max": 7, "observer": MinMaxObserver},
        {"dtype": torch.quint8, "reduce_range": True},
    )
    for kwargs in tables:
        module = FakeQuantize(**kwargs)
        x = torch.tensor(values)
        y = module(x)
        scale, zero_point = module.calculate_qparams()
        assert zero_point.dtype == torch.int64
        expected = reference(x.numpy(), scale.item(), zero_point.item(), int(module.quant_min), int(module.quant_max))
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)
        np.testing.assert_array_equal(module.scale.numpy(), scale.numpy())
        np.testing.assert_array_equal(module.zero_point.numpy(), zero_point.numpy())


@pytest.mark.parametrize("cls", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
@pytest.mark.parametrize(
    "qscheme", [torch.per_channel_symmetric, torch.per_channel_affine, torch.per_channel_affine_float_qparams]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_each_channel_has_its_own_scale(cls: type[FakeQuantize], qscheme: torch.qscheme, axis: int) -> None:
    module = cls(observer=MovingAveragePerChannelMinMaxObserver, dtype=torch.qint8, qscheme=qscheme, ch_axis=axis)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) * 3
    y = module(x)
    scale, zero_point = (value.numpy() for value in module.calculate_qparams())
    assert scale.shape == (x.shape[axis],)
    for channel in range(x.shape[axis]):
        row = x.select(axis, channel).numpy()
        expected = reference(row, scale[channel], zero_point[channel], -128, 127)
        if qscheme == torch.per_channel_affine_float_qparams:  # the zero point is added before rounding
            shifted = np.rint(row / scale[channel] + zero_point[channel])
            expected = (np.clip(shifted, -128, 127) - zero_point[channel]) * scale[channel]
        np.testing.assert_allclose(y.select(axis, channel).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"dtype": torch.int8},
        {"dtype": torch.qint8, "quant_min": -127, "quant_max": 127, "qscheme": torch.per_tensor_symmetric},
        {"dtype": torch.int8, "qscheme": torch.per_tensor_symmetric},
        {"dtype": torch.uint8, "qscheme": torch.per_tensor_symmetric},
    ],
)
def test_fused_equals_the_steps_one_by_one(kwargs: dict[str, Any]) -> None:
    fused, plain = FusedMovingAvgObsFakeQuantize(**kwargs), FakeQuantize(**kwargs)
    for seed in range(4):
        x = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * (seed + 1) + 0.3
        y, z = fused(x), plain(x)
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fused.activation_post_process.min_val, plain.activation_post_process.min_val)
        torch.testing.assert_close(fused.activation_post_process.max_val, plain.activation_post_process.max_val)
        torch.testing.assert_close(fused.scale, plain.scale)
        assert torch.equal(fused.zero_point, plain.zero_point)
        # The converted form computes the same as training.
        scale, zero_point = (value.item() for value in fused.calculate_qparams())
        low, high = int(fused.quant_min), int(fused.quant_max)
        np.testing.assert_allclose(y.numpy(), reference(x.numpy(), scale, zero_point, low, high), rtol=1e-5, atol=1e-6)
    assert fused.fake_quant_enabled.dtype == fused.observer_enabled.dtype == torch.int64


@pytest.mark.parametrize("cls", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
def test_gradient_passes_only_within_the_range(cls: type[FakeQuantize]) -> None:
    module = cls(dtype=torch.int8)
    module(torch.tensor([-1.0, 1.0]))
    module.disable_observer()
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("cls", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
def test_switches(cls: type[FakeQuantize]) -> None:
    model = nn.Sequential(cls(), nn.ReLU())
    module: Any = model[0]
    x, wide = torch.tensor([-1.0, 0.37, 1.0]), torch.tensor([-9.0, 9.0])
    model.apply(disable_fake_quant)
    assert torch.equal(module(x), x)
    assert module.has_observed
    model.apply(disable_observer)
    model.apply(enable_fake_quant)
    assert not torch.equal(module(x), x)
    scale = module.scale.clone()
    module(wide)
    assert torch.equal(module.scale, scale)
    model.apply(enable_observer)
    module(wide)
    assert module.scale.item() > scale.item()


@pytest.mark.parametrize("cls", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
@pytest.mark.parametrize("kind", [torch.per_tensor_affine, torch.per_channel_affine])
def test_values_not_finite_are_refused_and_change_nothing(cls: type[FakeQuantize], kind: torch.qscheme) -> None:
    observer = MovingAverageMinMaxObserver if kind == torch.per_tensor_affine else MovingAveragePerChannelMinMaxObserver
    module = cls(observer=observer, qscheme=kind)
    module.where = SourceLocation("add", "block", None)
    good = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    for start in (False, True):
        if start:
            module(good)
        limits = copy.deepcopy(module.activation_post_process.state_dict())
        with pytest.raises(CalibrationError) as error:
            module(torch.tensor([[1.0, 2.0], [float("nan"), 4.0]]))
        assert error.value.where.node == "add"
        assert "1 of 4" in error.value.problem
        after = module.activation_post_process.state_dict()
        assert all(torch.equal(limits[name], value) for name, value in after.items())


@pytest.mark.parametrize("cls", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
@pytest.mark.parametrize("per_channel", [False, True])
def test_state_round_trip(cls: type[FakeQuantize], per_channel: bool) -> None:
    observer = MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver
    qscheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_affine
    one, other = (cls(observer=observer, dtype=torch.qint8, qscheme=qscheme) for _ in range(2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    one(x)
    one.disable_observer()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
    assert not other.observer_enabled.item()
    names = set(one.state_dict())
    assert {"scale", "zero_point", "fake_quant_enabled", "observer_enabled"} <= names
    assert "activation_post_process.min_val" in names
    copied = copy.deepcopy(one)
    assert torch.equal(copied(x), one(x))


@pytest.mark.parametrize("cls", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_stay_as_they_are(cls: type[FakeQuantize], dtype: torch.dtype) -> None:
    y = cls()(torch.tensor([-1.0, 0.25, 1.0], dtype=dtype))
    assert y.dtype == dtype
    assert (y - torch.tensor([-1.0, 0.25, 1.0], dtype=dtype)).abs().max().item() < 0.01


@pytest.mark.parametrize("cls", [FakeQuantize, FusedMovingAvgObsFakeQuantize])
def test_empty_input_is_returned(cls: type[FakeQuantize]) -> None:
    empty = torch.empty(0, 2)
    module = cls()
    assert module(empty) is empty
    assert not module.has_observed
    with pytest.warns(ObserverNeverRanWarning):
        assert module.calculate_qparams()[0].item() == 1.0


def test_fixed_parameters_do_not_change() -> None:
    module = FixedQParamsFakeQuantize(FixedQParamsObserver.with_args(scale=1 / 256, zero_point=0))
    x = torch.tensor([-1.0, 0.3, 5.0])
    np.testing.assert_array_equal(module(x).numpy(), reference(x.numpy(), 1 / 256, 0, 0, 255))
    assert [value.item() for value in module.calculate_qparams()] == [1 / 256, 0]
    module.disable_fake_quant()
    assert module(x) is x
    with pytest.raises(SpecError):
        FixedQParamsFakeQuantize(MinMaxObserver)


def test_dynamic_follows_each_input() -> None:
    module: Any = fake_quantize.default_dynamic_fake_quant()
    module(torch.tensor([0.0, 100.0]))
    module(torch.tensor([0.0, 1.0]))
    assert module.is_dynamic
    assert module.scale.item() == np.float32(1) / np.float32(255)


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (FakeQuantize, {"observer": PlaceholderObserver}),
        (FakeQuantize, {"dtype": torch.float8_e4m3fn}),
        (FakeQuantize, {"dtype": torch.uint8, "quant_min": 0, "quant_max": 256}),
        (FusedMovingAvgObsFakeQuantize, {"observer": HistogramObserver}),
        (FusedMovingAvgObsFakeQuantize, {"dtype": torch.int8, "quant_min": 0, "quant_max": 255}),
    ],
)
def test_observers_without_an_integer_range_are_refused(cls: type[FakeQuantize], kwargs: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        cls(**kwargs)


NAMED = {  # dtype, quant_min, quant_max, qscheme
    "default_fake_quant": (torch.quint8, 0, 127, torch.per_tensor_affine),
    "default_histogram_fake_quant": (torch.quint8, 0, 127, torch.per_tensor_affine),
    "default_dynamic_fake_quant": (torch.quint8, 0, 255, torch.per_tensor_affine),
    "default_weight_fake_quant": (torch.qint8, -128, 127, torch.per_tensor_symmetric),
    "default_per_channel_weight_fake_quant": (torch.qint8, -128, 127, torch.per_channel_symmetric),
    "default_embedding_fake_quant": (torch.quint8, 0, 255, torch.per_channel_affine_float_qparams),
    "default_embedding_fake_quant_4bit": (torch.quint4x2, 0, 15, torch.per_channel_affine_float_qparams),
    "default_fixed_qparams_range_neg1to1_fake_quant": (torch.quint8, 0, 255, torch.per_tensor_affine),
    "default_fixed_qparams_range_0to1_fake_quant": (torch.quint8, 0, 255, torch.per_tensor_affine),
    "default_symmetric_fixed_qparams_fake_quant": (torch.quint8, 0, 255, torch.per_tensor_affine),
    "default_affine_fixed_qparams_fake_quant": (torch.quint8, 0, 255, torch.per_tensor_affine),
    "default_fused_act_fake_quant": (torch.quint8, 0, 255, torch.per_tensor_affine),
    "default_fused_wt_fake_quant": (torch.qint8, -128, 127, torch.per_tensor_symmetric),
    "default_fused_per_channel_wt_fake_quant": (torch.qint8, -128, 127, torch.per_channel_symmetric),
    "fused_wt_fake_quant_range_neg_127_to_127": (torch.qint8, -127, 127, torch.per_tensor_symmetric),
    "fused_per_channel_wt_fake_quant_range_neg_127_to_127": (torch.qint8, -127, 127, torch.per_channel_symmetric),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_constructors_have_the_ranges_of_pytorch(name: str) -> None:
    module = getattr(fake_quantize, name)()
    assert (module.dtype, module.quant_min, module.quant_max, module.qscheme) == NAMED[name]
    y = module(torch.tensor([[-0.5, 0.5], [0.25, 0.75]]))
    assert y.shape == (2, 2)
    assert "quant_min=" in repr(module)


def test_every_public_name_exists() -> None:
    assert sorted(fake_quantize.__all__) == list(fake_quantize.__all__)
    assert all(hasattr(fake_quantize, name) for name in fake_quantize.__all__)

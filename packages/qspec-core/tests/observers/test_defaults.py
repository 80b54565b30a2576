"""Ready-made constructors and default arguments against a table."""

import math
from typing import Any

import pytest
import torch

import qspec_core.observers as observers
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    AffineQuantizedPlaceholderObserver,
    DerivedObserverOrFakeQuantize,
    FixedQParamsObserver,
    HistogramObserver,
    MappingType,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PerTensor,
    PlaceholderObserver,
    TorchAODType,
    UniformQuantizationObserverBase,
    ZeroPointDomain,
)

FLOAT32_EPS = 2.0**-23
SYMMETRIC, CHANNELS = torch.per_tensor_symmetric, torch.per_channel_symmetric
NAMED = [
    ("default_observer", MinMaxObserver, torch.quint8, torch.per_tensor_affine, 0, 127, FLOAT32_EPS),
    ("default_histogram_observer", HistogramObserver, torch.quint8, torch.per_tensor_affine, 0, 127, FLOAT32_EPS),
    ("default_weight_observer", MinMaxObserver, torch.qint8, SYMMETRIC, -128, 127, FLOAT32_EPS),
    ("weight_observer_range_neg_127_to_127", MinMaxObserver, torch.qint8, SYMMETRIC, -127, 127, 1 / 4096),
    ("default_per_channel_weight_observer", PerChannelMinMaxObserver, torch.qint8, CHANNELS, -128, 127, FLOAT32_EPS),
    (
        "per_channel_weight_observer_range_neg_127_to_127",
        *(PerChannelMinMaxObserver, torch.qint8, CHANNELS, -127, 127, 1 / 4096),
    ),
    (
        "default_float_qparams_observer",
        *(PerChannelMinMaxObserver, torch.quint8, torch.per_channel_affine_float_qparams, 0, 255, FLOAT32_EPS),
    ),
    (
        "default_float_qparams_observer_4bit",
        *(PerChannelMinMaxObserver, torch.quint4x2, torch.per_channel_affine_float_qparams, 0, 15, FLOAT32_EPS),
    ),
]


@pytest.mark.parametrize(("name", "cls", "dtype", "qscheme", "quant_min", "quant_max", "eps"), NAMED)
def test_named_observers_of_ranges(
    name: str, cls: type[Any], dtype: torch.dtype, qscheme: torch.qscheme, quant_min: int, quant_max: int, eps: float
) -> None:
    observer: Any = getattr(observers, name)()
    assert isinstance(observer, cls)
    assert (observer.dtype, observer.qscheme, observer.eps.item()) == (dtype, qscheme, eps)
    assert (observer.quant_min, observer.quant_max) == (quant_min, quant_max)
    assert getattr(observer, "ch_axis", 0) == 0
    assert not observer.is_dynamic


def test_named_observers_of_fixed_parameters() -> None:
    for name, scale, zero_point in (
        ("default_fixed_qparams_range_neg1to1_observer", 1 / 128, 128),
        ("default_symmetric_fixed_qparams_observer", 1 / 128, 128),
        ("default_fixed_qparams_range_0to1_observer", 1 / 256, 0),
        ("default_affine_fixed_qparams_observer", 1 / 256, 0),
    ):
        observer = getattr(observers, name)()
        assert (observer.scale.tolist(), observer.zero_point.tolist()) == ([scale], [zero_point])
        assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.quint8, 0, 255)


def test_named_dynamic_observers() -> None:
    dynamic: Any = observers.default_dynamic_quant_observer()
    assert (dynamic.dtype, dynamic.quant_min, dynamic.quant_max, dynamic.is_dynamic) == (torch.quint8, 0, 255, True)
    plain: Any = observers.default_placeholder_observer()
    assert (plain.dtype, plain.is_dynamic, plain.qscheme) == (torch.float32, False, torch.per_tensor_affine)
    assert plain.eps == FLOAT32_EPS
    assert PlaceholderObserver(qscheme=SYMMETRIC, eps=0.25).qscheme == SYMMETRIC
    assert PlaceholderObserver(qscheme=SYMMETRIC, eps=0.25).eps == 0.25


@pytest.mark.parametrize(
    "cls",
    [
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        PerChannelMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        HistogramObserver,
    ],
)
def test_defaults_of_the_observers_of_ranges(cls: type[UniformQuantizationObserverBase]) -> None:
    observer: Any = cls()
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.quint8, 0, 255)
    assert not observer.is_dynamic
    assert not observer.reduce_range
    assert not observer.has_customized_qrange
    assert observer.eps.tolist() == [FLOAT32_EPS]
    assert observer.eps.dtype == torch.float32
    assert getattr(observer, "averaging_constant", 0.01) == 0.01
    assert getattr(observer, "ch_axis", 0) == 0
    channels = cls(ch_axis=None)
    assert getattr(channels, "ch_axis", 0) == 0
    asked: Any = cls(quant_max=100)
    assert asked.has_customized_qrange
    asked = cls(quant_min=0)
    assert asked.has_customized_qrange
    observer.reset_min_max_vals()
    assert observer.min_val.shape == observer.max_val.shape == cls().min_val.shape
    assert (observer.min_val == math.inf).all()
    assert (observer.max_val == -math.inf).all()


def test_defaults_of_observers_of_blocks() -> None:
    for cls in (
        AffineQuantizedMinMaxObserver,
        AffineQuantizedMovingAverageMinMaxObserver,
        AffineQuantizedPlaceholderObserver,
    ):
        observer: Any = cls(MappingType.SYMMETRIC, torch.int8, PerTensor())
        assert not observer.is_dynamic
        assert observer.preserve_zero
        assert observer.zero_point_domain is ZeroPointDomain.INT
        assert (observer.eps, observer.scale_dtype) == (FLOAT32_EPS, torch.float32)
        assert observer.zero_point_dtype == torch.int32
        assert getattr(observer, "averaging_constant", 0.01) == 0.01


@pytest.mark.parametrize("bits", range(1, 8))
def test_every_dtype_under_8_bits(bits: int) -> None:
    half = 1 << (bits - 1)
    for target in (getattr(torch, f"int{bits}"), TorchAODType[f"INT{bits}"]):
        observer = AffineQuantizedMinMaxObserver(MappingType.ASYMMETRIC, target, PerTensor())
        assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.int8, -half, half - 1)
    observer = AffineQuantizedMinMaxObserver(MappingType.ASYMMETRIC, getattr(torch, f"uint{bits}"), PerTensor())
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.uint8, 0, 2 * half - 1)


def test_other_observers_are_static_by_default() -> None:
    assert not FixedQParamsObserver(0.5, 0).is_dynamic
    derived = DerivedObserverOrFakeQuantize(torch.int8, [], lambda _: (torch.ones(1), torch.zeros(1)))
    assert not derived.is_dynamic
    assert (derived.quant_min, derived.quant_max, derived.qscheme) == (-128, 127, torch.per_tensor_affine)
    assert derived.ch_axis is None

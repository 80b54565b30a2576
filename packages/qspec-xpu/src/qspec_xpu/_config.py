"""Configurations: how activations and weights are quantized for the kernels of oneDNN on Intel GPUs."""

from functools import cache

import torch

from qspec_core import QuantizationConfig, QuantizationSpec, SpecError
from qspec_core.fake_quantize import AffineFakeQuantize, FakeQuantize, FusedMovingAvgObsFakeQuantize
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    HistogramObserver,
    MappingType,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    PerChannelMSEObserver,
    PerGroup,
    PlaceholderObserver,
)
from qspec_core.patterns import Mode

__all__ = ["default_config", "get_default_xpu_inductor_quantization_config", "get_weight_only_quantization_config"]

_EPS = 2.0**-12
"""Smallest scale of the PT2E default configuration."""
_SCHEMES = {True: torch.per_tensor_symmetric, False: torch.per_tensor_affine}


@cache
def get_default_xpu_inductor_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, *, symmetric: bool = False, dtype: torch.dtype = torch.int8
) -> QuantizationConfig:
    """The PT2E default configuration for XPU, with the ranges of the PT2E quantizer.

    Activations are int8 and affine; a histogram gives their range, or in training a moving average. Weights are int8
    and symmetric, with one scale for each output channel. No scale is under 2**-12.

    Args:
        is_qat: for training with `prepare_qat_pt2e`: values are rounded while the model trains.
        is_dynamic: each call finds the range of its activations.
        symmetric: the zero point of activations is in the middle of their range, so kernels need no correction for it.
        dtype: of activations, torch.int8 or torch.uint8.
    Returns: the same object for the same arguments.
    Raises: SpecError: the dtype is another one.
    """
    if dtype not in (torch.int8, torch.uint8):
        raise SpecError(
            "the kernels take 8-bit activations",
            found=str(dtype),
            expected="torch.int8 or torch.uint8",
            remedy="name one of the two",
        )
    if is_qat:
        weight = _trained_weight(-128, _EPS)
    else:
        observer = PerChannelMinMaxObserver.with_args(eps=_EPS)
        weight = QuantizationSpec(torch.int8, observer, -128, 127, torch.per_channel_symmetric, ch_axis=0)
    activation = _activation(is_qat, is_dynamic, _EPS, _SCHEMES[symmetric], dtype)
    return QuantizationConfig(activation, activation, weight, None, is_qat=is_qat)


def _activation(
    is_qat: bool,
    is_dynamic: bool,
    eps: float,
    scheme: torch.qscheme = torch.per_tensor_affine,
    dtype: torch.dtype = torch.int8,
) -> QuantizationSpec:
    """The spec of activations: a histogram gives their range, each call its own, or in training a moving average."""
    limits = torch.iinfo(dtype)
    if is_qat and is_dynamic:
        fields = {"observer": MovingAverageMinMaxObserver, "averaging_constant": 1.0, "is_dynamic": True}
        constructor = FakeQuantize.with_args(**fields, eps=eps)
    elif is_qat:
        constructor = FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=eps)
    else:
        constructor = (PlaceholderObserver if is_dynamic else HistogramObserver).with_args(eps=eps)
    return QuantizationSpec(dtype, constructor, limits.min, limits.max, scheme, is_dynamic=is_dynamic)


def _trained_weight(lowest: int, eps: float) -> QuantizationSpec:
    """Weights that are rounded in training. The newest weights alone give the range: they are known exactly."""
    observer = MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0)
    fake_quantize = FusedMovingAvgObsFakeQuantize.with_args(observer=observer, eps=eps)
    return QuantizationSpec(torch.int8, fake_quantize, lowest, 127, torch.per_channel_symmetric, ch_axis=0)


@cache
def get_weight_only_quantization_config(group_size: int | None = None, *, is_qat: bool = False) -> QuantizationConfig:
    """Quantize the weights of linear layers only; activations stay float.

    Args:
        group_size: None for int8 with a scale for each output channel; a multiple of 32 for int4 with a scale for each
            group of that many input features.
        is_qat: for training with `prepare_qat_pt2e`.
    Returns: the same object for the same arguments.
    """
    if group_size is None:
        return default_config(Mode.WEIGHT_ONLY, is_qat=is_qat)
    fields = {
        "mapping_type": MappingType.SYMMETRIC,
        "target_dtype": torch.int8,
        "granularity": PerGroup(group_size),
    }
    if is_qat:
        observer = AffineQuantizedMovingAverageMinMaxObserver
        constructor = AffineFakeQuantize.with_args(observer=observer, averaging_constant=1.0, **fields)
    else:
        constructor = AffineQuantizedMinMaxObserver.with_args(**fields)
    weight = QuantizationSpec(torch.int8, constructor, -8, 7, torch.per_channel_symmetric, ch_axis=0)
    return QuantizationConfig(None, None, weight, None, is_qat=is_qat)


@cache
def default_config(mode: Mode = Mode.STATIC, *, is_qat: bool = False) -> QuantizationConfig:
    """The default of `qspec_core.quantize`: the range of least squared error, for activations and for the weights of
    each channel, which are in -127..127. In training, ranges are those of the newest weights and of a moving average.
    """
    eps = torch.finfo(torch.float32).eps
    if is_qat:
        weight = _trained_weight(-127, eps)
    else:
        weight = QuantizationSpec(torch.int8, PerChannelMSEObserver, -127, 127, torch.per_channel_symmetric, ch_axis=0)
    if mode is Mode.WEIGHT_ONLY:
        return QuantizationConfig(None, None, weight, None, is_qat=is_qat)
    activation = _activation(is_qat, mode is Mode.DYNAMIC, eps)
    return QuantizationConfig(activation, activation, weight, None, is_qat=is_qat)

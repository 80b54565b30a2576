"""Configurations: how activations and weights are quantized for the kernels of oneDNN on Intel GPUs."""

from functools import cache

import torch

from qspec_core import QuantizationConfig, QuantizationSpec, SpecError
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    HistogramObserver,
    MappingType,
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

    Activations are int8 and affine; a histogram gives their range. Weights are int8 and symmetric, with one scale for
    each output channel. No scale is under 2**-12.

    Args:
        is_qat: for training; not supported yet.
        is_dynamic: each call finds the range of its activations.
        symmetric: the zero point of activations is in the middle of their range, so kernels need no correction for it.
        dtype: of activations, torch.int8 or torch.uint8.
    Returns: the same object for the same arguments.
    Raises: SpecError: `is_qat` is True, or the dtype is another one.
    """
    if is_qat:
        raise SpecError(
            "the XPU backend has no configuration with is_qat=True yet",
            found="is_qat=True",
            expected="post-training quantization",
            remedy="leave is_qat out",
        )
    if dtype not in (torch.int8, torch.uint8):
        raise SpecError(
            "the kernels take 8-bit activations",
            found=str(dtype),
            expected="torch.int8 or torch.uint8",
            remedy="name one of the two",
        )
    limits = torch.iinfo(dtype)
    kind = PlaceholderObserver if is_dynamic else HistogramObserver
    activation = QuantizationSpec(
        dtype, kind.with_args(eps=_EPS), limits.min, limits.max, _SCHEMES[symmetric], is_dynamic=is_dynamic
    )
    observer = PerChannelMinMaxObserver.with_args(eps=_EPS)
    weight = QuantizationSpec(torch.int8, observer, -128, 127, torch.per_channel_symmetric, ch_axis=0)
    return QuantizationConfig(activation, activation, weight, None)


@cache
def get_weight_only_quantization_config(group_size: int | None = None) -> QuantizationConfig:
    """Quantize the weights of linear layers only; activations stay float.

    Args:
        group_size: None for int8 with a scale for each output channel; a multiple of 32 for int4 with a scale for each
            group of that many input features.
    Returns: the same object for the same arguments.
    """
    if group_size is None:
        return default_config(Mode.WEIGHT_ONLY)
    observer = AffineQuantizedMinMaxObserver.with_args(
        mapping_type=MappingType.SYMMETRIC, target_dtype=torch.int8, granularity=PerGroup(group_size)
    )
    weight = QuantizationSpec(torch.int8, observer, -8, 7, torch.per_channel_symmetric, ch_axis=0)
    return QuantizationConfig(None, None, weight, None)


@cache
def default_config(mode: Mode = Mode.STATIC) -> QuantizationConfig:
    """The default of `qspec_core.quantize`: the range of least squared error, for activations and for the weights of
    each channel, which are in -127..127.
    """
    weight = QuantizationSpec(torch.int8, PerChannelMSEObserver, -127, 127, torch.per_channel_symmetric, ch_axis=0)
    if mode is Mode.WEIGHT_ONLY:
        return QuantizationConfig(None, None, weight, None)
    if mode is Mode.DYNAMIC:
        observer = PlaceholderObserver.with_args(eps=torch.finfo(torch.float32).eps)
        activation = QuantizationSpec(torch.int8, observer, -128, 127, torch.per_tensor_affine, is_dynamic=True)
    else:
        activation = QuantizationSpec(torch.int8, HistogramObserver, -128, 127, torch.per_tensor_affine)
    return QuantizationConfig(activation, activation, weight, None)

"""Configurations: how activations and weights are quantized for the kernels of oneDNN."""

from functools import cache

import torch

from qspec_core.errors import SpecError
from qspec_core.observers import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver, PerChannelMSEObserver
from qspec_core.quantizer import QuantizationConfig
from qspec_core.spec import QuantizationSpec

__all__ = ["default_config", "get_default_x86_inductor_quantization_config"]

_EPS = 2.0**-12
"""Smallest scale of the configuration that users know."""


@cache
def get_default_x86_inductor_quantization_config(
    is_qat: bool = False, is_dynamic: bool = False, reduce_range: bool = False
) -> QuantizationConfig:
    """The configuration under its known name, with the ranges that users know.

    Activations are uint8 and affine, their range found by a histogram; weights int8 and symmetric, one scale for each
    output channel. Neither scale falls under 2**-12.

    Args:
        is_qat: for training; not supported yet.
        is_dynamic: scales of activations computed from each input; not supported yet.
        reduce_range: activations in 0..127, whose products with 8-bit weights fit 16 bits on CPUs without VNNI.
    Returns: the same object for the same arguments.
    Raises: SpecError: `is_qat` or `is_dynamic` was asked for.
    """
    if is_qat or is_dynamic:
        asked = "is_qat" if is_qat else "is_dynamic"
        raise SpecError(
            f"the x86 backend has no configuration with {asked}=True yet",
            found=f"{asked}=True",
            expected="static post-training quantization",
            remedy="leave is_qat and is_dynamic out",
        )
    activation = QuantizationSpec(
        torch.uint8,
        HistogramObserver.with_args(eps=_EPS),
        0,
        127 if reduce_range else 255,
        torch.per_tensor_affine,
    )
    weight = QuantizationSpec(
        torch.int8,
        PerChannelMinMaxObserver.with_args(eps=_EPS),
        -128,
        127,
        torch.per_channel_symmetric,
        ch_axis=0,
    )
    return QuantizationConfig(activation, activation, weight, None)


@cache
def default_config() -> QuantizationConfig:
    """The default of `qspec_core.quantize`. Activations by minimum and maximum, which measured as good as histograms
    and are found in one pass; weights in -127..127, each channel's range the one of least squared error.
    """
    activation = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
    weight = QuantizationSpec(torch.int8, PerChannelMSEObserver, -127, 127, torch.per_channel_symmetric, ch_axis=0)
    return QuantizationConfig(activation, activation, weight, None)

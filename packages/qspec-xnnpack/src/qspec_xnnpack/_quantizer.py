"""The quantizer under its usual name, and the configuration that goes with it."""

from collections.abc import Callable
from functools import lru_cache
from typing import Self

import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node

from qspec_core.errors import SpecError
from qspec_core.observers import (
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from qspec_core.patterns import Mode
from qspec_core.quantizer import QuantizationConfig, TableQuantizer
from qspec_core.spec import QuantizationSpec
from qspec_xnnpack._rows import TABLE

__all__ = ["XNNPACKQuantizer", "default_quantizer", "get_symmetric_quantization_config"]

_EPS = 2**-12  # smallest scale: below it the kernels' fixed-point multipliers lose their accuracy
Constructor = Callable[..., nn.Module]


@lru_cache
def get_symmetric_quantization_config(
    is_per_channel: bool = False,
    is_qat: bool = False,
    is_dynamic: bool = False,
    act_qmin: int = -128,
    act_qmax: int = 127,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
) -> QuantizationConfig:
    """The configuration that XNNPACK's kernels take: int8 affine activations, int8 symmetric weights, float biases.

    Args:
        is_per_channel: one scale for each output channel of a weight, rather than one for all.
        is_qat: made for training; not available in this version.
        is_dynamic: activation parameters are computed when the model runs.
        act_qmin: smallest quantized activation.
        act_qmax: largest quantized activation.
        weight_qmin: smallest quantized weight; -127 keeps products within what int16 lanes can add.
        weight_qmax: largest quantized weight.
    Returns: the configuration; equal arguments give the same object.
    Raises: SpecError: `is_qat` is set, or a range is empty or outside int8.
    """
    if is_qat:
        raise SpecError(
            "this version of qspec-xnnpack has no configuration for quantization-aware training",
            found="is_qat=True",
            expected="is_qat=False",
            remedy="quantize after training with is_qat=False",
        )
    observer: Constructor = PlaceholderObserver if is_dynamic else HistogramObserver
    return _configuration(
        _activation_spec(observer, is_dynamic, act_qmin, act_qmax), is_per_channel, weight_qmin, weight_qmax
    )


def _activation_spec(observer: Constructor, is_dynamic: bool, quant_min: int, quant_max: int) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=observer.with_args(eps=_EPS),  # type: ignore[attr-defined]  # observers have it
        quant_min=quant_min,
        quant_max=quant_max,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
    )


def _configuration(
    activation: QuantizationSpec, is_per_channel: bool, weight_qmin: int, weight_qmax: int
) -> QuantizationConfig:
    observer = PerChannelMinMaxObserver if is_per_channel else MinMaxObserver
    weight = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=observer.with_args(eps=_EPS),
        quant_min=weight_qmin,
        quant_max=weight_qmax,
        qscheme=torch.per_channel_symmetric if is_per_channel else torch.per_tensor_symmetric,
        ch_axis=0 if is_per_channel else None,
    )
    return QuantizationConfig(activation, None if activation.is_dynamic else activation, weight, None)

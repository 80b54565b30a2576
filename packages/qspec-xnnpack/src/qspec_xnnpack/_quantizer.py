"""The quantizer under its usual name, and the configuration that goes with it."""

from functools import lru_cache
from typing import Self

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule

from qspec_core.errors import SpecError
from qspec_core.observers import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from qspec_core.patterns import Mode
from qspec_core.quantizer import QuantizationConfig, TableQuantizer
from qspec_core.spec import QuantizationSpec
from qspec_xnnpack._forms import to_delegate_form
from qspec_xnnpack._rows import TABLE

__all__ = ["XNNPACKQuantizer", "default_quantizer", "get_symmetric_quantization_config"]

# Smallest activation scale. That of a dead output would be tiny, and XNNPACK creates no convolution or linear layer
# whose input scale times weight scale over output scale reaches 256. Weights need no floor; small ones suffer by it.
_ACTIVATION_EPS = 2**-12


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
        weight_qmin: smallest quantized weight.
        weight_qmax: largest quantized weight.
    Returns: the configuration; equal arguments give the same object.
    Raises: SpecError: `is_qat` is set, or a range is empty or outside int8.
    """
    if is_qat:
        raise SpecError(
            "this version of qspec-xnnpack has no configuration for quantization-aware training",
            found="is_qat=True",
            expected="is_qat=False",
            remedy="quantize after training, with is_qat=False",
        )
    activation = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=(PlaceholderObserver if is_dynamic else MinMaxObserver).with_args(
            eps=_ACTIVATION_EPS
        ),
        quant_min=act_qmin,
        quant_max=act_qmax,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver if is_per_channel else MinMaxObserver,
        quant_min=weight_qmin,
        quant_max=weight_qmax,
        qscheme=torch.per_channel_symmetric if is_per_channel else torch.per_tensor_symmetric,
        ch_axis=0 if is_per_channel else None,
    )
    return QuantizationConfig(activation, None if is_dynamic else activation, weight, None)


class XNNPACKQuantizer(TableQuantizer):
    """Quantizes what XNNPACK's delegate executes in integers. Selection is that of `TableQuantizer`.

    Each `set_*` takes a `QuantizationConfig`, such as `get_symmetric_quantization_config()` returns, or None for float.
    """

    def __init__(self) -> None:
        super().__init__(TABLE)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Bring the graph to the form that the delegate takes."""
        to_delegate_form(model)
        return model

    def set_global(self, config: QuantizationConfig | None) -> Self:
        """Configure every match that no closer rule selects. Raises: SpecError: the kernels do not take it."""
        return super().set_global(_fit(config))

    def set_module_name(self, name: str, config: QuantizationConfig | None) -> Self:
        """Configure the module of this path and all inside it. Raises: SpecError: the kernels do not take it."""
        return super().set_module_name(name, _fit(config))

    def set_module_type(self, module_type: type | str, config: QuantizationConfig | None) -> Self:
        """Configure modules of this class and all inside them. Raises: SpecError: the kernels do not take it."""
        return super().set_module_type(module_type, _fit(config))

    def set_operator_type(self, operator: OpOverload | OpOverloadPacket, config: QuantizationConfig | None) -> Self:
        """Configure the matches anchored at this operator. Raises: SpecError: the kernels do not take it."""
        return super().set_operator_type(operator, _fit(config))


def default_quantizer(*, mode: Mode, target: str) -> XNNPACKQuantizer:
    """What `quantize(backend="xnnpack")` uses: int8 affine activations, int8 weights with a scale for each channel.

    Args:
        mode: when activations are quantized; static is the one form of this version.
        target: class of the deployment device; there is one.
    Raises: SpecError: the mode is not static.
    """
    if mode is not Mode.STATIC:
        raise SpecError(
            f"this version of qspec-xnnpack has no {mode.value} form",
            found=mode.value,
            expected=Mode.STATIC.value,
            remedy="quantize with mode=Mode.STATIC and calibration data",
        )
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def _fit(config: QuantizationConfig | None) -> QuantizationConfig | None:
    """The configuration itself, if XNNPACK has kernels for it."""
    if config is None:
        return None
    for role, spec, schemes in (
        ("input activation", config.input_activation, (torch.per_tensor_affine, torch.per_tensor_symmetric)),
        ("output activation", config.output_activation, (torch.per_tensor_affine, torch.per_tensor_symmetric)),
        ("weight", config.weight, (torch.per_tensor_symmetric, torch.per_channel_symmetric)),
    ):
        if spec is not None and (spec.dtype is not torch.int8 or spec.qscheme not in schemes):
            raise _unfit(role, f"{spec.dtype}, {spec.qscheme}", f"torch.int8, {' or '.join(map(str, schemes))}")
    if config.bias is not None and config.bias.dtype is not torch.float32:
        raise _unfit("bias", config.bias.dtype, "no spec: the delegate quantizes biases itself")
    return config


def _unfit(role: str, found: object, expected: str) -> SpecError:
    return SpecError(
        f"XNNPACK has no kernel for the configuration's {role} spec",
        found=found,
        expected=expected,
        remedy="build the configuration with get_symmetric_quantization_config()",
    )

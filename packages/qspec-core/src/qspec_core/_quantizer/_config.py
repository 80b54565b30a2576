"""A configuration: the specs of an operator's activations, weight and bias."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from qspec_core._errors import SpecError
from qspec_core._spec import QuantizationSpec
from qspec_core.patterns import Mode

__all__ = [
    "OperatorConfig",
    "OperatorPatternType",
    "QuantizationConfig",
    "get_bias_qspec",
    "get_input_act_qspec",
    "get_output_act_qspec",
    "get_weight_qspec",
]

_ACTIVATION_SCHEMES = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_WEIGHT_SCHEMES = (torch.per_tensor_symmetric, torch.per_channel_symmetric, None)


@dataclass(frozen=True)
class QuantizationConfig:
    """Specs by role. A role without a spec stays in float.

    Args:
        input_activation: spec of an operator's activations.
        output_activation: spec of its output.
        weight: spec of its weight.
        bias: spec of its bias.
        is_qat: whether it is for training: its constructors build fake-quantizes.
    """

    input_activation: QuantizationSpec | None
    output_activation: QuantizationSpec | None
    weight: QuantizationSpec | None
    bias: QuantizationSpec | None
    is_qat: bool = False

    @property
    def mode(self) -> Mode:
        """When activations are quantized."""
        if self.input_activation is None:
            return Mode.WEIGHT_ONLY
        return Mode.DYNAMIC if self.input_activation.is_dynamic else Mode.STATIC


OperatorPatternType = list[Callable[..., object]]
"""The modules or functions of one pattern, in order."""


class OperatorConfig(NamedTuple):
    """A configuration and the operators that it applies to.

    Args:
        config: the specs by role.
        operators: the patterns that can be configured so.
    """

    config: QuantizationConfig
    operators: list[OperatorPatternType]


def _refuse(role: str, found: object, expected: object) -> SpecError:
    return SpecError(
        f"the configuration's {role} spec has a form that no kernel takes",
        found=found,
        expected=expected,
        remedy=f"change the {role} spec of the QuantizationConfig",
    )


def _activation(spec: QuantizationSpec | None) -> QuantizationSpec | None:
    if spec is not None and spec.qscheme not in _ACTIVATION_SCHEMES:
        raise _refuse("activation", spec.qscheme, " or ".join(map(str, _ACTIVATION_SCHEMES)))
    return spec


def get_input_act_qspec(quantization_config: QuantizationConfig | None) -> QuantizationSpec | None:
    """Spec of input activations. Raises: SpecError: it is not per tensor."""
    return None if quantization_config is None else _activation(quantization_config.input_activation)


def get_output_act_qspec(quantization_config: QuantizationConfig | None) -> QuantizationSpec | None:
    """Spec of output activations. Raises: SpecError: it is not per tensor."""
    return None if quantization_config is None else _activation(quantization_config.output_activation)


def get_weight_qspec(quantization_config: QuantizationConfig | None) -> QuantizationSpec | None:
    """Spec of weights. Raises: SpecError: it is not symmetric."""
    spec = None if quantization_config is None else quantization_config.weight
    if spec is not None and spec.qscheme not in _WEIGHT_SCHEMES:
        raise _refuse("weight", spec.qscheme, "a symmetric scheme")
    return spec


def get_bias_qspec(quantization_config: QuantizationConfig | None) -> QuantizationSpec | None:
    """Spec of biases. Raises: SpecError: it is not float32."""
    spec = None if quantization_config is None else quantization_config.bias
    if spec is not None and spec.dtype != torch.float32:
        raise _refuse("bias", spec.dtype, torch.float32)
    return spec

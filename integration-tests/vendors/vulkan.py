"""Vulkan: linear layers with int8 weights for each output channel, and dynamic int8 activations or none."""

import torch
from vendors.parts import PER_CHANNEL, aten

from qspec_core import QuantizationConfig, QuantizationSpec
from qspec_core.observers import PlaceholderObserver
from qspec_core.patterns import (
    DELEGATED,
    Flow,
    Mode,
    Outputs,
    PatternTable,
    Row,
    activation,
    bias,
    weight,
)

__all__ = ["CONFIG", "TABLE"]

_MODES = frozenset({Mode.DYNAMIC, Mode.WEIGHT_ONLY})
_OPERANDS = (activation("input"), weight("weight", ch_axis=0), bias("bias"))
LINEAR = Row("linear", aten.linear.default, _OPERANDS, Flow.STARTS, DELEGATED, modes=_MODES)
TABLE = PatternTable((LINEAR,), Outputs.DEMAND)
_DYNAMIC = QuantizationSpec(torch.int8, PlaceholderObserver, -128, 127, torch.per_tensor_affine, is_dynamic=True)
CONFIG = QuantizationConfig(_DYNAMIC, None, PER_CHANNEL, None)

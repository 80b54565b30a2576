"""Parts that the tables of several vendors use: a bias in the scale of its products, and sharing rows."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core import DerivedQuantizationSpec, QuantizationSpec
from qspec_core.graph import argument
from qspec_core.observers import MinMaxObserver, PerChannelMinMaxObserver
from qspec_core.patterns import DELEGATED, Flow, Operand, Row, activation, activations, bias

__all__ = ["ACTIVATION", "BIAS", "PER_CHANNEL", "PER_TENSOR", "aten", "int32_bias", "shares", "starts"]

aten = torch.ops.aten
ACTIVATION = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
PER_TENSOR = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_symmetric)
PER_CHANNEL = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, 0)
BIAS = QuantizationSpec(torch.int32, MinMaxObserver)
"""Says that a bias is quantized. Each row derives the scale."""


def _scale_of_products(observers: Sequence[Any]) -> tuple[Tensor, Tensor]:  # modules with calculate_qparams
    (x, _), (w, _) = (observer.calculate_qparams() for observer in observers)
    scale = x * w
    return scale, torch.zeros_like(scale, dtype=torch.int64)


def _derived(anchor: Node, spec: QuantizationSpec, target: str, *, per_channel: bool) -> DerivedQuantizationSpec:
    points = [(argument(anchor, name), anchor) for name in ("input", "weight")]
    scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
    axis = 0 if per_channel else None
    return DerivedQuantizationSpec(points, _scale_of_products, torch.int32, -(2**31), 2**31 - 1, scheme, axis)


def int32_bias(*, per_channel: bool) -> Operand:
    """A bias as int32: its scale is that of the input times that of the weight."""
    return bias("bias", adapt=partial(_derived, per_channel=per_channel))


def starts(name: str, target: Any, *operands: str, **fields: Any) -> Row:  # operators are untyped
    """A row without weights whose inputs are quantized wherever they come from."""
    return Row(name, target, tuple(map(activation, operands)), Flow.STARTS, DELEGATED, **fields)


def shares(name: str, target: Any, operand: str = "self", **fields: Any) -> Row:
    """A row whose output has the parameters of its input."""
    role = activations if operand == "tensors" else activation
    return Row(name, target, (role(operand),), Flow.SHARES, DELEGATED, **fields)

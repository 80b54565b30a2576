"""Cadence's default quantizer: products, convolutions, max pooling and ReLU in int8, every output quantized.

Weights of convolutions are symmetric, those of linear layers affine; biases are int32.
"""

from dataclasses import replace

import torch
from torch.fx import Node
from vendors.parts import ACTIVATION, BIAS, PER_TENSOR, aten, int32_bias, shares, starts

from qspec_core import QuantizationConfig, QuantizationSpec
from qspec_core.patterns import DELEGATED, Flow, Outputs, PatternTable, Row, activation, weight

__all__ = ["CONFIG", "TABLE"]


def affine(anchor: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
    """The kernel of linear layers takes a zero point of the weight."""
    return replace(spec, qscheme=torch.per_tensor_affine)


_INPUT, _BIAS = activation("input"), int32_bias(per_channel=False)
_CONV = (_INPUT, weight("weight", ch_axis=0), _BIAS)
_LINEAR = (_INPUT, weight("weight", ch_axis=0, adapt=affine), _BIAS)

TABLE = PatternTable(
    (
        Row("linear", aten.linear.default, _LINEAR, Flow.STARTS, DELEGATED),
        Row("conv1d", aten.conv1d.default, _CONV, Flow.STARTS, DELEGATED),
        Row("conv2d", aten.conv2d.default, _CONV, Flow.STARTS, DELEGATED),
        starts("bmm", aten.bmm.default, "self", "mat2"),
        starts("matmul", aten.matmul.default, "self", "other"),
        shares("max_pool2d", aten.max_pool2d.default),
        starts("relu", aten.relu.default, "self"),
    ),
    Outputs.ALWAYS,
)
CONFIG = QuantizationConfig(ACTIVATION, ACTIVATION, PER_TENSOR, BIAS)

"""Specs that a row adapts: the output of a kernel with a fixed scale, and a bias in the scale of its products."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import core_support as core
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    QuantizationSpecBase,
    TableQuantizer,
    convert_pt2e,
    prepare_pt2e,
)
from qspec_core.graph import argument
from qspec_core.lowering import match_converted, quantized_operand, quantized_value
from qspec_core.observers import MinMaxObserver
from qspec_core.patterns import DELEGATED, Flow, Outputs, Row, activation, bias

aten = torch.ops.aten
FIXED = FixedQParamsQuantizationSpec(torch.int8, 1 / 256, -128, -128, 127, torch.per_tensor_affine)


def fixed(anchor: Node, spec: QuantizationSpec, target: str) -> QuantizationSpecBase:
    return FIXED


def product(observers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    scale = observers[0].calculate_qparams()[0] * observers[1].calculate_qparams()[0]
    return scale, torch.zeros_like(scale, dtype=torch.int64)


def of_products(anchor: Node, spec: QuantizationSpec, target: str) -> QuantizationSpecBase:
    points = [(argument(anchor, name), anchor) for name in ("input", "weight")]
    scheme = torch.per_channel_symmetric
    return DerivedQuantizationSpec(points, product, torch.int32, -(2**31), 2**31 - 1, scheme, ch_axis=0)


def quantized(model: nn.Module, x: Tensor, quantizer: TableQuantizer) -> GraphModule:
    prepared = prepare_pt2e(core.export(model, x), quantizer)
    prepared(x)
    return convert_pt2e(prepared)


def test_a_row_fixes_the_parameters_of_its_output() -> None:
    softmax = Row("softmax", aten.softmax.int, (activation("self"),), Flow.STARTS, DELEGATED, adapt_output=fixed)
    quantizer = TableQuantizer(core.table((softmax,), Outputs.ALWAYS)).set_global(core.CONFIG)
    x = torch.randn(3, 4)
    converted = quantized(nn.Softmax(-1), x, quantizer)
    (node,) = (node for node in converted.graph.nodes if node.target is aten.softmax.int)
    (quantize,) = node.users
    found = quantized_value(quantize)
    assert found is not None
    assert (found.scale, found.zero_point, found.quant_min, found.quant_max) == (1 / 256, -128, -128, 127)


def test_a_bias_has_the_scale_of_its_products() -> None:
    operands = (*core.LINEAR.operands[:2], bias("bias", adapt=of_products))
    config = replace(core.CONFIG, bias=QuantizationSpec(torch.int32, MinMaxObserver))
    table = core.table((replace(core.LINEAR, operands=operands),))
    x = torch.randn(5, 8)
    converted = quantized(nn.Linear(8, 6), x, TableQuantizer(table).set_global(config))
    (match,) = match_converted(converted, table)
    scales: list[Any] = [quantized_operand(match, name).scale for name in ("input", "weight", "bias")]
    weight_scales, bias_scales = (getattr(converted, str(scale.target)) for scale in scales[1:])
    assert torch.allclose(bias_scales, scales[0] * weight_scales)
    assert quantized_operand(match, "bias").dtype is torch.int32

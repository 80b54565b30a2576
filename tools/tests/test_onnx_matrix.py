"""The matrix of rows in ONNX: a small table, a row that ONNX cannot express, a translation that is wrong."""

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import onnx_matrix
from qspec_core import Backend, QuantizationConfig, QuantizationSpec, TableQuantizer
from qspec_core.observers import MinMaxObserver, PerChannelMinMaxObserver
from qspec_core.patterns import DELEGATED, Flow, Mode, Outputs, PatternTable, Row, activation, bias, weight

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnxscript", "onnx_ir", "onnxruntime"))), reason="needs the extra onnx"
)
aten = torch.ops.aten
OPERANDS = activation("input"), weight("weight", ch_axis=0), bias("bias")
LINEAR = Row("linear", aten.linear.default, OPERANDS, Flow.STARTS, DELEGATED)
CONV = Row("conv2d", aten.conv2d.default, OPERANDS, Flow.STARTS, DELEGATED)
ACT = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
WEIGHT = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, 0)


def backend(*rows: Row) -> Backend:
    table = PatternTable(rows, Outputs.ALWAYS)

    def quantizer(*, mode: Mode, target: str) -> TableQuantizer:
        return TableQuantizer(table).set_global(QuantizationConfig(ACT, ACT, WEIGHT, None))

    def lower(converted: GraphModule, inputs: tuple[Any, ...], target: str) -> nn.Module:
        return converted

    return Backend("toy", table, quantizer, lower, targets=("any",), modes=frozenset({Mode.STATIC}))


def test_rows_hold_and_are_counted() -> None:
    results, kernels = onnx_matrix.matrix(backend(LINEAR, CONV), (21,))
    assert {result.name.split(",")[0] for result in results} == {"linear", "conv2d"}
    assert all(result.outcomes == {21: ""} and result.holds for result in results)
    assert kernels["QLinearConv"] > 0
    text = onnx_matrix.page({"toy": (results, kernels)}, (21,))
    assert f"| all | {len(results)} | {len(results)} |" in text


def test_a_row_that_onnx_cannot_express_is_listed_with_its_reason() -> None:
    results, kernels = onnx_matrix.matrix(backend(LINEAR, replace(CONV, not_in_onnx="no such operator")), (21,))
    assert all(result.outcomes == {} for result in results if result.declared)
    assert "- conv2d: no such operator" in onnx_matrix.page({"toy": (results, kernels)}, (21,))


def test_a_wrong_translation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec_core.onnx._emit import Emitter

    right = Emitter.dequantize_linear
    monkeypatch.setattr(
        Emitter,
        "dequantize_linear",
        lambda self, integers, scale, *rest: right(self, integers, self.op.Add(scale, scale), *rest),
    )
    results, _ = onnx_matrix.matrix(backend(LINEAR), (21,))
    assert results
    assert not any(result.holds for result in results)

"""The `quantized_decomposed` operators that converted graphs are written in, against plain arithmetic."""

import pytest
import torch
from core_support import simulate
from torch.fx import Graph

from qspec_core import _torch, ops


def test_per_tensor() -> None:
    x = torch.randn(50) * 3
    integers = ops.QUANTIZE(x, 0.05, 7, -100, 100, torch.int8)
    assert integers.dtype == torch.int8
    found = ops.DEQUANTIZE(integers, 0.05, 7, -100, 100, torch.int8)
    assert torch.equal(found, simulate(x, 0.05, 7, -100, 100))


def test_per_channel() -> None:
    x = torch.randn(4, 5)
    scales, zeros = torch.rand(4) + 0.01, torch.arange(4)
    integers = ops.QUANTIZE_PER_CHANNEL(x, scales, zeros, 0, -128, 127, torch.int8)
    found = ops.DEQUANTIZE_PER_CHANNEL(integers, scales, zeros, 0, -128, 127, torch.int8)
    assert torch.equal(found, simulate(x, scales[:, None], zeros[:, None], -128, 127))


def test_nodes_are_recognised() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    blocks = ops.QUANTIZE_PER_GROUP, ops.QUANTIZE_PER_TOKEN
    for target in (ops.QUANTIZE, ops.QUANTIZE_DYNAMIC, ops.QUANTIZE_PER_CHANNEL, *blocks):
        node = graph.call_function(target, (x,))
        assert (ops.is_quantize(node), ops.is_dequantize(node)) == (True, False)
    blocks = ops.DEQUANTIZE_PER_GROUP, ops.DEQUANTIZE_PER_TOKEN
    for target in (ops.DEQUANTIZE, ops.DEQUANTIZE_DYNAMIC, ops.DEQUANTIZE_PER_CHANNEL, *blocks):
        node = graph.call_function(target, (x,))
        assert (ops.is_quantize(node), ops.is_dequantize(node)) == (False, True)
    assert not ops.is_quantize(x)
    assert not ops.is_dequantize(ops.DEQUANTIZE)


def test_torch_definitions_are_found_or_reported_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _torch.load_quantized_decomposed()
    monkeypatch.setattr(_torch, "_DEFINITIONS", "torch.nowhere.at.all")
    assert not _torch.load_quantized_decomposed()
    monkeypatch.setattr(_torch, "_DEFINITIONS", "torch.nowhere")
    assert not _torch.load_quantized_decomposed()

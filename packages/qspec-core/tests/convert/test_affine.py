"""Observers of blocks through prepare and convert, against NumPy that quantizes block by block."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from core_support import LINEAR, export, table
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import QuantizationConfig, QuantizationSpec, SpecError, TableQuantizer, convert_pt2e, ops, prepare_pt2e
from qspec_core.fake_quantize import AffineFakeQuantize
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedPlaceholderObserver,
    Granularity,
    MappingType,
    ObserverNeverRanWarning,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    get_block_size,
)

INT4 = torch.int4  # type: ignore[attr-defined]  # torch's stubs leave it out
STATIC: list[tuple[Granularity, object]] = [
    (PerTensor(), ops.DEQUANTIZE),
    (PerAxis(0), ops.DEQUANTIZE_PER_CHANNEL),
    (PerAxis(1), ops.DEQUANTIZE_PER_CHANNEL),
    (PerGroup(4), ops.DEQUANTIZE_PER_GROUP),
    (PerGroup(1), ops.DEQUANTIZE_PER_TOKEN),
    (PerRow(), ops.DEQUANTIZE_PER_CHANNEL),
    (PerToken(), ops.DEQUANTIZE_PER_TOKEN),
    (PerBlock((2, 4)), ops.DEQUANTIZE_PER_TOKEN),
    (PerBlock((6, 4)), ops.DEQUANTIZE_PER_TOKEN),
]


def spec(kind: Any, mapping: MappingType, dtype: Any, granularity: Granularity, **options: Any) -> QuantizationSpec:
    """`kind` is a class of modules, `dtype` and `options` its arguments."""
    constructor = kind.with_args(mapping_type=mapping, target_dtype=dtype, granularity=granularity, **options)
    return QuantizationSpec(torch.int8, constructor, is_dynamic=bool(options.get("is_dynamic")))


def quantize_blocks(x: Tensor, granularity: Granularity, mapping: MappingType, low: int, high: int) -> Tensor:
    """Quantize and dequantize each block by its own range; in float32, in which a symmetric end is on a tie."""
    block = get_block_size(x.shape, granularity)
    values = x.detach().numpy().copy()
    for corner in itertools.product(*(range(0, n, b) for n, b in zip(values.shape, block, strict=True))):
        part = values[tuple(slice(i, i + b) for i, b in zip(corner, block, strict=True))]
        least, most = min(part.min(), np.float32(0)), max(part.max(), np.float32(0))
        if mapping is MappingType.ASYMMETRIC:
            scale = np.float32(most - least) / np.float32(high - low)
            zero_point = np.clip(low - np.rint(least / scale), low, high)
        else:
            scale, zero_point = np.float32(max(-least, most)) / np.float32((high - low) / 2), 0
        part[...] = (np.clip(np.rint(part * (np.float32(1) / scale)) + zero_point, low, high) - zero_point) * scale
    return torch.from_numpy(values)


def prepared(model: nn.Module, config: QuantizationConfig, *inputs: Tensor, **options: Any) -> GraphModule:
    quantizer = TableQuantizer(table((LINEAR,))).set_global(config)
    return prepare_pt2e(export(model, *inputs, **options), quantizer)


def called(module: GraphModule) -> set[object]:
    return {node.target for node in module.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(("wrapped", "fold"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize(("granularity", "dequantize"), STATIC, ids=str)
@pytest.mark.parametrize("mapping", [MappingType.SYMMETRIC, MappingType.ASYMMETRIC])
def test_weights(granularity: Granularity, dequantize: object, mapping: MappingType, wrapped: bool, fold: bool) -> None:
    model, x = nn.Linear(12, 6), torch.randn(3, 12)
    options = {"observer": AffineQuantizedMinMaxObserver} if wrapped else {}
    kind = AffineFakeQuantize if wrapped else AffineQuantizedMinMaxObserver
    weight = spec(kind, mapping, INT4, granularity, **options)
    module = prepared(model, QuantizationConfig(None, None, weight, None), x)
    module(x)
    converted = convert_pt2e(module, fold_quantize=fold)
    assert dequantize in called(converted)
    expected = nn.functional.linear(x, quantize_blocks(model.weight, granularity, mapping, -8, 7), model.bias)
    torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-5)
    if fold:
        assert {value.dtype for name, value in converted.state_dict().items() if "frozen" in name} == {torch.int8}
        assert "weight" not in dict(converted.named_parameters())
    for node in converted.graph.nodes:  # what metadata says is what runs
        if node.op == "call_function" and "val" in node.meta and node.target is dequantize:
            assert node.meta["val"].dtype == torch.float32
    again = torch.export.export(converted, (x,)).module()
    assert torch.equal(again(x), converted(x))


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerAxis(1), PerGroup(4), PerToken(), PerBlock((1, 3, 4))], ids=str
)
def test_activations(granularity: Granularity) -> None:
    model, x = nn.Linear(12, 6), torch.randn(2, 3, 12)
    activation = spec(AffineQuantizedMinMaxObserver, MappingType.ASYMMETRIC, torch.int8, granularity)
    module = prepared(model, QuantizationConfig(activation, None, None, None), x)
    module(x)
    expected = model(quantize_blocks(x, granularity, MappingType.ASYMMETRIC, -128, 127))
    torch.testing.assert_close(convert_pt2e(module)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("granularity", [PerTensor(), PerToken(), PerGroup(4)], ids=str)
@pytest.mark.parametrize("mapping", [MappingType.SYMMETRIC, MappingType.ASYMMETRIC])
def test_dynamic_activations_with_a_dynamic_batch(granularity: Granularity, mapping: MappingType) -> None:
    model, x = nn.Linear(12, 6), torch.randn(4, 12)
    activation = spec(AffineQuantizedPlaceholderObserver, mapping, torch.int8, granularity, is_dynamic=True)
    config = QuantizationConfig(activation, None, None, None)
    module = prepared(model, config, x, dynamic_shapes=({0: torch.export.Dim("batch")},))
    converted = convert_pt2e(module)
    for size in (2, 5):
        y = torch.randn(size, 12)
        quantized = quantize_blocks(y, granularity, mapping, -128, 127)
        # The operator for symmetric tokens divides by 127 where the observer's arithmetic does by 127.5: half a step.
        step = float(y.abs().max()) / 127
        bound = model.weight.abs().sum(1).max().item() * step * (1 if mapping is MappingType.SYMMETRIC else 1e-3)
        torch.testing.assert_close(converted(y), model(quantized), rtol=0, atol=bound)


NARROW = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@NARROW
@pytest.mark.parametrize(("granularity", "dequantize"), STATIC, ids=str)
def test_weights_of_a_narrow_float_model(granularity: Granularity, dequantize: object, dtype: torch.dtype) -> None:
    model, x = nn.Linear(12, 6).to(dtype), torch.randn(3, 12).to(dtype)
    weight = spec(AffineQuantizedMinMaxObserver, MappingType.SYMMETRIC, torch.int8, granularity)
    converted = convert_pt2e(prepared(model, QuantizationConfig(None, None, weight, None), x))
    assert dequantize in called(converted)
    assert all(node.meta["val"].dtype is dtype for node in converted.graph.nodes if node.target is dequantize)
    with torch.no_grad():
        found, expected = converted(x), model(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@NARROW
@pytest.mark.parametrize("granularity", [PerTensor(), PerToken()], ids=str)
def test_dynamic_activations_of_a_narrow_float_model(granularity: Granularity, dtype: torch.dtype) -> None:
    model, x = nn.Linear(12, 6).to(dtype), torch.randn(4, 12).to(dtype)
    mapping = MappingType.ASYMMETRIC
    activation = spec(AffineQuantizedPlaceholderObserver, mapping, torch.int8, granularity, is_dynamic=True)
    converted = convert_pt2e(prepared(model, QuantizationConfig(activation, None, None, None), x))
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x), rtol=0.1, atol=0.1)


def test_a_dynamic_scheme_without_an_operator() -> None:
    activation = spec(
        AffineQuantizedPlaceholderObserver, MappingType.ASYMMETRIC, torch.uint8, PerToken(), is_dynamic=True
    )
    module = prepared(nn.Linear(12, 6), QuantizationConfig(activation, None, None, None), torch.randn(4, 12))
    with pytest.raises(SpecError, match="does not support"):
        convert_pt2e(module)


def test_unknown_sizes_cannot_be_cut() -> None:
    activation = spec(
        AffineQuantizedPlaceholderObserver, MappingType.ASYMMETRIC, torch.int8, PerAxis(1), is_dynamic=True
    )
    config = QuantizationConfig(activation, None, None, None)
    x = torch.randn(4, 12)
    module = prepared(nn.Linear(12, 6), config, x, dynamic_shapes=({0: torch.export.Dim("batch")},))
    with pytest.raises(SpecError, match="not known before"):
        convert_pt2e(module)


def test_two_unknown_sizes_cannot_be_cut() -> None:
    activation = spec(
        AffineQuantizedPlaceholderObserver, MappingType.ASYMMETRIC, torch.int8, PerGroup(4), is_dynamic=True
    )
    config = QuantizationConfig(activation, None, None, None)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
    module = prepared(nn.Linear(12, 6), config, torch.randn(4, 3, 12), dynamic_shapes=shapes)
    with pytest.raises(SpecError, match="not known before"):
        convert_pt2e(module)


def test_activations_without_data_are_named() -> None:
    activation = spec(AffineQuantizedMinMaxObserver, MappingType.ASYMMETRIC, torch.int8, PerGroup(4))
    module = prepared(nn.Linear(12, 6), QuantizationConfig(activation, None, None, None), torch.randn(4, 12))
    with pytest.warns(ObserverNeverRanWarning, match="1 observers saw no data"):
        converted = convert_pt2e(module)
    assert torch.isfinite(converted(torch.randn(4, 12))).all()

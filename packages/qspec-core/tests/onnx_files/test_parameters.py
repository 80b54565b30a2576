"""Parameters read back from a file."""

from pathlib import Path

import pytest
import torch
from core_support import CONFIG, DYNAMIC_ACT
from onnx_support import IMAGE, vision, written

from qspec_core import QuantizationConfig, QuantizationSpec, ops
from qspec_core.lowering import quantized_value
from qspec_core.observers import MinMaxObserver
from qspec_core.onnx import OnnxCheckError, read_parameters

NARROW = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 127, torch.per_tensor_affine)


def test_parameters_by_tensor(tmp_path: Path) -> None:
    converted = vision()
    found = read_parameters(written(converted, IMAGE, tmp_path))
    weight = found["body.weight"]
    assert (weight.dtype, weight.axis, weight.group_size, weight.is_constant) == ("int8", 0, None, True)
    assert (weight.quant_min, weight.quant_max) == (-128, 127)
    for node in converted.graph.nodes:
        if ops.is_quantize(node):
            wanted = quantized_value(node)
            assert wanted is not None
            entry = found[node.name]
            torch.testing.assert_close(torch.tensor(entry.scale), torch.tensor([wanted.scale]))
            assert entry.zero_point == (wanted.zero_point,)
            assert (entry.axis, entry.is_quantize, entry.is_constant) == (None, True, False)


@pytest.mark.parametrize("profile", [None])
def test_the_range_that_a_clip_leaves(tmp_path: Path, profile: str | None) -> None:
    converted = vision(QuantizationConfig(NARROW, NARROW, CONFIG.weight, None))
    found = read_parameters(written(converted, IMAGE, tmp_path, profile=profile))
    ranges = {(entry.quant_min, entry.quant_max) for entry in found.values() if not entry.is_constant}
    assert ranges == {(0, 127)}


def test_parameters_of_each_call_are_not_known(tmp_path: Path) -> None:
    converted = vision(QuantizationConfig(DYNAMIC_ACT, None, CONFIG.weight, None))
    found = read_parameters(written(converted, IMAGE, tmp_path))
    assert {entry.scale for entry in found.values() if not entry.is_constant} == {()}


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(OnnxCheckError):
        read_parameters(tmp_path / "model.onnx")

"""Files written for one consumer: the rules of each, and files that OpenVINO runs."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from core_support import CONFIG, DYNAMIC
from onnx_support import IMAGE, vision, written

from qspec_core import QuantizationConfig, QuantizationSpec
from qspec_core.observers import MinMaxObserver
from qspec_core.onnx import OnnxExportError, check_onnx, read_parameters

NARROW = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 127, torch.per_tensor_affine)
SYMMETRIC = QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, torch.per_tensor_symmetric)
SEVEN_BITS = QuantizationConfig(NARROW, NARROW, CONFIG.weight, None)
AFFINE = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
SIGNED = QuantizationConfig(AFFINE, AFFINE, CONFIG.weight, None)
FOR_TENSORRT = QuantizationConfig(SYMMETRIC, SYMMETRIC, CONFIG.weight, None)


def readers_of_quantizes(path: Path) -> set[str]:
    graph = onnx.load(path).graph
    results = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    return {node.op_type for node in graph.node if set(node.input) & results}


@pytest.mark.parametrize(("profile", "readers"), [("onnxruntime", {"Clip"}), ("openvino", {"DequantizeLinear"})])
def test_a_narrow_range_is_clipped_where_the_consumer_fuses_it(tmp_path: Path, profile: str, readers: set[str]) -> None:
    """ONNX Runtime fuses a layer with the QuantizeLinear right after it; OpenVINO a pair of Quantize and Dequantize."""
    converted = vision(SEVEN_BITS)
    path = written(converted, IMAGE, tmp_path, profile=profile)
    assert readers_of_quantizes(path) == readers
    check = check_onnx(converted, path, IMAGE, node_by_node=True).require()
    if profile == "onnxruntime":
        assert all(layer.is_integer for layer in check.layers if layer.operator == "Conv")


@pytest.mark.parametrize("config", [FOR_TENSORRT, SIGNED], ids=["-127..127", "-128..127"])
def test_onnxruntime_gets_unsigned_activations(tmp_path: Path, config: QuantizationConfig) -> None:
    """The same numbers, and integer kernels for all layers: ONNX Runtime has none from uint8 to int8.

    A relu takes place in the kernel only if its 0 is the smallest integer, which it is not in a symmetric range.
    """
    converted = vision(config)
    path = written(converted, IMAGE, tmp_path, profile="onnxruntime")
    check = check_onnx(converted, path, IMAGE, node_by_node=True).require()
    reasons = {layer.reason for layer in check.layers if layer.operator == "Conv"}
    relu = "Relu stands before the QuantizeLinear, whose range it does not fill"
    assert reasons == {"" if config is SIGNED else relu}
    found = read_parameters(path)
    assert {entry.dtype for entry in found.values() if not entry.is_constant} == {"uint8"}
    assert {entry.dtype for entry in found.values() if entry.is_constant} == {"int8"}


def test_tensorrt_takes_symmetric_integers(tmp_path: Path) -> None:
    converted = vision(FOR_TENSORRT)
    path = written(converted, IMAGE, tmp_path, profile="tensorrt")
    check_onnx(converted, path, IMAGE, node_by_node=True).require()
    assert readers_of_quantizes(path) == {"DequantizeLinear"}


@pytest.mark.parametrize(
    ("config", "profile", "reason"),
    [
        (CONFIG, "tensorrt", "uint8 is not one of its dtypes"),
        (DYNAMIC, "tensorrt", "scales must be constants"),
    ],
)
def test_a_profile_refuses_with_a_reason(tmp_path: Path, config: QuantizationConfig, profile: str, reason: str) -> None:
    with pytest.raises(OnnxExportError, match=reason) as raised:
        written(vision(config), IMAGE, tmp_path, profile=profile)
    assert raised.value.where.node is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [CONFIG, SEVEN_BITS], ids=["8 bits", "7 bits"])
def test_openvino_computes_what_the_graph_does(tmp_path: Path, config: QuantizationConfig) -> None:
    openvino: Any = pytest.importorskip("openvino")
    converted = vision(config)
    path = written(converted, IMAGE, tmp_path, profile="openvino")
    model = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU")
    with torch.no_grad():
        (want,) = converted(*IMAGE).values()
    found = torch.from_numpy(model({"image": IMAGE[0].numpy()})[0])
    assert (found - want).abs().max() < 0.1 * want.abs().max()

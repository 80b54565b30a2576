"""The check: right files pass it, wrong translations are caught."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_support import IMAGE, vision, written
from torch.fx import GraphModule

from qspec_core import GraphError
from qspec_core.onnx import OnnxCheckError, OnnxStatus, check_onnx
from qspec_core.onnx._check import FORMAT, OPTIMIZED, PARAMETERS, PLAIN, REFERENCE, STRUCTURE

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphModule, Path]:
    converted = vision()
    return converted, written(converted, IMAGE, tmp_path_factory.mktemp("check"))


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def replace(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    tensor = initializer(model, name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def scale_of_an_activation(model: onnx.ModelProto) -> None:
    (name,) = {node.input[1] for node in model.graph.node if node.name.startswith("stem/quantize")}
    replace(model, name, lambda scale: (scale * 1.02).astype(np.float32))


def scale_of_a_weight(model: onnx.ModelProto) -> None:
    replace(model, "body.weight.scale", lambda scale: (scale * 1.02).astype(np.float32))


def zero_point(model: onnx.ModelProto) -> None:
    (name,) = {node.input[2] for node in model.graph.node if node.name.startswith("stem/quantize")}
    replace(model, name, lambda zero: (zero + 1).astype(zero.dtype))


def axis(model: onnx.ModelProto) -> None:
    (node,) = [node for node in model.graph.node if node.input[0] == "body.weight"]
    (attribute,) = [attribute for attribute in node.attribute if attribute.name == "axis"]
    attribute.i = 1


def signedness(model: onnx.ModelProto) -> None:
    (node,) = [node for node in model.graph.node if node.input[0] == "body.weight"]
    replace(model, "body.weight", lambda weight: weight.view(np.uint8))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.uint8), "zeros"))
    node.input[2] = "zeros"


def narrowed(model: onnx.ModelProto) -> None:
    """A Clip after the first QuantizeLinear."""
    index, node = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "QuantizeLinear")
    for name, limit in (("low", 0), ("high", 127)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(limit, np.uint8), name))
    output = node.output[0]
    node.output[0] = "wide"
    model.graph.node.insert(index + 1, onnx.helper.make_node("Clip", ["wide", "low", "high"], [output], name="narrow"))


WRONG: dict[str, Edit] = {
    edit.__name__: edit for edit in (scale_of_an_activation, scale_of_a_weight, zero_point, axis, signedness, narrowed)
}


def test_a_right_file_holds_in_every_part(made: tuple[GraphModule, Path]) -> None:
    check = check_onnx(*made, IMAGE, node_by_node=True)
    assert check.holds
    assert check.require() is check
    assert [finding.part for finding in check.findings] == [
        FORMAT, STRUCTURE, PARAMETERS, REFERENCE, PLAIN, OPTIMIZED
    ]  # fmt: skip
    assert all(finding.status is OnnxStatus.HOLDS for finding in check.findings)
    assert check.first_divergence == ""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_translation_is_caught(made: tuple[GraphModule, Path], name: str) -> None:
    model = onnx.load(made[1])
    WRONG[name](model)
    check = check_onnx(made[0], model, IMAGE, node_by_node=True, runtime=False)
    assert check.finding(PARAMETERS).status is OnnxStatus.DIFFERS
    assert not check.holds
    with pytest.raises(OnnxCheckError):
        check.require()


@pytest.mark.parametrize("name", WRONG)
def test_the_results_alone_show_a_wrong_translation(made: tuple[GraphModule, Path], name: str) -> None:
    """Without qspec's metadata no parameters are compared, and node by node the first wrong tensor is named."""
    model = onnx.load(made[1])
    WRONG[name](model)
    for node in model.graph.node:
        del node.metadata_props[:]
    check = check_onnx(made[0], model, IMAGE, node_by_node=True, runtime=False)
    assert check.finding(PARAMETERS).status is OnnxStatus.HOLDS
    assert check.finding(REFERENCE).status is OnnxStatus.DIFFERS
    assert "quantize" in check.first_divergence


def test_a_float_copy_of_a_weight_is_found(made: tuple[GraphModule, Path]) -> None:
    model = onnx.load(made[1])
    weight = numpy_helper.to_array(initializer(model, "body.weight")).astype(np.float32)
    scale = numpy_helper.to_array(initializer(model, "body.weight.scale")).reshape(-1, 1, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(weight * scale, "copy"))
    check = check_onnx(made[0], model, IMAGE, runtime=False)
    assert check.finding(STRUCTURE).status is OnnxStatus.DIFFERS
    assert "copy of body.weight" in check.finding(STRUCTURE).detail


def test_a_file_that_breaks_the_format(made: tuple[GraphModule, Path]) -> None:
    model = onnx.load(made[1])
    (value,) = [value for value in model.graph.value_info if value.name == "conv2d"]
    value.type.tensor_type.shape.dim[1].dim_value = 77
    check = check_onnx(made[0], model, IMAGE, runtime=False)
    assert check.finding(FORMAT).status is OnnxStatus.DIFFERS


def test_saturating_kernels_are_told_apart(made: tuple[GraphModule, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime whose fast kernels are wrong and whose precise ones are right: the file is right."""
    from qspec_core.onnx import _check
    from qspec_core.onnx._run import runtime_results

    right = runtime_results

    def saturating(path: Path, arrays: Any, *, optimized: bool, precise: bool = False, **rest: Any) -> Any:
        results = right(path, arrays, optimized=optimized, precise=precise, **rest)
        return results if precise or not optimized else [0.5 * result for result in results]

    monkeypatch.setattr(_check, "runtime_results", saturating)
    monkeypatch.setattr(_check, "has_vnni", lambda: False)
    check = check_onnx(*made, IMAGE)
    assert check.finding(OPTIMIZED).status is OnnxStatus.SATURATES
    assert check.holds
    monkeypatch.setattr(_check, "has_vnni", lambda: True)
    assert check_onnx(*made, IMAGE).finding(OPTIMIZED).status is OnnxStatus.DIFFERS


def test_layers_run_in_integers(made: tuple[GraphModule, Path]) -> None:
    """With all results quantized, ONNX Runtime has integer kernels for the convolutions."""
    layers = {layer.module: layer for layer in check_onnx(*made, IMAGE).layers}
    assert layers["stem"].kernel == layers["body"].kernel == "QLinearConv"
    assert layers["stem"].is_integer
    assert set(layers) == {"stem", "body", "head"}


def test_a_check_prints_and_serializes(made: tuple[GraphModule, Path]) -> None:
    check = check_onnx(*made, IMAGE)
    found = json.loads(json.dumps(check.to_dict()))
    assert found["holds"] is True
    assert [entry["part"] for entry in found["findings"]] == [finding.part for finding in check.findings]
    assert found["opset"] == 21
    assert all(finding.part in str(check) for finding in check.findings)
    with pytest.raises(KeyError):
        check.finding("no such part")


def test_a_file_cut_short(made: tuple[GraphModule, Path], tmp_path: Path) -> None:
    data = made[1].read_bytes()
    for size in (0, 100, len(data) // 2):
        (tmp_path / "cut.onnx").write_bytes(data[:size])
        with pytest.raises(OnnxCheckError):
            check_onnx(made[0], tmp_path / "cut.onnx", IMAGE)
    with pytest.raises(OnnxCheckError):
        check_onnx(made[0], tmp_path / "missing.onnx", IMAGE)


def test_inputs_of_another_shape(made: tuple[GraphModule, Path]) -> None:
    with pytest.raises(OnnxCheckError) as raised:
        check_onnx(*made, (torch.zeros(1, 3, 8, 8),))
    assert "does not take these inputs" in raised.value.problem


def test_a_file_of_another_model(made: tuple[GraphModule, Path]) -> None:
    model = onnx.load(made[1])
    model.graph.output.append(onnx.helper.make_tensor_value_info("conv2d", onnx.TensorProto.FLOAT, None))
    with pytest.raises(OnnxCheckError) as raised:
        check_onnx(made[0], model, IMAGE)
    assert "another model" in raised.value.problem


def test_a_graph_that_was_not_converted(made: tuple[GraphModule, Path]) -> None:
    with pytest.raises(GraphError):
        check_onnx(torch.nn.ReLU(), made[1], IMAGE)  # type: ignore[arg-type]  # on purpose

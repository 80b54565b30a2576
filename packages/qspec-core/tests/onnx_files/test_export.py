"""Files: names, opsets, sizes that vary, control flow, and refused input."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from core_support import DYNAMIC, WEIGHT_ONLY, export
from onnx_support import IMAGE, Vision, quantized, run_reference, vision, written
from torch import Tensor, nn
from torch.export import Dim

from qspec_core import GraphError
from qspec_core.onnx import OnnxExportError, check_onnx, to_onnx
from qspec_core.onnx import _files as files


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(vision(), IMAGE, tmp_path_factory.mktemp("export"))


def test_names_are_those_of_the_model(path: Path) -> None:
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["image"]
    assert [value.name for value in graph.output] == ["logits"]
    names = {tensor.name for tensor in graph.initializer}
    assert {"stem.weight", "stem.bias", "body.weight", "body.weight.scale", "head.weight"} <= names
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert [node.name for node in convolutions] == ["stem/conv2d", "body/conv2d_1"]
    metadata = {entry.key: entry.value for entry in convolutions[1].metadata_props}
    assert metadata == {"qspec.module": "body", "qspec.node": "conv2d_1"}


def test_weights_are_stored_as_integers(path: Path) -> None:
    model = onnx.load(path)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {kinds[f"{layer}.weight"] for layer in ("stem", "body", "head")} == {onnx.TensorProto.INT8}
    assert kinds["stem.bias"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(("opset", "version"), [(18, 10), (23, 11), (25, 12)])
def test_opsets(tmp_path: Path, opset: int, version: int) -> None:
    model = onnx.load(written(vision(), IMAGE, tmp_path, opset=opset))
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    assert model.ir_version == version


@pytest.mark.parametrize("config", [DYNAMIC, WEIGHT_ONLY], ids=["dynamic", "weight only"])
def test_modes(tmp_path: Path, config: Any) -> None:
    converted = vision(config)
    check_onnx(converted, written(converted, IMAGE, tmp_path), IMAGE, node_by_node=True).require()


def test_sizes_that_vary_have_their_names(tmp_path: Path) -> None:
    shapes = {"image": {0: Dim("batch", min=2, max=64)}}
    torch.manual_seed(0)
    converted = quantized(Vision(), IMAGE, dynamic_shapes=shapes)
    path = written(converted, IMAGE, tmp_path, dynamic_shapes=shapes)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    other = (torch.cat([IMAGE[0], IMAGE[0]]),)
    with torch.no_grad():
        (want,) = converted(*other).values()
    (found,) = run_reference(path, *other)
    torch.testing.assert_close(found, want, rtol=0, atol=0.05)
    check_onnx(converted, path, IMAGE).require()


class Branches(nn.Module):
    """A condition on the input chooses one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.cond(x.sum() > 0, self.first, self.second, (x,))
        return result


def test_control_flow(tmp_path: Path) -> None:
    inputs = (torch.randn(3, 4).abs(),)
    converted = quantized(Branches(), inputs, calibration=[(-inputs[0],)])
    path = written(converted, inputs, tmp_path)
    assert "If" in {node.op_type for node in onnx.load(path).graph.node}
    for x in (inputs[0], -inputs[0]):
        with torch.no_grad():
            torch.testing.assert_close(run_reference(path, x)[0], converted(x), rtol=0, atol=0.05)


def test_large_constants_are_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGEST", 100)
    converted = vision()
    path = written(converted, IMAGE, tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    check_onnx(converted, path, IMAGE).require()


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    (tmp_path / "model.onnx").write_bytes(b"old")
    monkeypatch.setattr("onnx_ir.save", full)
    with pytest.raises(OnnxExportError):
        written(vision(), IMAGE, tmp_path)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"model.onnx": b"old"}


class Counter(nn.Module):
    """A layer beside a count of its calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        result: Tensor = self.layer(x) + self.calls
        return result


def test_a_model_with_state_is_refused(tmp_path: Path) -> None:
    inputs = (torch.randn(3, 4),)
    with pytest.raises(OnnxExportError) as raised:
        written(quantized(Counter(), inputs), inputs, tmp_path)
    assert "state" in raised.value.problem
    assert "calls" in str(raised.value.found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [17, 99, "21"])
def test_an_opset_that_cannot_be_written(tmp_path: Path, opset: Any) -> None:
    with pytest.raises(OnnxExportError) as raised:
        written(vision(), IMAGE, tmp_path, opset=opset)
    assert raised.value.expected == "18 to 25"


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "model.onnx"):
        with pytest.raises(OnnxExportError) as raised:
            to_onnx(vision(), IMAGE, path)
        assert "cannot be written" in raised.value.problem


def test_graphs_that_were_not_converted(tmp_path: Path) -> None:
    for module in (Vision(), export(Vision(), *IMAGE)):
        with pytest.raises(GraphError):
            written(module, IMAGE, tmp_path)  # type: ignore[arg-type]  # on purpose


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(OnnxExportError) as raised:
        written(vision(), (torch.zeros(2, 3),), tmp_path)
    assert "example inputs" in raised.value.problem


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnx_ir"])
def test_a_missing_library_names_the_extra(tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(OnnxExportError) as raised:
        written(vision(), IMAGE, tmp_path)
    assert "qspec-core[onnx]" in raised.value.remedy


def test_a_profile_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(OnnxExportError):
        written(vision(), IMAGE, tmp_path, profile="no such")

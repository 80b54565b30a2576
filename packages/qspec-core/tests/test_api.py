"""quantize(): the whole job in one call, on a backend that lives in this test."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from core_support import (
    DYNAMIC,
    Frozen,
    Net,
    affine_parameters,
    export,
    install,
    quantizer,
    simulate,
    symmetric_scales,
    toy_backend,
)
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import qspec_core as qspec
from qspec_core import BackendError, CalibrationError, ExportError, NothingQuantizedError
from qspec_core.backend import ENTRY_POINT_GROUP, Packaged

X = torch.randn(4, 6)


def reference(linear: nn.Linear, x: Tensor, *calibrated: Tensor) -> Tensor:
    scale, zero_point = affine_parameters(torch.cat(calibrated))
    w = simulate(linear.weight.detach(), symmetric_scales(linear.weight), 0, -128, 127)
    shift = (linear.weight.detach() - w) @ torch.cat(calibrated).mean(0)
    return F.linear(simulate(x, scale, zero_point, 0, 255), w, linear.bias.detach() + shift)


def test_whole_job() -> None:
    linear = nn.Linear(6, 3)
    state = {name: value.clone() for name, value in linear.state_dict().items()}
    batches = [(torch.randn(4, 6),) for _ in range(3)]
    steps: list[str] = []
    result = qspec.quantize(linear, (X,), backend=toy_backend(), calibration=batches, progress=steps.append)
    assert steps == ["export", "prepare", "calibrate", "convert"]
    torch.testing.assert_close(
        result.converted(X), reference(linear, X, *(x for (x,) in batches)), rtol=1e-5, atol=1e-6
    )
    assert (result.backend.name, result.target) == ("toy", "any")
    assert [entry.row for entry in result.coverage] == ["linear"]
    assert all(torch.equal(state[name], value) for name, value in linear.state_dict().items())


def test_backend_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, (ENTRY_POINT_GROUP, "toy", toy_backend()))
    result = qspec.quantize(nn.Linear(6, 3), (X,), backend="toy", calibration=[(X,)], target="fast")
    assert result.target == "fast"
    with pytest.raises(BackendError, match="no backend named 'joy'"):
        qspec.quantize(nn.Linear(6, 3), (X,), backend="joy", calibration=[(X,)])


def test_lowered_is_made_once_for_the_target() -> None:
    calls: list[tuple[Any, ...]] = []

    def lower(converted: Any, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        calls.append((example_inputs, target))
        return nn.Identity()

    backend = toy_backend(lower=lower)
    result = qspec.quantize(nn.Linear(6, 3), (X,), backend=backend, calibration=[(X,)], target="fast", check=False)
    assert calls == []
    assert result.lowered is result.lowered
    assert calls == [((X,), "fast")]


@pytest.mark.parametrize(
    "batches",
    [[(X,)], [[X]], [X], [{"input": X}], iter([(X,)])],
    ids=["tuple", "list", "tensor", "keywords", "iterator"],
)
def test_forms_of_a_batch(batches: Any) -> None:
    linear = nn.Linear(6, 3)
    result = qspec.quantize(linear, (X,), backend=toy_backend(), calibration=batches)
    torch.testing.assert_close(result.converted(X), reference(linear, X, X), rtol=1e-5, atol=1e-6)


def test_forms_of_a_model() -> None:
    linear = nn.Linear(6, 3)
    program = torch.export.export(linear, (X,))
    module = export(linear, X)
    frozen = Frozen(module)
    want = reference(linear, X, X)
    for model in (linear, program, module):
        result = qspec.quantize(model, (X,), backend=toy_backend(), calibration=[(X,)])
        assert torch.equal(result.converted(X), want)
    frozen.check()


def test_training_modes_are_put_back() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    model[2].eval()
    mean = model[1].get_buffer("running_mean").clone()
    result = qspec.quantize(model, (X,), backend=toy_backend(), calibration=[(X,)])
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.equal(model[1].get_buffer("running_mean"), mean)
    assert [entry.status.value for entry in result.coverage] == ["quantized", "folded", "folded"]
    with pytest.raises(ExportError):
        qspec.quantize(model, (torch.randn(4, 5),), backend=toy_backend(), calibration=[(X,)])
    assert [module.training for module in model.modules()] == [True, True, True, False]


def test_dynamic_needs_no_calibration() -> None:
    steps: list[str] = []
    for mode in ("dynamic", qspec.Mode.DYNAMIC):
        result = qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(), mode=mode, progress=steps.append)
        assert len(result.coverage.quantized_layers) == 1
    assert "calibrate" not in steps


def test_quantizer_in_place_of_the_default() -> None:
    own = quantizer(DYNAMIC)
    result = qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(), quantizer=own, mode="dynamic")
    operators = {str(node.target) for node in result.converted.graph.nodes}
    assert "quantized_decomposed.choose_qparams.tensor" in operators


def test_dynamic_shapes_are_handed_on() -> None:
    batch = torch.export.Dim("batch", min=1, max=32)
    batches = [(torch.randn(size, 6),) for size in (1, 7, 32)]
    result = qspec.quantize(
        nn.Linear(6, 3), (X,), backend=toy_backend(), calibration=batches, dynamic_shapes=({0: batch},)
    )
    assert result.converted(torch.randn(9, 6)).shape == (9, 3)


@pytest.mark.parametrize("mode", ["weight only", "sometimes", qspec.Mode.WEIGHT_ONLY])
def test_mode_that_the_backend_lacks(mode: Any) -> None:
    with pytest.raises(BackendError, match="has no mode") as caught:
        qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(), mode=mode)
    assert caught.value.expected == "dynamic, static"


def test_target_that_the_backend_lacks() -> None:
    with pytest.raises(BackendError, match="has no target 'slow'"):
        qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(), target="slow", calibration=[(X,)])


def nothing() -> Iterator[tuple[Tensor]]:
    yield from ()


@pytest.mark.parametrize(("batches", "found"), [(None, "calibration=None"), ([], "without batches")])
def test_no_calibration_raises(batches: Any, found: str) -> None:
    for given in (batches, batches if batches is None else nothing()):
        with pytest.raises(CalibrationError, match="needs calibration, and there is no batch") as caught:
            qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(), calibration=given)
        assert found in str(caught.value.found)
        assert "mode='dynamic'" in caught.value.remedy


@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        ((torch.randn(4, 5),), "(float32[4, 5])"),
        ((torch.randn(3, 6),), "(float32[3, 6])"),
        ((X, X), "(float32[4, 6], float32[4, 6])"),
        ({"x": X}, "{x: float32[4, 6]}"),
        (("x",), "(str)"),
        ((X.to("meta"),), "(float32[4, 6] on meta)"),
    ],
)
def test_batch_that_does_not_fit_is_shown(batch: Any, shown: str) -> None:
    linear = nn.Linear(6, 3)
    with pytest.raises(CalibrationError, match="calibration batch 1 does not fit") as caught:
        qspec.quantize(linear, (X,), backend=toy_backend(), calibration=[(X,), batch])
    assert str(caught.value.found).startswith(shown)
    assert "dynamic_shapes" in caught.value.remedy
    assert "the model's device" in caught.value.remedy
    assert caught.value.__cause__ is not None


def test_batch_that_is_not_finite_names_the_node() -> None:
    with pytest.raises(CalibrationError, match="not finite") as caught:
        qspec.quantize(
            nn.Sequential(nn.Linear(6, 3)),
            (X,),
            backend=toy_backend(),
            calibration=[(X,), (X.clone().fill_(torch.nan),)],
        )
    assert caught.value.where.node == "input_1"


@pytest.mark.parametrize("inputs", [X, [X], None])
def test_example_inputs_must_be_a_tuple(inputs: Any) -> None:
    with pytest.raises(ExportError, match="is not a tuple") as caught:
        qspec.quantize(nn.Linear(6, 3), inputs, backend=toy_backend(), calibration=[(X,)])
    assert "(x,)" in caught.value.remedy


def test_example_inputs_that_do_not_fit() -> None:
    with pytest.raises(ExportError, match="cannot export Linear with these example inputs") as caught:
        qspec.quantize(nn.Linear(6, 3), (torch.randn(2, 5), X), backend=toy_backend(), calibration=[(X,)])
    assert "(float32[2, 5], float32[4, 6])" in str(caught.value.expected)


def test_something_that_is_no_model() -> None:
    with pytest.raises(ExportError, match="takes a module or an exported program") as caught:
        qspec.quantize("model.pt2", (X,), backend=toy_backend())  # type: ignore[arg-type]  # the mistake tested
    assert caught.value.found == "str"


def test_model_without_a_layer_to_quantize() -> None:
    with pytest.raises(NothingQuantizedError):
        qspec.quantize(Net(lambda _, x: x.tanh()), (X,), backend=toy_backend(), calibration=[(X,)])


def test_saved_program_holds_numbers_and_coverage(tmp_path: Path) -> None:
    result = qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(), calibration=[(X,)], target="fast")
    path = result.save(tmp_path / "model.pt2")
    extra = {"qspec.json": ""}
    loaded = torch.export.load(path, extra_files=extra).module()
    assert torch.equal(loaded(X), result.converted(X))
    notes = json.loads(extra["qspec.json"])
    assert (notes["backend"], notes["target"]) == ("toy", "fast")
    assert qspec.Coverage.from_dict(notes["coverage"]) == result.coverage
    assert result.save(str(path)) == path


def test_saved_program_takes_the_sizes_that_the_model_was_exported_for(tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch", min=1, max=16)},)
    result = qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(), calibration=[(X,)], dynamic_shapes=shapes)
    loaded = torch.export.load(result.save(tmp_path / "model.pt2")).module()
    more = torch.cat([X, X, X])
    assert torch.equal(loaded(more), result.converted(more))


def test_package_goes_through_the_backend(tmp_path: Path) -> None:
    result = qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(), calibration=[(X,)])
    path = result.package(str(tmp_path / "model.toy"))
    assert torch.load(path).keys() == result.converted.state_dict().keys()
    assert result.package(tmp_path / "model").name == "model.pt2"
    without = qspec.quantize(nn.Linear(6, 3), (X,), backend=toy_backend(package=None), calibration=[(X,)])
    with pytest.raises(BackendError, match="has no deployable file"):
        without.package(tmp_path / "other")


def test_lowered_module_that_holds_its_file_writes_it(tmp_path: Path) -> None:
    lowerings: list[str] = []

    class Held(nn.Module):
        def __init__(self, converted: GraphModule) -> None:
            super().__init__()
            self.forward = converted.forward

        def write_package(self, path: Path) -> Path:
            path.write_text("held")
            return path

    def lower(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
        lowerings.append(target)
        return Held(converted)

    backend = toy_backend(lower=lower, suffix=".toy")
    unchecked = qspec.quantize(nn.Linear(6, 3), (X,), backend=backend, calibration=[(X,)], check=False)
    assert unchecked.package(tmp_path / "before").read_bytes() != b"held"  # nothing was lowered: the backend's package
    assert lowerings == []
    result = qspec.quantize(nn.Linear(6, 3), (X,), backend=backend, calibration=[(X,)])
    assert result.package(tmp_path / "after").read_text() == "held"
    assert isinstance(result.lowered, Packaged)
    assert (tmp_path / "after.toy").exists()
    assert lowerings == ["any"]


def test_calibrate_counts_batches() -> None:
    prepared = qspec.prepare_pt2e(export(nn.Linear(6, 3), X), quantizer())
    assert qspec.calibrate(prepared, [(X,), (X,)]) == 2

"""The backend as core sees it, and what it refuses."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.fx import GraphModule
from typer.testing import CliRunner
from xpu_reference import OnReference
from xpu_support import convert, export

import qspec_core as qspec
from qspec_cli import app
from qspec_core import BackendError, GraphError, LoweringError, Mode
from qspec_core.backend import ENTRY_POINT_GROUP, get_backend
from qspec_xpu import (
    BACKEND,
    XPUInductorQuantizer,
    default_quantizer,
    get_default_xpu_inductor_quantization_config,
    lower,
    lower_portable,
    lower_pt2e_quantized_to_xpu,
    missing_device,
    package,
)

needs_no_device = pytest.mark.skipif(torch.xpu.is_available(), reason="there is a device")


@pytest.fixture
def converted() -> GraphModule:
    return convert(default_quantizer(), nn.Conv2d(3, 8, 3), torch.randn(3, 3, 8, 8))


def test_is_registered_under_its_name() -> None:
    (point,) = entry_points(group=ENTRY_POINT_GROUP, name="xpu")
    assert point.value == "qspec_xpu:BACKEND"
    assert get_backend("xpu") is BACKEND
    assert BACKEND.name == "xpu"
    assert BACKEND.modes == frozenset(Mode)
    assert BACKEND.suffix == ".pt2"


@needs_no_device
def test_without_a_device_the_error_names_the_build_of_torch_and_what_works(converted: GraphModule) -> None:
    for step in (lower, lower_pt2e_quantized_to_xpu):
        with pytest.raises(BackendError, match="needs an Intel GPU") as caught:
            step(converted, (torch.randn(3, 3, 8, 8),))
        assert caught.value.found == missing_device()
        assert torch.__version__ in str(caught.value.found)
        assert "lower_portable" in caught.value.remedy


@needs_no_device
def test_a_torch_with_xpu_support_and_no_driver_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "xpu", "20260000")
    assert "driver" in str(missing_device())
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert missing_device() is None


def test_an_unknown_target_is_refused(converted: GraphModule) -> None:
    with pytest.raises(BackendError, match="no target 'arc'"):
        lower(converted, (torch.randn(3, 3, 8, 8),), "arc")


def test_a_graph_lowered_before_is_refused(converted: GraphModule) -> None:
    with pytest.raises(LoweringError, match="lowered already") as caught:
        lower_portable(lower_portable(converted))
    assert "qconv_pointwise" in str(caught.value.found)


def test_a_graph_that_is_not_converted_is_refused() -> None:
    with pytest.raises(GraphError, match="not quantized"):
        lower_portable(export(nn.Conv2d(3, 8, 3).eval(), torch.randn(3, 3, 8, 8)))


def test_tensors_on_two_devices_are_refused(converted: GraphModule) -> None:
    converted.register_buffer("elsewhere", torch.empty(2, device="meta"))
    with pytest.raises(LoweringError, match="several devices") as caught:
        lower_portable(converted)
    assert "elsewhere on meta" in str(caught.value.found)


def test_a_package_has_the_ending_pt2(converted: GraphModule, tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"end in \.pt2"):
        package(converted, (torch.randn(3, 3, 8, 8),), tmp_path / "model.bin")


def test_result_saves_a_program_that_lowers_after_loading(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
    result = qspec.quantize(model, (x,), calibration=[(x,)], backend="xpu")
    loaded = torch.export.load(result.save(tmp_path / "model.pt2")).module()
    assert isinstance(loaded, GraphModule)
    lowered = lower_portable(loaded)
    with torch.no_grad():
        found, expected = OnReference(lowered)(x), result.converted(x)
    # Every result is float, from exact sums: a step may round otherwise where the float sum is between two.
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) / 50)


def test_the_command_saves_a_program_that_lowers(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "float.pt2")
    save_file({"0.0": x}, tmp_path / "batches.safetensors")
    arguments = ["--backend", "xpu", "--calibration", str(tmp_path / "batches.safetensors")]
    given = ["quantize", str(tmp_path / "float.pt2"), *arguments, "--output", str(tmp_path / "int8.pt2")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    loaded = torch.export.load(tmp_path / "int8.pt2").module()
    assert isinstance(loaded, GraphModule)
    assert set(lower_portable(loaded).meta["qspec_xpu_lowering"].lowered.values()) == {"conv2d + relu"}


@needs_no_device
def test_the_command_cannot_package_without_a_device(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(nn.Conv2d(3, 8, 3).eval(), (x,)), tmp_path / "float.pt2")
    given = ["--backend", "xpu", "--mode", "dynamic", "--form", "package", "--output", str(tmp_path / "int8.pt2")]
    done = CliRunner().invoke(app, ["quantize", str(tmp_path / "float.pt2"), *given])
    assert done.exit_code != 0
    assert not (tmp_path / "int8.pt2").exists()


def test_functions_select_their_rows() -> None:
    config = get_default_xpu_inductor_quantization_config()
    quantizer = XPUInductorQuantizer().set_function_type_qconfig(torch.nn.functional.linear, config)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 5))
    quantized = convert(quantizer, model, torch.randn(2, 3, 2, 2))
    assert set(lower_portable(quantized).meta["qspec_xpu_lowering"].lowered.values()) == {"linear"}
    with pytest.raises(qspec.SelectorError, match="no row of the XPU table"):
        quantizer.set_function_type_qconfig(torch.nn.functional.softmax, config)

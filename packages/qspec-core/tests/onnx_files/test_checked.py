"""Export with a check, by itself, from a result and from the command."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from core_support import toy_backend
from onnx_support import IMAGE, Vision, vision
from typer.testing import CliRunner

from qspec_cli import app
from qspec_core import Result, quantize
from qspec_core.onnx import OnnxCheck, OnnxCheckError, OnnxExportError, to_checked_onnx
from qspec_core.onnx import _translate as translate

WITHOUT_TORCH = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(found,) = session.run(None, {"image": numpy.load(sys.argv[2])})
numpy.save(sys.argv[3], found)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def result() -> Result:
    torch.manual_seed(0)
    return quantize(Vision().eval(), IMAGE, backend=toy_backend(), calibration=[IMAGE])


@pytest.fixture(scope="module")
def program(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return result.save(tmp_path_factory.mktemp("program") / "model.pt2")


def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the translation: scales are 2 % off."""
    right = translate.Translator._scalar

    def off(self: translate.Translator, value: Any) -> Any:  # as the method
        return right(self, value * 1.02 if isinstance(value, float) else value)

    monkeypatch.setattr(translate.Translator, "_scalar", off)


def run(*arguments: object) -> Any:  # typer's Result
    return CliRunner().invoke(app, ["onnx", *map(str, arguments)])


def test_a_result_writes_a_checked_file(result: Result, tmp_path: Path) -> None:
    check = result.to_onnx(tmp_path / "model.onnx")
    assert isinstance(check, OnnxCheck)
    assert check.holds
    assert check.path == str(tmp_path / "model.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_runs_where_only_onnxruntime_is(result: Result, tmp_path: Path) -> None:
    import numpy as np

    assert result.to_onnx(tmp_path / "model.onnx", check=False) is None
    np.save(tmp_path / "image.npy", IMAGE[0].numpy())
    places = [str(tmp_path / name) for name in ("model.onnx", "image.npy", "found.npy")]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *places], check=True)
    with torch.no_grad():
        (want,) = result.converted(*IMAGE).values()
    torch.testing.assert_close(torch.from_numpy(np.load(places[2])), want, rtol=0, atol=0.02)


def test_a_wrong_file_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch)
    (tmp_path / "model.onnx").write_bytes(b"old")
    with pytest.raises(OnnxCheckError):
        to_checked_onnx(vision(), IMAGE, tmp_path / "model.onnx")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"model.onnx": b"old"}


def test_a_missing_folder_is_found_before_the_work(result: Result, tmp_path: Path) -> None:
    with pytest.raises(OnnxExportError):
        result.to_onnx(tmp_path / "missing" / "model.onnx")


def test_the_command_exports_and_checks(program: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    exported = run("export", program, "--output", output, "--opset", 22, "--json")
    assert exported.exit_code == 0, exported.output
    found = json.loads(exported.stdout)
    assert found["path"] == str(output)
    assert found["bytes"] == output.stat().st_size
    assert found["check"]["holds"] is True
    assert onnx.load(output).opset_import[0].version == 22
    checked = run("check", program, output)
    assert checked.exit_code == 0
    assert "reference evaluator" in checked.stdout


def test_the_command_tells_a_wrong_file_by_its_exit_code(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model.onnx"
    wrong(monkeypatch)
    assert run("export", program, "--output", output).exit_code == 3
    assert not output.exists()
    assert run("export", program, "--output", output, "--no-check").exit_code == 0
    checked = run("check", program, output, "--json")
    assert checked.exit_code == 3
    assert json.loads(checked.stdout)["holds"] is False


def test_the_command_with_a_file_that_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    found = run("export", tmp_path / "model.pt2", "--output", tmp_path / "model.onnx")
    assert found.exit_code == 1
    assert run("export").exit_code == 2

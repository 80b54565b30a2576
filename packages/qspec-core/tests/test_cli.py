"""The command: what it prints and writes, and that asking for help needs no torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from core_support import install, toy_backend
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import qspec_core as qspec
from qspec_cli import app, main
from qspec_cli._job import read_batches
from qspec_core import BackendError, CalibrationError, ExportError
from qspec_core.backend import ENTRY_POINT_GROUP

X = torch.randn(4, 6)


@pytest.fixture(autouse=True)
def _backend(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, (ENTRY_POINT_GROUP, "toy", toy_backend()), ("qspec.backends.v0", "relic", None))


@pytest.fixture(scope="module", name="files")
def _files(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Linear, Path, Path]:
    """A linear layer, its float program, and two batches of calibration data."""
    folder = tmp_path_factory.mktemp("files")
    linear = nn.Linear(6, 3)
    torch.export.save(torch.export.export(linear, (X,)), folder / "model.pt2")
    save_file({"0.0": X, "1.0": 2 * X}, folder / "batches.safetensors")
    return linear, folder / "model.pt2", folder / "batches.safetensors"


def run(*arguments: object) -> Any:  # typer's Result
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_backends_as_json() -> None:
    result = run("backends", "--json")
    assert result.exit_code == 0
    relic, toy = json.loads(result.stdout)
    assert toy == {
        "name": "toy",
        "distribution": "qspec-toy",
        "version": "1.2",
        "description": "the toy",
        "problem": "",
    }
    assert "contract v0" in relic["problem"]


def test_backends_as_a_table() -> None:
    result = run("backends")
    assert result.exit_code == 0
    assert "qspec-toy" in result.stdout
    assert "installed" in result.stdout


def test_backends_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert "pip install" in run("backends").stdout
    assert json.loads(run("backends", "--json").stdout) == []


def test_quantize_end_to_end(files: tuple[nn.Linear, Path, Path], tmp_path: Path) -> None:
    linear, model, batches = files
    output = tmp_path / "out.pt2"
    result = run("quantize", model, "--backend", "toy", "--calibration", batches, "--output", output)
    assert result.exit_code == 0, result.output
    assert "1 of 1 convolution and linear layers quantized" in result.stdout
    assert "out.pt2" in result.stdout.replace("\n", "")
    want = qspec.quantize(linear, (X,), backend=toy_backend(), calibration=[(X,), (2 * X,)]).converted
    assert torch.equal(torch.export.load(output).module()(X), want(X))


def test_quantize_to_the_backends_file(files: tuple[nn.Linear, Path, Path], tmp_path: Path) -> None:
    _, model, batches = files
    output = tmp_path / "out.toy"
    result = run(
        "quantize", model, "--backend", "toy", "--calibration", batches, "--output", output, "--form", "package"
    )
    assert result.exit_code == 0, result.output
    assert torch.load(output)


def test_dynamic_needs_no_batches(files: tuple[nn.Linear, Path, Path], tmp_path: Path) -> None:
    arguments = ("--backend", "toy", "--output", tmp_path / "out.pt2", "--mode", "dynamic", "--target", "fast")
    assert run("quantize", files[1], *arguments).exit_code == 0
    extra = {"qspec.json": ""}
    torch.export.load(tmp_path / "out.pt2", extra_files=extra)
    assert json.loads(extra["qspec.json"])["target"] == "fast"


def test_unknown_form_and_missing_file_are_usage_errors(files: tuple[nn.Linear, Path, Path], tmp_path: Path) -> None:
    wrong = run("quantize", files[1], "--backend", "toy", "--output", tmp_path / "o", "--form", "tape")
    assert wrong.exit_code == 2
    assert run("quantize", tmp_path / "none.pt2", "--backend", "toy", "--output", tmp_path / "o").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_qspec_errors_end_the_command_with_their_message(
    files: tuple[nn.Linear, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["qspec", "quantize", str(files[1]), "--backend", "joy", "--output", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "no backend named 'joy'" in " ".join(capsys.readouterr().err.split())


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("qspec_cli._app.app", fail)
    with pytest.raises(ZeroDivisionError):
        main()


def failure(*arguments: object) -> BaseException:
    error = run("quantize", *arguments).exception
    assert error is not None
    return error  # type: ignore[no-any-return]  # typer's Result is read as Any


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch.export.load says that it expects another kind of file
def test_file_that_holds_no_program(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    error = failure(tmp_path / "model.pt2", "--backend", "toy", "--output", tmp_path / "o")
    assert isinstance(error, ExportError)
    assert "is not a program that can be loaded" in error.problem


def test_program_with_keyword_inputs_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(6, 3), (), {"input": X}), tmp_path / "model.pt2")
    error = failure(tmp_path / "model.pt2", "--backend", "toy", "--output", tmp_path / "o")
    assert isinstance(error, ExportError)
    assert (error.problem.split(" ", 1)[1], error.found) == ("was exported with keyword arguments", "input")


def test_program_without_example_inputs_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(6, 3), (X,))
    program._example_inputs = None
    torch.export.save(program, tmp_path / "model.pt2")
    error = failure(tmp_path / "model.pt2", "--backend", "toy", "--output", tmp_path / "o")
    assert isinstance(error, ExportError)
    assert "holds no example inputs" in error.problem


def test_batches_by_number_are_tuples_in_numeric_order(tmp_path: Path) -> None:
    tensors = {f"{batch}.{item}": torch.tensor([batch, item]) for batch in (2, 10) for item in range(12)}
    save_file(tensors, tmp_path / "b.safetensors")
    batches = read_batches(tmp_path / "b.safetensors")
    assert [[tensor.tolist() for tensor in batch] for batch in batches] == [  # type: ignore[union-attr]  # tuples
        [[batch, item] for item in range(12)] for batch in (2, 10)
    ]


def test_batches_by_name_are_keyword_arguments(tmp_path: Path) -> None:
    save_file({"0.image": X, "0.mask.inner": 2 * X}, tmp_path / "b.safetensors")
    (batch,) = read_batches(tmp_path / "b.safetensors")
    assert isinstance(batch, dict)
    assert {name: tensor.shape for name, tensor in batch.items()} == {"image": (4, 6), "mask.inner": (4, 6)}


@pytest.mark.parametrize("names", [["image"], ["a.0"], ["0."], ["0.0", "0.image"], [".0"]], ids=str)
def test_batches_with_other_names_are_refused(names: list[str], tmp_path: Path) -> None:
    save_file({name: X.clone() for name in names}, tmp_path / "b.safetensors")
    with pytest.raises(CalibrationError, match="does not give batch and input") as caught:
        read_batches(tmp_path / "b.safetensors")
    assert "0.0" in str(caught.value.expected)


def test_calibration_file_of_another_format(tmp_path: Path, files: tuple[nn.Linear, Path, Path]) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"nothing at all")
    error = failure(
        files[1], "--backend", "toy", "--output", tmp_path / "o", "--calibration", tmp_path / "b.safetensors"
    )
    assert isinstance(error, CalibrationError)


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["backends", "--help"]], ids=str)
def test_help_needs_no_torch(arguments: list[str]) -> None:
    program = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'qspec'; from qspec_cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage: qspec" in result.stdout


@pytest.fixture(name="unloadable")
def _unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test: what is refused must be refused before."""

    def load(path: Path) -> Any:
        pytest.fail(f"{path} was loaded")

    monkeypatch.setattr(torch.export, "load", load)


@pytest.mark.usefixtures("unloadable")
def test_output_that_cannot_be_written_is_refused_first(files: tuple[nn.Linear, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, found in ((tmp_path, "it is a folder"), (tmp_path / "file" / "out.pt2", "Error")):
        error = failure(files[1], "--backend", "toy", "--output", output)
        assert isinstance(error, ExportError)
        assert "cannot be written" in error.problem
        assert found in str(error.found)


@pytest.mark.usefixtures("unloadable")
def test_backend_and_form_are_checked_first(
    files: tuple[nn.Linear, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (files[1], "--output", tmp_path / "out.pt2", "--backend")
    assert isinstance(failure(*arguments, "absent"), BackendError)
    install(monkeypatch, (ENTRY_POINT_GROUP, "toy", toy_backend(package=None)))
    error = failure(*arguments, "toy", "--form", "package")
    assert isinstance(error, BackendError)
    assert "no deployable file" in error.problem


def test_missing_folder_of_the_output_is_created(files: tuple[nn.Linear, Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "out.pt2"
    result = run("quantize", files[1], "--backend", "toy", "--mode", "dynamic", "--output", output)
    assert result.exit_code == 0, result.output
    assert output.is_file()

"""The work of `qspec quantize`. This module imports torch, so it is imported after the arguments are read."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from qspec_core import Backend, Result, get_backend, load_program, quantize
from qspec_core._errors import BackendError, CalibrationError, ExportError

__all__ = ["load_with_inputs", "read_batches", "run_job"]

Batches = list[tuple[torch.Tensor, ...] | dict[str, torch.Tensor]]


def run_job(
    model: Path,
    *,
    backend: str,
    output: Path,
    calibration: Path | None,
    target: str | None,
    mode: str,
    form: str,
    check: bool,
    report: Callable[[str], None],
) -> tuple[Result, Path]:
    """Quantize a saved program and write it; see `qspec quantize --help`.

    The backend and the output are checked first: loading and quantizing may take minutes. A missing folder of the
    output is created.

    Raises: QSpecError: whatever `quantize` raises, or an error for a file of another format.
    """
    _require_form(get_backend(backend), form)
    _require_writable(output)
    program, arguments = load_with_inputs(model)
    batches = None if calibration is None else read_batches(calibration)
    result = quantize(
        program,
        arguments,
        backend=backend,
        calibration=batches,
        target=target,
        mode=mode,
        check=check,
        progress=report,
    )
    report("write")
    return result, result.save(output) if form == "program" else result.package(output)


def load_with_inputs(model: Path) -> tuple[torch.export.ExportedProgram, tuple[Any, ...]]:  # of any type
    """A saved program with its positional example inputs.

    Raises: ExportError: the file is no program, or holds no example inputs or keyword arguments.
    """
    program = load_program(model)
    if program.example_inputs is None:
        raise ExportError(
            f"{model} holds no example inputs",
            found="example_inputs=None",
            remedy="save a program that torch.export.export made with its example inputs",
        )
    arguments, keywords = program.example_inputs
    if keywords:
        raise ExportError(
            f"{model} was exported with keyword arguments",
            found=", ".join(keywords),
            expected="positional example inputs",
            remedy="export it with positional arguments",
        )
    return program, arguments


def _require_form(backend: Backend, form: str) -> None:
    if form == "package" and backend.package is None:
        raise BackendError(
            f"backend {backend.name!r} has no deployable file",
            found="--form package",
            expected="--form program",
            remedy="write the portable program, and lower it where it runs",
        )


def _require_writable(output: Path) -> None:
    """Create the folder of a file, and raise unless the file can be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(output if output.exists() else output.parent, os.W_OK)
        problem = "it is a folder" if output.is_dir() else "" if is_writable else "no permission to write"
    except OSError as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise ExportError(
            f"{output} cannot be written",
            found=problem,
            expected="a file in a folder that exists or can be created",
            remedy="pass another path with --output",
        )


def read_batches(path: Path) -> Batches:
    """Read calibration batches from a safetensors file whose tensors are named `BATCH.INPUT`.

    Numbers as inputs give tuples of positional arguments, names give dictionaries of keyword arguments.

    Raises: CalibrationError: the file has another format, a name another form, or a batch mixes numbers and names.
    """
    grouped: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _load(path).items():
        batch, dot, key = name.partition(".")
        if not dot or not batch.isdigit() or not key:
            raise _unreadable(path, name)
        grouped.setdefault(int(batch), {})[key] = tensor
    batches: Batches = []
    for _, tensors in sorted(grouped.items()):
        if all(key.isdigit() for key in tensors):
            batches.append(tuple(tensor for _, tensor in sorted(tensors.items(), key=lambda item: int(item[0]))))
        elif not any(key.isdigit() for key in tensors):
            batches.append(tensors)
        else:
            raise _unreadable(path, ", ".join(tensors))
    return batches


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CalibrationError(
            f"{path} is not a file that safetensors reads",
            found=f"{type(error).__name__}: {error}",
            remedy="write it with safetensors.torch.save_file({'0.0': x0, '1.0': x1, ...}, path)",
        ) from error


def _unreadable(path: Path, name: str) -> CalibrationError:
    return CalibrationError(
        f"{path} holds a tensor whose name does not give batch and input",
        found=name,
        expected="BATCH.INPUT, such as 0.0 or 3.image, all numbers or all names within a batch",
        remedy="save the batches with safetensors.torch.save_file({'0.0': x0, '1.0': x1, ...}, path)",
    )

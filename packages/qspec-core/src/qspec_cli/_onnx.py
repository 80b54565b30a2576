"""The work of `qspec onnx`. This module imports torch, so it is imported after the arguments are read."""

from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from qspec_cli._job import load_with_inputs
from qspec_core._errors import ExportError
from qspec_core.onnx import OnnxCheck, check_onnx, to_checked_onnx, to_onnx

__all__ = ["check_file", "export_program"]


def export_program(
    program: Path, output: Path, *, opset: int | None, profile: str | None, check: bool
) -> OnnxCheck | None:
    """Write a saved quantized program as an ONNX file; see `qspec onnx export --help`.

    Raises: QSpecError: as `qspec_core.onnx.to_onnx`, or the file is no program.
    """
    converted, inputs = _load(program)
    if check:
        return to_checked_onnx(converted, inputs, output, opset=opset, profile=profile)
    to_onnx(converted, inputs, output, opset=opset, profile=profile)
    return None


def check_file(program: Path, file: Path, *, node_by_node: bool) -> OnnxCheck:
    """Compare an ONNX file with a saved quantized program; see `qspec onnx check --help`."""
    converted, inputs = _load(program)
    return check_onnx(converted, file, inputs, node_by_node=node_by_node)


def _load(path: Path) -> tuple[GraphModule, tuple[Any, ...]]:  # a model's arguments may be of any type
    program, inputs = load_with_inputs(path)
    module = program.module()
    if not isinstance(module, GraphModule):
        raise ExportError(
            f"{path} holds no graph", found=type(module).__qualname__, remedy="write it with qspec quantize"
        )
    return module, inputs

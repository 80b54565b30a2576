"""Export with a check: a file that computes something else is not left behind."""

from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from qspec_core.onnx._check import check_onnx
from qspec_core.onnx._export import to_onnx
from qspec_core.onnx._files import placed, require_writable
from qspec_core.onnx._report import OnnxCheck

__all__ = ["to_checked_onnx"]


def to_checked_onnx(
    converted: GraphModule,
    example_inputs: tuple[Any, ...],  # a model's arguments may be of any type
    path: str | Path,
    *,
    opset: int | None = None,
    dynamic_shapes: Any = None,  # as torch.export takes it
    profile: str | None = None,
) -> OnnxCheck:
    """Write a converted graph as an ONNX file and check it. The file appears at its path only if the check holds.

    Args: as `to_onnx`.
    Returns: what the check found.
    Raises:
        OnnxCheckError: the file computes something else.
        others: as `to_onnx`.
    """
    target = require_writable(Path(path))
    with placed(target) as temporary:
        to_onnx(converted, example_inputs, temporary, opset=opset, dynamic_shapes=dynamic_shapes, profile=profile)
        check = check_onnx(converted, temporary, example_inputs, label=str(target)).require()
    return check

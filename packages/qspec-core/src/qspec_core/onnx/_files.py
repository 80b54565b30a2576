"""Files: written as a whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qspec_core.onnx._errors import OnnxCheckError, OnnxExportError
from qspec_core.onnx._libraries import library

__all__ = ["placed", "read_model", "require_writable", "write_model"]

_LARGEST = 2**31 - 2**26
"""Bytes of constants in one file: protobuf reads at most 2 GiB, and nodes and names need some of them."""


def require_writable(path: Path) -> Path:
    """The path itself, if a file can be written there.

    Raises: OnnxExportError: it cannot.
    """
    folder = path.parent
    if path.is_dir():
        problem = "it is a folder"
    elif not folder.is_dir():
        problem = f"the folder {folder.absolute()} does not exist"
    elif not os.access(folder, os.W_OK):
        problem = f"no permission to write to {folder.absolute()}"
    else:
        return path
    raise OnnxExportError(
        f"{path} cannot be written",
        found=problem,
        expected="a file in a folder that exists",
        remedy="create the folder first, or pass another path",
    )


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside `path`. What was written there replaces the files beside
    `path` when the block ends; nothing is left if it raises.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
        for written in sorted(folder.iterdir(), reverse=True):  # the data first: the model names it
            os.replace(written, path.parent / written.name)
    except OSError as error:
        raise OnnxExportError(
            f"{path} cannot be written",
            found=f"{type(error).__name__}: {error}",
            remedy="free space on the disk, or pass another path",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_model(model: Any, path: Path) -> None:  # an onnx_ir.Model
    """Write a model as a whole, or not at all."""
    ir = library("onnx_ir")
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    external = f"{path.name}.data" if size > _LARGEST else None
    with placed(path) as temporary:
        ir.save(model, temporary, external_data=external)


def read_model(path: Path) -> Any:  # an onnx_ir.Model
    """Read a model; its constants are read when they are asked for.

    Raises: OnnxCheckError: there is no such file, or it is no ONNX model.
    """
    try:
        model = library("onnx_ir").load(path)
    except Exception as error:  # protobuf raises types of its own
        raise OnnxCheckError(
            f"{path} is not an ONNX model that can be read",
            found=f"{type(error).__name__}: {error}",
            expected="a whole file, with its data file beside it if it has one",
            remedy="write it again with to_onnx",
        ) from error
    if not model.graph.outputs:
        raise OnnxCheckError(
            f"{path} holds no model",
            found=f"{path.stat().st_size} bytes, {len(model.graph)} nodes, no outputs",
            expected="a whole ONNX file",
            remedy="write it again with to_onnx",
        )
    return model

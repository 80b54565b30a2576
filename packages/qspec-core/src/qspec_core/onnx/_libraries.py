"""The libraries of the extra `onnx`, imported when they are needed."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qspec_core._torch import EXPORTER_LOGGER
from qspec_core.onnx._errors import OnnxExportError

__all__ = ["has_library", "library", "quiet_exporter"]

_LOGGERS = (EXPORTER_LOGGER, "onnxscript", "onnx_ir")


def library(name: str) -> Any:  # a module without types
    """Import a module of the extra.

    Raises: OnnxExportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise OnnxExportError(
            f"{package} is not installed",
            found=str(error),
            expected=f"the package {package.replace('_', '-')}",
            remedy='pip install "qspec-core[onnx]"',
        ) from error


def has_library(name: str) -> bool:
    """Whether a module of the extra can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what the exporter logs about packages that it does not need and about nodes that it leaves alone."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

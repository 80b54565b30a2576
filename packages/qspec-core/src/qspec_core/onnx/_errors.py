"""Errors of ONNX export and check."""

from qspec_core._errors import QSpecError

__all__ = ["OnnxCheckError", "OnnxExportError"]


class OnnxExportError(QSpecError, RuntimeError):
    """A converted graph cannot be written as ONNX, or a library for it is missing."""


class OnnxCheckError(QSpecError, RuntimeError):
    """An ONNX file does not compute what its converted graph computes, or cannot be checked."""

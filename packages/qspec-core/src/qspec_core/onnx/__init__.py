"""ONNX files of converted graphs, and the check that a file computes what its graph computes.

Needs the extra: `pip install "qspec-core[onnx]"`.
"""

from qspec_core.onnx._errors import OnnxCheckError, OnnxExportError
from qspec_core.onnx._export import to_onnx

__all__ = ["OnnxCheckError", "OnnxExportError", "to_onnx"]

"""ONNX files of converted graphs, and the check that a file computes what its graph computes.

Needs the extra: `pip install "qspec-core[onnx]"`.
"""

from qspec_core.onnx._check import check_onnx
from qspec_core.onnx._checked import to_checked_onnx
from qspec_core.onnx._errors import OnnxCheckError, OnnxExportError
from qspec_core.onnx._export import to_onnx
from qspec_core.onnx._layers import OnnxLayer
from qspec_core.onnx._parameters import OnnxParameters, read_parameters
from qspec_core.onnx._report import OnnxCheck, OnnxFinding, OnnxStatus

__all__ = [
    "OnnxCheck",
    "OnnxCheckError",
    "OnnxExportError",
    "OnnxFinding",
    "OnnxLayer",
    "OnnxParameters",
    "OnnxStatus",
    "check_onnx",
    "read_parameters",
    "to_checked_onnx",
    "to_onnx",
]

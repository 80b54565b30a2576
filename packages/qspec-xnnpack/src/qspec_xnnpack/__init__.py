"""qspec-xnnpack: quantization for mobile CPUs, through a .pte program that ExecuTorch's XNNPACK delegate executes."""

from qspec_core import QuantizationConfig
from qspec_xnnpack._backend import BACKEND
from qspec_xnnpack._config import get_symmetric_quantization_config
from qspec_xnnpack._lowering._executorch import UntestedExecuTorchWarning
from qspec_xnnpack._lowering._program import Delegation, XNNPACKProgram
from qspec_xnnpack._quantizer import XNNPACKQuantizer

__all__ = [
    "BACKEND",
    "Delegation",
    "QuantizationConfig",
    "UntestedExecuTorchWarning",
    "XNNPACKProgram",
    "XNNPACKQuantizer",
    "get_symmetric_quantization_config",
]

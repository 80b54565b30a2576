"""qspec-xnnpack: quantization for mobile CPUs, through a .pte program that ExecuTorch's XNNPACK delegate executes."""

from qspec_core import Backend, Mode, QuantizationConfig
from qspec_xnnpack._config import get_symmetric_quantization_config
from qspec_xnnpack._executorch import UntestedExecuTorchWarning
from qspec_xnnpack._lowering import TARGETS, lower, package
from qspec_xnnpack._program import Delegation, XNNPACKProgram
from qspec_xnnpack._quantizer import XNNPACKQuantizer, default_quantizer
from qspec_xnnpack._rows import TABLE

__all__ = [
    "BACKEND",
    "Delegation",
    "QuantizationConfig",
    "UntestedExecuTorchWarning",
    "XNNPACKProgram",
    "XNNPACKQuantizer",
    "get_symmetric_quantization_config",
]

BACKEND = Backend(
    name="xnnpack",
    table=TABLE,
    quantizer=default_quantizer,
    lower=lower,
    package=package,
    targets=TARGETS,
    modes=frozenset({Mode.STATIC, Mode.DYNAMIC}),
    suffix=".pte",
)

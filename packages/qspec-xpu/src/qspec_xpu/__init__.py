"""The backend of qspec for Intel GPUs: int8 kernels of oneDNN, through the operators of torch's XPU build."""

from qspec_xpu._backend import (
    BACKEND,
    default_quantizer,
    lower,
    lower_pt2e_quantized_to_xpu,
    package,
)
from qspec_xpu._config import get_default_xpu_inductor_quantization_config, get_weight_only_quantization_config
from qspec_xpu._device import missing_device
from qspec_xpu._lowering._flow import LOWERING_KEY, LoweringReport, lower_portable
from qspec_xpu._quantizer import XPUInductorQuantizer
from qspec_xpu._rows import TABLE

__all__ = [
    "BACKEND",
    "LOWERING_KEY",
    "TABLE",
    "LoweringReport",
    "XPUInductorQuantizer",
    "default_quantizer",
    "get_default_xpu_inductor_quantization_config",
    "get_weight_only_quantization_config",
    "lower",
    "lower_portable",
    "lower_pt2e_quantized_to_xpu",
    "missing_device",
    "package",
]

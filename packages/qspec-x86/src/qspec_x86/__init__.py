"""The x86 backend of qspec: int8 kernels of oneDNN, compiled ahead of time, under `torch.compile`, or eager."""

from qspec_x86._backend import BACKEND, NotCompiledWarning, default_quantizer, lower, lower_pt2e_quantized_to_x86
from qspec_x86._config import get_default_x86_inductor_quantization_config, get_weight_only_quantization_config
from qspec_x86._lowering._aoti import X86Package, load_package, package
from qspec_x86._lowering._flow import LOWERING_KEY, LoweringReport, lower_eager, lower_portable
from qspec_x86._quantizer import X86InductorQuantizer
from qspec_x86._rows import TABLE
from qspec_x86._target import TARGETS, resolve_target, saturates

__all__ = [
    "BACKEND",
    "LOWERING_KEY",
    "TABLE",
    "TARGETS",
    "LoweringReport",
    "NotCompiledWarning",
    "X86InductorQuantizer",
    "X86Package",
    "default_quantizer",
    "get_default_x86_inductor_quantization_config",
    "get_weight_only_quantization_config",
    "load_package",
    "lower",
    "lower_eager",
    "lower_portable",
    "lower_pt2e_quantized_to_x86",
    "package",
    "resolve_target",
    "saturates",
]

"""Classes of deployment CPU, and the range of weights that each allows.

oneDNN multiplies u8 by s8. With VNNI or AMX it sums the products in 32 bits. Without, it sums two products at a time in
16 bits and saturates at 32767 without an error: weights of 127 with inputs of 255 give half the exact sum.
"""

import torch

from qspec_core import BackendError

__all__ = ["TARGETS", "lacks", "resolve_target", "saturates"]

TARGETS = ("any", "vnni", "native")
"""Targets, the default first. "any": every x86 CPU. "vnni": CPUs with VNNI or AMX. "native": this CPU."""

_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")  # torch's names; each includes the instructions of those before it

_onednn = torch.ops.onednn


def saturates() -> bool:
    """Whether the int8 kernels that oneDNN picks on this machine saturate sums at 16 bits.

    Runs a kernel: CPU flags do not show a lower instruction set chosen by `ONEDNN_MAX_CPU_ISA`.
    """
    channels, outputs = 64, 32
    x = torch.full((1, channels, 8, 8), 255, dtype=torch.uint8)
    weight = torch.full((outputs, channels, 1, 1), 127, dtype=torch.int8)
    scale, zero = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int64)
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    packed = _onednn.qconv_prepack(weight, scale, 1.0, 0, *geometry, list(x.shape))
    y = _onednn.qconv_pointwise(
        x, 1.0, 0, packed, scale, zero, None, *geometry, 1.0, 0, torch.float32, "none", [None], ""
    )
    return bool(y.flatten()[0].item() != 255 * 127 * channels)


def resolve_target(target: str) -> str:
    """Class of CPU of a target: "any" or "vnni". For "native", a kernel of this machine decides.

    Raises: BackendError: there is no such target.
    """
    if target not in TARGETS:
        raise BackendError(
            f"backend 'x86' has no target {target!r}",
            found=target,
            expected=", ".join(TARGETS),
            remedy="name one of the targets listed; 'any' is correct on every x86 CPU",
        )
    if target == "native":
        return "any" if saturates() else "vnni"
    return target


def lacks(instructions: str) -> bool:
    """Whether this CPU lacks instructions that compiled code needs, by torch's name: "AVX2" or "AVX512"."""
    here = torch.backends.cpu.get_cpu_capability()
    known = here in _CAPABILITIES and instructions in _CAPABILITIES
    return not known or _CAPABILITIES.index(here) < _CAPABILITIES.index(instructions)

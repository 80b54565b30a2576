"""Classes of deployment CPU, and what each lets a weight hold.

oneDNN multiplies u8 by s8. With VNNI or AMX the products are summed in 32 bits. Without, two products at a time are
summed in 16 bits and cut to 32767, silently: weights of 127 against inputs of 255 give half the exact sum.
"""

import torch

from qspec_core import BackendError

__all__ = ["TARGETS", "lacks", "resolve_target", "saturates"]

TARGETS = ("any", "vnni", "native")
"""Targets, the default first. "any": right on every x86 CPU. "vnni": has VNNI or AMX. "native": the CPU at hand."""

_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")  # as torch names them, each with all that those before it have

_onednn = torch.ops.onednn


def saturates() -> bool:
    """Whether the int8 kernels of this machine, as oneDNN picks them now, cut sums to 16 bits.

    The kernel itself is asked: CPU flags do not see a lower instruction set chosen by `ONEDNN_MAX_CPU_ISA`.
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
    """The class of CPU that a target stands for: "any" or "vnni"; "native" is settled by asking this machine's kernel.

    Raises: BackendError: there is no such target.
    """
    if target not in TARGETS:
        raise BackendError(
            f"backend 'x86' has no target {target!r}",
            found=target,
            expected=", ".join(TARGETS),
            remedy="name one of the targets listed; 'any' is right on every x86 CPU",
        )
    if target == "native":
        return "any" if saturates() else "vnni"
    return target


def lacks(instructions: str) -> bool:
    """Whether this CPU cannot run code compiled for these instructions, named as torch names them: "AVX2", "AVX512"."""
    here = torch.backends.cpu.get_cpu_capability()
    known = here in _CAPABILITIES and instructions in _CAPABILITIES
    return not known or _CAPABILITIES.index(here) < _CAPABILITIES.index(instructions)

"""Post-ops as kernel arguments. A clamp that the saturation of a uint8 result does anyway needs none."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch

from qspec_core.lowering import Quantized
from qspec_core.patterns import Link
from qspec_x86._lowering._parameters import plain_parameters

__all__ = ["KERNEL_MAX", "Bounds", "Output", "bounds_of", "fused_output", "output_of"]

KERNEL_MIN, KERNEL_MAX = 0, 255
"""Limits at which the kernels saturate a uint8 result. They do not know the range of the graph's quantize."""

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Bounds:
    """A clamp to `low`..`high`."""

    low: float = -inf
    high: float = inf

    def then(self, after: "Bounds") -> "Bounds":
        """Combine this clamp with a second one after it."""
        return Bounds(
            min(max(self.low, after.low), after.high),
            min(max(self.high, after.low), after.high),
        )


def bounds_of(links: Sequence[Link]) -> Bounds:
    """Combine the clamps of a chain. Other post-ops are left out."""
    bounds = Bounds()
    for link in links:
        if link.post_op.clamp is not None:
            bounds = bounds.then(Bounds(*link.post_op.clamp(link.node)))
    return bounds


@dataclass(frozen=True)
class Output:
    """Arguments of a kernel that describe its result.

    Args:
        dtype: uint8, or float32 with scale 1 and zero point 0.
        scale: real value of one step.
        zero_point: integer that stands for 0.0.
        attr: the kernel's name for the post-op: "none", "relu", "hardtanh", "hardswish" or "swish".
        scalars: limits of a "hardtanh"; `(None,)` otherwise, since an empty list cannot be saved.
    """

    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    zero_point: int = 0
    attr: str = "none"
    scalars: tuple[float | None, ...] = (None,)


def output_of(bounds: Bounds, quantized: Quantized | None) -> Output:
    """Fold the clamp into saturation where that gives the same integers, else pass it to the kernel.

    A uint8 result saturates to 0..255. ReLU6 needs no clamp if 0.0 is the integer 0 and 6.0 rounds to 255. A graph
    that quantizes to a narrower range than 0..255 needs a clamp to it: the kernel does not know the range.

    Args:
        bounds: the clamp before the quantize.
        quantized: the quantize that reads the result: per tensor, static, uint8; None for a float result.
    """
    if quantized is None:
        return _named(bounds, Output())
    scale, zero_point = plain_parameters(quantized)
    written = Bounds((quantized.quant_min - zero_point) * scale, (quantized.quant_max - zero_point) * scale)
    inner = bounds.then(written)
    low = -inf if round(inner.low / scale) + zero_point <= KERNEL_MIN else inner.low
    high = inf if round(inner.high / scale) + zero_point >= KERNEL_MAX else inner.high
    return _named(Bounds(low, high), Output(torch.uint8, scale, zero_point))


def fused_output(links: Sequence[Link], quantized: Quantized | None) -> tuple[Output, Quantized | None]:
    """Describe the result of a kernel with a chain of unary post-ops, and name the quantize that it replaces, if any.

    The kernel takes a curve (hardswish, swish) or a clamp, not both. If the graph quantizes a curve to a narrower range
    than 0..255, the kernel writes float and the quantize stays.

    Args:
        links: one curve, or clamps.
        quantized: as in `output_of`.
    """
    curves = [link.post_op.kernel for link in links if link.post_op.clamp is None]
    if not curves:
        return output_of(bounds_of(links), quantized), quantized
    if quantized is None or (quantized.quant_min, quantized.quant_max) != (KERNEL_MIN, KERNEL_MAX):
        return Output(attr=curves[0]), None
    scale, zero_point = plain_parameters(quantized)
    return Output(torch.uint8, scale, zero_point, curves[0]), quantized


def _named(bounds: Bounds, plain: Output) -> Output:
    if bounds == Bounds():
        return plain
    if bounds == Bounds(low=0.0):
        attr, scalars = "relu", (None,)
        return Output(plain.dtype, plain.scale, plain.zero_point, attr, scalars)
    limits = (max(bounds.low, -_LARGEST), min(bounds.high, _LARGEST))
    return Output(plain.dtype, plain.scale, plain.zero_point, "hardtanh", limits)

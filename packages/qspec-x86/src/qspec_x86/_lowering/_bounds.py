"""What is fused after a kernel: which clamps its saturation does for free, and what the kernel must be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch

from qspec_core.lowering import Quantized
from qspec_core.patterns import Link
from qspec_x86._lowering._parameters import plain_parameters

__all__ = ["KERNEL_MAX", "Bounds", "Output", "bounds_of", "fused_output", "output_of"]

KERNEL_MIN, KERNEL_MAX = 0, 255
"""Limits to which the kernels saturate a uint8 result, whatever range the graph quantizes to."""

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Bounds:
    """A clamp to `low`..`high`."""

    low: float = -inf
    high: float = inf

    def then(self, after: "Bounds") -> "Bounds":
        """The one clamp that equals this one followed by `after`."""
        return Bounds(
            min(max(self.low, after.low), after.high),
            min(max(self.high, after.low), after.high),
        )


def bounds_of(links: Sequence[Link]) -> Bounds:
    """The one clamp that equals a chain of clamps; post-ops of another kind are left out."""
    bounds = Bounds()
    for link in links:
        if link.post_op.clamp is not None:
            bounds = bounds.then(Bounds(*link.post_op.clamp(link.node)))
    return bounds


@dataclass(frozen=True)
class Output:
    """What a kernel is told about its result.

    Args:
        dtype: uint8, or float32 with scale 1 and zero point 0.
        scale: real value of one step.
        zero_point: integer that stands for 0.0.
        attr: the kernel's name of the post-op: "none", "relu", "hardtanh", "hardswish" or "swish".
        scalars: limits of a "hardtanh"; `(None,)` otherwise, since an empty list cannot be saved.
    """

    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    zero_point: int = 0
    attr: str = "none"
    scalars: tuple[float | None, ...] = (None,)


def output_of(bounds: Bounds, quantized: Quantized | None) -> Output:
    """Fold the clamp into saturation where rounding gives the same integers; else name it to the kernel.

    A uint8 result saturates to 0..255. ReLU6 needs nothing when 0.0 is the integer 0 and 6.0 rounds to 255. A graph
    that quantizes to less than 0..255 needs a clamp for that alone, since the kernel does not know the narrower range.

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
    """What a kernel writes behind a chain of unary post-ops, and the quantize that it takes over, if any.

    A curve and a clamp do not go together: where the graph quantizes to less than 0..255, the kernel writes the curve
    in float, and the quantize stays.

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

"""Post-ops as kernel arguments. A clamp that the saturation of an 8-bit result does anyway needs none."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch

from qspec_core.lowering._rows import Quantized
from qspec_core.lowering._weights import plain_parameters
from qspec_core.patterns import Link

__all__ = ["Bounds", "Output", "bounds_of", "fused_output", "output_of"]

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
        dtype: uint8 or int8; or float32 with scale 1 and zero point 0.
        scale: real value of one step.
        zero_point: integer that stands for 0.0.
        attr: the kernel's name for the post-op: "none", "relu", "hardtanh", or that of a curve.
        scalars: limits of a "hardtanh"; `(None,)` otherwise, since an empty list cannot be saved.
        algorithm: variant of the post-op, for kernels that have several.
    """

    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    zero_point: int = 0
    attr: str = "none"
    scalars: tuple[float | None, ...] = (None,)
    algorithm: str = ""


def output_of(bounds: Bounds, quantized: Quantized | None) -> Output:
    """Fold the clamp into saturation where that gives the same integers, else pass it to the kernel.

    A uint8 result saturates to 0..255, an int8 result to -128..127. ReLU6 needs no clamp if 0.0 is the first of these
    integers and 6.0 rounds to the last. A graph that quantizes to a narrower range needs a clamp to it: the kernel does
    not know the range.

    Args:
        bounds: the clamp before the quantize.
        quantized: the quantize that reads the result: per tensor, static, 8 bits; None for a float result.
    """
    if quantized is None:
        return _named(bounds, Output())
    scale, zero_point = plain_parameters(quantized)
    limits = torch.iinfo(quantized.dtype)
    written = Bounds((quantized.quant_min - zero_point) * scale, (quantized.quant_max - zero_point) * scale)
    inner = bounds.then(written)
    low = -inf if round(inner.low / scale) + zero_point <= limits.min else inner.low
    high = inf if round(inner.high / scale) + zero_point >= limits.max else inner.high
    return _named(Bounds(low, high), Output(quantized.dtype, scale, zero_point))


def fused_output(links: Sequence[Link], quantized: Quantized | None) -> tuple[Output, Quantized | None]:
    """Describe the result of a kernel with a chain of unary post-ops, and name the quantize that it replaces, if any.

    The kernel takes a curve (hardswish, swish) or a clamp, not both. If the graph quantizes a curve to a narrower range
    than that of the dtype, the kernel writes float and the quantize stays.

    Args:
        links: one curve, or clamps.
        quantized: as in `output_of`.
    """
    curves = [link.post_op.kernel for link in links if link.post_op.clamp is None]
    if not curves:
        return output_of(bounds_of(links), quantized), quantized
    if quantized is None or not _has_full_range(quantized):
        return Output(attr=curves[0]), None
    scale, zero_point = plain_parameters(quantized)
    return Output(quantized.dtype, scale, zero_point, curves[0]), quantized


def _has_full_range(quantized: Quantized) -> bool:
    limits = torch.iinfo(quantized.dtype)
    return (quantized.quant_min, quantized.quant_max) == (limits.min, limits.max)


def _named(bounds: Bounds, plain: Output) -> Output:
    if bounds == Bounds():
        return plain
    if bounds == Bounds(low=0.0):
        attr, scalars = "relu", (None,)
        return Output(plain.dtype, plain.scale, plain.zero_point, attr, scalars)
    limits = (max(bounds.low, -_LARGEST), min(bounds.high, _LARGEST))
    return Output(plain.dtype, plain.scale, plain.zero_point, "hardtanh", limits)

"""Rounding in a form that `torch.compile` traces without a graph break: no Python number comes from a tensor, and
switches are values, not branches."""

import torch
from torch import Tensor

__all__ = ["can_trace", "round_to_quantized"]


def can_trace(observer: object) -> bool:
    """Whether `torch.compile` is tracing, and an observer has a form for that and buffers of their final size."""
    if not torch.compiler.is_compiling():
        return False
    ready = getattr(observer, "can_be_traced", None)
    return callable(ready) and bool(ready())


def round_to_quantized(
    x: Tensor,
    qparams: tuple[Tensor, Tensor],
    limits: tuple[int, int],
    ch_axis: int | None,
    enabled: Tensor,
) -> Tensor:
    """Round as `fake_quantize` does, bit for bit, in operators that a compiler fuses.

    Args:
        x: floating point, any shape.
        qparams: scale and zero point, (1,) or (channels,).
        limits: smallest and largest quantized value.
        ch_axis: dimension of the channels; None for one scale per tensor.
        enabled: whether to round, or to return `x`; bool, (1,).
    """
    shape = [1] * x.dim()
    if ch_axis is not None:
        shape[ch_axis] = -1
    # (1,) or (channels,) -> (1, ..., channels, ..., 1)
    scale, zero_point = (value.clone().reshape(shape) for value in qparams)
    wide = x.to(torch.float32)
    with torch.no_grad():
        quantized = torch.round(wide * (1.0 / scale)) + zero_point
        clamped = quantized.clamp(*limits)
        rounded, passes = (clamped - zero_point) * scale, quantized == clamped
    through = rounded + (wide - wide.detach())  # the same value, with the gradient of the identity
    return torch.where(enabled, torch.where(passes, through, rounded), wide).to(x.dtype)

"""Compute scale and zero point from an observed range."""

import ctypes
import math

import torch
from torch import Tensor

from qspec_core._errors import SpecError
from qspec_core._spec import dtype_range

__all__ = [
    "FLOAT8",
    "PER_CHANNEL",
    "PER_TENSOR",
    "SYMMETRIC",
    "choose_qparams",
    "choose_qparams_of_range",
    "float32",
    "quantized_range",
    "symmetric_zero_point",
]

PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)
SYMMETRIC = (torch.per_tensor_symmetric, torch.per_channel_symmetric)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_REDUCED = {
    torch.int8: (-64, 63),
    torch.qint8: (-64, 63),
    torch.uint8: (0, 127),
    torch.quint8: (0, 127),
}


def quantized_range(
    dtype: torch.dtype, quant_min: float | None, quant_max: float | None, *, reduce_range: bool = False
) -> tuple[float, float]:
    """Smallest and largest quantized value, from the dtype and the limits asked for.

    Args:
        dtype: quantized dtype.
        quant_min: smallest value asked for; None for the dtype's.
        quant_max: largest value asked for; None for the dtype's.
        reduce_range: use one bit less: limits asked for are halved, int8 becomes -64..63 and uint8 0..127; other dtypes
            keep their range.
    Raises: SpecError: the dtype is reached by a cast, or the range is empty, outside the dtype, or without 0.
    """
    natural = dtype_range(dtype)
    if natural is None:
        raise SpecError(
            "an observer of ranges does not support a dtype that is reached by a cast",
            found=dtype,
            remedy="use PlaceholderObserver for float16, bfloat16 and float32",
        )
    low = natural[0] if quant_min is None else quant_min
    high = natural[1] if quant_max is None else quant_max
    if not natural[0] <= low <= 0 <= high <= natural[1] or low == high:
        raise SpecError(
            "the quantized range of an observer is empty, outside its dtype, or without 0",
            found=f"quant_min={low}, quant_max={high}, dtype={dtype}",
            expected=f"{natural[0]} <= quant_min <= 0 <= quant_max <= {natural[1]}, and quant_min < quant_max",
            remedy="give a range that holds 0, which stands for the real number 0",
        )
    if not reduce_range:
        return low, high
    if quant_min is None and quant_max is None:
        return _REDUCED.get(dtype, (low, high))
    return low // 2, high // 2


def symmetric_zero_point(quant_min: float, quant_max: float, dtype: torch.dtype, *, has_custom_range: bool) -> int:
    """Zero point of a symmetric scheme: 0 for signed dtypes, the middle of the range for unsigned ones.

    As in PyTorch, the middle is rounded up for the dtype's own range (128 for 0..255) and down for limits asked for.
    """
    natural = dtype_range(dtype)
    if natural is None or natural[0] < 0:
        return 0
    return int(quant_min + quant_max + (0 if has_custom_range else 1)) // 2


def choose_qparams(
    min_val: Tensor,
    max_val: Tensor,
    *,
    quant_min: float,
    quant_max: float,
    dtype: torch.dtype,
    qscheme: torch.qscheme,
    eps: Tensor,
    has_custom_range: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of one range per tensor or per channel.

    Args:
        min_val: smallest observed value, float32, scalar or (channels,).
        max_val: largest observed value, the same shape; not below `min_val`.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        dtype: quantized dtype.
        qscheme: symmetric, affine, or affine with float zero points.
        eps: smallest scale allowed, (1,).
        has_custom_range: the range was asked for; see `middle`.
    Returns: scale, float32, and zero point, int64 (float32 for float zero points), both (1,) or (channels,).
    Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section 2; the
        range is extended to include 0, so that 0 is exact.
    """
    low, high = min_val.reshape(-1).float(), max_val.reshape(-1).float()
    if qscheme == torch.per_channel_affine_float_qparams:
        scale = (high - low) / float(quant_max - quant_min)
        scale = torch.where(scale > eps, scale, torch.ones_like(scale))
        return scale, -low / scale
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if dtype in FLOAT8:
        return torch.maximum(torch.maximum(-low, high) / quant_max, eps), torch.zeros_like(low, dtype=torch.int64)
    if qscheme in SYMMETRIC:
        scale = torch.maximum(torch.maximum(-low, high) / (float(quant_max - quant_min) / 2), eps)
        zero_point = symmetric_zero_point(quant_min, quant_max, dtype, has_custom_range=has_custom_range)
        return scale, torch.full_like(low, zero_point, dtype=torch.int64)
    span = float(quant_max - quant_min)
    # The difference of two huge limits may overflow; dividing each limit first does not.
    scale = torch.where((high - low).isinf(), high / span - low / span, (high - low) / span)
    scale = torch.maximum(scale, eps)
    return scale, (int(quant_min) - torch.round(low / scale).to(torch.int64)).clamp(int(quant_min), int(quant_max))


def float32(x: float) -> float:
    """The float32 nearest to a number."""
    return ctypes.c_float(x).value


def choose_qparams_of_range(
    low: float,
    high: float,
    *,
    quant_min: float,
    quant_max: float,
    dtype: torch.dtype,
    qscheme: torch.qscheme,
    eps: float,
    has_custom_range: bool = False,
) -> tuple[float, int]:
    """Scale and zero point of one range, bit for bit as `choose_qparams`, in Python numbers.

    Python numbers take a twentieth of the time of tensors of one element. For affine and symmetric schemes; `low`,
    `high` and `eps` are float32.

    A sum, product or quotient of two float32 numbers computed in double precision and rounded to float32 equals the
    one computed in float32 (Figueroa, "When is double rounding innocuous?", 1995).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    largest = max(-low, high)
    if dtype in FLOAT8:
        return max(float32(largest / quant_max), eps), 0
    if qscheme in SYMMETRIC:
        scale = float32(largest / float32(float(quant_max - quant_min) / 2))
        return max(scale, eps), symmetric_zero_point(quant_min, quant_max, dtype, has_custom_range=has_custom_range)
    span = float32(float(quant_max - quant_min))
    scale = float32(float32(high - low) / span)
    if math.isinf(scale):
        scale = float32(float32(high / span) - float32(low / span))
    scale = max(scale, eps)
    zero_point = int(quant_min) - round(float32(low / scale))
    return scale, int(min(max(zero_point, quant_min), quant_max))

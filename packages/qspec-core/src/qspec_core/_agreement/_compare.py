"""Results of a lowered program against those of the converted graph, within a bound from dithered rounding.

The bound of a floating-point result: its root mean square error may be `RMS_FACTOR` times that of the dithered graph,
its largest error `PEAK_FACTOR` times, each beside the error of float arithmetic in the result's dtype. Rounding has no
preferred direction, so that its size, measured along the expected result, may differ by `GAIN` at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qspec_core._agreement._calls import Call

__all__ = ["GAIN", "PEAK_FACTOR", "RMS_FACTOR", "Deviation", "deviations"]

RMS_FACTOR = 2.0
"""Right kernels were seen at 0.0 to 0.6 on x86 and 0.0 to 0.9 on XNNPACK: nine small networks, ResNet-50, BERT."""
PEAK_FACTOR = 6.0
GAIN = 0.02
"""A kernel that forgets a factor of 1.05 moves a result less than rounding does, and more than this."""
_ARITHMETIC = {torch.float16: 2e-2, torch.bfloat16: 4e-2}
_FLOAT32 = 1e-3
"""Errors of float arithmetic, relative to the result: sums in another order, over the layers of a deep network."""
_CANCELLED = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
_CANCELLED_FLOAT32 = 1e-6
"""Absolute errors of float arithmetic where sums of numbers around 1 cancel: one unit in the last place or a few."""
_FEW = 16
"""Integers of fewer elements are not judged: one class index may change where two scores are a rounding apart."""
_CHANGED = 0.02
"""Share of the integers of a result that may differ beside those that dithering changes."""


@dataclass(frozen=True)
class Deviation:
    """One result of one call.

    Args:
        result: number of the result, flattened.
        call: label of the call.
        found: what was compared, with the figures.
        ratio: error over its bound; above 1 the result diverges.
    """

    result: int
    call: str
    found: str
    ratio: float

    def __str__(self) -> str:
        return f"result {self.result} of {self.call}: {self.found}"


def deviations(call: Call, results: Sequence[Any]) -> list[Deviation]:
    """Compare the flattened results of one call with what was expected."""
    if len(results) != len(call.expected):
        found = f"{len(results)} results, {len(call.expected)} expected"
        return [Deviation(0, call.label, found, torch.inf)]
    triples = zip(results, call.expected, call.moved, strict=True)
    return [
        Deviation(index, call.label, *_compared(found, expected, moved))
        for index, (found, expected, moved) in enumerate(triples)
        if isinstance(expected, Tensor)
    ]


def _compared(found: object, expected: Tensor, moved: Tensor) -> tuple[str, float]:
    if not isinstance(found, Tensor):
        return f"{type(found).__qualname__}, a tensor expected", torch.inf
    if found.shape != expected.shape or found.dtype != expected.dtype:
        said = f"{_like(found)}, {_like(expected)} expected"
        return said, torch.inf
    found, expected, moved = (value.detach().cpu() for value in (found, expected, moved))
    if expected.numel() == 0:
        return "empty", 0.0
    if not expected.is_floating_point():
        return _compared_integers(found, expected, moved)
    return _compared_floats(found, expected, moved)


def _like(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _compared_integers(found: Tensor, expected: Tensor, moved: Tensor) -> tuple[str, float]:
    """Integers, booleans and complex numbers, by the share of elements that differ."""
    share = (found != expected).double().mean().item()
    if expected.numel() < _FEW and not expected.is_complex():
        return f"{share:.0%} of {expected.numel()} elements differ, too few to judge", 0.0
    bound = RMS_FACTOR * (moved != expected).double().mean().item() + _CHANGED
    return f"{share:.1%} of the elements differ, {bound:.1%} allowed", share / bound


def _compared_floats(found: Tensor, expected: Tensor, moved: Tensor) -> tuple[str, float]:
    finite = expected.isfinite()
    if not bool((found.isfinite() == finite).all()) and bool((moved.isfinite() == finite).all()):
        return f"{int((found.isfinite() != finite).sum())} elements are finite in one of the two alone", torch.inf
    finite &= found.isfinite() & moved.isfinite()
    if not bool(finite.any()):
        return "no finite element", 0.0
    expected, error, noise = (
        part[finite].double() for part in (expected, found.double() - expected, moved.double() - expected)
    )
    relative = _ARITHMETIC.get(moved.dtype, _FLOAT32)
    absolute = _CANCELLED.get(moved.dtype, _CANCELLED_FLOAT32)
    allowed = RMS_FACTOR * _rms(noise) + relative * _rms(expected) + absolute
    peak = PEAK_FACTOR * float(noise.abs().max()) + relative * float(expected.abs().max()) + absolute
    margin = GAIN + RMS_FACTOR * _gain(noise, expected) + _chance(noise, expected, absolute)
    gain = _gain(error, expected)
    ratios = [_ratio(_rms(error), allowed), _ratio(float(error.abs().max()), peak), _ratio(gain, margin)]
    said = (
        f"root mean square error {_rms(error):.3g}, {allowed:.3g} allowed; largest error "
        f"{float(error.abs().max()):.3g}, {peak:.3g} allowed; size {gain:.2%} off, {margin:.2%} allowed; "
        f"results have {_rms(expected):.3g}"
    )
    return said, max(ratios)


def _gain(error: Tensor, expected: Tensor) -> float:
    """The part of an error along the expected result, relative to it: 0.05 where all elements are 5 % too large."""
    power = float(expected.square().sum())
    return abs(float((error * expected).sum())) / power if power > 0 else 0.0


def _chance(noise: Tensor, expected: Tensor, absolute: float) -> float:
    """Four standard deviations of the gain of independent rounding errors of this size, beside float arithmetic."""
    size = _rms(expected)
    return (4 * _rms(noise) / noise.numel() ** 0.5 + absolute) / size if size > 0 else 0.0


def _ratio(error: float, allowed: float) -> float:
    return error / allowed if allowed > 0 else (0.0 if error == 0 else torch.inf)


def _rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())

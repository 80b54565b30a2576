"""Which part of a histogram to quantize: the range with the smallest squared error.

All lengths are in bin widths and 0 lies on a bin edge. Within a bin the values count as evenly spread, so that the
error of a range is a closed form, not a simulation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grids", "RangeSearch"]

Array = NDArray[np.float64]

_GEOMETRIC = 2.0 ** np.linspace(-8.0, 0.0, 16)
"""Shares of the whole range that are tried first; the best range is small where outliers are rare and far."""

_BUDGET = 1 << 18
"""Edges times ranges looked at first where the histogram has spikes: fewer edges leave room for more ranges."""

_AROUND = np.arange(-4.0, 5.0)
_NEAR = np.arange(-2.0, 3.0)
"""Steps around the best range so far, for the estimate and for the error."""

_PROBES = np.array([1.0, 0.95])
"""Shares of the range found at which the estimate is compared with the error."""

_AGREEMENT = 0.02
"""Relative difference between estimate and error up to which the histogram counts as smooth."""

_RESOLVED = 64.0
"""Range, in bins, under which whole bins are too coarse a step for the estimate."""


@dataclass(frozen=True)
class Grids:
    """Candidate grids of quantized values, one an entry: `scale * n` for n from `n_min` to `n_max`."""

    scale: Array
    n_min: Array
    n_max: Array

    @classmethod
    def affine(cls, low: Array, high: Array, quant_min: int, quant_max: int) -> "Grids":
        """Grids that follow from the ranges `low <= 0 <= high` as an affine observer computes them."""
        scale = (high - low) / float(quant_max - quant_min)
        n_min = np.minimum(np.maximum(np.rint(low / scale), float(quant_min - quant_max)), 0.0)
        return cls(scale, n_min, n_min + float(quant_max - quant_min))

    @classmethod
    def symmetric(cls, high: Array, quant_min: int, quant_max: int, zero_point: int) -> "Grids":
        """Grids that follow from the ranges -high..high as a symmetric observer computes them."""
        scale = high / (float(quant_max - quant_min) / 2)
        return cls(scale, np.full_like(high, quant_min - zero_point), np.full_like(high, quant_max - zero_point))


class RangeSearch:
    """Search over one histogram.

    Args:
        counts: values in each bin, (bins,), not negative, not all 0.
        first: number of the first bin; bin `i` holds the values from `i` to `i + 1`.
        low: smallest value, at most 0.
        high: largest value, at least 0, greater than `low`.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        zero_point: that of a symmetric scheme; None for an affine one.
    Source: the squared error of rounding to equal steps and of clipping, Bennett, "Spectra of quantized signals", 1948.
    """

    def __init__(
        self,
        counts: Array,
        first: int,
        low: float,
        high: float,
        quant_min: int,
        quant_max: int,
        zero_point: int | None,
    ) -> None:
        self.counts, self.first, self.low, self.high = counts, first, low, high
        self.quant_min, self.quant_max, self.zero_point = quant_min, quant_max, zero_point
        edges = np.arange(first, first + counts.size + 1, dtype=np.float64)
        self._edges = edges
        # Sums of 1, x and x * x over all values below each edge; in the bin from a to a + 1, x * x is a(a + 1) + 1/3.
        moments = np.zeros((3, edges.size))
        terms = moments[:, 1:]
        terms[0] = counts
        np.multiply(counts, edges[:-1] + 0.5, out=terms[1])
        np.multiply(counts, edges[:-1] * edges[1:] + 1.0 / 3.0, out=terms[2])
        np.cumsum(terms, axis=1, out=terms)
        self._below = moments[0]
        self._clipped_below, self._clipped_above = self._clipping(moments)
        self._changes = np.diff(counts, prepend=0.0, append=0.0)
        self._steps = float(quant_max - quant_min)
        self._has_one_side = zero_point is not None or low == 0.0 or high == 0.0
        self._inner_count, self._inner_square = self._around_zero(moments)

    def _clipping(self, moments: Array) -> tuple[Array, Array]:
        """Squared error of clipping at each edge, from below and from above, both (edges,)."""
        edges = self._edges
        below = (edges * moments[0] - 2.0 * moments[1]) * edges + moments[2]
        rest = moments[:, -1:] - moments
        return below, (edges * rest[0] - 2.0 * rest[1]) * edges + rest[2]

    def _around_zero(self, moments: Array) -> tuple[Array, Array]:
        """Sums of 1 and x * x over the values within k bins of 0, for as many k as half a step of the widest range."""
        reach = np.arange(int((self.high - self.low) / self._steps / 2) + 3)
        zero, last = -self.first, self.counts.size
        inner = moments[:, np.minimum(zero + reach, last)] - moments[:, np.maximum(zero - reach, 0)]
        return inner[0], inner[2]

    def grids(self, low: Array, high: Array) -> Grids:
        """Grids of the scheme at hand for candidate ranges."""
        if self.zero_point is None:
            return Grids.affine(low, high, self.quant_min, self.quant_max)
        return Grids.symmetric(np.maximum(-low, high), self.quant_min, self.quant_max, self.zero_point)

    def error(self, low: Array, high: Array) -> Array:
        """Sum of squared errors of each candidate range, exact for values evenly spread within each bin.

        Args:
            low: lower limits, (candidates,), at most 0.
            high: upper limits, (candidates,), at least 0.
        Cost: O(candidates * edges between bins of different counts).
        """
        grids = self.grids(low, high)
        # The integral of the squared error up to x is scale**3 * (n / 12 + r**3 / 3), where n is the quantized value
        # and r the rest; summing by parts needs it only where the count changes.
        used = np.flatnonzero(self._changes)
        changes = self._changes[used]
        rest = self._edges[used] / grids.scale[:, None]
        level = np.rint(rest)
        np.maximum(level, grids.n_min[:, None], out=level)
        np.minimum(level, grids.n_max[:, None], out=level)
        rest -= level
        cubes = rest * rest
        cubes *= rest
        error: Array = (level @ changes / 12.0 + cubes @ changes / 3.0) * -(grids.scale**3)
        return error

    def estimate(self, low: Array, high: Array) -> Array:
        """Estimate of `error` in constant time per candidate, limits rounded to edges: clipping is exact, and so is
        rounding in the step around 0, where activations crowd; in the others it is taken as scale**2 / 12 a value.
        """
        last = self.counts.size
        bottom = np.minimum(np.maximum(np.rint(low).astype(np.intp) - self.first, 0), last)
        top = np.minimum(np.maximum(np.rint(high).astype(np.intp) - self.first, 0), last)
        scale = (high - low) / self._steps
        half = scale / 2
        reach = np.arange(self._inner_count.size, dtype=np.float64)
        stepped = self._below[top] - self._below[bottom] - np.interp(half, reach, self._inner_count)
        error: Array = self._clipped_below[bottom] + self._clipped_above[top]
        error += np.interp(half, reach, self._inner_square)
        scale *= scale
        scale *= stepped
        scale /= 12.0
        error += scale
        return error

    def best(self) -> tuple[float, float]:
        """The range with the smallest error, to within about 1 %; never worse than the whole range.

        Cost: O(bins), with a small constant for a smooth histogram and a larger one for one with spikes.
        """
        lows, highs = self._pairs(self.low * _GEOMETRIC, self.high * _GEOMETRIC)
        start = int(self.estimate(lows, highs).argmin())
        low, high = self._refine(self.estimate, float(lows[start]), float(highs[start]), (0.08, 0.016), _AROUND)
        lows, highs = np.append(low * _PROBES, self.low), np.append(high * _PROBES, self.high)
        errors = self.error(lows, highs)
        known = slice(_PROBES.size)
        apart = np.abs(errors[known] - self.estimate(lows[known], highs[known])) > _AGREEMENT * errors[known]
        if high - low < _RESOLVED or bool(apart.any()):
            return self._best_with_spikes(lows, highs, errors)
        chosen = int(errors.argmin())
        return float(lows[chosen]), float(highs[chosen])

    def _best_with_spikes(self, lows: Array, highs: Array, errors: Array) -> tuple[float, float]:
        """Search with the exact error, for histograms whose error changes by leaps with the range."""
        tries = _BUDGET // np.count_nonzero(self._changes)
        per_side = max(8, min(512, tries if self._has_one_side else int(tries**0.5)))
        spread = [np.linspace(0.0, 1.0, per_side + 1)[1:]]
        if highs[0] - lows[0] < _RESOLVED:
            spread.append(2.0 ** np.linspace(-11.0, 0.0, per_side))
        for fractions in spread:
            low, high = self._pairs(self.low * fractions, self.high * fractions)
            lows, highs, errors = np.append(lows, low), np.append(highs, high), np.append(errors, self.error(low, high))
        chosen = int(errors.argmin())
        return self._refine(self.error, float(lows[chosen]), float(highs[chosen]), (0.02, 0.006, 0.002), _NEAR)

    def _refine(
        self,
        objective: Callable[[Array, Array], Array],
        low: float,
        high: float,
        steps: Sequence[float],
        around: Array,
    ) -> tuple[float, float]:
        """Best range on ever finer grids around the best so far."""
        for step in steps:
            near = 1.0 + step * around
            lows, highs = self._pairs(low * near, high * near)
            lows, highs = np.maximum(lows, self.low), np.minimum(highs, self.high)
            chosen = int(objective(lows, highs).argmin())
            low, high = float(lows[chosen]), float(highs[chosen])
        return low, high

    def _pairs(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Every lower with every upper limit; one to one where there is only one side to choose."""
        if self._has_one_side:
            return low, high
        return np.repeat(low, high.size), np.tile(high, low.size)

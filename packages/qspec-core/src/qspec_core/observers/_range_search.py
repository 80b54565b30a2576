"""Which part of a histogram to quantize: the range with the smallest squared error.

All lengths are in bin widths and 0 lies on a bin edge. A range is a grid of quantized values: the multiples of a step,
from `n_min` times the step on, as many as the scheme has. Within a bin the values count as evenly spread, so that the
error of a grid is a closed form, not a simulation; values that sit exactly on a limit may be told apart.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["RangeSearch"]

_CROWD = 2.0**-10
"""Share of all values from which on those on a limit are told apart from their bin."""

_OCTAVES, _PER_OCTAVE = 11, 3
"""Steps tried first: that of the whole range, and smaller ones through so many octaves, where all but an outlier may
lie in one bin; so many to each.
"""

_CLOSER = 16
"""Then, about the best of these: steps on each side, up to the next that was tried."""

_SMOOTH = 0.03
"""Second difference of the logarithms of their errors up to which there is nothing left to find between them."""

_LEAPS = ((1, 80), (3, 10))
"""Else, where the values crowd in a few places, the error changes by leaps with the step: one that is wrong by 1 / 255
moves the last of 255 values by one. About how many of the best to look, and by how many steps on each side.
"""

_TOGETHER = 1 << 15
"""Thresholds looked at together: what is computed of them stays in the cache."""


@functools.lru_cache(maxsize=16)
def _count_up(first: int, size: int) -> Tensor:
    """`first`, `first + 1` ... as float64, (size,)."""
    return torch.arange(first, first + size, dtype=torch.float64, device="cpu")


class RangeSearch:
    """Search over one histogram.

    Args:
        counts: values in each bin, (bins,), on the CPU, not negative, not all 0.
        first: number of the first bin; bin `i` holds the values from `i` to `i + 1`.
        low: smallest value, at most 0.
        high: largest value, at least 0, greater than `low`; `-low` for a symmetric scheme.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        zero_point: that of a symmetric scheme; None for an affine one.
        crowds: values where many may sit, and how many do; counted in `counts` as well. What clamps its output has
            them on its limits.
    Source: clipping against rounding: Bennett, "Spectra of quantized signals", 1948.
    """

    def __init__(
        self,
        counts: Tensor,
        first: int,
        low: float,
        high: float,
        quant_min: int,
        quant_max: int,
        zero_point: int | None,
        crowds: Sequence[tuple[float, float]] = (),
    ) -> None:
        self._levels, self._first, self._bins = quant_max - quant_min, first, counts.numel()
        self._widest, self._is_symmetric = (high - low) / self._levels, zero_point is not None
        if zero_point is not None:
            self._starts = range(quant_min - zero_point, quant_min - zero_point + 1)
        else:  # values on one side of 0 have no use for quantized values on the other
            self._starts = range(-self._levels if low else 0, (0 if high else -self._levels) + 1)
        self._middles = _count_up(self._starts[0], self._levels + len(self._starts) - 1) + 0.5
        self._tops = _count_up(self._starts[0] + self._levels, len(self._starts))
        total = float(counts.sum())
        self._crowds = [(place, number) for place, number in crowds if number > _CROWD * total]
        self._fill(counts)

    def _fill(self, counts: Tensor) -> None:
        """Tables over the edges of the bins, without the crowds, float64, (bins + 1,): values in the bin above, values
        below, sum of the distances to these. And number, sum and sum of squares of all values.
        """
        self._counts, self._below = torch.zeros(2, self._bins + 1, dtype=torch.float64, device="cpu")
        own = self._counts[:-1].copy_(counts)
        for place, number in self._crowds:
            # A value too close to 0 for the arithmetic of bins may have been counted beside it.
            own[math.floor(place) - self._first].sub_(number).clamp_(min=0.0)
        torch.cumsum(own, 0, out=self._below[1:])
        self._distance = torch.cumsum(self._below, 0).sub_(self._below, alpha=0.5)
        left = _count_up(self._first, self._bins)
        moments = own * left
        number, moment, square = (float(value) for value in (self._below[-1], moments.sum(), torch.dot(moments, left)))
        # Of x over a bin, the mean is left + 1 / 2; that of x**2 is left**2 + left + 1 / 3.
        self._number = number + sum(many for _, many in self._crowds)
        self._sum = moment + number / 2.0 + sum(many * place for place, many in self._crowds)
        self._squares = square + moment + number / 3.0 + sum(many * place**2 for place, many in self._crowds)

    def errors(self, steps: Tensor) -> Tensor:
        """Sum of squared errors of all grids with some steps, exact for values evenly spread within each bin.

        A grid's step up from one quantized value to the next, at the threshold `t` between them, changes the squared
        error of a value `x` by `2 * step * (t - x)`. Hence the error of a grid is that of its largest quantized value
        for all, less the sum of `2 * step * (t - x)` over all thresholds and the values below each.

        Args:
            steps: float64, (steps,).
        Returns: float64, (steps, starts), for each `n_min` in `starts`.
        Cost: O(steps * levels): grids of the same step share their thresholds.
        """
        parts = torch.split(steps, max(_TOGETHER // len(self._middles), 1))
        below = torch.cat([self._below_thresholds(torch.outer(part, self._middles)) for part in parts])
        tops = torch.outer(steps, self._tops)
        errors = (tops * self._number).sub_(2.0 * self._sum).mul_(tops).add_(self._squares)
        return errors.addcmul_(below, steps.unsqueeze(1), value=-2.0)

    def _below_thresholds(self, thresholds: Tensor) -> Tensor:
        """For each grid, the sum over its thresholds of the distances to the values below; float64, (steps, starts).

        Args:
            thresholds: those of all grids of a step, ascending, float64, (steps, levels + starts - 1).
        """
        sums = self._distances(thresholds)
        if len(self._starts) == 1:
            return sums.sum(1, keepdim=True)
        running = torch.nn.functional.pad(sums.cumsum(1), (1, 0))
        return running[:, self._levels :] - running[:, : len(self._starts)]

    def _distances(self, places: Tensor) -> Tensor:
        """For each place, the sum of the distances to the values below it; float64, the shape of `places`."""
        from_first = (places - self._first).clamp_(min=0.0)
        edge = from_first.to(torch.int32).clamp_(max=self._bins)
        rest, edge = from_first.sub_(edge).view(-1), edge.view(-1)
        within, below, sums = (table.index_select(0, edge) for table in (self._counts, self._below, self._distance))
        sums = sums.addcmul_(below.addcmul_(within, rest, value=0.5), rest).view(places.shape)
        for place, number in self._crowds:
            sums.add_((places - place).relu_(), alpha=number)
        return sums

    def best(self) -> tuple[float, float]:
        """The range with the smallest error, to within about 1 %.

        Cost: O(bins + levels), with a larger constant for a histogram with spikes.
        """
        ratio = 2.0 ** (1.0 / _PER_OCTAVE)
        first = self._lowest(self._widest * ratio ** -_count_up(0, _OCTAVES * _PER_OCTAVE), 1)
        steps = self._about(first, ratio, _CLOSER)
        errors = self.errors(steps)
        # Errors of about 0 have no logarithm: these are no smooth ones.
        if not float(errors.amin(1).log().diff(n=2).abs().max()) <= _SMOOTH:
            steps = first
            for number, finer in _LEAPS:
                steps = self._about(self._lowest(steps, number), ratio, finer)
                ratio **= 1.0 / finer
            errors = self.errors(steps)
        row, column = divmod(int(errors.argmin()), len(self._starts))
        return self._range(float(steps[row]), self._starts[column])

    def _lowest(self, steps: Tensor, number: int) -> Tensor:
        """The steps with the smallest errors."""
        return steps[self.errors(steps).amin(1).topk(number, largest=False).indices]

    def _about(self, steps: Tensor, ratio: float, number: int) -> Tensor:
        """So many steps on each side of some, up to a ratio; none that more than holds the whole range."""
        near = torch.outer(steps, ratio ** (_count_up(-number, 2 * number + 1) / number)).view(-1)
        return near[near <= self._widest * (1.0 + 1.0 / self._levels)]

    def _range(self, step: float, n_min: int) -> tuple[float, float]:
        """A range from which an observer derives this grid."""
        if self._is_symmetric:
            high = step * self._levels / 2.0
            return -high, high
        return step * n_min, step * (n_min + self._levels)

"""Search for the range of a histogram with the smallest squared quantization error.

All lengths are in bin widths, and 0 lies on a bin edge. A range is a grid of quantized values: multiples of a step,
from `n_min` times the step on, as many as the scheme has. The values of a bin are taken as evenly spread in it, so the
error of a grid has a closed form. Values that lie exactly on a limit may be counted separately, as spikes.

Histograms are searched together, with the same result for each as alone.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Histogram", "RangeSearch", "best_ranges"]

_SPIKE = 2.0**-10
"""Smallest share of all values that makes values on a limit a spike; fewer are spread in their bin."""

_OCTAVES, _PER_OCTAVE = 11, 3
"""Steps tried first: that of the whole range and smaller ones, over 11 octaves with 3 steps in each. If an outlier is
far away, all other values may lie in one bin."""

_NEAR = 16
"""Steps tried next on each side of the best one, up to its neighbours among the first steps."""

_SMOOTH = 0.03
"""If the second differences of the logarithms of these errors are smaller, the smallest of them is the best."""

_ENOUGH = 3
"""Number of second differences that are needed to call the errors smooth."""

_REFINEMENTS = ((1, 80), (3, 10))
"""Otherwise: the number of best steps to refine, and the number of steps to try on each side of them. If most values
lie in a few places, the error jumps with the step: a step that is wrong by 1 / 255 moves the last of 255 quantized
values by one."""

_CACHED = 32767
"""Thresholds computed together: intermediate results stay in the cache. PyTorch runs operators on fewer than 32,768
elements in one thread."""

_TOGETHER = 64
"""Histograms searched together: 4 MiB of tables for 2,048 bins. More save no time."""


class Histogram(NamedTuple):
    """A histogram to search, and its scheme.

    Args:
        counts: values in each bin, integers, (bins,), on the CPU, not all 0.
        first: number of the first bin; bin `i` holds the values from `i` to `i + 1`.
        low: smallest value, at most 0.
        high: largest value, at least 0, greater than `low`; `-low` for a symmetric scheme.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        zero_point: zero point of a symmetric scheme; None for an affine one.
        spikes: values that may occur often, and how often; included in `counts`. A clamp leaves many values on its
        limits.
    """

    counts: Tensor
    first: int
    low: float
    high: float
    quant_min: int
    quant_max: int
    zero_point: int | None
    spikes: Sequence[tuple[float, float]] = ()

    @property
    def starts(self) -> range:
        """The `n_min` of the grids to try."""
        levels = self.quant_max - self.quant_min
        if self.zero_point is not None:
            return range(self.quant_min - self.zero_point, self.quant_min - self.zero_point + 1)
        # If all values are on one side of 0, quantized values on the other side are not used.
        return range(-levels if self.low else 0, (0 if self.high else -levels) + 1)


def best_ranges(histograms: Sequence[Histogram]) -> list[tuple[float, float]]:
    """Range with an error within about 1 % of the smallest, for each histogram.

    Cost: for each histogram O(bins + levels), with a larger constant for one with spikes. Memory for 64 histograms.
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, histogram in enumerate(histograms):
        levels = histogram.quant_max - histogram.quant_min
        key = histogram.counts.numel(), levels, histogram.starts, histogram.zero_point is None
        alike.setdefault(key, []).append(place)
    found: dict[int, tuple[float, float]] = {}
    for places in alike.values():
        for first in range(0, len(places), _TOGETHER):
            part = places[first : first + _TOGETHER]
            found |= dict(zip(part, RangeSearch([histograms[place] for place in part]).best(), strict=True))
    return [found[place] for place in range(len(histograms))]


@functools.lru_cache(maxsize=16)
def _count_up(first: int, size: int) -> Tensor:
    """`first`, `first + 1` ... as float64, (size,)."""
    return torch.arange(first, first + size, dtype=torch.float64, device="cpu")


class RangeSearch:
    """Search over histograms with the same number of bins, number of quantized values, and `starts`.

    Every operator works on each histogram, or each row of a matrix, independently of the others. So a histogram has the
    same result in every company, bit for bit.

    Args:
        histograms: one or more.
    Source: clipping against rounding: Bennett, "Spectra of quantized signals", 1948.
    """

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        one = histograms[0]
        self._levels, self._starts, self._bins = one.quant_max - one.quant_min, one.starts, one.counts.numel()
        self._is_symmetric = one.zero_point is not None
        self._widest = torch.tensor([(each.high - each.low) / self._levels for each in histograms], dtype=torch.float64)
        self._first = torch.tensor([float(each.first) for each in histograms], dtype=torch.float64)
        self._middles = _count_up(self._starts[0], self._levels + len(self._starts) - 1) + 0.5
        self._tops = _count_up(self._starts[0] + self._levels, len(self._starts))
        self._fill(histograms)

    def _fill(self, histograms: Sequence[Histogram]) -> None:
        """Set the tables over bin edges, without spikes, float64, (histograms, bins + 1): values in the bin above the
        edge, values below it, sum of the distances to these and of their
        squares. And number, sum and sum of squares of all values, (histograms,).
        """
        shape = len(histograms), self._bins + 1
        self._counts, self._below = torch.zeros((2, *shape), dtype=torch.float64, device="cpu")
        own = self._counts[:, :-1]
        own.copy_(torch.stack([histogram.counts for histogram in histograms]))
        self._spikes = torch.zeros(2, 2, shape[0], dtype=torch.float64)  # (low or high, place or number, histograms)
        totals = own.sum(1).tolist()  # exact
        for row, (histogram, total) in enumerate(zip(histograms, totals, strict=True)):
            for side, (place, number) in enumerate(histogram.spikes):
                if number > _SPIKE * total:
                    self._spikes[side, :, row] = torch.tensor([place, number], dtype=torch.float64)
                    # Arithmetic of bins may have counted a value very close to 0 in the bin on its other side.
                    own[row, math.floor(place) - histogram.first].sub_(number).clamp_(min=0.0)
        torch.cumsum(own, 1, out=self._below[:, 1:])
        self._distance = torch.cumsum(self._below, 1).sub_(self._below, alpha=0.5)
        self._squared = torch.zeros_like(self._below)
        torch.cumsum((2.0 * self._distance + self._below + self._counts / 3.0)[:, :-1], 1, out=self._squared[:, 1:])
        left = self._first[:, None] + _count_up(0, self._bins)  # (histograms, bins)
        moments = own * left
        number, moment = self._below[:, -1], _sum(moments)
        # In a bin, the mean of x is left + 1 / 2, and that of x**2 is left**2 + left + 1 / 3.
        self._number, self._sum = number.clone(), moment + number / 2.0
        self._squares = _sum(moments.mul_(left)) + moment + number / 3.0
        self._has_spikes = self._spikes[:, 1].amax().item() > 0.0
        for place, many in self._spikes:
            self._number += many
            self._sum += many * place
            self._squares += many * place.square()

    def errors(self, steps: Tensor, rows: Tensor) -> Tensor:
        """Sums of squared errors of all grids with some steps, exact for values evenly spread within each bin.

        From one quantized value to the next, at the threshold `t` between them, the squared error of a value `x`
        changes by `2 * step * (t - x)`. So the error of a grid is the error of rounding all values to its largest
        quantized value, less the sum of `2 * step * (t - x)` over all thresholds and the values below each.

        Args:
            steps: float64, (steps,).
            rows: histogram of each step, int64, (steps,).
        Returns: float64, (steps, starts), for each `n_min` in `starts`.
        Cost: O(steps * levels): grids of the same step share their thresholds.
        """
        number = max(_CACHED // len(self._middles), 1)
        pairs = zip(torch.split(steps, number), torch.split(rows, number), strict=True)
        below = torch.cat([self._below_thresholds(torch.outer(part, self._middles), row) for part, row in pairs])
        count, total, squares = (value[rows].unsqueeze(1) for value in (self._number, self._sum, self._squares))
        tops = torch.outer(steps, self._tops)
        errors: Tensor = (tops * count).sub_(total, alpha=2.0).mul_(tops).add_(squares)
        return errors.sub_(below.mul_(steps.unsqueeze(1)), alpha=2.0)

    def _below_thresholds(self, thresholds: Tensor, rows: Tensor) -> Tensor:
        """For each grid, sum over its thresholds of the distances to the values below; float64, (steps, starts).

        Args:
            thresholds: of all grids of a step, ascending, float64, (steps, levels + starts - 1).
            rows: histogram of each step, int64, (steps,).
        """
        running = torch.zeros(len(rows), thresholds.shape[1] + 1, dtype=torch.float64)
        torch.cumsum(self._distances(thresholds, rows), 1, out=running[:, 1:])
        return running[:, self._levels :] - running[:, : len(self._starts)]

    def _distances(self, places: Tensor, rows: Tensor) -> Tensor:
        """For each place, the sum of the distances to the values below it; float64, (steps, places)."""
        from_first = (places - self._first[rows, None]).clamp_(min=0.0)
        edge = from_first.to(torch.int32).clamp_(max=self._bins)
        rest = from_first.sub_(edge).view(-1)
        edge = edge.add_((rows * (self._bins + 1)).to(torch.int32).unsqueeze(1)).view(
            -1
        )  # positions in the flat tables
        tables = (table.view(-1).index_select(0, edge) for table in (self._counts, self._below, self._distance))
        within, below, sums = tables
        sums = sums.add_(below.add_(within.mul_(rest), alpha=0.5).mul_(rest)).view(places.shape)
        if self._has_spikes:
            for place, number in self._spikes[:, :, rows].unsqueeze(3):  # (steps, 1)
                sums.add_((places - place).clamp_(min=0.0).mul_(number))
        return sums

    def clipping(self, steps: Tensor, rows: Tensor) -> Tensor:
        """The part of the smallest error of the grids with some steps that clipping causes; (steps,).

        It is a lower bound on the error. For several starts it is 0, which would cost as much as the errors.

        Args:
            steps: float64, (steps,).
            rows: histogram of each step, int64, (steps,).
        """
        if len(self._starts) > 1:
            return torch.zeros_like(steps)
        top, bottom = steps * self._tops, steps * float(self._starts[0])
        number, total, squares = self._number[rows], self._sum[rows], self._squares[rows]
        from_top = (top * number).sub_(total, alpha=2.0).mul_(top).add_(squares)
        # A difference of large numbers, which may be wrong by 1e-12 of them; an error is about 1e-5 of them.
        outside: Tensor = from_top * (1.0 - 1e-9) - self._squared_distances(top, rows)
        return outside.add_(self._squared_distances(bottom, rows))

    def _squared_distances(self, places: Tensor, rows: Tensor) -> Tensor:
        """For each place, the sum of the squared distances to the values below it; (steps,)."""
        from_first = (places - self._first[rows]).clamp_(min=0.0)
        edge = from_first.to(torch.int64).clamp_(max=self._bins)
        rest = from_first - edge
        edge += rows * (self._bins + 1)
        tables = (table.view(-1)[edge] for table in (self._counts, self._below, self._distance, self._squared))
        within, below, distance, squared = tables
        sums: Tensor = squared + rest * (2.0 * distance + rest * (below + rest * within / 3.0))
        for place, number in self._spikes[:, :, rows]:
            sums += (places - place).clamp_(min=0.0).square_() * number
        return sums

    def best(self) -> list[tuple[float, float]]:
        """Range of each histogram with an error within about 1 % of the smallest."""
        ratio = 2.0 ** (1.0 / _PER_OCTAVE)
        rows = torch.arange(len(self._first))
        self._known = self.errors(self._widest, rows).amin(1)
        ladder = self._widest[:, None] * ratio ** -_count_up(0, _OCTAVES * _PER_OCTAVE)  # (histograms, steps)
        first = self._lowest(ladder, rows, 1)
        steps = self._around(first, rows, ratio, _NEAR)
        errors = self._useful_errors(steps, rows)
        found = self._ranges(steps, errors)
        rough = (~_is_smooth(errors.amin(2))).nonzero().flatten()
        if len(rough):
            steps = first[rough]
            for number, finer in _REFINEMENTS:
                steps = self._around(self._lowest(steps, rough, number), rough, ratio, finer)
                ratio **= 1.0 / finer
            refined = self._ranges(steps, self._useful_errors(steps, rough))
            for row, range_ in zip(rough.tolist(), refined, strict=True):
                found[row] = range_
        return found

    def _useful_errors(self, steps: Tensor, rows: Tensor) -> Tensor:
        """Errors, (histograms, steps, starts); infinite for steps that the search need not look at.

        These are steps larger than the whole range needs, and steps for which clipping alone costs more than the
        smallest error known.

        Args:
            steps: float64, (histograms, steps).
            rows: int64, (histograms,).
        """
        flat, row = steps.view(-1), rows.repeat_interleave(steps.shape[1])
        is_useful = flat <= self._widest[row] * (1.0 + 1.0 / self._levels)
        is_useful &= self.clipping(flat, row) <= self._known[row]
        errors = torch.full((len(flat), len(self._starts)), math.inf, dtype=torch.float64)
        if bool(is_useful.any()):
            errors[is_useful] = self.errors(flat[is_useful], row[is_useful])
        errors = errors.view(*steps.shape, -1)
        self._known[rows] = torch.minimum(self._known[rows], errors.amin((1, 2)))
        return errors

    def _lowest(self, steps: Tensor, rows: Tensor, number: int) -> Tensor:
        """The steps with the smallest errors of each histogram, (histograms, number)."""
        if steps.shape[1] == number:
            return steps
        errors = self._useful_errors(steps, rows).amin(2)
        return steps.gather(1, errors.topk(number, dim=1, largest=False).indices)

    def _around(self, steps: Tensor, rows: Tensor, ratio: float, number: int) -> Tensor:
        """For each step, `number` steps on each side of it, up to a ratio; (histograms, steps)."""
        powers = ratio ** (_count_up(-number, 2 * number + 1) / number)
        return (steps.unsqueeze(2) * powers).view(len(rows), -1)  # (histograms, steps, 2 * number + 1)

    def _ranges(self, steps: Tensor, errors: Tensor) -> list[tuple[float, float]]:
        """The range of each histogram with the smallest error, from which an observer derives its grid."""
        places = errors.flatten(1).argmin(1)
        chosen = steps.gather(1, (places // len(self._starts)).unsqueeze(1)).squeeze(1).tolist()
        starts = [self._starts[place % len(self._starts)] for place in places.tolist()]
        if self._is_symmetric:
            return [(-step * self._levels / 2.0, step * self._levels / 2.0) for step in chosen]
        return [(step * start, step * (start + self._levels)) for step, start in zip(chosen, starts, strict=True)]


def _sum(values: Tensor) -> Tensor:
    """Sum of each row, added up from left to right: the same for any number of rows."""
    return values.cumsum(1)[:, -1]


def _is_smooth(errors: Tensor) -> Tensor:
    """Whether the second differences of the logarithms of the errors are small, (histograms,).

    Args:
        errors: (histograms, steps); infinite ones are left out.
    """
    curvature = errors[:, 2:] * errors[:, :-2] / errors[:, 1:-1].square()
    is_small = (curvature >= math.exp(-_SMOOTH)) & (curvature <= math.exp(_SMOOTH))  # errors of 0 give NaN: not small
    is_left_out = (errors[:, 2:] + errors[:, 1:-1] + errors[:, :-2]).isinf()
    return (is_small | is_left_out).all(1) & (is_small.sum(1) >= _ENOUGH)

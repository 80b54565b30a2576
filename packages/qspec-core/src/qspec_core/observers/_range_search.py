"""Which part of a histogram to quantize: the range with the smallest squared error.

All lengths are in bin widths and 0 lies on a bin edge. Within a bin the values count as evenly spread, so that the
error of a range is a closed form, not a simulation; values that sit exactly on a limit may be told apart.
"""

import functools
import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid", "RangeSearch"]

_CROWD = 2.0**-10
"""Share of all values from which on those on a limit are told apart from their bin."""

_ROUNDS, _SETTLED = 12, 0.01
"""Of the search for a balance: most rounds, and the relative change of the range from which on it ends."""

_ROUGH = 0.02
"""Root of the squared changes from bin to bin, as a share of the values that are rounded, times the step, up to which
steps see a smooth density. Where changes fall at random within the steps, they alter the error by 0.13 of that."""

_RESOLVED = 64.0
"""Balanced range, in bins, under which the spread within a bin counts."""

_SHORT = 8.0
"""Steps on the shorter side of 0 under which it matters which value the smallest step stands for."""

_CENTRE = 2.0
"""Steps about 0 in which changes do not make the error leap: 0 is a quantized value of every grid."""

_UNCLIPPED = 0.02
"""Relative difference from what rounding costs up to which a grid that clips nothing is the best."""

_LEAPS = 0.3
"""Roughness away from 0 from which on the error changes by leaps with the range: its minimum may be anywhere."""

_LEVELS = 64
"""Steps from which on they are so fine that the minimum is near the balance, unless there are leaps."""

_AROUND, _FEW = 0.85, 9
"""What share of the balanced step is tried, up to its inverse, and how many steps between, for each place of 0."""

_BUDGET, _MOST = 1 << 15, 768
"""Thresholds looked at in a search for leaps, and grids at most."""

_BEST = 3
"""Grids about which a search for leaps looks closer."""

_EACH = 24
"""Steps tried for each place of 0, at least, in a search for leaps."""

_SMALLEST = 2.0**-11
"""Smallest share of the whole range that is tried where the balance says little."""

_FINER = 8
"""Steps tried on each side of the best one, up to the next that was tried before."""


@functools.lru_cache(maxsize=16)
def _count_up(size: int) -> Tensor:
    """0, 1, 2 ... as float64, (size,)."""
    return torch.arange(size, dtype=torch.float64, device="cpu")


@functools.lru_cache(maxsize=16)
def _squares(bins: int) -> Tensor:
    """Mean of x * x over bin `i`, from `i` to `i + 1`; float64, (bins,)."""
    left = _count_up(bins)
    return left * (left + 1.0) + 1.0 / 3.0


def _table(size: int) -> tuple["array[float]", Tensor]:
    """Memory of float64 and a tensor over it, (size,)."""
    memory = array("d", bytes(8 * size))
    return memory, torch.frombuffer(memory, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid of quantized values: `step * n` for whole numbers `n` from `n_min` on, as many as the scheme has."""

    step: float
    n_min: int


class RangeSearch:
    """Search over one histogram.

    Args:
        counts: values in each bin, (bins,), on the CPU, not negative, not all 0.
        first: number of the first bin; bin `i` holds the values from `i` to `i + 1`.
        low: smallest value, at most 0.
        high: largest value, at least 0, greater than `low`.
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
        self.low, self.high = low, high
        self._levels, self._n_min = quant_max - quant_min, None if zero_point is None else quant_min - zero_point
        self._bins, self._zero = counts.numel(), -first
        self._crowds: list[tuple[float, float]] = []
        if crowds:
            counts = self._set_apart(counts, crowds)
        self._counts = counts
        self._fill()

    def _set_apart(self, counts: Tensor, crowds: Sequence[tuple[float, float]]) -> Tensor:
        """Note the crowds that matter; return the counts without them."""
        total = float(counts.sum())
        self._crowds = [(place, number) for place, number in crowds if place != 0.0 and number > _CROWD * total]
        if self._crowds:
            counts = counts.to(torch.float64, copy=True)
        for place, number in self._crowds:
            # A value too close to 0 for the arithmetic of bins may have been counted beside it.
            counts[math.floor(place) + self._zero].sub_(number).clamp_(min=0)
        return counts

    def _fill(self) -> None:
        """Tables over the edges of the bins, counted from the first: values below; sum of the distances to them; and
        what limits there would cut off, sums of the distances to the values beyond, the upper negated, so that both
        rise. Tensors over plain memory, which Python reads and bisects.
        """
        edges = _count_up(self._bins + 1)
        self._below, below = _table(self._bins + 1)
        self._distance, distance = _table(self._bins + 1)
        self._upper, upper = _table(self._bins + 1)
        torch.cumsum(self._counts, 0, dtype=torch.float64, out=below[1:])
        torch.cumsum(below, 0, out=distance).sub_(below, alpha=0.5)
        self._total = self._below[-1]
        self._first_moment = self._total * self._bins - self._distance[-1]
        torch.sub(torch.mul(edges, self._total, out=upper), distance, out=upper).sub_(self._first_moment)
        self._lower, lower = self._distance, distance
        if self._crowds:
            self._lower, lower = _table(self._bins + 1)
            lower.copy_(distance)
        for place, number in self._crowds:
            beyond = torch.relu((edges - (self._zero + place)) * math.copysign(number, -place))
            lower.add_(beyond) if place < 0.0 else upper.sub_(beyond)
        self._tables = below, distance

    def error(self, grids: Sequence[Grid]) -> list[float]:
        """Sum of squared errors of some grids, exact for values evenly spread within each bin.

        A step up from one quantized value to the next, at the threshold `t` between them, changes the squared error of
        a value `x` by `2 * step * (t - x)`. Hence the error is that of the largest quantized value for all, less the
        sum of `2 * step * (t - x)` over all thresholds and the values below each.

        Cost: O(grids * steps).
        """
        start = [self._zero + grid.step * (grid.n_min + 0.5) for grid in grids]
        lines = torch.tensor([start, [grid.step for grid in grids]], dtype=torch.float64, device="cpu").unsqueeze(2)
        thresholds = torch.addcmul(lines[0], lines[1], _count_up(self._levels)).clamp_(min=0.0)
        edge = thresholds.to(torch.int32).clamp_(max=self._bins)
        rest, place = thresholds.sub_(edge).view(-1), edge.view(-1)
        below, distance, half = (table.index_select(0, place) for table in (*self._tables, self._half))
        sums = distance.addcmul_(below.addcmul_(half, rest), rest).view(edge.shape).sum(1).tolist()
        return [self._error_of(grid, distances) for grid, distances in zip(grids, sums, strict=True)]

    def _error_of(self, grid: Grid, distances: float) -> float:
        """Its error, from the sum of the distances of the values below each threshold."""
        top = self._zero + grid.step * (grid.n_min + self._levels)
        error = (top * self._total - 2.0 * self._first_moment) * top + self._second_moment
        error = max(error - 2.0 * grid.step * distances, 0.0)
        for place, number in self._crowds:
            level = min(max(round(place / grid.step), grid.n_min), grid.n_min + self._levels)
            error += number * (level * grid.step - place) ** 2
        return error

    @functools.cached_property
    def _half(self) -> Tensor:
        """Half of the values in the bin above each edge."""
        half = torch.zeros(self._bins + 1, dtype=torch.float64, device="cpu")
        torch.mul(self._counts, 0.5, out=half[:-1])
        return half

    @functools.cached_property
    def _second_moment(self) -> float:
        """Sum of the squared distances from the first edge."""
        return 2.0 * float(torch.dot(self._half[:-1], _squares(self._bins)))

    def best(self) -> tuple[float, float]:
        """The range with the smallest error, to within about 1 %.

        Cost: O(bins), with a small constant for a smooth histogram and a larger one for one with spikes.
        """
        low, high = self._balance()
        balanced, whole = self._grid(low, high), self._grid(self.low, self.high)
        is_short = self._n_min is None and 0.0 < min(-low, high) < _SHORT * balanced.step
        is_resolved = high - low >= _RESOLVED
        roughness = self._roughness(balanced.step)
        if is_resolved and not is_short and not self._crowds and roughness <= _ROUGH:
            return self._range(balanced)
        if self._crowds and is_resolved and roughness <= _LEAPS and balanced.step > (1.0 - _UNCLIPPED) * whole.step:
            best = self._lowest([whole, *self._through_crowds(whole)], 1)
            if self.error(best)[0] <= (1.0 + _UNCLIPPED) * self._rounding(best[0].step):
                return self._range(best[0])
        leaps = not is_resolved or self._levels < _LEVELS or bool(self._crowds)
        leaps = leaps or self._roughness(balanced.step, _CENTRE) > _LEAPS
        return self._range(self._searched(balanced, whole, leaps=leaps))

    def _grid(self, low: float, high: float) -> Grid:
        """The grid that an observer derives from a range."""
        if self._n_min is not None:
            return Grid(max(-low, high) * 2.0 / self._levels, self._n_min)
        step = (high - low) / self._levels
        return Grid(step, min(max(round(low / step), -self._levels), 0))

    def _range(self, grid: Grid) -> tuple[float, float]:
        """A range from which an observer derives this grid."""
        if self._n_min is not None:
            high = grid.step * self._levels / 2.0
            return -high, high
        return grid.step * grid.n_min, grid.step * (grid.n_min + self._levels)

    def _balance(self) -> tuple[float, float]:
        """Range at whose limits clipping pulls as hard as the width of the steps: where the error has its minimum, as
        long as the values beyond the middle step count as evenly spread within theirs.
        """
        low, high = self.low, self.high
        for _ in range(_ROUNDS):
            width = high - low
            pull = self._rounded(width / self._levels) * width / (12.0 * self._levels**2)
            if self._n_min is not None:
                high = self._cut_both(self._n_min, 2.0 * pull)
                low = -high
            else:
                low, high = self._cut_low(pull), self._cut_high(pull)
            if abs(high - low - width) <= _SETTLED * width or high == low:
                break
        return (low, high) if high > low else (self.low, self.high)

    def _cut_low(self, pull: float) -> float:
        """Lower limit beyond which the values lie by a sum of distances as great as `pull`."""
        edge = bisect_left(self._lower, pull, 0, self._zero + 1)
        if edge > self._zero:
            return 0.0
        before = self._lower[edge - 1] if edge else 0.0
        return max(edge - (self._lower[edge] - pull) / max(self._lower[edge] - before, 1e-300) - self._zero, self.low)

    def _cut_high(self, pull: float) -> float:
        """Upper limit beyond which the values lie by a sum of distances as great as `pull`."""
        edge = bisect_left(self._upper, -pull, self._zero)
        if edge in (self._zero, self._bins + 1):
            return 0.0 if edge == self._zero else self.high
        before = self._upper[edge - 1]
        return min(edge - (self._upper[edge] + pull) / max(self._upper[edge] - before, 1e-300) - self._zero, self.high)

    def _cut_both(self, n_min: int, pull: float) -> float:
        """Largest magnitude of a symmetric range beyond whose values, on both sides, lie a sum of distances as great as
        `pull`: the smallest and the largest quantized value may differ in magnitude by a step.
        """
        lower, upper = -2.0 * n_min / self._levels, 2.0 * (n_min + self._levels) / self._levels

        def left(distance: float) -> float:
            above = self._at(self._upper, self._zero + distance * upper)
            return above - self._at(self._lower, self._zero - distance * lower)

        most = self.high * (1.0 + 1.0 / self._levels)
        edge = bisect_left(range(math.ceil(most)), -pull, key=left)
        if edge == 0:
            return 0.0
        before, after = left(edge - 1), left(edge)
        return min(edge - max(after + pull, 0.0) / max(after - before, 1e-300), most)

    def _rounded(self, step: float) -> float:
        """Values that the middle step does not hold."""
        below = self._at(self._below, self._zero + step / 2.0)
        return self._total - below + self._at(self._below, self._zero - step / 2.0)

    def _at(self, table: "array[float]", place: float) -> float:
        """What a table holds at a place counted from the first edge, between the edges in proportion."""
        place = min(max(place, 0.0), float(self._bins))
        edge = int(place)
        return table[edge] + (place - edge) * (table[min(edge + 1, self._bins)] - table[edge])

    def _roughness(self, step: float, centre: float = 0.0) -> float:
        """How rough a density the steps see; see `_ROUGH`. Changes at 0 and so many steps about it do not count."""
        reach = math.ceil(centre * step) + 1
        near = self._changes[max(self._zero - 1 - reach, 0) : self._zero + reach]
        squares = self._squared_changes - float(torch.dot(near, near))
        return math.sqrt(max(squares, 0.0)) * step / max(self._rounded(step), 1.0)

    @functools.cached_property
    def _changes(self) -> Tensor:
        """Difference of the counts on both sides of every inner edge, from the second edge on."""
        return torch.diff(self._tables[0], n=2)

    @functools.cached_property
    def _squared_changes(self) -> float:
        return float(torch.dot(self._changes, self._changes))

    def _rounding(self, step: float) -> float:
        """Error of rounding, as long as the values beyond the middle step count as evenly spread within theirs."""
        half = step / 2.0
        start, end = max(self._zero - math.ceil(half), 0), min(self._zero + math.ceil(half), self._bins)
        middle = 0.0
        for edge in range(start, end):
            left, right = (min(max(place - self._zero, -half), half) for place in (edge, edge + 1))
            middle += (self._below[edge + 1] - self._below[edge]) * (right**3 - left**3) / 3.0
        return middle + self._rounded(step) * step * step / 12.0

    def _starts(self, smallest: float, around: int = 0) -> list[int]:
        """Whole numbers that the smallest quantized value may stand for, by what it would be at best."""
        if self._n_min is not None:
            return [self._n_min]
        starts = range(math.floor(smallest) - around, math.ceil(smallest) + around + 1)
        return sorted({min(max(start, -self._levels), 0) for start in starts})

    def _through_crowds(self, whole: Grid) -> list[Grid]:
        """Grids about that of the whole range that put a crowd exactly on a quantized value."""
        found = []
        for n_min in self._starts(self.low / whole.step):
            for place, _ in self._crowds:
                level = abs(place) / whole.step
                near = {math.floor(level + 1e-6), math.ceil(level - 1e-6)}
                found += [Grid(abs(place) / max(n, 1), n_min) for n in near]
        return found

    def _searched(self, balanced: Grid, whole: Grid, *, leaps: bool) -> Grid:
        """The best of many grids, for histograms whose error the balance does not tell.

        Args:
            leaps: whether the error changes by leaps with the range.
        """
        if self._levels < _LEVELS and self.low and self.high:
            starts = self._starts(-self._levels / 2, self._levels)
        else:
            starts = sorted({n for grid in (balanced, whole) for n in self._starts(grid.n_min, around=1)})
        smallest, largest, number = balanced.step * _AROUND, balanced.step / _AROUND, _FEW
        if leaps:
            smallest, largest = balanced.step / 2.0, whole.step * (1.0 + 1.0 / self._levels)
            number = max(min(_BUDGET // self._levels, _MOST) // len(starts), _EACH)
        ratio = (largest / smallest) ** (1.0 / (number - 1))
        steps = [smallest * ratio**k for k in range(number)]
        if balanced.step * self._levels < _RESOLVED:  # the balance says little
            steps += [whole.step * _SMALLEST ** (k / number) for k in range(number)]
        grids = [whole, *self._through_crowds(whole), *(Grid(step, n_min) for n_min in starts for step in steps)]
        best = self._lowest(grids, _BEST if leaps else 1)
        for _ in range(2 if leaps else 1):
            ratio **= 1.0 / _FINER
            finer = [ratio**k for k in range(-_FINER, _FINER + 1)]
            best = self._lowest([Grid(grid.step * share, grid.n_min) for grid in best for share in finer], len(best))
        return best[0]

    def _lowest(self, grids: Sequence[Grid], number: int) -> list[Grid]:
        """The grids with the smallest errors, best first."""
        errors = self.error(grids)
        return [grids[index] for index in sorted(range(len(grids)), key=errors.__getitem__)[:number]]

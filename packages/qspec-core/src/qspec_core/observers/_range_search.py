"""Which part of a histogram to quantize: the range with the smallest squared error.

All lengths are in bin widths and 0 lies on a bin edge. Within a bin the values count as evenly spread, so that the
error of a range is a closed form, not a simulation; values that sit exactly on a limit may be told apart.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grids", "RangeSearch"]


def _linspace(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")


def _array(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


_GEOMETRIC = torch.exp2(_linspace(-8.0, 0.0, 16))
"""Shares of the whole range that are tried first; the best range is small where outliers are rare and far."""

_BUDGET = 1 << 18
"""Edges times ranges looked at first where the histogram has spikes: fewer edges leave room for more ranges."""

_AROUND = tuple(1.0 + step * _linspace(-4.0, 4.0, 9) for step in (0.08, 0.016))
_NEAR = tuple(1.0 + step * _linspace(-2.0, 2.0, 5) for step in (0.02, 0.006, 0.002))
"""Shares of the best range so far that are tried next, for the estimate and for the error."""

_PROBES = _array([1.0, 0.95])
"""Shares of the range found at which the estimate is compared with the error."""

_AGREEMENT = 0.02
"""Relative difference between estimate and error up to which the histogram counts as smooth."""

_RESOLVED = 64.0
"""Range, in bins, under which whole bins are too coarse a step for the estimate."""

_CROWD = 2.0**-10
"""Share of all values from which on those on a limit are told apart from their bin."""

_WIDEST = float(_AROUND[0][-1])
"""Greatest share of the whole range that the estimate is asked for."""

_NONE = _array([])
_ZERO = _array([0.0])


@functools.lru_cache(maxsize=8)
def _edges(bins: int) -> Tensor:
    """Edges of the bins, from the first one, float64, (bins + 1,)."""
    return _linspace(0.0, float(bins), bins + 1)


@functools.lru_cache(maxsize=8)
def _powers(bins: int) -> Tensor:
    """Mean of 1, x and x * x over bin `i`, from `i` to `i + 1`; float64, (3, bins)."""
    left = _edges(bins)[:-1]
    return torch.stack((torch.ones_like(left), left + 0.5, left * (left + 1.0) + 1.0 / 3.0))


@dataclass(frozen=True)
class Grids:
    """Candidate grids of quantized values, one an entry: `scale * n` for n from `n_min` to `n_max`."""

    scale: Tensor
    n_min: Tensor
    n_max: Tensor

    @classmethod
    def affine(cls, low: Tensor, high: Tensor, quant_min: int, quant_max: int) -> "Grids":
        """Grids that follow from the ranges `low <= 0 <= high` as an affine observer computes them."""
        steps = float(quant_max - quant_min)
        scale = (high - low).div_(steps)
        n_min = (low / scale).round_().clamp_(-steps, 0.0)
        return cls(scale, n_min, n_min + steps)

    @classmethod
    def symmetric(cls, high: Tensor, quant_min: int, quant_max: int, zero_point: int) -> "Grids":
        """Grids that follow from the ranges -high..high as a symmetric observer computes them."""
        scale = high / (float(quant_max - quant_min) / 2)
        return cls(scale, torch.full_like(high, quant_min - zero_point), torch.full_like(high, quant_max - zero_point))


class RangeSearch:
    """Search over one histogram.

    Args:
        counts: values in each bin, float64, (bins,), on the CPU, not negative, not all 0.
        first: number of the first bin; bin `i` holds the values from `i` to `i + 1`.
        low: smallest value, at most 0.
        high: largest value, at least 0, greater than `low`.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        zero_point: that of a symmetric scheme; None for an affine one.
        crowds: values where many may sit, and how many do; counted in `counts` as well. What clamps its output has
            them on its limits.
    Source: the squared error of rounding to equal steps and of clipping, Bennett, "Spectra of quantized signals", 1948.
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
        self.first, self.low, self.high = first, low, high
        self.quant_min, self.quant_max, self.zero_point = quant_min, quant_max, zero_point
        self._steps = float(quant_max - quant_min)
        self._has_one_side = zero_point is not None or low == 0.0 or high == 0.0
        self._last = counts.numel()
        self._crowd_places, self._crowd_counts = _NONE, _NONE
        if crowds:
            counts = self._set_apart(counts, crowds)
        # Sums of 1, x and x * x over all values below each edge, where x is the distance from the first edge.
        moments = counts.new_zeros((3, self._last + 1))
        torch.mul(counts, _powers(self._last), out=moments[:, 1:])
        moments.cumsum_(1)
        self._below = self._clipping(moments)
        self._inner = self._around_zero(moments)
        changes = torch.diff(counts, prepend=_ZERO, append=_ZERO)
        used = changes.nonzero().view(-1)
        self._changes = changes[used]
        # Crowds come first: one division serves them and the edges.
        self._places = torch.cat((self._crowd_places, used + float(first)))

    def _set_apart(self, counts: Tensor, crowds: Sequence[tuple[float, float]]) -> Tensor:
        """Note the crowds that matter; return the counts without them."""
        total = float(counts.sum())
        kept = [(place, number) for place, number in crowds if place != 0.0 and number > _CROWD * total]
        if not kept:
            return counts
        counts = counts.clone()
        for place, number in kept:
            # A value too close to 0 for the arithmetic of bins may have been counted beside it.
            counts[math.floor(place) - self.first].sub_(number).clamp_(min=0.0)
        self._crowd_places = _array([place for place, _ in kept])
        self._crowd_counts = _array([number for _, number in kept])
        return counts

    @staticmethod
    def _clipping(moments: Tensor) -> Tensor:
        """Values below each edge, and squared error of clipping there, from below and from above; (3, edges)."""
        edge = _edges(moments.shape[1] - 1)
        table = torch.empty_like(moments)
        table[0] = moments[0]
        below = torch.mul(edge, moments[0], out=table[1])
        below.sub_(moments[1], alpha=2.0).mul_(edge).add_(moments[2])
        count, total, square = moments[:, -1].tolist()
        above = torch.mul(edge, count, out=table[2])
        above.sub_(2.0 * total).mul_(edge).add_(square).sub_(below)
        return table

    def _around_zero(self, moments: Tensor) -> Tensor:
        """Sums of 1 and x * x over the values within k bins of 0, for as many k as half a step of the widest range;
        then what each gains from k to k + 1. (4, reach)
        """
        reach, zero = int((self.high - self.low) * _WIDEST / self._steps / 2) + 3, -self.first
        start, end = max(zero - reach, 0), min(zero + reach, self._last)
        # In plain numbers: with 8 bits there are a handful of them.
        rows = moments[:, start : end + 1].tolist()
        number, square = [], []
        for k in range(reach):
            outer, inner = min(zero + k, end) - start, max(zero - k, start) - start
            count, total, squares = (row[outer] - row[inner] for row in rows)
            number.append(count)
            square.append(squares - zero * (2.0 * total - zero * count))  # x from the first edge to x from 0
        inner_table = _array([number, square])
        return torch.cat((inner_table[:, :-1], torch.diff(inner_table)))

    def grids(self, low: Tensor, high: Tensor) -> Grids:
        """Grids of the scheme at hand for candidate ranges."""
        if self.zero_point is None:
            return Grids.affine(low, high, self.quant_min, self.quant_max)
        return Grids.symmetric(torch.maximum(-low, high), self.quant_min, self.quant_max, self.zero_point)

    def error(self, low: Tensor, high: Tensor) -> Tensor:
        """Sum of squared errors of each candidate range, exact for values evenly spread within each bin.

        Args:
            low: lower limits, float64, (candidates,), at most 0.
            high: upper limits, float64, (candidates,), at least 0.
        Cost: O(candidates * edges between bins of different counts).
        """
        grids = self.grids(low, high)
        # The integral of the squared error up to x is scale**3 * (n / 12 + r**3 / 3), where n is the quantized value
        # and r the rest; summing by parts needs it only where the count changes.
        rest = self._places / grids.scale[:, None]
        level = rest.round().clamp_(grids.n_min[:, None], grids.n_max[:, None])
        rest.sub_(level)
        crowds = self._crowd_counts.numel()
        spread, square = rest[:, crowds:], grids.scale * grids.scale
        cubes = (spread * spread).mul_(spread).add_(level[:, crowds:], alpha=0.25)
        error = (cubes @ self._changes).mul_(square * grids.scale).mul_(-1.0 / 3.0)
        if crowds:
            error += (rest[:, :crowds].square() @ self._crowd_counts).mul_(square)
        return error

    def estimate(self, low: Tensor, high: Tensor) -> Tensor:
        """Estimate of `error`, crowds left out, in constant time per range, limits rounded to edges: clipping is exact,
        and so is rounding in the step around 0, where activations crowd; in the others it is scale**2 / 12 a value.

        Args:
            low: lower limits, float64, (lows,), at most 0.
            high: upper limits, float64, (highs,), at least 0.
        Returns: (ranges,), of every lower with every upper limit, or of one with one where one side alone is free.
        """
        edge = torch.cat((low, high)).round_().sub_(float(self.first)).clamp_(0.0, float(self._last)).long()
        table = self._below.index_select(1, edge)
        at_low, at_high = table[:, : low.numel()], table[:, low.numel() :]
        if not self._has_one_side:
            low, at_low, at_high = low.unsqueeze(1), at_low.unsqueeze(2), at_high.unsqueeze(1)
        scale = (high - low).mul_(1.0 / self._steps).view(-1)
        reach = (scale * 0.5).long()
        inner = self._inner.index_select(1, reach)
        inner = torch.addcmul(inner[:2], inner[2:], torch.add(-reach, scale, alpha=0.5))
        stepped = (at_high[0] - at_low[0]).view(-1).sub_(inner[0]).mul_(scale).mul_(scale)
        return (at_low[1] + at_high[2]).view(-1).add_(inner[1]).add_(stepped, alpha=1.0 / 12.0)

    def best(self) -> tuple[float, float]:
        """The range with the smallest error, to within about 1 %; never worse than the whole range.

        Cost: O(bins), with a small constant for a smooth histogram and a larger one for one with spikes.
        """
        low, high = self.low, self.high
        for shares in (_GEOMETRIC, *_AROUND):
            lows, highs = shares * low, shares * high
            chosen = int(self.estimate(lows, highs).argmin())
            first, second = (chosen, chosen) if self._has_one_side else divmod(chosen, highs.numel())
            low, high = max(self.low, float(lows[first])), min(self.high, float(highs[second]))
        lows, highs = torch.cat((_PROBES * low, _array([self.low]))), torch.cat((_PROBES * high, _array([self.high])))
        errors = self.error(lows, highs)
        if high - low < _RESOLVED or self._crowd_counts.numel() or not self._is_smooth(lows, highs, errors):
            return self._best_with_spikes(lows, highs)
        chosen = int(errors.argmin())
        return float(lows[chosen]), float(highs[chosen])

    def _is_smooth(self, lows: Tensor, highs: Tensor, errors: Tensor) -> bool:
        """Whether the estimate agrees with the error at the probes."""
        probes = _PROBES.numel()
        estimates = self.estimate(lows[:probes], highs[:probes])
        if not self._has_one_side:
            estimates = estimates[:: probes + 1]  # one with one, of every pair
        return bool(((estimates - errors[:probes]).abs_() <= _AGREEMENT * errors[:probes]).all())

    def _best_with_spikes(self, lows: Tensor, highs: Tensor) -> tuple[float, float]:
        """Search with the exact error, for histograms whose error changes by leaps with the range."""
        tries = _BUDGET // self._places.numel()
        per_side = max(8, min(512, tries if self._has_one_side else int(tries**0.5)))
        spread = [_linspace(0.0, 1.0, per_side + 1)[1:]]
        if highs[0] - lows[0] < _RESOLVED:
            spread.append(torch.exp2(_linspace(-11.0, 0.0, per_side)))
        tried = [(lows, highs), self._through_crowds(), *(self._scaled(self.low, self.high, part) for part in spread)]
        low, high = self._lowest(*(torch.cat(side) for side in zip(*tried, strict=True)))
        least, most = min(low, self.low), max(high, self.high)
        for shares in _NEAR:
            lows, highs = self._scaled(low, high, shares)
            low, high = self._lowest(lows.clamp_(min=least), highs.clamp_(max=most))
        return low, high

    def _through_crowds(self) -> tuple[Tensor, Tensor]:
        """Ranges about the whole one that put a crowd exactly on a quantized value; some are a step wider."""
        whole = (self.high - self.low) / self._steps
        lows, highs = [], []
        for place in self._crowd_places.abs().tolist():
            for level in (math.floor(place / whole), math.floor(place / whole) + 1):
                scale = place / max(level, 1)
                below = -self._steps / 2 if self.zero_point is not None else max(self.low / scale, -self._steps)
                for n_min in {math.floor(below), math.ceil(below)} if self.zero_point is None else {below}:
                    lows.append(n_min * scale)
                    highs.append((n_min + self._steps) * scale)
        return _array(lows), _array(highs)

    def _lowest(self, lows: Tensor, highs: Tensor) -> tuple[float, float]:
        chosen = int(self.error(lows, highs).argmin())
        return float(lows[chosen]), float(highs[chosen])

    def _scaled(self, low: float, high: float, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Every share of the lower with every share of the upper limit; one to one where one side alone is free."""
        lows, highs = shares * low, shares * high
        if self._has_one_side:
            return lows, highs
        return lows.repeat_interleave(highs.numel()), highs.repeat(lows.numel())
